"""Read a table of numbers, ``.csv``: its rows, its header, its labels, and the column that only names the rows."""

from __future__ import annotations

import csv
import shlex
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

import numpy as np

from pyro_vae.common.counted import counted
from pyro_vae.common.plain_text import is_plain
from pyro_vae.errors import DataError

from .cells import DIGITS, MISSING, shortened, shown_cell, whole_digits
from .columns import Column, too_large
from .label_doubts import first_padded, refuse_measures, told_padded, told_padded_labels
from .missing_codes import is_code, looks_like_codes
from .table_layout import HEAD, TableLayout, TableOptions, is_index_name, is_number, layout_of_table

LINE = 2**26  # characters of a line, at most: some million columns
COUNTED = 10  # rows: the numbers of fewer may count by chance
SHOWN = 8  # names of columns
LABELS = ("y", "label", "labels", "target", "class", "species")  # names that labels go by
UNLIKE = "Make the rows equally long; a cell with a separator in it stands in quotes."
TITLE = "Delete lines above the names (a title, a remark)."
Line = tuple[int, list[str]]  # its number in the file, and its cells


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of a .csv: x ``(N, d)`` in float64, labels and the names of the rows where it has some, and what to say of it.

    Text labels are numbered in alphabetical order; `classes` has their names, and `columns` those of x, where they have names.
    """

    x: np.ndarray
    y: np.ndarray | None
    classes: tuple[str, ...]
    index: np.ndarray | None
    notes: tuple[str, ...]
    columns: tuple[Column, ...] = ()
    split: tuple[str, ...] = ()


def read_table(path: Path, options: TableOptions) -> Table:
    """Read a .csv of numbers, perhaps under one line of names.

    Raises:
        DataError: no text in UTF-8, no row, a cell that is no number, a row of another length, no such column as is named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = nonblank_lines(csv.reader(lines_of(file)))
            head = list(islice(lines, HEAD))
            if not head:
                raise DataError(f"{path} is empty: it has no row of numbers.")
            layout = layout_of_table([cells for _, cells in head], options, str(path))
            rows = chain(head[1:] if layout.names else head, lines)
            values, texts, padded = parse(rows, len(head[0][1]), layout, path, options)
    except (csv.Error, UnicodeDecodeError, OSError) as e:
        raise DataError(f"{path} cannot be read as comma-separated text in UTF-8 ({e}).{in_utf8(e)}") from e
    if not values:
        raise DataError(f"{path} is empty: it has no row of numbers.")
    return assemble(np.frombuffer(values).reshape(-1, len(head[0][1])), texts, layout, options, padded)


def assemble(
    table: np.ndarray,
    texts: dict[int, list[str]],
    layout: TableLayout,
    options: TableOptions,
    padded: dict[int, str],
) -> Table:
    """Take labels and index out of a table of numbers; `padded`: the first cell of a column with zeros before its digits."""
    index, why = index_of_table(table, texts, layout, options)
    y, classes = (None, ()) if layout.label is None else labels_of(texts[layout.label])
    x = np.delete(table, [c for c in (index, layout.label) if c is not None], axis=1)
    names = None if index is None else np.array(texts.get(index) or [f"{v:.17g}" for v in table[:, index]])
    notes: tuple[str, ...] = ()
    if not options.former:
        at = layout.names or range(table.shape[1])
        notes = tuple(describe(x, layout, index, why, classes, y))
        notes += tuple(told_padded({str(at[c]): cell for c, cell in sorted(padded.items()) if c != index}))
        if layout.label is not None:
            notes += tuple(told_padded_labels(str(at[layout.label]), texts[layout.label]))
    kept = [name for i, name in enumerate(layout.names) if i not in (index, layout.label)]
    told_apart = len(set(kept)) == len(kept) and all(map(is_plain, kept))
    columns = tuple(map(Column, kept)) if told_apart else ()  # by name, or not at all
    return Table(x, y, classes, names, notes, columns)


