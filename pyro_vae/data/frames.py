"""Tables of pandas, polars (lazy, too) and pyarrow as numbers, by way of narwhals: codes for labels, NaN for gaps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataConversionWarning, DataError

from .cells import DATES, MISSING, refuse_dates
from .column_choices import ColumnSpec
from .columns import Column, RawColumn, check_names, left_out, too_large
from .mixed import code_columns, describe_columns, index_among, match_columns

OF_PANDAS = ("False", "True")  # as it writes booleans


@dataclass(frozen=True, eq=False)
class NumericTable:
    """Rows of numbers of a table, and what they stand for. Printed, it tells each column.

    Attributes:
        x: ``(N, d)``; codes of categories and booleans, NaN for what is missing.
        columns: of x, in order: names, labels of codes, and the family of each where one was chosen.
        notes: what was left out, and what should be known of the reading.
    """

    x: Tensor
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        lines = [
            f"{counted(len(self), 'row')} × {counted(len(self.columns), 'column')}",
            *describe_columns(self.columns, self.x.numpy()),
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns]

    @property
    def blocks(self) -> str:
        """The families of the columns, as ``--likelihood.blocks`` has them; "" where none were chosen."""
        return blocks_of(self.columns)


def table(
    frame: Any, columns: str | Sequence[Column] | None = None, *, dtype: torch.dtype = torch.float32
) -> NumericTable:
    """Take a DataFrame or a table of pandas, polars or pyarrow as rows of numbers.

    Nullable and Arrow dtypes, booleans (0 and 1), categories and texts (codes 0, 1, …: in the order that they declare, else by
    alphabet) are numbers here, and gaps of every kind (NaN, None, NA, an empty text and the words for one that a .csv may have)
    are NaN; a lazy frame is collected. A column without a name that counts the rows is their index, as is one that pandas wrote
    as such, and is left out with a warning.

    Args:
        frame: the table; what narwhals reads.
        columns: None takes each by its type; "auto" also chooses the family of its likelihood, in which grades become codes
            and constant columns are left out ("auto,NAME=FAMILY,OTHER=ignore" corrects that); the `columns` of another table
            take the same columns from this one, by name, with the same codes.
        dtype: of x.

    Raises:
        DataError: dates, mixed types, columns without a name or two of one, without any value, with infinite values, with more
            than 1,000 labels; a label or a column that the other table's columns do not have. Names column and row.

    Warns:
        DataConversionWarning: a column that only names the rows was left out.

    Example:
        >>> import pyarrow as pa
        >>> from pyro_vae.data import table
        >>> t = table(pa.table({"island": ["Dream", None, "Biscoe"], "mass": [3750.0, 3800.0, None]}))
        >>> t.x
        tensor([[1.0000e+00, 3.7500e+03],
                [       nan, 3.8000e+03],
                [0.0000e+00,        nan]])
        >>> table(pa.table({"mass": [1.0], "island": ["Dream"]}), t.columns).x    # other order: by name
        tensor([[1., 1.]])
    """
    raws = read_frame(frame)
    known = [] if columns is None or isinstance(columns, str) else [column.name for column in columns]
    index, why = index_among(raws, known, pandas_index(frame))
    if index is not None and not known:
        left = f"column {raws[index].name!r} {why}: it is left out of x (rename it, or reset the index, to keep it)"
        warnings.warn(left, DataConversionWarning, stacklevel=2)
    raws = [raw for i, raw in enumerate(raws) if i != index]
    if columns is None or isinstance(columns, str):
        coded = code_columns(raws, None if columns is None else ColumnSpec.read(columns))
    else:
        coded = match_columns(raws, columns)
    return NumericTable(torch.from_numpy(coded.values).to(dtype), coded.columns, coded.notes)


def blocks_of(columns: Sequence[Column]) -> str:
    """Join the families of columns as blocks: neighbours of one family are one block."""
    if not all(column.family for column in columns):
        return ""
    runs: list[tuple[str, int]] = []
    for column in columns:
        if runs and runs[-1][0] == column.family:
            runs[-1] = column.family, runs[-1][1] + 1
        else:
            runs.append((column.family, 1))
    parts = [(family.partition(":"), width) for family, width in runs]
    return ",".join(f"{name}:{width}{colon}{options}" for (name, colon, options), width in parts)


def read_frame(frame: Any, pandas: bool = False) -> list[RawColumn]:
    """Read the columns of a table, as they are; booleans of `pandas` are spelled as it writes them.

    Raises:
        DataError: no table, one without rows, or columns that hold what no number stands for.
    """
    import narwhals.stable.v2 as nw

    if not is_lazy(frame):
        names = list(getattr(frame, "column_names", getattr(frame, "columns", ())))  # of pyarrow; of pandas, polars
        check_names(names)
        if not all(isinstance(name, str) for name in names) and hasattr(frame, "set_axis"):
            frame = frame.set_axis([str(name) for name in names], axis=1)  # pandas, whose names may be numbers
    try:
        native = nw.from_native(frame)
    except TypeError as error:
        raise DataError(
            f"a {type(frame).__name__} is no table: give a DataFrame of pandas or polars, or a table of pyarrow (arrays of "
            "numbers go in as they are)."
        ) from error
    if isinstance(native, nw.LazyFrame):
        native = native.collect()
    if not isinstance(native, nw.DataFrame) or not len(native) or not native.columns:
        raise DataError(f"the table (a {type(frame).__name__}) is empty: it has no rows or no columns.")
    return list(read_columns(native, pandas))


def pandas_index(frame: Any) -> tuple[str, ...]:
    """Name the column of a pyarrow table that was the index of a pandas table; none where it had several levels."""
    told = None if is_lazy(frame) else getattr(getattr(frame, "schema", None), "pandas_metadata", None)
    names = told.get("index_columns") if isinstance(told, dict) else None
    one = isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)
    return (names[0],) if one and names is not None else ()


def is_lazy(frame: Any) -> bool:
    """Return whether a frame is not computed yet (asking for its columns would compute them)."""
    return hasattr(frame, "collect") and not hasattr(frame, "to_pandas")


def read_columns(frame: Any, pandas: bool = False) -> Iterator[RawColumn]:
    """Yield the columns of an eager frame."""
    for name in frame.columns:
        try:
            yield read_series(name, frame[name], pandas)
        except DataError as error:  # of a column that may yet be left out
            yield RawColumn(name, np.full(len(frame), np.nan), trouble=str(error))


def read_series(name: str, series: Any, pandas: bool = False) -> RawColumn:
    """Read one column by its dtype; booleans of `pandas` are spelled as it spells them."""
    import narwhals.stable.v2 as nw

    dtype = series.dtype
    if dtype.is_temporal():
        raise DataError(f"column {name!r} holds dates or times ({dtype}): {DATES}, or {left_out(name)}.")
    if dtype in (nw.Categorical, nw.Enum):
        declared = dtype == nw.Enum or series.implementation.is_pandas_like()  # others list them as they met them
        listed = map(str, series.cat.get_categories().to_list()) if declared else ()
        labels = tuple(label for label in listed if label.strip() not in MISSING) if declared else None
        texts = [None if value is None or value != value else known_text(str(value)) for value in series.to_list()]
        ordered = bool(nw.is_ordered_categorical(series))
        return RawColumn(name, texts, "category", labels, ordered)
    if dtype.is_integer():
        return RawColumn(name, whole_numbers(name, series))
    if dtype.is_float():
        return RawColumn(name, series.cast(nw.Float64).fill_null(float("nan")).to_numpy().astype(np.float64))
    values = [None if is_gap(value) else value for value in series.to_list()]
    return of_objects(name, values, str(dtype), OF_PANDAS if pandas else None)


def whole_numbers(name: str, series: Any) -> np.ndarray:
    """Read whole numbers, which may have gaps, into float64.

    Raises:
        DataError: they are too large for it to tell apart.
    """
    import narwhals.stable.v2 as nw

    known = series.drop_nulls().to_numpy().astype(series_dtype(series))
    if known.size and (int(known.max()) > 2**53 or int(known.min()) < -(2**53)):
        alike = np.unique(known)
        if len(np.unique(alike.astype(np.float64))) < len(alike):
            raise too_large(name, f"up to {int(known.max())}")
    return series.cast(nw.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)


def series_dtype(series: Any) -> type:
    """Return the numpy type that holds a column's whole numbers."""
    return np.uint64 if str(series.dtype).startswith("U") else np.int64


