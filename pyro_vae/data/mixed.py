"""Tables whose columns differ: rows of numbers, with what each column is; other tables of the same columns by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pyro_vae.common.keywords import suggest
from pyro_vae.errors import DataError

from .cells import booleans_of, is_numeric, numbers_of, typed
from .column_choices import ColumnSpec, choose
from .columns import SHOWN, Column, RawColumn, as_category, check_rounding, check_values, codes_of, known_labels
from .label_doubts import doubts_of, first_padded, refuse_measures, told_padded
from .table_layout import LEVEL, UNNAMED, is_index_name, is_number

COUNTED = 10  # rows: the numbers of fewer may count by chance


@dataclass(frozen=True, eq=False)
class Coded:
    """Rows of numbers ``(N, d)`` in float64, what their columns are, and what to say of the reading."""

    values: np.ndarray
    columns: tuple[Column, ...]
    notes: tuple[str, ...]


def index_among(
    raws: Sequence[RawColumn], known: Sequence[str] = (), of_pandas: Sequence[str] = ()
) -> tuple[int | None, str]:
    """Find the column that only names the rows, and say why: pandas' index, wherever it stands; or the first, if it is
    unnamed, called so, or counts; else None.

    Columns of a model, whose names are `known`, are none.
    """
    first = raws[0]
    for i, raw in enumerate(raws):
        if len(raws) > 1 and raw.name not in known and (raw.name in of_pandas or LEVEL.fullmatch(raw.name)):
            return i, "was the index of a pandas table"
    if len(raws) < 2 or first.name in known or not len(first) or first.missing.any():
        return None, ""
    unnamed = bool(UNNAMED.fullmatch(first.name))
    if counts_rows(first) and (unnamed or len(first) >= COUNTED):
        return 0, "counts the rows"
    texts = [] if isinstance(first.values, np.ndarray) and not is_index_name(first.name) else first.texts()
    if not texts or len(set(texts)) < len(texts) or is_fraction(first):
        return None, ""
    if is_index_name(first.name):
        return 0, "names each row" if unnamed else "is an index by its name"
    texts_alone = first.kind in ("cells", "category") and not any(is_numeric(str(text)) for text in texts)
    named = texts_alone and first.labels is None and len(texts) >= COUNTED
    if named and not known:
        refuse_measures(first.name, [str(text) for text in texts])
    return (0, "names each row") if named else (None, "")


def counts_rows(raw: RawColumn) -> bool:
    """Return whether a column holds 0, 1, 2 … or 1, 2, 3 …"""
    rows = range(len(raw) + 1)
    if isinstance(raw.values, np.ndarray):
        return any(np.array_equal(raw.values, some) for some in (rows[:-1], rows[1:]))
    return any(all(cell == str(i) for cell, i in zip(raw.values, some, strict=True)) for some in (rows[:-1], rows[1:]))


def is_fraction(raw: RawColumn) -> bool:
    """Return whether a column holds numbers, some of them fractions."""
    values = raw.values
    if isinstance(values, np.ndarray):
        return bool((values != values.round()).any())
    numbers = [text for text in values if text is not None and text.count(".") == 1]
    return bool(numbers) and all(number.replace(".", "").lstrip("+-").isdigit() for number in numbers)


def code_columns(raws: Sequence[RawColumn], spec: ColumnSpec | None) -> Coded:
    """Take columns as numbers: by their types alone, or each with a likelihood of its own.

    Raises:
        DataError: what no number can stand for; names column and row.
    """
    for i, raw in enumerate(raws):
        if UNNAMED.fullmatch(raw.name) or LEVEL.fullmatch(raw.name):
            raise DataError(
                f"column {i} has no name{f' ({raw.name!r})' if raw.name else ''}: give it one in the header, or leave it out."
            )
    if spec is not None:
        spec.check(tuple(raw.name for raw in raws))
    taken, notes, padded = [], [], {}
    for raw in raws:
        chosen = by_type(raw) if spec is None else choose(raw, spec.families.get(raw.name, ""))
        if isinstance(chosen, str):
            notes.append(f"column {raw.name!r} is left out: {chosen}")
        else:
            taken.append(chosen)
            notes += doubts_of(chosen[1], raw.kind == "category" and raw.labels is None)
            as_numbers = raw.kind == "cells" and not (spec is not None and spec.families.get(raw.name))
            if (
                as_numbers
                and (cell := first_padded(raw.texts()))
                and is_number(chosen[1].text(chosen[0][~raw.missing][0]))
            ):
                padded[raw.name] = cell
            if spec is None and len(np.unique(chosen[0][~np.isnan(chosen[0])])) == 1:
                notes.append(
                    f"column {raw.name!r} is constant: a density there has no bound, and says nothing of a row"
                )
    if not taken and len(raws[0]) == 1:
        raise DataError(
            "it has one row: a likelihood is chosen, and a model fitted, by many. Give a table of more rows."
        )
    if not taken:
        raise DataError(f"no column is left: each is constant or left out. {' '.join(notes[:3])}")
    notes += told_padded(padded)
    return Coded(np.column_stack([values for values, _ in taken]), tuple(c for _, c in taken), tuple(notes))


def by_type(raw: RawColumn) -> tuple[np.ndarray, Column]:
    """Take a column as numbers by its type: labels as codes, numbers as they are."""
    if raw.missing.all() and not raw.trouble:
        raise DataError(f"column {raw.name!r} has no value in any of its {len(raw)} rows: leave it out.")
    raw = typed(raw)
    if raw.kind == "category":
        return as_category(raw)
    values = np.asarray(raw.values)
    check_values(raw.name, values)
    check_rounding(raw.name, values)
    return values, Column(raw.name, raw.kind, raw.labels or ())


def match_columns(raws: Sequence[RawColumn], columns: Sequence[Column]) -> Coded:
    """Take the columns of another table by the names that they are known by, with the same codes.

    Raises:
        DataError: a column that is not there, text where numbers stood, a category that was never seen.
    """
    there = {raw.name: raw for raw in raws}
    names = [column.name for column in columns]
    extra = [name for name in there if name not in names]
    if missing := [name for name in names if name not in there]:
        raise DataError(
            f"the table lacks {len(missing)} of {len(names)} columns that the model was trained on: {shown(missing)}; "
            f"{suggest(missing[0], extra, 1, 'beside the others it has')}. Name them as they were, or add an empty column "
            "for what was not observed."
        )
    notes = [f"columns that the model does not know are not read: {shown(extra)}"] if extra else []
    if [name for name in there if name in names] != names:
        notes.append("columns stand in another order than in training: they are matched by name")
    values = [coded_alike(there[column.name], column) for column in columns]
    return Coded(np.column_stack(values), tuple(columns), tuple(notes))


def shown(names: Sequence[str]) -> str:
    """List the first names."""
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def coded_alike(raw: RawColumn, column: Column) -> np.ndarray:
    """Return a column's values as another table of the same columns has them: the same codes.

    Raises:
        DataError: text where numbers stood, a category that was never seen; names the row.
    """
    if raw.trouble:
        raise DataError(raw.trouble)
    if column.kind == "category":
        return codes_of(known_labels(raw.texts(), column.labels), column)
    if column.kind == "boolean":
        return booleans_of(raw)
    values = numbers_of(raw, ", and numbers stood there in training")
    check_values(raw.name, values)
    return values


def describe_columns(columns: Sequence[Column], values: np.ndarray) -> Iterator[str]:
    """Yield the lines of a table of columns: name, values, gaps, likelihood and why, to be corrected."""
    cells = [
        (" ".join(c.name.split())[:28], told_values(c, values[:, i]), gaps(values[:, i]), c.family or "", c.why)
        for i, c in enumerate(columns)
    ]
    yield from aligned(("column", "values", "missing", "likelihood", "why"), *cells)


def describe_groups(columns: Sequence[Column], values: np.ndarray) -> Iterator[str]:
    """Yield the lines of a table of many columns: those of one likelihood, taken for one reason, in one line."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, column in enumerate(columns):
        groups.setdefault((column.family or "", column.why), []).append(i)
    cells = [
        (str(len(at)), shown([" ".join(columns[i].name.split())[:28] for i in at]), gaps(values[:, at]), family, why)
        for (family, why), at in groups.items()
    ]
    yield from aligned(("columns", "names", "missing", "likelihood", "why"), *cells)


def aligned(*lines: tuple[str, ...]) -> Iterator[str]:
    """Yield lines of cells, one column under the other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def told_values(column: Column, values: np.ndarray) -> str:
    """Tell what values a column has: its labels, or its range."""
    if codes := column.codes:
        told = ", ".join(" ".join(code.split()) for code in codes[:3]) + (
            f", … ({len(codes)})" if len(codes) > 3 else ""
        )
        return told if len(told) <= 32 else f"{told[:31]}…"
    known = values[~np.isnan(values)]
    return f"{known.min():.6g} to {known.max():.6g}" if known.size else "none"


def gaps(values: np.ndarray) -> str:
    """Count what is missing; nothing where nothing is."""
    return str(int(np.isnan(values).sum()) or "")
