"""Columns of a mixed table as numbers: categories and booleans to codes by their labels, what is missing to NaN."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_vae.common.counted import counted
from pyro_vae.common.keywords import suggest
from pyro_vae.common.plain_text import is_plain, plain
from pyro_vae.errors import DataError

KINDS = ("number", "boolean", "category")
BOOLEANS = ("false", "true")  # codes 0 and 1
MANY = 1000  # categories of one column
SHOWN = 6  # labels, in a message
ASKED = "as asked"  # why a family is a column's
EXACT = 2**24  # float32 holds every whole number up to here
LONG = 1e20  # whole numbers from here on are shown by their first digits
ROUNDED = 0.01  # of the spread of a column, by which single precision may move its fractions

JUDGED_BY = "; and whether single precision tells the numbers of a column apart is judged by these alone"
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e-?[0-9]+)?")  # as a label


@dataclass(frozen=True)
class Column:
    """A column of a table of numbers: what it is called, and what its codes stand for.

    Attributes:
        name: as in the table.
        kind: "number"; "boolean" (0 false, 1 true); "category" (code k is ``labels[k]``).
        labels: of a category, by code; of a boolean as its table spells false and true, where that is otherwise.
        ordered: the order of the labels means something.
        family: of its likelihood, with options, as a block of ``--likelihood columns`` has it; "" where none was chosen.
        why: the family was chosen, for whoever corrects it.

    Example:
        >>> island = Column("island", "category", ("Biscoe", "Dream"))
        >>> island.text(1.0), island.text(float("nan")), Column("mass").text(0.5)
        ('Dream', '', '0.5')
    """

    name: str
    kind: str = "number"
    labels: tuple[str, ...] = ()
    ordered: bool = False
    family: str = ""
    why: str = ""

    @property
    def codes(self) -> tuple[str, ...]:
        """Labels of the codes 0, 1, …; none of a number."""
        return self.labels or BOOLEANS if self.kind == "boolean" else self.labels

    def text(self, value: float) -> str:
        """Write a value as its table had it: the label of a code, a number in single precision, nothing for NaN."""
        if value != value:
            return ""
        code = int(value) if abs(value) < EXACT and value == round(value) else -1
        return self.codes[code] if 0 <= code < len(self.codes) else str(np.float32(value))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        told: dict[str, Any] = {"name": self.name, "kind": self.kind}
        more = {"labels": list(self.labels), "ordered": self.ordered, "family": self.family}
        return told | {key: value for key, value in more.items() if value}

    @classmethod
    def from_dict(cls, values: Any) -> Column:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(values, dict) or not isinstance(values.get("name"), str):
            raise ValueError(f"a column is an object with a name, got {str(values)[:40]!r}")
        labels, family = values.get("labels", []), values.get("family", "")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"the labels of column {values['name']!r} are no list of texts")
        if values.get("kind") not in KINDS or not isinstance(family, str):
            raise ValueError(f"column {values['name']!r} has the kind {str(values.get('kind'))[:40]!r}")
        if values["kind"] == "boolean" and len(labels) not in (0, 2):
            raise ValueError(f"column {values['name']!r} is a boolean with {counted(len(labels), 'label')}")
        return cls(values["name"], values["kind"], tuple(labels), values.get("ordered") is True, family)


@dataclass(frozen=True, eq=False)
class RawColumn:
    """A column as its table holds it.

    Attributes:
        name: in its table.
        values: float64 with NaN for what is missing, or texts with None for it.
        kind: as :class:`Column` has it; "cells" of a text file are not typed yet.
        labels: that its table declares, in order.
        ordered: they are.
        trouble: why no number stands for what it holds; raised where the column is not left out.
    """

    name: str
    values: np.ndarray | list[str | None]
    kind: str = "number"
    labels: tuple[str, ...] | None = None
    ordered: bool = False
    trouble: str = ""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def missing(self) -> np.ndarray:
        """Rows without a value."""
        if isinstance(self.values, np.ndarray):
            return np.isnan(self.values)
        return np.array([value is None for value in self.values], dtype=bool)

    def texts(self) -> list[str | None]:
        """Return the values as texts: whole numbers without a point, so that 2007 and 2007.0 are one label."""
        if not isinstance(self.values, np.ndarray):
            return self.values
        if self.kind == "boolean":
            spelled = self.labels or BOOLEANS
            return [None if v != v else spelled[int(v)] for v in self.values]
        return [None if v != v else number_text(v) for v in self.values]


def number_text(value: float) -> str:
    """Write a number as the label of a category."""
    return str(int(value)) if abs(value) < 2**53 and value == round(value) else repr(float(value))


def known_labels(texts: Sequence[str | None], labels: Sequence[str]) -> list[str | None]:
    """Return the labels that texts mean: 2007 and 2007.0 are one where just one label has that number, 007 is another."""
    numbers: dict[float, list[str]] = {}
    for label in filter(NUMBER.fullmatch, labels):
        numbers.setdefault(float(label), []).append(label)
    meant = {label: label for label in labels}

    def find(text: str | None) -> str | None:
        if text is None or text in meant or not NUMBER.fullmatch(text):
            return text
        alike = numbers.get(float(text), [])
        return alike[0] if len(alike) == 1 else text

    return [find(text) for text in texts]


def check_names(names: Sequence[Any]) -> tuple[str, ...]:
    """Refuse columns that are called alike, or not at all.

    Raises:
        DataError: says which.
    """
    if levels := [name for name in names if isinstance(name, tuple)]:
        raise DataError(
            f"column {levels[0]} has names on several levels: join them, frame.columns = ['_'.join(c) for c in frame.columns]"
        )
    told = tuple(map(str, names))
    seen: dict[str, int] = {}
    for i, name in enumerate(told):
        if not is_plain(name):
            raise DataError(
                f"column {i} is called {plain(repr(name))}, with control signs: give it a name without any."
            )
        if name in seen:
            raise DataError(f"columns {seen[name]} and {i} are both called {name!r}: give each a name of its own.")
        seen[name] = i
    return told


def check_values(name: str, values: np.ndarray) -> None:
    """Refuse infinite numbers, and whole numbers so large that single precision takes different ones for one.

    Raises:
        DataError: names the column, and the first row.
    """
    if (rows := np.isinf(values).nonzero()[0]).size:
        raise DataError(
            f"column {name!r} has infinite values in {counted(len(rows), 'row')}, first in row {rows[0]} (counted from 0). "
            "Leave these cells empty (missing), or cap them."
        )
    large = np.abs(values) > np.finfo(np.float32).max
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"column {name!r}, row {row} (counted from 0): {values[row]:g} is more than single precision holds (3.4e+38). "
            "Leave the cell empty (missing), or count in a larger unit."
        )
    check_whole(name, values)


def check_precision(name: str, values: np.ndarray) -> None:
    """Refuse the numbers of a column that single precision takes for others: too large, or too near to one another.

    Raises:
        DataError: names the column.
    """
    check_whole(name, values)
    check_rounding(name, values)


def check_whole(name: str, values: np.ndarray) -> None:
    """Refuse whole numbers that single precision takes for one another."""
    known = values[np.isfinite(values)]
    if not known.size or np.abs(known).max() <= EXACT or (known != known.round()).any():
        return
    alike, largest = np.unique(known), np.abs(known).max()
    with np.errstate(over="ignore"):
        single = np.unique(alike.astype(np.float32))
    if len(single) < len(alike):
        raise too_large(name, f"up to {largest:.0f}" if largest < LONG else f"up to {largest:.3g}")


def check_rounding(name: str, values: np.ndarray) -> None:
    """Refuse fractions that single precision moves by a hundredth of their spread: those of seconds since 1970, say."""
    known = values[np.isfinite(values)]
    if not known.size or known.min() == known.max() or not (known != known.round()).any():
        return
    with np.errstate(over="ignore"):
        moved = np.abs(known.astype(np.float32) - known).max()
    if moved > ROUNDED * known.std():
        raise DataError(
            f"column {name!r} holds {known.min():.17g} to {known.max():.17g}, with a standard deviation of {known.std():.3g}, "
            f"and single precision would move a value by {moved:.3g}: its density would be that of other numbers. Count from "
            "a nearer zero, or in a larger unit (days instead of seconds), or leave the column out."
        )


def too_large(name: str, largest: str) -> DataError:
    """Return the error for whole numbers that no float tells apart."""
    return DataError(
        f"column {name!r} holds whole numbers {largest}, of which single precision takes different ones for one (beyond "
        "2^24). Where they name the rows, leave the column out; count a time or an amount from a nearer zero."
    )


def as_category(raw: RawColumn) -> tuple[np.ndarray, Column]:
    """Code a column by its labels: those that its table declares, or those there are (numbers by value, texts by alphabet).

    Raises:
        DataError: so many that they are names, not categories.
    """
    texts, ordered = raw.texts(), raw.ordered
    if raw.labels is not None or raw.kind == "boolean":
        labels = raw.labels or BOOLEANS
    elif isinstance(raw.values, np.ndarray):
        labels = tuple(map(number_text, np.unique(raw.values[~np.isnan(raw.values)])))
        ordered = True
    else:
        labels = tuple(sorted({text for text in texts if text is not None}))
    if len(labels) > MANY:
        raise DataError(
            f"column {raw.name!r} has {len(labels):,} different labels, and a category has {MANY:,} at most: labels so many "
            f"name the rows. Leave the column out ({left_out(raw.name)}), or take coarser ones."
        )
    if odd := [label for label in labels if not is_plain(label)]:
        raise DataError(f"column {raw.name!r} has a label with control signs, {odd[0]!r}: take them out of the cells.")
    column = Column(raw.name, "category", labels, ordered)
    return codes_of(texts, column), column


def left_out(name: str) -> str:
    """Say how a column is left out."""
    return f"--columns auto,{name}=ignore, or table(frame, columns='auto,{name}=ignore')"


def codes_of(texts: Sequence[str | None], column: Column) -> np.ndarray:
    """Return the codes of labels, NaN for None.

    Raises:
        DataError: a label that is none of the column's; names the row.
    """
    codes: Mapping[str | None, float] = {label: float(code) for code, label in enumerate(column.codes)} | {None: np.nan}
    try:
        return np.array([codes[text] for text in texts], dtype=np.float64)
    except KeyError:
        row = next(row for row, text in enumerate(texts) if text not in codes)
    known = list(column.codes)
    shown = suggest(str(texts[row]), known, 1, "it has") if len(known) > SHOWN else f"it has {', '.join(known)}"
    raise DataError(
        f"column {column.name!r}, row {row} (counted from 0): {texts[row]!r} is a category that was never seen; {shown}. "
        "Leave the cell empty (missing) or the row out, or train with such rows."
    )
