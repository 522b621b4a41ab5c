"""Numbers that stand for a missing value, such as -999: taken for one where that is said, and noticed where it is not."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import numpy as np

from pyro_vae.common.counted import counted

from .cells import COMMA
from .columns import NUMBER, Column, RawColumn, known_labels
from .table_layout import is_number

CODES = tuple(float(sign + nines) for sign in ("-", "") for nines in ("99", "999", "9999", "99999"))
WORDS = ("?", "??", ".", "-", "--", "n/a", "na", "n.a.", "missing", "unknown", "not available", "#div/0!")  # as labels
FEW, AT_LEAST = 2, 5  # rows that hold the code, and that do not
FAR = 5  # times the range of the other values


def is_code(cell: str, code: str | None) -> bool:
    """Return whether a cell is the code: the same text, or the same number, with a point or with a decimal comma.

    Example:
        >>> is_code("-999.0", "-999"), is_code("-999,0", "-999"), is_code("unknown", "unknown"), is_code("0", None)
        (True, True, True, False)
    """
    if code is None:
        return False
    return cell == code or (is_number(with_point(cell)) and float(with_point(cell)) == number_of(code))


def with_point(cell: str) -> str:
    """Write a number that has a decimal comma with a point; any other cell stays as it is."""
    return cell.replace(",", ".") if COMMA.fullmatch(cell) else cell


def number_of(code: str) -> float:
    """Return the number that a code is; NaN, which equals none, of a word."""
    return float(with_point(code)) if is_number(with_point(code)) else np.nan


def are_codes(values: np.ndarray, code: str) -> np.ndarray:
    """Return which numbers are the code, as it is or in single precision.

    Example:
        >>> are_codes(np.array([-999, 3]), "-999.0"), are_codes(np.array([0.1], np.float32), "0.1")
        (array([ True, False]), array([ True]))
    """
    number = number_of(code)
    found: np.ndarray = (values == number) | (values == float(np.float32(number)))
    return found


def is_label_code(label: str, code: str | None) -> bool:
    """Return whether a label is the code: the same text, or the same number as labels are numbers, of which 0999 is none.

    Example:
        >>> is_label_code("999", "999"), is_label_code("999.0", "999"), is_label_code("0999", "999")
        (True, True, False)
    """
    return code is not None and known_labels([code], [label]) == [label]


def without_code(raw: RawColumn, code: str | None, labels: bool = False) -> RawColumn:
    """Return a column with gaps where the code stands; false and true are no numbers, and are no code.

    Cells are compared as numbers, and as labels where they are some: where the column is one of categories, is taken for one
    (`labels`), or has texts beside the code.
    """
    if code is None or raw.kind == "boolean":
        return raw
    same = is_label_code if labels or raw.kind == "category" or has_texts(raw, code) else is_code
    if isinstance(raw.values, np.ndarray):
        values: np.ndarray | list[str | None] = np.where(are_codes(raw.values, code), np.nan, raw.values)
    else:
        values = [None if cell is not None and same(cell, code) else cell for cell in raw.values]
    declared = None if raw.labels is None else tuple(label for label in raw.labels if not same(label, code))
    return RawColumn(raw.name, values, raw.kind, declared, raw.ordered, raw.trouble)


def has_texts(raw: RawColumn, code: str) -> bool:
    """Return whether cells, which are not typed yet, hold texts beside the code."""
    cells = () if isinstance(raw.values, np.ndarray) else raw.values
    return any(not (cell is None or is_number(with_point(cell)) or is_code(cell, code)) for cell in cells)


def looks_like_codes(values: np.ndarray, columns: Sequence[Column]) -> Iterator[str]:
    """Yield a note on each column with a value that looks like a code for missing.

    That is one of -99, 99, -999, …, that stands in two rows or more and is the least or the largest value, where the others lie
    further from it than five times their range; or the only one below 0.
    """
    for column, coded in zip(columns, values.T, strict=True):
        cells = coded
        if column.codes:
            if not all(map(NUMBER.fullmatch, column.codes)):  # labels such as 0999 are texts
                yield from words_for_missing(column, coded)
                continue
            known = ~np.isnan(coded)
            cells = np.full(coded.shape, np.nan)
            cells[known] = np.array([float(label) for label in column.codes])[coded[known].astype(int)]
        known_cells = cells[~np.isnan(cells)]
        if not known_cells.size:
            continue
        for code in {float(known_cells.min()), float(known_cells.max())} & {*CODES}:
            others, count = known_cells[known_cells != code], int((known_cells == code).sum())
            if count >= FEW and len(others) >= AT_LEAST and stands_apart(code, others):
                yield (
                    f"column {column.name!r}: {code:g} stands in {count} rows, far from all others ({others.min():g} to "
                    f"{others.max():g}), and looks like a code for missing: --missing --missing-value={code:g} takes it for one"
                )


def words_for_missing(column: Column, coded: np.ndarray) -> Iterator[str]:
    """Yield a note on a category with a label that mostly stands for a missing value, beside two others at least."""
    words = [label for label in column.labels if label.lower() in WORDS]
    if words and len(column.labels) > 2 and "+" not in column.labels:
        count = int((coded == column.labels.index(words[0])).sum())
        yield (
            f"column {column.name!r}: the label {words[0]!r}, in {counted(count, 'row')}, may stand for a missing value: "
            f"--missing --missing-value={shlex.quote(words[0])} takes it for one"
        )


def stands_apart(code: float, others: np.ndarray) -> bool:
    """Return whether a code lies far outside the other values."""
    low, high = float(others.min()), float(others.max())
    if code < 0 <= low:
        return True
    gap = low - code if code < low else code - high
    return gap > FAR * (high - low) > 0
