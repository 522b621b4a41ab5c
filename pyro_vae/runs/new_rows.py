"""Rows that a run was not trained on, read as its own were: columns by their names, the same codes, the same units."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pyro_vae.common.counted import counted
from pyro_vae.common.plain_text import plain
from pyro_vae.data import Column, Data, Split, TableOptions, binarize, load
from pyro_vae.data.arrays import GAPS
from pyro_vae.data.image_folders import read_folder
from pyro_vae.data.missing_codes import are_codes
from pyro_vae.data.mixed import shown
from pyro_vae.data.prepare import empty_rows, event_shape, format_missing, prepare
from pyro_vae.data.row_ids import row_digests
from pyro_vae.data.sparse_data import ANNOTATED, is_sparse_file, read_rows, with_columns
from pyro_vae.data.stored_data import is_stored
from pyro_vae.data.user_files import ENDINGS, TABLES, read_file
from pyro_vae.errors import DataError, RunFolderError, ShapeError, UsageError

from .evaluations import NEW, is_new
from .load import Run, open_data, read_data
from .new_labels import labelled_as

WITHOUT_GAPS = (
    "The run was trained on rows without gaps, and has no likelihood of what is left of a row: leave these rows out, or fill "
    "them; or train with --missing, whose runs take them."
)


def open_rows(run: Run, file: Path | None, data_dir: Path | None = None) -> Data:
    """Load the data of a run; or the rows of another file, all as the split :func:`new_split` of them.

    Args:
        run: opened.
        file: None; the run's own data file, wherever it lies now, which keeps its splits; or new rows.
        data_dir: as for :func:`~pyro_vae.runs.load.open_data`; of new rows the training rows, of which the floor is made,
            are looked for there, and done without where they are not.

    Raises:
        DataError: the file lacks a column that the run was trained on, has text where numbers stood, or a category that was
            never seen; names column and row.
        ShapeError: an array with rows of another shape.
        UsageError: a file that is neither a table nor an array.
    """
    if file is None:
        return open_data(run, data_dir)
    if file.suffix.lower() not in (*ENDINGS, ANNOTATED) and not file.is_dir():
        raise UsageError(
            f"--data {file}: new rows are read from a file that ends in {', '.join(ENDINGS)}, {ANNOTATED}, or from a folder of "
            "pictures"
        )
    file = file.expanduser()
    if is_sparse_file(file):
        return open_sparse_rows(run, file, data_dir)
    if is_stored(file, run.config.memory):
        return open_stored_rows(run, file)
    return open_dense_rows(run, file, data_dir)


def open_stored_rows(run: Run, file: Path) -> Data:
    """Load the data of a run that stays on disk; refuse new rows that do."""
    config = run.config
    data = load(
        file,
        memory=config.memory,
        num_rows=config.num_rows,
        seed=config.data_seed,
        missing=config.missing,
        verbose=False,
    )
    if data.digest == run.record["data"]["digest"]:
        return open_data(run, file)
    raise UsageError(
        f"--data {file}: the run was trained on rows that stay on disk, and its commands take those alone. New rows are scored "
        f"in Python: log_likelihood(vae.model, vae.guide, Stored({str(file)!r}))"
    )


def open_dense_rows(run: Run, file: Path, data_dir: Path | None) -> Data:
    """Load the rows of a table, an array or a folder of pictures: the run's own in their splits, or new ones as one split."""
    config, ragged = run.config, run.kind.ragged
    source = (
        read_folder(file, config.data_seed)
        if file.is_dir()
        else read_file(file, config.data_seed, table_options(run, file), ragged)
    )
    if source.digest() == run.record["data"]["digest"]:
        return open_data(run, file)
    if len(source.parts) > 1:
        raise DataError(f"{file} holds splits of its own: new rows are one array, x (np.savez(path, x=x, y=y)).")
    (part,), binary = source.parts, config.binarization != "none"
    code = None if is_table(file) else config.missing_value  # which a table's cells are without already
    if code is not None and (gaps := are_codes(part.x, code)).any():
        part = replace(part, x=np.where(gaps, np.nan, part.x))
    if (shape := event_shape(source.parts)) != run.shape:
        raise other_shape(run, file, shape)
    if run.columns and not is_table(file):
        print(f"note: {plain(file.name)}: {by_place(run)}", file=sys.stderr)
    if part.columns and not run.columns:
        print(f"note: {plain(file.name)}: {without_names(part.columns)}", file=sys.stderr)
    try:
        rows, _ = prepare(part, source, binary, config.missing or ragged)
    except DataError as error:
        raise type(error)(f"{file}: {str(error).replace(GAPS, WITHOUT_GAPS)}") from error
    if binary:
        rows = replace(rows, x=binarize(rows.x, torch.Generator().manual_seed(config.data_seed)))
    for note in (note for note in (*source.notes, *empty_rows([rows])) if not note.startswith("split ")):
        print(f"note: {plain(file.name)}: {plain(note)}", file=sys.stderr)
    policy = source.policy + format_missing([rows], ragged)
    policy = run.record["data"].get("policy", policy) if binary else policy
    train = training_rows(run, data_dir)
    rows = labelled_as(run, rows, train, file)
    if train is not None and (seen := count_seen(rows, train)):
        print(
            f"note: {plain(file.name)}: {seen} of {counted(len(rows), 'row')} "
            f"{'equals a row' if seen == 1 else 'equal rows'} that the run was trained on, and their log p(x) "
            "is that of rows it has seen",
            file=sys.stderr,
        )
    return of_one_split(run, rows, train, name=file.name, policy=policy, digest=source.digest(), columns=part.columns)


