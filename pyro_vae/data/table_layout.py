"""What the columns of a table are, read off its first lines: a header (of numbers, even), an index column, a label column."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pyro_vae.common.keywords import suggest
from pyro_vae.errors import DataError, UsageError

from .columns import Column

HEAD = 50  # lines that are looked at
FEW = 4  # rows: what is said of the spread of fewer says little
MOST = 0.9  # of the columns
HEADERS = ("auto", "yes", "no")
WHOLE = re.compile(r"-?\d+")
UNNAMED = re.compile(r"|unnamed: ?\d+(\.\d+)*", re.IGNORECASE)  # as pandas writes and reads an index without a name
LEVEL = re.compile(r"__index_level_\d+__")  # as pandas writes one to a .parquet
INDEX = re.compile(
    r"#|id|idx|index|key|no|nr|(row|obs|case|sample|patient|subject|record)s?[ _]?(id|idx|index|name|no|nr|num|number)s?"
    r"|rownames?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TableOptions:
    """How a table's file is to be read; by default as its first lines look, and of numbers alone.

    Attributes:
        header: "yes" or "no": the first line holds names, or a row; "auto": names, if it looks so.
        index: name (or number) of the column that only names the rows, and is no part of x; "none"; "auto": one that is
            unnamed, is called so, or counts the rows.
        label: name (or number) of the column of labels, which is no part of x; None: there is none.
        former: read as earlier versions did: numbers are never a header, a column called y is the label, no index.
        columns: "auto": texts are categories, gaps are missing, and each column has a likelihood of its own;
            "auto,NAME=FAMILY,OTHER=ignore" corrects those; None: numbers alone.
        split_by: name of the column that splits the rows, no part of x: its values are train, validation and test, or groups
            that stay together. None: rows are dealt one by one.
        known: the columns of a model, which are found by name and coded alike.
        missing_value: what stands for a missing value, such as -999, beside empty cells and the words for one.
    """

    header: str = "auto"
    index: str = "auto"
    label: str | None = None
    former: bool = False
    columns: str | None = None
    split_by: str | None = None
    known: tuple[Column, ...] = ()
    missing_value: str | None = None

    def __post_init__(self) -> None:
        if self.header not in HEADERS:
            raise UsageError(f"header must be one of {', '.join(HEADERS)}, got {self.header!r}")

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [
            n
            for n in ("header", "index", "label", "columns", "split_by", "missing_value")
            if getattr(self, n) != getattr(TableOptions, n)
        ]


@dataclass(frozen=True)
class TableLayout:
    """Names of the columns (none without a header), and which of them are no part of x."""

    names: tuple[str, ...]
    index: int | None = None
    label: int | None = None

    def name(self, column: int) -> str:
        """Name a column as a message shall."""
        return f"{column} ({self.names[column]!r})" if self.names else str(column)


def layout_of_table(lines: Sequence[Sequence[str]], options: TableOptions, where: str) -> TableLayout:
    """Read the layout off the first lines of a table, cell by cell.

    Raises:
        DataError: no such column as the options name.

    Example:
        >>> lines = [["", "2019", "2020"], ["0", "1.5", "2.0"], ["1", "0.5", "1.0"], ["2", "2.5", "1.0"]]
        >>> layout_of_table(lines, TableOptions(), "x.csv")
        TableLayout(names=('', '2019', '2020'), index=0, label=None)
    """
    first = [cell.removeprefix("#").strip() if i == 0 else cell for i, cell in enumerate(lines[0])]
    rest = [line for line in lines[1:] if len(line) == len(first)]
    if options.former:
        names = tuple(lines[0]) if not any(map(is_number, lines[0])) else ()
        return TableLayout(names, label=names.index("y") if "y" in names else None)
    marked = lines[0][0].startswith("#")  # as numpy.savetxt marks its header
    named = options.header == "yes" or (options.header == "auto" and (marked or is_header(first, rest)))
    names = tuple(first) if named else ()
    label = None if options.label is None else column_of(options.label, names, len(first), "label", where)
    if options.index not in ("auto", "none"):
        index: int | None = column_of(options.index, names, len(first), "index", where)
    else:
        named = bool(names) and len(names) > 1 and (is_index_name(names[0]) or names_rows([line[0] for line in rest]))
        index = 0 if options.index == "auto" and named else None
    if label is not None and label == index:
        if options.index != "auto":
            raise DataError(f"{where}: column {names[label] if names else label!r} cannot be both label and index")
        index = None
    return TableLayout(names, index, label)


def column_of(wanted: str, names: Sequence[str], width: int, role: str, where: str) -> int:
    """Find a column by name, or by number where there are no names."""
    if names.count(wanted) > 1:
        raise DataError(f"{where}: {names.count(wanted)} columns are called {wanted!r}. Give each a name of its own.")
    if wanted in names:
        return names.index(wanted)
    if not names and wanted.isdecimal() and int(wanted) < width:
        return int(wanted)
    known = suggest(wanted, names, 3, "it has") if names else f"it has no header: give a number from 0 to {width - 1}"
    raise DataError(f"{where} has no column {wanted!r}, which --{role} names; {known}.")


def is_index_name(name: str) -> bool:
    """Return whether a first column of that name only names the rows."""
    return bool(UNNAMED.fullmatch(name) or INDEX.fullmatch(name))


def names_rows(cells: Sequence[str]) -> bool:
    """Return whether cells are texts, another in each row."""
    return bool(cells) and len(set(cells)) == len(cells) and not any(not cell or is_number(cell) for cell in cells)


def is_header(first: Sequence[str], rest: Sequence[Sequence[str]]) -> bool:
    """Return whether a first line holds names: no numbers, or numbers that are unlike the rows under them.

    Numbers are names if they count the columns from 0 (0, 1, 2 as pandas writes them); if they are whole and rise, over
    numbers that are all written with a point; or if they rise (2019, 2020, or wavelengths) and lie far from the values
    under them, by more than their spread, in nearly all columns.
    """
    numeric = [i for i, cell in enumerate(first) if is_number(cell)]
    if not numeric:
        return True
    blank = [i for i, cell in enumerate(first) if not cell]
    if blank not in ([], [0]):
        return False
    labels = [first[i] for i in numeric]
    columns = [[line[i] for line in rest if line[i]] for i in numeric]
    return are_labels(labels, columns, least=1 if blank else 2 if len(labels) < len(first) else 3)


def are_labels(labels: Sequence[str], columns: Sequence[Sequence[str]], least: int) -> bool:
    """Return whether numbers are names of the columns of cells that stand under them; `least`: so many that count from 0."""
    values = [float(label) for label in labels]
    if any(not a < b for a, b in pairwise(values)) or not all(map(is_finite, labels)):
        return False
    if not all(all(map(is_number, column)) for column in columns):
        return False
    whole = all(WHOLE.fullmatch(label) for label in labels)
    counting = whole and values == list(range(len(values)))
    if counting and len(values) >= least and not goes_on(values, columns):
        return True
    if whole and all(len(column) >= FEW - 1 and all(map(is_decimal, column)) for column in columns):
        return True
    far = [is_far(value, column) for value, column in zip(values, columns, strict=True)]
    return len(values) > 1 and sum(far) >= MOST * len(far)


def goes_on(values: Sequence[float], columns: Sequence[Sequence[str]]) -> bool:
    """Return whether the second line counts on where the first ended, as the rows of ``np.arange`` do."""
    return all(bool(c) and float(c[0]) == value + len(values) for value, c in zip(values, columns, strict=True))


def is_far(value: float, column: Sequence[str]) -> bool:
    """Return whether a value lies outside a column's by more than their spread."""
    under = [float(cell) for cell in column if is_finite(cell)]
    if len(under) < FEW:
        return False
    low, high = min(under), max(under)
    return max(low - value, value - high) > high - low


def is_decimal(cell: str) -> bool:
    """Return whether a number is written with a point or an exponent."""
    return "." in cell or "e" in cell.lower()


def is_finite(cell: str) -> bool:
    """Return whether a cell reads as a finite number."""
    return is_number(cell) and abs(float(cell)) < float("inf")


def is_number(cell: str) -> bool:
    """Return whether a cell reads as a number (Python's ``1_000`` does not)."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