def describe(
    x: np.ndarray, layout: TableLayout, index: int | None, why: str, classes: tuple[str, ...], y: np.ndarray | None
) -> Iterator[str]:
    """Yield what a reader of numbers on this table must know of it."""
    kept = [name for i, name in enumerate(layout.names) if i not in (index, layout.label)]
    shown = ", ".join(kept[:SHOWN]) + (f", … {kept[-1]}" if len(kept) > SHOWN else "")
    header = f"header: {shown}" if layout.names else "no header: the first line is a row"
    labels = "labels: none"
    if layout.label is not None and y is not None:
        told = f", {counted(len(classes), 'class')}: {', '.join(classes[:SHOWN])}" if classes else ""
        labels = f"labels: column {layout.name(layout.label)}{told}"
    yield f"{counted(len(x), 'row')} × {counted(x.shape[1], 'column')}; {header}; {labels}"
    alike = next((name for i, name in enumerate(kept) if name in kept[:i]), None)
    if alike is not None:
        yield f"two columns are called {alike!r}, so that all go by their places, in new rows, too: give each a name of its own"
    if layout.names and all(map(is_number, kept)):
        yield "the first line is taken for names, as its numbers are unlike the rows under it (--header no makes it a row)"
    if index is not None:
        yield f"column {layout.name(index)} {why}: it names the rows, and is no part of x (--index none keeps it)"
    elif why:
        yield why
    if layout.names:
        yield from looks_like_codes(x, [Column(name) for name in kept])
    if layout.label is None and (found := [name for name in kept if name.lower() in LABELS]):
        yield f"column {found[0]!r} is part of x; --label {shlex.quote(found[0])} takes it for the label"


def index_of_table(
    table: np.ndarray, texts: dict[int, list[str]], layout: TableLayout, options: TableOptions
) -> tuple[int | None, str]:
    """Find the column that only names the rows, and say why it is that."""
    index, rows = layout.index, len(table)
    if options.former or options.index == "none":
        return None, ""
    if index is not None:
        if options.index != "auto":
            return index, "is the index"
        name, called = layout.names[index], is_index_name(layout.names[index])
        if (
            name
            and all(is_number(cell) for cell in texts[index])
            and (table[:, index] != table[:, index].round()).any()
        ):
            return (
                None,
                f"column {layout.name(index)} holds fractions, and is part of x (--index {shlex.quote(name)} leaves it out)",
            )
        if len(set(texts[index])) == rows:
            if not called:
                refuse_measures(name, texts[index])
            return index, "is an index by its name" if called and name else "names each row"
        if any(not is_number(cell) for cell in texts[index]):
            raise DataError(
                f"column {layout.name(index)} holds text that repeats: encode it as numbers, or give --label "
                f"{shlex.quote(name)}, or --index {shlex.quote(name)}, which leaves it out."
            )
        return (
            None,
            f"column {layout.name(index)} repeats values, and is part of x (--index {shlex.quote(name)} leaves it out)",
        )
    first = table[:, 0]
    counted = rows >= COUNTED and any(np.array_equal(first, np.arange(start, start + rows)) for start in (0, 1))
    if counted and table.shape[1] > 1 and layout.label != 0:
        return 0, "counts the rows"
    return None, ""


