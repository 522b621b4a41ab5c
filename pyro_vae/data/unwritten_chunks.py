"""Chunks of Zarr arrays and HDF5 data sets that nobody has written: both formats read the fill value there without a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.errors import DataError


def refuse_missing_chunks(array: Any, rows: np.ndarray, start: int, path: Path) -> None:
    """Refuse rows that were read of a Zarr array, from row `start` on, if a chunk of them is not stored.

    A chunk that is not stored reads as nothing but the fill value. Where a chunk does, it is read again from an array of the
    same files with another fill value, and what differs is not stored. An array whose fill value is NaN has NaN there, which is
    refused or taken as everywhere.

    Raises:
        DataError: names the first such chunk, its rows, and how to go on.
    """
    fill = np.zeros((), rows.dtype)[()] if array.fill_value is None else rows.dtype.type(array.fill_value)
    if fill != fill or not len(rows):
        return
    suspects = [(chunk, place) for chunk, place in chunks_of(array, rows, start) if (rows[place] == fill).all()]
    if not suspects:
        return
    other = rows.dtype.type(fill == 0)  # 1 where the fill value is 0, and 0 elsewhere
    twin = with_fill_value(array, other)
    for chunk, place in suspects:
        first, last = place[0].start + start, place[0].stop + start
        if (np.asarray(twin[(slice(first, last), *place[1:])]) != fill).any():
            raise DataError(
                f"{path}: chunk {', '.join(map(str, chunk))} of the array, in rows {first} to {last - 1} (counted from 0), is "
                f"not stored, and Zarr reads its fill value {fill} there: numbers that nobody has written. Restore the chunk, "
                f"or write it again. Where they are {fill} indeed, Zarr has left them out: say how many rows there are, Stored("
                "path, num_rows=...) or --num-rows N, or write it with config={'write_empty_chunks': True}; where nothing was "
                "observed, with fill_value=nan, for missing=True."
            )


def chunks_of(array: Any, rows: np.ndarray, start: int) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Yield the numbers of each chunk that some rows touch, and where it lies in them."""
    sizes = tuple(array.chunks) or (1,)
    numbers = [range(start // sizes[0], -(-(start + len(rows)) // sizes[0]))]
    numbers += [range(-(-width // size)) for width, size in zip(rows.shape[1:], sizes[1:], strict=True)]
    for chunk in product(*numbers):
        rest = [slice(n * size, (n + 1) * size) for n, size in zip(chunk[1:], sizes[1:], strict=True)]
        first, last = chunk[0] * sizes[0] - start, (chunk[0] + 1) * sizes[0] - start
        yield chunk, (slice(max(0, first), min(len(rows), last)), *rest)


def with_fill_value(array: Any, fill: Any) -> Any:
    """Return an array of the same files, opened to read, that has another fill value."""
    import zarr

    return zarr.Array(zarr.AsyncArray(metadata=replace(array.metadata, fill_value=fill), store_path=array.store_path))


def refuse_unwritten_datasets(path: Path, groups: tuple[str, ...]) -> None:
    """Refuse an HDF5 file in which a data set of these groups is not written to its end.

    Raises:
        DataError: names the first.
    """
    import h5py

    unwritten: list[str] = []

    def look(name: str, thing: Any) -> None:
        if (
            isinstance(thing, h5py.Dataset)
            and thing.size
            and thing.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED
        ):
            unwritten.append(thing.name.lstrip("/"))

    with h5py.File(path, "r") as file:
        for group in (name for name in groups if name in file):
            look(group, file[group])
            if isinstance(file[group], h5py.Group):
                file[group].visititems(look)
    if unwritten:
        raise DataError(
            f"{path}: {unwritten[0]!r} is not written to its end, and HDF5 reads its fill value there: numbers that nobody has "
            "stored. Write the file again."
        )
