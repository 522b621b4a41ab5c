"""Rows of a Zarr array, read by its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.common.optional import imported
from pyro_vae.errors import DataError

from .row_files import Shape, check_rows, choose_key
from .unwritten_chunks import refuse_missing_chunks

ZARR = (".zarr", "zarr.json", ".zarray", ".zgroup")  # what a folder is called, or holds


@dataclass(frozen=True)
class ZarrRows:
    """An array of Zarr, read by chunks. What another process writes into its chunks meanwhile is not noticed."""

    path: Path
    array: Any
    rows: int
    row_shape: Shape
    dtype: np.dtype[Any]
    chunk: int

    def read(self, start: int, stop: int) -> np.ndarray:
        try:
            rows = np.ascontiguousarray(self.array[start:stop])
            refuse_missing_chunks(self.array, rows, start, self.path)
            return rows
        except DataError:
            raise
        except Exception as error:  # of the store, of a codec
            raise DataError(f"{self.path}: rows {start} to {stop - 1} cannot be read ({error}).") from error

    def pieces(self) -> Sequence[int]:
        return range(0, self.rows, self.chunk)


def is_zarr(path: Path) -> bool:
    """Return whether a folder holds a Zarr array, or a group of them."""
    return path.is_dir() and any(path.name.endswith(name) or (path / name).exists() for name in ZARR)


def open_zarr(path: Path, key: str | None) -> ZarrRows:
    """Look at an array of Zarr."""
    zarr = imported("zarr", "zarr", "rows of a Zarr array")
    try:
        found = zarr.open(str(path), mode="r")
        if not hasattr(found, "chunks"):
            found = found[choose_key(dict(found.arrays()), key, str(path))]
        elif key is not None:
            raise DataError(f"{path} is one array, and has no {key!r}: leave the key out.")
        shape, dtype, chunk = tuple(found.shape), np.dtype(found.dtype), int((found.chunks or (1,))[0])
    except DataError:
        raise
    except Exception as error:  # of zarr's many kinds
        raise DataError(f"{path} cannot be read as Zarr ({type(error).__name__}: {error}).") from error
    check_rows(shape, dtype, str(path))
    return ZarrRows(path, found, shape[0], shape[1:], dtype, chunk)
