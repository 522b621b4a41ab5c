"""Rows of an array of Zarr, whose shape says how many it was made for, and not how many were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.common.given import whole
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
    said: bool = False  # that there are so many rows: chunks that are not there hold the fill value

    def read(self, start: int, stop: int) -> np.ndarray:
        try:
            rows = np.ascontiguousarray(self.array[start:stop])
            if not self.said:  # the store does not tell which chunks of a shard are there
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


def open_zarr(path: Path, key: str | None, num_rows: int | None = None) -> ZarrRows:
    """Look at an array of Zarr, or at the first `num_rows` of it.

    Raises:
        DataError: chunks that nobody wrote, which read as rows of its fill value, unless the caller says how many rows there
            are; more of these than it has.
    """
    zarr = imported("zarr", "zarr", "rows of a Zarr array")
    try:
        found = zarr.open(str(path), mode="r")
        if not hasattr(found, "chunks"):
            found = found[choose_key(dict(found.arrays()), key, str(path))]
        elif key is not None:
            raise DataError(f"{path} is one array, and has no {key!r}: leave the key out.")
        shape, dtype, chunk = tuple(found.shape), np.dtype(found.dtype), int((found.chunks or (1,))[0])
        chunks, written, fill = int(found.nchunks), int(found.nchunks_initialized), found.fill_value
    except DataError:
        raise
    except Exception as error:  # of zarr's many kinds
        raise DataError(f"{path} cannot be read as Zarr ({type(error).__name__}: {error}).") from error
    check_rows(shape, dtype, str(path))
    if num_rows is None and written < chunks and fill == fill:  # NaN is refused, or missing, as everywhere
        raise DataError(
            f"{path} was made for {shape[0]:,} rows, and {chunks - written:,} of its {chunks:,} chunks are not there: nobody "
            f"wrote them, they are lost, or they hold {fill} alone. Say how many rows there are, from the first: "
            "Stored(path, num_rows=...), or in a shell --num-rows N, of train and of manifest FOLDER --of ... Or have them in "
            "the array: resize it to the rows that were written, or write it with "
            "zarr.config.set({'array.write_empty_chunks': True})."
        )
    if num_rows is not None and whole("num_rows", num_rows, 1) > shape[0]:
        raise DataError(f"{path} was made for {shape[0]:,} rows, and num_rows={num_rows:,} are more. Check the number.")
    rows = shape[0] if num_rows is None else int(num_rows)
    if rows < shape[0] and written == chunks and getattr(found, "shards", None) is None:  # of shards nobody knows
        raise DataError(
            f"{path} has {shape[0]:,} rows, all of them written, and num_rows={rows:,} are fewer. Leave num_rows out, or take "
            f"some of the rows: Stored(path)[:{rows}]."
        )
    return ZarrRows(path, found, rows, shape[1:], dtype, chunk, num_rows is not None)
