"""Data sets by name or by path: flat float32 rows in a fixed split, with a record of every conversion."""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from pyro_vae.common.plain_text import plain
from pyro_vae.errors import UsageError

from .data_set import Data, DataOptions, draw
from .digits import digits_of_file
from .image_folders import read_folder
from .image_sets import SETS, read_image_set
from .mnist import CLASSES, read_images
from .open_row_file import ENDINGS as ROWS_ON_DISK
from .prepare import check_columns, empty_rows, event_shape, format_missing, prepare
from .sparse_data import ANNOTATED, is_sparse_file, read_sparse
from .split_files import given_paths, read_splits, shared_rows
from .splits import Part, Source, shuffle
from .stored_data import is_stored, read_stored
from .table_layout import TableOptions
from .user_files import ENDINGS, describe, read_file
from .value_kinds import kind_of

GREY = ("digits", *CLASSES)  # whose names say what their values are
NAMES = (*GREY, *SETS)
PACKED, SHEET = "unpack it first", "save the sheet as .csv"
OTHER_ENDINGS = {  # of files that hold rows, and how they become such that are read
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), PACKED),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), SHEET),
    **dict.fromkeys((".txt", ".dat"), "call it .csv, or .tsv where tabs part its columns"),
}


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
    num_rows: int | None = None,
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
        num_rows: how many rows are on disk, where the caller knows; as for :class:`~pyro_vae.data.Stored`.
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
    options = DataOptions(binarization, seed, missing, table or TableOptions(), sequences, memory, num_rows)
    data = find_data(name, options, data_dir, download, validation, test)
    for note in data.notes if verbose else ():
        print(f"note: {plain(data.name)}: {plain(note)}", file=sys.stderr)
    return data


def find_data(
    name: str | Path,
    options: DataOptions,
    data_dir: str | Path | None,
    download: bool,
    validation: str | Path | None,
    test: str | Path | None,
) -> Data:
    """Read the data set that a name or a path stands for, in the way of its form: on disk, sparse, or in memory."""
    paths = {} if name in NAMES else given_paths(name, validation, test)
    on_disk = on_disk_alone(options)
    if (on_disk or name in NAMES) and (paths or validation or test):
        what = (
            f"{name} has splits of its own" if name in NAMES else f"{on_disk} is of rows of one file that stay on disk"
        )
        raise UsageError(f"{what}, and a file for each split is given, too: leave out either")
    if name not in NAMES and not paths:
        path = Path(name).expanduser()
        if is_sparse_file(path):
            return read_sparse(path, options)
        if is_stored(path, options.memory):
            return read_stored(path, options)
    if on_disk and (name in NAMES or Path(name).expanduser().exists()):  # of no such file there is more to say
        what = "is bundled" if name in NAMES else "is read into memory"
        there = ", or leave them there: --memory '2 GB'" if Path(name).suffix.lower() in ROWS_ON_DISK else ""
        raise UsageError(f"{on_disk} is of rows that stay on disk, and {name} {what}: leave it out{there}")
    source = (
        read_splits(paths, options.seed, options.table, options.sequences)
        if paths
        else find_source(name, data_dir, download, options)
    )
    for part in source.parts if name not in NAMES else ():
        check_columns(part)
    data = converted(source, options, by_file=bool(paths))
    return data if name in GREY else replace(data, kind=kind_of([part.x for part in source.parts]))


def on_disk_alone(options: DataOptions) -> str | None:
    """Name the option that is given, and is of rows that stay on disk."""
    given = {"--memory": options.memory, "--num-rows": options.num_rows}
    return next((flag for flag, value in given.items() if value is not None), None)


def converted(source: Source, options: DataOptions, by_file: bool) -> Data:
    """Convert the parts of a source, which are in memory, and split and binarize them.

    Args:
        source: as the files hold it.
        options: how it is to be read.
        by_file: whether each split is a file of its own, which may have rows of another.
    """
    gaps = options.missing or (options.sequences and not options.binary)
    prepared = [prepare(part, source, options.binary, gaps) for part in source.parts]
    parts, shape = [split for split, _ in prepared], event_shape(source.parts, options.sequences)
    splits = source.cut(parts)
    train, validation, test = draw(splits, options)
    notes = dict.fromkeys([*source.notes, *(note for _, notes in prepared for note in notes), *empty_rows(parts)])
    return Data(
        source.name,
        train,
        validation,
        test,
        shape=shape,
        policy=options.policy or source.policy + format_missing(parts, options.sequences),
        digest=source.digest(),
        transform=options.transform,
        notes=(*notes, *(shared_rows(*splits) if by_file else ())),
        columns=source.parts[0].columns,
    )


def find_source(name: str | Path, data_dir: str | Path | None, download: bool, options: DataOptions) -> Source:
    """Return the source that a name or a path stands for."""
    table = options.table
    if name in NAMES and table.given:
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
        if table.given:
            raise UsageError(f"--{table.given[0]} is of a table, and {name} is a folder of pictures: leave it out")
        return read_folder(folder, options.seed)
    if Path(name).suffix.lower() in ENDINGS:
        return read_file(Path(name).expanduser(), options.seed, table, options.sequences)
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
    images, target = digits_of_file()
    part = Part("x", images.astype("float32"), target)
    notes = (describe(part), "split 1437/180/180 by a permutation from seed 0, whatever the seed")
    return Source("digits", (part,), partial(shuffle, seed=0), "counts 0..16", grey=16.0, notes=notes)
