"""Files that hold more rows than one memory: looked at once, and read a stretch of rows at a time. Pickles are never loaded."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

import numpy as np

from pyro_vae.common.optional import imported
from pyro_vae.errors import DataError

from .user_files import explain_error

NUMERIC = "biuf"  # numpy's kinds: bool, int, unsigned, float
ENDINGS = (".npy", ".npz", ".parquet")
LOCAL_HEADER = 30  # bytes of a member of an archive, before its name
Shape = tuple[int, ...]


class RowFile(Protocol):
    """Rows of one file, in order, each of one shape and dtype."""

    @property
    def path(self) -> Path: ...
    @property
    def rows(self) -> int: ...
    @property
    def row_shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``(stop - start, *row_shape)`` into memory."""

    def pieces(self) -> Sequence[int]:
        """Where row groups or chunks, which are read as wholes, begin; ``()`` where any row can be read alone."""


@dataclass(frozen=True)
class FileState:
    """A file as it was when it was opened: another one since is no longer what was looked at."""

    path: Path
    identity: tuple[int, int, int, int]  # device, inode, bytes, nanoseconds of the last change

    @classmethod
    def at(cls, path: Path) -> FileState:
        """Look at a file."""
        try:
            return cls(path, identity_of(os.stat(path)))
        except OSError as error:
            raise DataError(f"no file {path} ({error.strerror}). Restore it, or check the path.") from error

    def check(self, now: os.stat_result) -> None:
        """Refuse a file that has been written to, or replaced.

        Raises:
            DataError: names the file.
        """
        if identity_of(now) != self.identity:
            raise DataError(
                f"{self.path} has changed since it was opened: it had {self.identity[2]:,} bytes, and has {now.st_size:,} "
                "now, or was written to. Rows of two states are no data set: leave the file alone while it is read, and open "
                "it again."
            )


def identity_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """What tells that a file is still the same."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class ArrayFile:
    """An array of numpy in C order, an .npy or an uncompressed member of an .npz: read, not mapped, so memory is bounded."""

    state: FileState
    offset: int  # bytes, to the first row
    rows: int
    row_shape: Shape
    dtype: np.dtype[Any]

    @property
    def path(self) -> Path:
        return self.state.path

    def read(self, start: int, stop: int) -> np.ndarray:
        found = np.empty((stop - start, *self.row_shape), self.dtype)
        row = self.dtype.itemsize * math.prod(self.row_shape)
        try:
            with self.path.open("rb", buffering=0) as file:
                self.state.check(os.fstat(file.fileno()))
                file.seek(self.offset + start * row)
                left = memoryview(found.reshape(-1).view(np.uint8).data)
                while left and (count := file.readinto(left)):  # one call reads 2 GiB at most
                    left = left[count:]
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror}). Restore it, and open it again.") from error
        if left:
            raise DataError(f"{self.path} ends before row {stop}: it is truncated. Write or copy it again.")
        return found

    def pieces(self) -> Sequence[int]:
        return ()


@dataclass
class ParquetRows:
    """Columns of numbers of a .parquet side by side, or one column (of lists of one length, perhaps), read by row groups."""

    state: FileState
    file: Any  # pyarrow's
    columns: list[str]
    starts: list[int]  # of row groups
    rows: int
    row_shape: Shape
    dtype: np.dtype[Any]
    last: tuple[int, np.ndarray] | None = field(default=None, repr=False)  # row group that was read last
    lock: Any = field(default_factory=Lock, repr=False)  # threads read ahead

    @property
    def path(self) -> Path:
        return self.state.path

    def read(self, start: int, stop: int) -> np.ndarray:
        self.state.check(os.stat(self.path))
        found = np.empty((stop - start, *self.row_shape), self.dtype)
        ends = [*self.starts[1:], self.rows]
        for group, (first, end) in enumerate(zip(self.starts, ends, strict=True)):
            low, high = max(first, start), min(end, stop)
            if low < high:
                found[low - start : high - start] = self.group(group)[low - first : high - first]
        return found

    def group(self, number: int) -> np.ndarray:
        """Read one row group; the last one stays."""
        with self.lock:
            if self.last is None or self.last[0] != number:
                self.last = None  # not two at a time
                try:
                    table = self.file.read_row_group(number, columns=self.columns)
                except Exception as error:  # pyarrow's errors are of many kinds, and all are of the file
                    raise DataError(f"{self.path}: row group {number} cannot be read ({error}).") from error
                self.last = number, self.values(table, self.starts[number])
            return self.last[1]

    def values(self, table: Any, first: int) -> np.ndarray:
        """Put the columns of a row group side by side."""
        found = np.empty((table.num_rows, *self.row_shape), self.dtype)
        for i, name in enumerate(self.columns):
            column = table.column(name)
            if column.null_count and self.dtype.kind != "f":
                row = first + int(np.flatnonzero(column.is_null().to_numpy())[0])
                raise DataError(
                    f"{self.path}, row {row} (counted from 0): column {name!r} of whole numbers has an empty cell. Fill it, or "
                    "store the column as floats, where NaN can stand for what is missing."
                )
            cells = column.combine_chunks()
            if hasattr(cells, "flatten") and hasattr(cells.type, "list_size"):
                found[:] = self.lists(cells, name, first)
            elif len(self.columns) == 1 and not self.row_shape:
                found[:] = cells.to_numpy(zero_copy_only=False)
            else:
                found[:, i] = cells.to_numpy(zero_copy_only=False)
        return found

    def lists(self, cells: Any, name: str, first: int) -> np.ndarray:
        """Return lists as rows, of NaN where a whole list is empty; refuse empty places among whole numbers."""
        there, values = cells.is_valid().to_numpy(zero_copy_only=False), cells.flatten()
        if values.null_count and self.dtype.kind != "f":
            place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
            row = first + int(np.flatnonzero(there)[place // self.row_shape[0]])
            raise DataError(
                f"{self.path}, row {row} (counted from 0): a list of whole numbers in column {name!r} has an empty place. Fill "
                "it, or store lists of floats, where NaN can stand for what is missing."
            )
        rows = np.zeros((len(cells), *self.row_shape), self.dtype)
        rows[~there] = np.nan if self.dtype.kind == "f" else 0
        rows[there] = values.to_numpy(zero_copy_only=False).reshape(-1, *self.row_shape)
        return rows

    def pieces(self) -> Sequence[int]:
        return self.starts


def read_header(file: BinaryIO, state: FileState, name: str) -> ArrayFile:
    """Read the header of an array where a file stands."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise DataError(
            f"{name} is of version {version} of numpy's format, which plain arrays are not: np.save it anew."
        )
    read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise DataError(f"{name}: {explain_error(ValueError('Object arrays'))}")
    check_rows(shape, dtype, name)
    if fortran and len(shape) > 1:
        raise DataError(
            f"{name} is in Fortran order, column after column, so that each row lies all over the file: save it by rows, "
            "np.save(path, np.ascontiguousarray(x))."
        )
    end = file.tell() + math.prod(shape) * dtype.itemsize
    if (size := state.identity[2]) < end:
        raise DataError(f"{name} is truncated: {size:,} bytes, where {shape} of {dtype} take {end:,}. Write it again.")
    return ArrayFile(state, file.tell(), shape[0], shape[1:], dtype)


