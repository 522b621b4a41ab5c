"""A likelihood for each column of a table, by its type and support; and what a user says in its place.

auto,year=ignore,mass=log_normal,grade=CumulativeLogit:num-classes=7
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pyro_vae.common.keywords import suggest
from pyro_vae.errors import DataError, UsageError

from .cells import is_numeric, typed
from .columns import ASKED, Column, RawColumn, as_category, check_rounding, check_values
from .label_doubts import odd_numbers

IGNORED = "ignore"
ORDERED = ("CumulativeLogit", "discretized_logistic")  # families of codes whose order counts
OF_CODES = ("categorical", *ORDERED)  # families whose values are codes 0, 1, …
GRADES, A_GRADE = 10, 10  # values of an ordinal column at most, and rows of each at least
NAMED = 20  # rows at least, to tell names of rows
PADDED = re.compile(r"[+-]?0\d")  # 007 is a label
ONE_VALUE = 0.2  # share of the rows: a density has no such point
PAIR = re.compile(r"(?P<name>.+)=(?P<family>[A-Za-z_]+(:[a-z_-]+=[^:=]+)*)", re.DOTALL)


@dataclass(frozen=True)
class ColumnSpec:
    """How columns are taken: families by name of the column, in place of those that are found.

    Attributes:
        families: of some columns, or "ignore".

    Example:
        >>> ColumnSpec.read("auto,year=ignore,mass=log_normal").families
        {'year': 'ignore', 'mass': 'log_normal'}
    """

    families: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, text: str) -> ColumnSpec:
        """Read ``auto``, or ``auto,NAME=FAMILY,...``; a comma in a name stands there as it is.

        Raises:
            UsageError: it is neither.
        """
        head, _, rest = text.partition(",")
        families: dict[str, str] = {}
        pending = ""
        for part in rest.split(",") if rest else ():
            pending = f"{pending},{part}" if pending else part
            if found := PAIR.fullmatch(pending.strip()):
                families[found["name"].strip()], pending = found["family"], ""
        if head.strip() != "auto" or pending:
            raise UsageError(
                f"--columns {text}: it is auto, or auto with corrections, --columns auto,NAME=FAMILY,OTHER=ignore"
                + (f"; {pending!r} is no NAME=FAMILY" if pending else "")
            )
        return cls(families)

    def check(self, names: tuple[str, ...]) -> None:
        """Refuse corrections of columns that are not there."""
        for name in self.families:
            if name not in names:
                raise DataError(f"--columns names {name!r}, and there is no such column; {suggest(name, names, 2)}")


def choose(raw: RawColumn, asked: str = "") -> tuple[np.ndarray, Column] | str:
    """Take a column as numbers, with the family of its likelihood; or say why it is left out.

    Args:
        raw: the column.
        asked: the family, with options perhaps, in place of the one that is found; "ignore" leaves the column out.

    Raises:
        DataError: nothing but gaps; types that are mixed, dates, infinite numbers; by column and row.
    """
    if asked == IGNORED:
        return ASKED
    name, _, options = asked.partition(":")
    if raw.missing.all() and not raw.trouble:
        raise DataError(
            f"column {raw.name!r} has no value in any of its {len(raw)} rows: leave it out, --columns auto,{raw.name}=ignore."
        )
    raw = raw if name in OF_CODES and not options and are_labels(raw) else typed(raw)
    if raw.kind in ("number", "boolean"):
        check_values(raw.name, np.asarray(raw.values))
        check_rounding(raw.name, np.asarray(raw.values))
    if asked:
        values, column = as_asked(raw, name, options)
        return values, replace(column, why=ASKED + order_of(raw, column))
    return choose_family(raw)


def are_labels(raw: RawColumn) -> bool:
    """Return whether cells are labels, where a family of codes was asked for; numbers go by their value: 1 and 1.0 are one."""
    if raw.kind != "cells":
        return False
    texts = [text for text in raw.texts() if text is not None]
    return not all(map(is_numeric, texts)) or any(map(PADDED.match, texts))


def order_of(raw: RawColumn, column: Column) -> str:
    """Say that codes whose order matters have the one of the alphabet, as nothing told another."""
    by_alphabet = column.family.startswith(ORDERED) and column.labels and raw.labels is None
    return ", in the order of the alphabet" if by_alphabet and not column.ordered else ""


def as_asked(raw: RawColumn, name: str, options: str) -> tuple[np.ndarray, Column]:
    """Take a column as a family asks for it: codes, or numbers; options that the values say are filled in."""
    if name in OF_CODES and not options:
        values, column = as_category(raw)
        return values, replace(column, family=of_codes(name, len(column.labels)))
    if raw.kind == "category":
        values, column = as_category(raw)
        if name not in (*OF_CODES, "bernoulli") or (name == "bernoulli" and len(column.labels) != 2):
            raise DataError(
                f"column {raw.name!r} holds {len(column.labels)} labels, which {name!r} has no density of: take categorical, "
                "CumulativeLogit (where their order means something), bernoulli (of two), or ignore."
            )
    else:
        values, column = np.asarray(raw.values), Column(raw.name, raw.kind, raw.labels or ())
    family = f"{name}:{options}" if options else name
    if name == "binomial" and not options:
        family = f"binomial:total-count={int(np.nanmax(values))}"
    return values, replace(column, family=family)


def of_codes(name: str, count: int) -> str:
    """Name a family of so many codes."""
    return f"{name}:{'levels' if name == 'discretized_logistic' else 'num-classes'}={max(count, 2)}"


def choose_family(raw: RawColumn) -> tuple[np.ndarray, Column] | str:
    """Choose the family of a column by its type and its support."""
    if raw.kind == "category":
        values, column = as_category(raw)
        check_shared(values, column)
        return with_labels(values, column, f"{len(column.labels)} labels")
    values = np.asarray(raw.values)
    known = values[~np.isnan(values)]
    alike, counts = np.unique(known, return_counts=True)
    if len(alike) == 1:
        return f"it is constant ({raw.texts()[int((~raw.missing).argmax())]}), which says nothing of a row"
    if raw.kind == "boolean" or (len(alike) == 2 and set(alike) == {0.0, 1.0}):
        why = "false and true" if raw.kind == "boolean" else "zeros and ones"
        return values, Column(raw.name, raw.kind, raw.labels or (), family="bernoulli", why=why)
    if (known == known.round()).all():
        if len(alike) == len(known) >= NAMED and alike[-1] - alike[0] == len(alike) - 1:
            return f"it numbers the rows, {alike[0]:.0f} to {alike[-1]:.0f}, each once ({raw.name}=normal keeps it)"
        if (
            alike[0] >= 0
            and alike[0] <= max(0.0, known.mean() / 10)
            and not (alike[0] > 0 and is_graded(alike, counts))
        ):
            return values, Column(raw.name, family="negative_binomial", why="whole numbers from about 0: counts")
        if is_graded(alike, counts):
            values, column = as_category(raw)
            return with_labels(values, column, f"{len(alike)} whole numbers: grades")
        return values, Column(raw.name, family="normal", why="whole numbers far from 0" + heap(counts))
    if alike[0] > 0 and known.min() < known.mean() / 10:
        return values, Column(raw.name, family="log_normal", why="positive, over orders of magnitude" + heap(counts))
    why = "positive, far from 0" if alike[0] > 0 else "real numbers"
    return values, Column(raw.name, family="normal", why=why + heap(counts))


def check_shared(values: np.ndarray, column: Column) -> None:
    """Refuse names, which stand in one row alone mostly; and numbers with a sign or unit beside them, where they are many.

    Raises:
        DataError: says how they are taken, or left out.
    """
    rows, used = int((~np.isnan(values)).sum()), len(np.unique(values[~np.isnan(values)]))
    if (numbers := odd_numbers(column.labels)) and used > GRADES:
        raise DataError(
            f"column {column.name!r} has {used} labels that are {numbers} "
            f"({', '.join(map(repr, column.labels[:3]))} …): write numbers alone, with digits and a point; or --columns "
            f"auto,{column.name}=ignore, or auto,{column.name}=categorical, which takes each for a label without order."
        )
    if rows >= NAMED and used > rows / 2:
        raise DataError(
            f"column {column.name!r} has {used} labels ({', '.join(map(repr, column.labels[:3]))} …) in {rows} rows: names of "
            "the rows, or numbers with a sign or unit beside them. Write numbers alone; or --columns "
            f"auto,{column.name}=ignore, or auto,{column.name}=categorical, which takes them as they are."
        )


def is_graded(alike: np.ndarray, counts: np.ndarray) -> bool:
    """Return whether whole numbers are few, and each stands often: grades, years, cylinders."""
    return len(alike) <= GRADES and counts.sum() >= A_GRADE * len(alike)


def with_labels(values: np.ndarray, column: Column, why: str) -> tuple[np.ndarray, Column] | str:
    """Choose the family of codes: of two Bernoulli, ordered or not."""
    count = len(column.labels)
    if len(np.unique(values[~np.isnan(values)])) < 2:
        code = int(values[~np.isnan(values)][0])
        return f"it is constant ({column.labels[code]}), which says nothing of a row"
    if count == 2:
        return values, replace(column, family="bernoulli", why=why)
    name = "CumulativeLogit" if column.ordered else "categorical"
    return values, replace(column, family=of_codes(name, count), why=why + (", in order" if column.ordered else ""))


def heap(counts: np.ndarray) -> str:
    """Say that one value stands too often for a density."""
    share = counts.max() / counts.sum()
    if share < ONE_VALUE:
        return ""
    return f"; one value is in {100 * share:.0f} % of the rows, of which a density knows nothing"