def is_table(file: Path) -> bool:
    """Return whether a file is a table, by its ending."""
    return file.suffix.lower() in TABLES


def table_options(run: Run, file: Path) -> TableOptions:
    """Return how the file of new rows is read, if it is a table: with the columns and codes of the run."""
    config = run.config
    if not is_table(file):
        return TableOptions()
    if not run.columns:
        return TableOptions(missing_value=config.missing_value)
    return TableOptions(
        header=config.header,
        index=config.index,
        label=config.label,
        split_by=config.split_by,
        known=run.columns,
        missing_value=config.missing_value,
    )


def open_sparse_rows(run: Run, file: Path, data_dir: Path | None) -> Data:
    """Load the rows of a sparse matrix, dense: those of the run in their splits, or new ones, all as one split.

    Columns that have names are found by them, in whatever order they stand.

    Raises:
        DataError: columns that are not there; rows that take more than a GiB of memory, dense.
        ShapeError: another number of columns.
        UsageError: a run of categories, of sequences, or of binarized rows.
    """
    config = run.config
    if config.binarization != "none" or run.kind.ragged or any(column.codes for column in run.columns):
        raise UsageError(
            f"--data {file} is a sparse matrix of plain numbers, and the run reads its rows otherwise (as sequences, "
            "categories, or binarized): give them in a file such as its own."
        )
    rows, y, classes = read_rows(file, config.label)
    if rows.digest == run.record["data"]["digest"]:
        return open_data(run, file)
    digest, names = rows.digest, [column.name for column in run.columns]
    if names and rows.column_names:
        rows = with_columns(rows, names, file)
    if tuple(rows.shape[1:]) != run.shape:
        raise other_shape(run, file, tuple(rows.shape[1:]))
    if names and not rows.column_names:
        print(f"note: {plain(file.name)}: {by_place(run)}", file=sys.stderr)
    if config.missing_value is not None and are_codes(rows.matrix.data, config.missing_value).any():
        raise DataError(
            f"{file} holds {config.missing_value}, which stands for a missing value in this run: store NaN there, or give the "
            "rows in a table."
        )
    rows = rows.converted(torch.float32, None, config.missing, "x")
    try:
        dense = rows.whole(str(file))
    except DataError as error:
        raise DataError(
            f"{error} Write these into a file of their own (scipy.sparse.save_npz, or adata[:1000].write_h5ad); in Python "
            "log_likelihood and encode take the matrix as it is."
        ) from error
    x = torch.from_numpy(dense).to(torch.float32)
    labels = None if y is None else torch.from_numpy(y)
    new = Split(x, labels, index=np.array(rows.row_names) if rows.row_names else None, classes=classes)
    policy = "values as given" + format_missing([new])
    train = training_rows(run, data_dir)
    new = labelled_as(run, new, train, file)
    return of_one_split(run, new, train, name=file.name, policy=policy, digest=digest, columns=run.columns)