def check_rows(shape: Shape, dtype: np.dtype[Any], name: str) -> None:
    """Refuse what holds no rows of real numbers."""
    if dtype.kind not in NUMERIC:
        raise DataError(f"{name} has dtype {dtype}, wanted real numbers. Encode text or categories as numbers.")
    if not shape or 0 in shape:
        raise DataError(f"{name} holds no rows: shape {shape}. Check what it was written from.")


def open_member(state: FileState, key: str | None) -> ArrayFile:
    """Find an uncompressed array in an archive."""
    with state.path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        key = choose_key(names, key, str(state.path))
        info = names[key]
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(
                f"{state.path}: {key!r} is compressed, and compressed rows cannot be read by themselves: save it with np.savez "
                "in place of np.savez_compressed, or cut it into a folder by pyro_vae.data.write_shards."
            )
        file.seek(info.header_offset)
        header = file.read(LOCAL_HEADER)
        name, extra = struct.unpack("<HH", header[26:30])  # lengths, which may be others than the directory has
        file.seek(info.header_offset + LOCAL_HEADER + name + extra)
        return read_header(file, state, f"{state.path}, {key!r}")


def choose_key(names: Any, key: str | None, path: str) -> str:
    """Return the key of x: as asked for, the only one, or ``x``."""
    if key is None and (len(names) == 1 or "x" in names):
        return "x" if "x" in names else str(next(iter(names)))
    if key not in names:
        told = ", ".join(sorted(map(repr, names))) or "nothing"
        raise DataError(f"{path} holds {told}" + (f", and no {key!r}" if key else "") + ". Name one of them: key=...")
    return str(key)


def open_parquet(state: FileState, key: str | None) -> ParquetRows:
    """Look at the columns and row groups of a .parquet."""
    parquet = imported("pyarrow.parquet", "parquet", "rows of a .parquet")
    try:
        file = parquet.ParquetFile(state.path)
        schema, meta = file.schema_arrow, file.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    except Exception as error:  # pyarrow's errors are of many kinds, and all are of the file
        raise DataError(f"{state.path} cannot be read as Parquet ({type(error).__name__}: {error}).") from error
    names = columns_beside_index(schema)
    columns = names if key is None else [choose_key(schema.names, key, str(state.path))]
    dtypes, lists = [], []
    for name in columns:
        kind = schema.field(name).type
        size = getattr(kind, "list_size", None)
        lists.append(size)
        try:
            dtypes.append(np.dtype((kind.value_type if size else kind).to_pandas_dtype()))
        except (NotImplementedError, TypeError) as error:
            raise DataError(f"{state.path}: column {name!r} has type {kind}, wanted numbers. {ONE_COLUMN}") from error
        if dtypes[-1].kind not in NUMERIC or (size and key is None and len(columns) > 1):
            raise DataError(f"{state.path}: column {name!r} has type {kind}, wanted numbers. {ONE_COLUMN}")
    width: Shape = (lists[0],) if lists[0] else () if key is not None else (len(columns),)
    starts = [int(n) for n in np.cumsum([0, *sizes])[:-1]]
    check_rows((sum(sizes), *width), np.result_type(*dtypes), str(state.path))
    return ParquetRows(state, file, columns, starts, sum(sizes), width, np.result_type(*dtypes))


def columns_beside_index(schema: Any) -> list[str]:
    """List the columns of a .parquet without those that were the index of a pandas table: they number rows, and are no x."""
    told = (schema.pandas_metadata or {}).get("index_columns", [])
    return [name for name in schema.names if name not in [index for index in told if isinstance(index, str)]]


ONE_COLUMN = "Name one column of numbers, or of lists of one length: key=...; or write the others as numbers."
