"""Data sets by name or by path: flat float32 rows in a fixed split, with a record of every conversion."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.plain_text import plain
from pyro_vae.errors import UsageError

from .binarize import binarize
from .columns import Column
from .image_folders import read_folder
from .image_sets import SETS, read_image_set
from .mnist import CLASSES, read_images
from .prepare import check_columns, event_shape, format_missing, prepare
from .sparse_data import ANNOTATED, is_sparse_file, read_sparse
from .split_files import given_paths, read_splits, shared_rows
from .splits import Part, Source, Split, shuffle
from .stored_data import is_stored, read_stored
from .table_layout import TableOptions
from .user_files import ENDINGS, describe, read_file

GREY = ("digits", *CLASSES)  # whose names say what their values are
NAMES = (*GREY, *SETS)
LOOKED_AT = 4096  # rows at a time
PACKED, SHEET = "unpack it first", "save the sheet as .csv"
OTHER_ENDINGS = {  # of files that hold rows, and how they become such that are read
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), PACKED),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), SHEET),
    **dict.fromkeys((".txt", ".dat"), "call it .csv, or .tsv where tabs part its columns"),
}
POLICIES = {
    "static": "static binarization, once, seed {seed}",
    "dynamic": "dynamic binarization: train redrawn each epoch, validation and test drawn once with seed {seed}",
}


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in its split, with the facts that belong beside every number computed on it.

    Attributes:
        name: of the data set, or of the file.
        train: rows to fit; grey under dynamic binarization.
        validation: rows to choose by.
        test: rows to report on.
        shape: of one row: (channels, height, width) for images, (d,) for tables.
        policy: what the values are, in a sentence.
        digest: SHA-256 of the arrays as their files hold them, before scaling and binarization, in hexadecimal.
        transform: None, or what draws a training batch anew each time: ``transform(x, generator)``.
        notes: what was converted, and how the rows were split.
        columns: of a table, in order: names, and what codes stand for; empty where they have no names.
        part: some training rows in memory, evenly spaced, where they are on disk; None where all are in memory.
        kind: "binary", zeros and ones alone; "bytes", whole numbers 0 to 255 (of 8 bits, or some of them from 128 on);
            "counts", whole numbers from 0, of a sparse matrix; "".
    """

    name: str
    train: Split
    validation: Split
    test: Split
    shape: tuple[int, ...]
    policy: str
    digest: str
    transform: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    notes: tuple[str, ...] = ()
    kind: str = ""
    columns: tuple[Column, ...] = ()
    part: Split | None = None

    @property
    def sample(self) -> Split:
        """Training rows in memory: all of them, or some, where ``train.x`` is on disk (:class:`~pyro_vae.data.Stored`)."""
        return self.train if self.part is None else self.part