def labels_of(cells: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read labels: whole numbers as int64, other numbers as float64, texts as the number of their class.

    What is missing, an empty cell or a word for one, is no class: -1, and NaN among fractions.

    Example:
        >>> labels_of(["b", "", "a"]), labels_of(["3", "NA"])
        ((array([ 1, -1,  0]), ('a', 'b')), (array([ 3, -1]), ()))
    """
    there = np.array([cell not in MISSING for cell in cells], dtype=bool)
    known = [cell for cell in cells if cell not in MISSING]
    found, classes = known_labels(known)
    y = np.full(len(cells), -1 if found.dtype.kind == "i" else np.nan, found.dtype)
    y[there] = found
    return y, classes


def known_labels(cells: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read labels none of which is missing."""
    if all(is_number(cell) for cell in cells):
        y = np.array([float(cell) for cell in cells])
        # float64 holds every whole number below 2^53, so that labels survive the way through it
        are_integers = np.isfinite(y).all() and (y == y.round()).all() and (abs(y) < 2**53).all()
        return (y.astype(np.int64) if are_integers else y), ()
    classes, y = np.unique(np.array(cells), return_inverse=True)
    return y.astype(np.int64), tuple(map(str, classes))


def in_utf8(error: Exception) -> str:
    """Say how to go on after bytes that are no text in UTF-8; nothing of another error."""
    return " Save it as UTF-8 (in a spreadsheet: CSV UTF-8)." if isinstance(error, UnicodeDecodeError) else ""


def lines_of(file: IO[str]) -> Iterator[str]:
    """Yield a text's lines; raise a csv.Error for one longer than a table has: a file of zeros is one, as long as the disk."""
    while line := file.readline(LINE):
        if len(line) == LINE:
            raise csv.Error(f"a line has more than {LINE:,} characters")
        yield line


def nonblank_lines(reader: Iterator[list[str]]) -> Iterator[Line]:
    """Yield (line number, cells) of every line that is not blank."""
    for cells in reader:
        if cells:
            yield reader.line_num, [cell.strip() for cell in cells]  # type: ignore[attr-defined]


def parse(
    lines: Iterable[Line], width: int, layout: TableLayout, path: Path, options: TableOptions
) -> tuple[array[float], dict[int, list[str]], dict[int, str]]:
    """Parse rows to all values end to end, NaN in the columns of labels and index, whose texts stand beside; and the first
    cell of each column that has zeros before its digits.
    """
    values, large = array("d"), LargeNumbers()
    texts: dict[int, list[str]] = {c: [] for c in (layout.label, layout.index) if c is not None}
    for row, (line, cells) in enumerate(lines):
        where = f"{path}, row {row} (counted from 0; line {line} of the file)"
        if len(cells) != width:
            raise DataError(
                f"{where}: {counted(len(cells), 'cell')}, wanted {width} as in the first line. "
                f"{UNLIKE if width > 1 else TITLE}"
            )
        for column, kept in texts.items():
            kept.append(cells[column])
            cells[column] = ""
        if options.missing_value is not None:
            cells = ["" if is_code(cell, options.missing_value) else cell for cell in cells]
        if not options.former:
            large.check(cells, layout)
        values.extend(parse_number(cell, where, column, layout) for column, cell in enumerate(cells))
    numeric = layout.index
    if numeric is not None and all(is_number(cell) for cell in texts[numeric]):  # may yet turn out to be part of x
        for row, cell in enumerate(texts[numeric]):
            values[row * width + numeric] = float(cell)
        if padded := first_padded(texts[numeric]):
            large.padded[numeric] = padded
    return values, texts, large.padded


class LargeNumbers:
    """Whole numbers of many digits in a table, of which a float may take different ones for one; and those with zeros before.

    Attributes:
        padded: of each column the first cell that has zeros before its digits.
    """

    def __init__(self) -> None:
        self.texts: dict[tuple[int, float], str] = {}
        self.padded: dict[int, str] = {}

    def check(self, cells: list[str], layout: TableLayout) -> None:
        """Refuse a number that a float takes for another of its column.

        Raises:
            DataError: names the column.
        """
        for column, cell in enumerate(cells):
            if cell[:1] == "0" and len(cell) > 1 and cell.isdecimal():
                self.padded.setdefault(column, cell)
            if len(cell) > DIGITS and (digits := whole_digits(cell)):
                other = self.texts.setdefault((column, float(cell)), digits)
                if other != digits:
                    name = layout.names[column] if layout.names else str(column)
                    raise too_large(name, f"such as {shortened(digits)} and {shortened(other)}")


def parse_number(cell: str, where: str, column: int, layout: TableLayout) -> float:
    """Parse a cell; NaN where it is empty, which :func:`~pyro_vae.data.load` takes for missing, or refuses."""
    if is_number(cell) or not cell:
        return float(cell or "nan")
    name = (
        f" (it is called {layout.names[column]!r}; labels: --label {shlex.quote(layout.names[column])})"
        if layout.names
        else ""
    )
    raise DataError(
        f"{where}, column {column}: {shown_cell(cell)} is no number{name}. Cells are numbers between commas; encode text as "
        "numbers, and leave gaps empty (--missing); or --columns auto takes texts for categories. Names may stand in the first "
        "line only, and there in every column."
    )
