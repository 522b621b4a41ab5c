"""A file with a sparse matrix, scipy's .npz or an .h5ad, in its split: training rows stay sparse, some are held out dense."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.common.optional import imported
from pyro_vae.errors import DataError, UsageError

from .columns import EXACT, JUDGED_BY, Column, check_names, check_precision
from .data_set import MOST, Data, DataOptions, check_enough, format_sample
from .prepare import format_missing
from .sparse import SparseRows, sparse_or_same
from .splits import Split
from .tables import labels_of
from .unwritten_chunks import refuse_unwritten_datasets
from .user_files import UNREADABLE, check_ratio
from .value_kinds import kind_of_sparse

ANNOTATED = ".h5ad"
COMMON = {"format.npy", "shape.npy", "data.npy"}  # of scipy.sparse.save_npz, of any format
PLACES = ({"indices.npy", "indptr.npy"}, {"row.npy", "col.npy"}, {"coords.npy"}, {"offsets.npy"})
JUDGED = 10**7  # stored values, of which all are looked at for their digits
BYTES = 2**27  # of rows that are held out, and that are looked at; dense


def is_sparse_file(path: Path) -> bool:
    """Return whether a file holds a sparse matrix: an .h5ad, or what ``scipy.sparse.save_npz`` wrote."""
    if path.suffix.lower() == ANNOTATED:
        return True
    if path.suffix.lower() != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        return names >= COMMON and any(names >= places for places in PLACES)


def read_sparse(path: Path, options: DataOptions) -> Data:
    """Read a sparse matrix, and split its rows 80/10/10 by a permutation from numpy's ``default_rng(seed)``.

    At most 10,000 rows, and as many as take 128 MiB dense, are held out for validation, and for the test.

    Args:
        path: of the file; an .h5ad is read by the package anndata (optional); its rows and columns keep their names.
        options: of which sparse matrices take `seed`; `missing`, under which stored values that are NaN stand for what was
            not observed; and, of an .h5ad, the column of ``obs`` that labels the rows, ``table.label``.

    Raises:
        UsageError: an option of dense rows.
        DataError: a file that is damaged, a matrix without rows, values that are not finite.
        MissingExtraError: an .h5ad, and no package anndata.
    """
    refuse_dense_options(path, options)
    label = options.table.label
    rows, y, classes = read_rows(path, label)
    rows = rows.converted(torch.float32, None, options.missing, "x")
    check_enough(path, len(rows))
    tenth = max(1, min(round(len(rows) / 10), MOST, BYTES // (4 * rows.shape[1])))
    order = np.random.default_rng(options.seed).permutation(len(rows))

    def split(numbers: np.ndarray, dense: bool = True) -> Split:
        x: Any = rows[torch.from_numpy(numbers)] if dense else rows.taking(numbers)
        index = np.array([rows.row_names[n] for n in numbers]) if rows.row_names else None
        return Split(x, None if y is None else torch.from_numpy(y[numbers]), numbers, index, classes)

    train = np.sort(order[: len(rows) - 2 * tenth])
    some = train[:: max(1, len(train) // tenth)][:tenth]
    judged = np.arange(len(rows)) if rows.matrix.nnz <= JUDGED else some
    check_columns(rows, judged)
    filled = 100 * rows.matrix.nnz / rows.numel()
    notes = (
        f"x: {len(rows):,} rows × {rows.shape[1]:,} columns of {rows.source_dtype}, sparse: {filled:.3g} % of them are stored, "
        f"the others are 0; labels: {'none' if y is None else label}",
        f"{tenth:,} rows for validation and {tenth:,} for the test, by a permutation from seed {options.seed}; {len(train):,} "
        "to train on",
        format_sample(len(some)) + (JUDGED_BY if len(judged) < len(rows) and rows.source_dtype.itemsize > 4 else ""),
    )
    sample, validation, test = split(some), split(order[-2 * tenth : -tenth]), split(order[-tenth:])
    return Data(
        path.name,
        split(train, dense=False),
        validation,
        test,
        shape=(rows.shape[1],),
        policy="values as given" + format_missing([sample, validation, test]),
        digest=rows.digest,
        notes=notes,
        kind=kind_of_sparse(rows.matrix.data),
        columns=tuple(map(Column, check_names(rows.column_names))) if rows.column_names else (),
        part=sample,
    )


def refuse_dense_options(path: Path, options: DataOptions) -> None:
    """Refuse what is asked of dense rows alone."""
    given = [f"--{name.replace('_', '-')}" for name in options.table.given]
    refused = [option for option in given if option != "--label" or path.suffix.lower() != ANNOTATED]
    refused += ["--memory"] * (options.memory is not None) + ["--num-rows"] * (options.num_rows is not None)
    refused += ["sequences"] * options.sequences
    refused += [f"--binarization {options.binarization}"] * options.binary
    if refused:
        raise UsageError(f"{path} holds a sparse matrix, of which {refused[0]} is no option: leave it out")


def check_columns(rows: SparseRows, some: np.ndarray) -> None:
    """Refuse columns that single precision takes for others, as :func:`.columns.check_precision`, by some of the rows, or all.

    Beside zeros, fractions are as far from one another as they are large; so those columns are looked at that have none.
    """
    if rows.source_dtype.itemsize <= 4:
        return
    columns = rows.matrix[some].tocsc()
    largest = abs(columns).max(axis=0).toarray().reshape(-1)
    for i in np.flatnonzero((np.diff(columns.indptr) == len(some)) | (largest > EXACT)):
        check_precision(
            rows.column_names[i] if rows.column_names else f"x[:, {i}]", columns[:, [i]].toarray().reshape(-1)
        )


def read_rows(path: Path, label: str | None = None) -> tuple[SparseRows, np.ndarray | None, tuple[str, ...]]:
    """Read the rows of a file, sparse; codes and names of their labels, where it has some and they are asked for."""
    if not path.is_file():
        raise DataError(f"no file {path}. Check the path; it is taken from the current folder unless it starts with /.")
    return read_annotated(path, label) if path.suffix.lower() == ANNOTATED else (read_scipy(path), None, ())


def with_columns(rows: SparseRows, names: Sequence[str], path: Path) -> SparseRows:
    """Return the same rows with these columns, found by their names.

    Raises:
        DataError: some are not there, or there several times; named.
    """
    places = {name: i for i, name in enumerate(rows.column_names)}
    if lacking := [name for name in names if name not in places]:
        raise DataError(
            f"{path} has no column {', '.join(map(repr, lacking[:5]))}{' …' if len(lacking) > 5 else ''}, which the run was "
            f"trained on: {len(lacking)} of {len(names)} are not there."
        )
    counts = Counter(rows.column_names)
    if twice := [name for name in names if counts[name] > 1]:
        raise DataError(
            f"{path} has several columns called {', '.join(map(repr, twice[:5]))}, which the run was trained on: give each "
            "a name of its own (adata.var_names_make_unique() does), or leave the others out."
        )
    return SparseRows(rows.matrix[:, [places[n] for n in names]], rows.name, rows.row_names, tuple(names))


def read_scipy(path: Path) -> SparseRows:
    """Read what ``scipy.sparse.save_npz`` wrote; nothing in it is unpickled."""
    from scipy.sparse import load_npz

    try:
        with path.open("rb") as file:
            check_ratio(file, path)
            matrix = load_npz(file)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(
            f"{path}: damaged, or no sparse matrix ({type(error).__name__}: {' '.join(str(error).split())[:200]}). Write it "
            "again: scipy.sparse.save_npz(path, x.tocsr())."
        ) from error
    found: SparseRows = sparse_or_same(matrix, path.name)
    return found


def read_annotated(path: Path, label: str | None) -> tuple[SparseRows, np.ndarray | None, tuple[str, ...]]:
    """Read the X of an .h5ad with the names of its rows and columns; codes and names of labels, where they are asked for."""
    anndata = imported("anndata", "anndata", f"{path.name}: an .h5ad file")
    try:
        refuse_unwritten_datasets(path, ("X", "obs"))
        data = anndata.read_h5ad(path)
    except DataError:
        raise
    except Exception as error:  # whatever h5py and anndata raise of damaged files
        raise DataError(
            f"{path}: damaged, or no .h5ad ({' '.join(str(error).split())[:200]}). Write it again."
        ) from error
    rows = sparse_or_same(data, path.name)
    if not isinstance(rows, SparseRows):
        from scipy.sparse import csr_array

        if rows is None:
            raise DataError(f"{path} has no X. Put the counts there: adata.X = adata.layers['counts'].")
        dense = np.asarray(rows)
        rows = SparseRows(csr_array(dense), path.name, tuple(map(str, data.obs_names)), tuple(map(str, data.var_names)))
    if label is None:
        return rows, None, ()
    if label not in data.obs.columns:
        raise DataError(
            f"{path}: obs has no column {label!r}, which --label names; it has {', '.join(map(str, data.obs.columns))}."
        )
    return rows, *labels_of(
        ["" if gap else str(text) for text, gap in zip(data.obs[label], data.obs[label].isna(), strict=True)]
    )
