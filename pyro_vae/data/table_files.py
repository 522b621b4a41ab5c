"""Read a table of any columns from a file, ``.csv``, ``.tsv`` or ``.parquet``: texts, gaps and decimal commas are taken."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from pyro_vae.common.counted import counted
from pyro_vae.common.keywords import suggest
from pyro_vae.errors import DataError, UsageError

from .cells import cells_of, separator_of
from .column_choices import OF_CODES, ColumnSpec, are_labels
from .columns import RawColumn, check_names
from .frames import pandas_index, read_frame
from .label_doubts import told_padded_labels
from .missing_codes import looks_like_codes, without_code
from .mixed import Coded, code_columns, describe_columns, describe_groups, index_among, match_columns
from .table_layout import HEAD, TableOptions, layout_of_table
from .tables import SHOWN, TITLE, UNLIKE, Table, in_utf8, labels_of, lines_of, nonblank_lines

TEXT, PARQUET = (".csv", ".tsv"), ".parquet"
MANY = 60  # columns: more are told by groups of one likelihood


def read_mixed(path: Path, options: TableOptions) -> Table:
    """Read a table whose columns may differ: each by its type, by a likelihood of its own, or as a model knows it.

    Raises:
        DataError: no table, a row of another length, no such column as the options name, or what no number stands for.
        UsageError: a .parquet, and no pyarrow to read it.
    """
    of_pandas: tuple[str, ...] = ()
    if path.suffix.lower() == PARQUET:
        raws, of_pandas = read_parquet(path)
        named = True
    else:
        raws, named = read_text(path, options)
    if not len(raws[0]):
        raise DataError(f"{path} is empty: it has no row under its names.")
    known = [column.name for column in options.known]
    label = None if options.label is None else find(options.label, raws, "label", path, optional=bool(known))
    split = None if options.split_by is None else find(options.split_by, raws, "split-by", path, optional=bool(known))
    rest = [raw for raw in raws if raw is not label and raw is not split]
    index, why = index_of(rest, options, known, path, of_pandas)
    rest = [without_code(raw, options.missing_value, of_labels(raw, options)) for raw in rest if raw is not index]
    if not rest:
        raise DataError(f"{path}: no column is left to model beside labels and the names of the rows.")
    try:
        coded = code(rest, options, path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    y, classes = (None, ()) if label is None else labels_of(["" if t is None else t for t in label.texts()])
    names = None if index is None else np.array(["" if t is None else t for t in index.texts()])
    notes = describe(named, coded, label, index, why)
    return Table(coded.values, y, classes, names, tuple(notes), coded.columns, values_of(split, path, bool(known)))


def of_labels(raw: RawColumn, options: TableOptions) -> bool:
    """Return whether a column is taken for labels: as a model knows it, or as a family of codes is asked for it."""
    if options.known:
        return any(column.name == raw.name and column.kind == "category" for column in options.known)
    asked = "" if options.columns is None else ColumnSpec.read(options.columns).families.get(raw.name, "")
    return asked in OF_CODES and are_labels(raw)


def values_of(split: RawColumn | None, path: Path, optional: bool = False) -> tuple[str, ...]:
    """Return what each row is split by; refuse a row that does not say, but of `optional` new rows."""
    if split is None or (optional and split.missing.any()):
        return ()
    if split.missing.any():
        raise DataError(
            f"{path}: column {split.name!r}, row {int(split.missing.argmax())} (counted from 0), which splits the rows, "
            "is empty: fill it in."
        )
    return tuple(str(text) for text in split.texts())


def code(raws: Sequence[RawColumn], options: TableOptions, path: Path) -> Coded:
    """Take columns as the options say; without any, texts are refused."""
    if options.known:
        return match_columns(raws, options.known)
    if options.columns is not None:
        return code_columns(raws, ColumnSpec.read(options.columns))
    coded = code_columns(raws, None)
    if labelled := [column for column in coded.columns if column.kind == "category"]:
        first = labelled[0]
        raise DataError(
            f"column {first.name!r} holds text ({', '.join(map(repr, first.labels[:3]))} …): --columns auto takes texts for "
            "categories and finds a likelihood for each column; or --label, where it is the label."
        )
    return coded


def find(wanted: str, raws: Sequence[RawColumn], role: str, path: Path, optional: bool = False) -> RawColumn | None:
    """Find a column by name."""
    names = [raw.name for raw in raws]
    if wanted in names:
        return raws[names.index(wanted)]
    if optional:
        return None
    raise DataError(
        f"{path} has no column {wanted!r}, which --{role} names; {suggest(wanted, names, 3, otherwise='it has')}."
    )


def index_of(
    raws: Sequence[RawColumn], options: TableOptions, known: Sequence[str], path: Path, of_pandas: Sequence[str] = ()
) -> tuple[RawColumn | None, str]:
    """Find the column that only names the rows, as asked or by its looks."""
    if not raws or options.index == "none":
        return None, ""
    if options.index != "auto":
        return find(options.index, raws, "index", path, optional=bool(known)), "is the index"
    at, why = index_among(raws, known, of_pandas)
    return (None, "") if at is None else (raws[at], why)


def read_parquet(path: Path) -> tuple[list[RawColumn], tuple[str, ...]]:
    """Read the columns of a .parquet, and name the one that was an index of pandas."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UsageError(f'{path} is read by pyarrow, which is not here: pip install "pyro-vae[parquet]"') from error
    try:
        with parquet.ParquetFile(
            path
        ) as file:  # whose columns may be of one name, which read_table has other words for
            table = file.read()
    except Exception as error:  # pyarrow's errors are of many kinds, and all are of the file
        raise DataError(f"{path} cannot be read as Parquet ({type(error).__name__}: {error}).") from error
    try:
        return read_frame(table, bool(table.schema.pandas_metadata)), pandas_index(table)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_text(path: Path, options: TableOptions) -> tuple[list[RawColumn], bool]:
    """Read the cells of a text file, column by column, and whether its first line names them.

    Raises:
        DataError: no text in UTF-8, no row, a row of another length, columns without a name of their own.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = list(islice(lines_of(file), HEAD))
            separator = separator_of(first, path.suffix.lower())
            lines = nonblank_lines(csv.reader(chain(first, lines_of(file)), delimiter=separator))
            head = list(islice(lines, HEAD))
            if not head:
                raise DataError(f"{path} is empty: it has no row.")
            plain = TableOptions(header=options.header, index="none")
            names = layout_of_table([cells for _, cells in head], plain, str(path)).names
            width = len(head[0][1])
            rows = list(equally_long(chain(head[1:] if names else head, lines), width, path))
    except (csv.Error, UnicodeDecodeError, OSError) as e:
        raise DataError(f"{path} cannot be read as text in UTF-8, cells between separators ({e}).{in_utf8(e)}") from e
    try:
        called = check_names(names or range(width))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return [cells_of(name, [row[i] for row in rows]) for i, name in enumerate(called)], bool(names)


def equally_long(lines: Iterator[tuple[int, list[str]]], width: int, path: Path) -> Iterator[list[str]]:
    """Yield the cells of rows; refuse one of another length."""
    for row, (line, cells) in enumerate(lines):
        if len(cells) != width:
            raise DataError(
                f"{path}, row {row} (counted from 0; line {line} of the file): {counted(len(cells), 'cell')}, "
                f"wanted {width} as in the first line. {UNLIKE if width > 1 else TITLE}"
            )
        yield cells


def describe(
    named: bool,
    coded: Coded,
    label: RawColumn | None,
    index: RawColumn | None,
    why: str,
) -> Iterator[str]:
    """Yield what a reader of numbers on this table must know of it."""
    names = [column.name for column in coded.columns]
    kept = ", ".join(names[:SHOWN]) + (f", … {names[-1]}" if len(names) > SHOWN else "")
    header = f"header: {kept}" if named else "no header: the first line is a row"
    labels = "none" if label is None else f"column {label.name!r}"
    yield f"{counted(len(coded.values), 'row')} × {counted(len(names), 'column')}; {header}; labels: {labels}"
    if index is not None:
        yield f"column {index.name!r} {why}: it names the rows, and is no part of x (--index none keeps it)"
    if label is not None:
        yield from told_padded_labels(label.name, ["" if t is None else t for t in label.texts()])
    yield from coded.notes
    if any(column.why for column in coded.columns):
        yield "a likelihood for each column; --columns auto,NAME=FAMILY,OTHER=ignore corrects it"
        told = describe_columns if len(names) <= MANY else describe_groups
        yield from told(coded.columns, coded.values)
    yield from looks_like_codes(coded.values, coded.columns)
