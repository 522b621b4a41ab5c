"""Rows of a .parquet, read by its row groups."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from pyro_vae.common.optional import imported
from pyro_vae.errors import DataError

from .row_files import NUMERIC, FileState, Shape, check_rows, choose_key

ONE_COLUMN = "Name one column of numbers, or of lists of one length: key=...; or write the others as numbers."


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