def load(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    binarization: str = "none",
    seed: int = 0,
    missing: bool = False,
    table: TableOptions | None = None,
    sequences: bool = False,
    memory: str | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    verbose: bool = True,
) -> Data:
    """Load a data set by name ("digits", "mnist", "fashion_mnist", "kmnist", "omniglot", "svhn", "cifar10", "celeba"), by the
    path of a file (.npy, .npz, .csv, .tsv, .parquet, .h5ad), of a folder of PNGs and JPEGs, or of rows that stay on disk: a
    folder with a manifest.json, a Zarr array.

    Digits (1,797 rows of counts 0..16, from scikit-learn) are split 1,437 / 180 / 180 by a permutation from numpy's
    ``default_rng(0)``, whatever `seed`; the MNISTs 59,600 / 400 / 10,000 in the order of the files (Burda et al.); the others
    that have a name as :mod:`~pyro_vae.data.image_sets` tells; own files 80/10/10 per cent by `seed`, unless they hold
    ``x_train``, ``x_validation`` and ``x_test``.

    Args:
        name: of the data set, or a path.
        data_dir: the folder that holds ``MNIST/raw`` and the like; None takes ``$PYRO_VAE_DATA``.
        download: lets torchvision fetch what is missing into `data_dir`. Nothing else touches the network.
        binarization: "none"; "static": all rows drawn once; "dynamic": validation and test drawn once, training rows
            kept grey, with ``transform`` to draw them. Validation and test are the same rows of zeros and ones in both.
        seed: of the draws, and of the split of own files.
        table: header, index column, labels and columns of a table (:class:`~pyro_vae.data.table_layout.TableOptions`); by
            default the first two are found, and told in the notes, there are no labels, and columns are of numbers.
        missing: NaN, and empty cells of a .csv, stand for what was not observed, and stay as NaN; refused otherwise.
        sequences: rows are sequences, which may end early, with NaN (empty cells) after their end, or beyond what an array
            ``lengths`` of an .npz says.
        memory: leave the training rows on disk, as a :class:`~pyro_vae.data.Stored` of so much memory ("2 GB"); 1 GB, where a
            folder of shards or chunks is named. Then 10,000 rows at most are held out for validation, and for the test.
        validation, test: files of these rows, where `name` is that of the training rows; of tables the same columns, by name.
            Without `validation`, a tenth of the training rows is held out. A folder that holds ``train.csv``,
            ``validation.csv`` and ``test.csv``, or folders of pictures called so, is such files, too.
        verbose: tell on standard error what was read as what, rows × columns, header, labels and conversions: the notes.

    Raises:
        UsageError: an unknown name or binarization, or no data folder named.
        DataError: files missing, damaged, or holding what cannot be used; the message names files, rows, columns.
        SupportError: own values outside [0, 1], where binarization is asked for.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519

    Example:
        >>> from pyro_vae.data import load
        >>> data = load("digits", verbose=False)
        >>> data.train.x.shape, data.shape, data.policy
        (torch.Size([1437, 64]), (1, 8, 8), 'counts 0..16')
    """
    check_options(binarization, seed, missing)
    paths = {} if name in NAMES else given_paths(name, validation, test)
    if (memory is not None or name in NAMES) and (paths or validation or test):
        what = f"{name} has splits of its own" if name in NAMES else "--memory leaves rows of one file on disk"
        raise UsageError(f"{what}, and a file for each split is given, too: leave out either")
    if name not in NAMES and not paths and is_sparse_file(Path(name).expanduser()):
        data = load_sparse(Path(name).expanduser(), memory, binarization, seed, missing, table, sequences)
        for note in data.notes if verbose else ():
            print(f"note: {plain(data.name)}: {plain(note)}", file=sys.stderr)
        return data
    if name not in NAMES and not paths and is_stored(Path(name).expanduser(), memory):
        data = load_stored(Path(name).expanduser(), memory, binarization, seed, missing, table, sequences)
        for note in data.notes if verbose else ():
            print(f"note: {plain(data.name)}: {plain(note)}", file=sys.stderr)
        return data
    if memory is not None:
        raise UsageError(f"--memory is of rows that stay on disk, and {name} is bundled: leave it out")
    if paths:
        source = read_splits(paths, seed, table or TableOptions(), sequences)
    else:
        source = find_source(name, data_dir, download, seed, table, sequences)
    binary = binarization != "none"
    gaps = missing or (sequences and not binary)
    for part in source.parts if name not in NAMES else ():
        check_columns(part)
    prepared = [prepare(part, source, binary, gaps) for part in source.parts]
    converted, shape = [split for split, _ in prepared], event_shape(source.parts, sequences)
    splits = source.cut(converted)
    train_rows, validation_rows, test_rows = draw(splits, binarization, seed)
    policy = (
        POLICIES[binarization].format(seed=seed) if binary else source.policy + format_missing(converted, sequences)
    )
    notes = tuple(dict.fromkeys([*source.notes, *(note for _, notes in prepared for note in notes)]))
    notes += tuple(shared_rows(*splits) if paths else ())
    transform = binarize if binarization == "dynamic" else None
    kind = "" if name in GREY else kind_of([part.x for part in source.parts])
    for note in notes if verbose else ():
        print(f"note: {plain(source.name)}: {plain(note)}", file=sys.stderr)
    columns = source.parts[0].columns
    digest = source.digest()
    return Data(
        source.name, train_rows, validation_rows, test_rows, shape, policy, digest, transform, notes, kind, columns
    )


def load_sparse(
    path: Path,
    memory: str | None,
    binarization: str,
    seed: int,
    missing: bool,
    table: TableOptions | None,
    sequences: bool,
) -> Data:
    """Load a sparse matrix; refuse what is read of dense rows alone."""
    options = [f"--{o.replace('_', '-')}" for o in (() if table is None else table.given)]
    refused = [o for o in options if o != "--label" or path.suffix.lower() != ANNOTATED]
    refused += ["--memory"] * (memory is not None) + ["sequences"] * sequences
    refused += [f"--binarization {binarization}"] * (binarization != "none")
    if refused:
        raise UsageError(f"{path} holds a sparse matrix, of which {refused[0]} is no option: leave it out")
    found = read_sparse(path, seed, missing, None if table is None else table.label)
    splits, shape = (found.train, found.validation, found.test), tuple(found.test.x.shape[1:])
    policy = "values as given" + format_missing([found.sample, found.validation, found.test])
    return Data(
        path.name, *splits, shape, policy, found.digest, None, found.notes, found.kind, found.columns, part=found.sample
    )


def load_stored(
    path: Path,
    memory: str | None,
    binarization: str,
    seed: int,
    missing: bool,
    table: TableOptions | None,
    sequences: bool,
) -> Data:
    """Load rows that stay on disk; refuse what is read of tables and sequences in memory alone."""
    if sequences or (table is not None and table.given):
        what = "sequences" if sequences else f"--{table.given[0].replace('_', '-')}"  # type: ignore[union-attr]
        raise UsageError(f"{path}: rows on disk are plain numbers, and {what} needs all rows in memory: leave it out")
    found = read_stored(path, memory, seed, missing, binarization)
    policy = POLICIES[binarization].format(seed=seed) if binarization != "none" else "values as given"
    transform = binarize if binarization == "dynamic" else None
    splits = found.train, found.validation, found.test
    kind = kind_of([found.kind_of])
    return Data(path.name, *splits, found.shape, policy, found.digest, transform, found.notes, kind, part=found.sample)