def is_gap(value: Any) -> bool:
    """Return whether an object stands for nothing: None, NaN, pandas' NA and NaT."""
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):  # NA has no truth; arrays have many
        return type(value).__name__ == "NAType"


def of_objects(name: str, values: list[Any], dtype: str, spelled: tuple[str, ...] | None = None) -> RawColumn:
    """Read a column of objects (texts, booleans, decimals, or a mixture) by what they are; `spelled`: false and true.

    Raises:
        DataError: several types in one column, or one that no number stands for; names the row.
    """
    kinds = {row: kind_of(value) for row, value in enumerate(values) if value is not None}
    several = sorted(set(kinds.values()))
    if not several:
        return RawColumn(name, np.full(len(values), np.nan))
    if len(several) > 1:
        rows = [next(row for row, kind in kinds.items() if kind == k) for k in several]
        told = " and ".join(f"{kind} ({values[row]!r}, row {row})" for kind, row in zip(several, rows, strict=True))
        raise DataError(f"column {name!r} (dtype {dtype}) mixes {told}, counted from 0: give it one type.")
    (kind,) = several
    if kind == "texts":
        texts = [None if v is None else known_text(str(v)) for v in values]
        refuse_dates(name, [text for text in texts if text is not None])
        return RawColumn(name, texts, "category")
    if kind not in ("numbers", "booleans"):
        raise DataError(
            f"column {name!r} (dtype {dtype}) holds {kind}, which no number stands for: make columns of numbers or labels of "
            f"it, or leave it out ({left_out(name)})."
        )
    numbers = np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)
    return RawColumn(
        name, numbers, "boolean" if kind == "booleans" else "number", spelled if kind == "booleans" else None
    )


def known_text(text: str) -> str | None:
    """Return a text, or None for an empty one and for a word that stands for a gap, as those of a text file do: NA, nan."""
    return None if text.strip() in MISSING else text


def kind_of(value: Any) -> str:
    """Name what an object is."""
    if isinstance(value, bool | np.bool_):
        return "booleans"
    if isinstance(value, int | float | Decimal | np.integer | np.floating):
        return "numbers"
    return "texts" if isinstance(value, str) else f"objects of type {type(value).__name__}"