def of_one_split(
    run: Run, rows: Split, train: Split | None, *, name: str, policy: str, digest: str, columns: tuple[Column, ...]
) -> Data:
    """Return new rows as all that is scored, beside those that the run was trained on, where these are known."""
    if train is None:
        print(f"note: {plain(name)}: {not_compared(run, name)}", file=sys.stderr)
    none = Split(rows.x[:0])
    return Data(name, none if train is None else train, none, rows, run.shape, policy, digest, columns=columns)


def other_shape(run: Run, file: Path, shape: tuple[int, ...]) -> ShapeError:
    """Make the error for rows of another shape; of a table without names it says which columns the run had left out."""
    text = f"{file} has rows of shape {shape}, and the run was trained on rows of shape {run.shape}"
    config = run.config
    taken = {"--label": config.label, "--index": None if config.index in ("auto", "none") else config.index}
    out = [f"column {name} ({option})" for option, name in taken.items() if name is not None]
    more = len(shape) == 1 == len(run.shape) and shape[0] > run.shape[0]
    if not (out and more and file.suffix.lower() in TABLES and not run.columns):
        return ShapeError(f"{text}: give it such.")
    return ShapeError(
        f"{text}: columns without names are taken by their place, and all of this file's, while the run left "
        f"{' and '.join(out)} of its own out of x. Write the file without {'it' if len(out) == 1 else 'them'}; or train on a "
        "table with a header, whose new rows go by name."
    )


def by_place(run: Run) -> str:
    """Say that columns without names are taken for the run's, in its order."""
    return (
        f"its columns have no names, and are taken for the run's in their order: {shown([c.name for c in run.columns])}. Rows "
        "in a table with these names go by name"
    )


def without_names(columns: Sequence[Column]) -> str:
    """Say that columns with names are taken by their place, as the run knows its own by place alone."""
    return (
        f"its columns are taken in their order, {shown([c.name for c in columns])}: the run was trained on columns without "
        "names, or with two called alike, and cannot tell whether these are the same"
    )


def not_compared(run: Run, name: str) -> str:
    """Say that new rows may be rows of training, which are not there to be compared; and so if they came by their name."""
    whose = "the file of that name has changed since, and " if name == run.record["data"].get("name") else ""
    return (
        f"the rows that the run was trained on are not there: {whose}nobody can tell which of these it has seen, whose "
        "log p(x) would be too high for new ones"
    )


def count_seen(rows: Split, train: Split) -> int:
    """Count the rows that stand among training rows, too, value for value."""
    return int(torch.isin(row_digests([rows.x]), row_digests([train.x])).sum()) if len(train) else 0


def training_rows(run: Run, data_dir: Path | None) -> Split | None:
    """Return the rows that a run was trained on, where they are still there."""
    try:
        data = read_data(run, data_dir)  # what is told is of the new rows
    except (DataError, RunFolderError, UsageError):
        return None
    return data.sample[:0] if data.part is not None or data.transform is not None else data.train


def new_split(data: Data) -> str:
    """Name new rows by their digest, as evaluations of them are called."""
    name = f"{NEW}{data.digest[:8]}"
    assert is_new(name)
    return name