def kind_of(arrays: Sequence[np.ndarray]) -> str:
    """Return what all values are alike: "binary", "bytes", or "" for anything else; NaN counts for nothing.

    Example:
        >>> kind_of([np.array([[0, 1]])]), kind_of([np.array([[0.0, 255.0]])]), kind_of([np.array([[0.5, 200.0]])])
        ('binary', 'bytes', '')
    """
    low, high, eight_bits = np.inf, -np.inf, True
    for array in arrays:
        eight_bits = eight_bits and array.dtype == np.uint8
        for start in range(0, len(array), LOOKED_AT):
            values = np.asarray(array[start : start + LOOKED_AT], dtype=np.float64)
            values = values[np.isfinite(values)]
            if not values.size:
                continue
            if (values != np.round(values)).any():
                return ""
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low < 0 or high > 255 or high < low:
        return ""
    return "binary" if high <= 1 else "bytes" if eight_bits or high >= 128 else ""


def check_options(binarization: str, seed: int, missing: bool) -> None:
    """Refuse an unknown binarization, one of missing values, and seeds that numpy and torch do not both take."""
    if missing and binarization != "none":
        raise UsageError(
            f"binarization {binarization!r} takes each value for a probability, and what is missing has none: take "
            "binarization none, or leave out missing."
        )
    if binarization not in ("none", *POLICIES):
        raise UsageError(f"binarization {binarization!r} is unknown. Take one of: none, {', '.join(POLICIES)}.")
    if not 0 <= seed < 2**63:
        raise UsageError(f"seed {seed} is out of range. Take one from 0 to 2**63 - 1.")


def find_source(
    name: str | Path,
    data_dir: str | Path | None,
    download: bool,
    seed: int,
    table: TableOptions | None = None,
    sequences: bool = False,
) -> Source:
    """Return the source that a name or a path stands for."""
    if name in NAMES and table is not None and table.given:
        raise UsageError(f"--{table.given[0]} is of a table of one's own, and {name} is none: leave it out")
    if name == "digits":
        return read_digits()
    if isinstance(name, str) and name in NAMES:
        if folder := data_dir or os.environ.get("PYRO_VAE_DATA"):
            read = read_images if name in CLASSES else read_image_set
            return read(name, Path(folder).expanduser(), download)
        raise UsageError(
            f"{name} lies in a folder, and none is named. Name it with --data-dir (data_dir=) or $PYRO_VAE_DATA; "
            "with --download (download=True) the files are fetched into it. digits needs neither."
        )
    if (folder := Path(name).expanduser()).is_dir() and folder.suffix.lower() not in ENDINGS:
        if table is not None and table.given:
            raise UsageError(f"--{table.given[0]} is of a table, and {name} is a folder of pictures: leave it out")
        return read_folder(folder, seed)
    if Path(name).suffix.lower() in ENDINGS:
        return read_file(Path(name).expanduser(), seed, table, sequences)
    if folder.is_file():
        way = OTHER_ENDINGS.get(folder.suffix.lower(), "save it as one of those")
        raise UsageError(f"{name}: a file of data ends in {', '.join(ENDINGS)} or {ANNOTATED}: {way}.")
    close = difflib.get_close_matches(str(name).lower(), NAMES, n=1)
    raise UsageError(
        f"no data set {str(name)!r}{f' (did you mean {close[0]!r}?)' if close else ''}. "
        f"Take one of: {', '.join(NAMES)}, or the path of a file that ends in {', '.join(ENDINGS)}, {ANNOTATED}, or of a "
        "folder of pictures."
    )


def read_digits() -> Source:
    """Read scikit-learn's bundled 8×8 digits: how many of 16 pixels are set in each of 64 cells."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = Part("x", digits.images.astype("float32"), digits.target)
    notes = (describe(part), "split 1437/180/180 by a permutation from seed 0, whatever the seed")
    return Source("digits", (part,), partial(shuffle, seed=0), "counts 0..16", grey=16.0, notes=notes)


def draw(splits: Sequence[Split], binarization: str, seed: int) -> Sequence[Split]:
    """Binarize the splits as asked for."""
    if binarization == "none":
        return splits
    train, validation, test = splits
    generator = torch.Generator().manual_seed(seed)
    # test, validation, then train: the first two are the same rows whether training rows are drawn here or each epoch
    test = replace(test, x=binarize(test.x, generator))
    validation = replace(validation, x=binarize(validation.x, generator))
    if binarization == "static":
        train = replace(train, x=binarize(train.x, generator))
    return train, validation, test
