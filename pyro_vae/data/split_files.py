"""Splits by file: training, validation and test rows each in a file of its own, or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from pyro_vae.errors import DataError, UsageError

from .image_folders import PICTURES, read_folder
from .row_ids import row_digests
from .sparse_data import is_sparse_file
from .splits import SPLIT_NAMES, SPLITS, Part, Source, Split, shuffle_train
from .table_layout import TableOptions
from .user_files import ENDINGS, TABLES, read_file

Paths = dict[str, Path]


def split_paths(folder: Path) -> Paths:
    """Find the files, or the folders of pictures, that a folder holds for each split: ``train.csv`` or ``train/`` and so on.

    Nothing is found where it has no such for training rows and for the test, or where other files or folders stand beside.

    Raises:
        DataError: two for one split.
    """
    if not folder.is_dir():
        return {}
    endings = (*ENDINGS, *PICTURES)
    entries = [e for e in sorted(folder.iterdir()) if e.is_dir() or e.suffix.lower() in endings]
    found: Paths = {}
    for entry in entries:
        split = SPLIT_NAMES.get((entry.name if entry.is_dir() else entry.stem).lower())
        if split is None or (entry.is_file() and entry.suffix.lower() in PICTURES):
            return {}
        if split in found:
            raise DataError(
                f"{folder} holds {found[split].name} and {entry.name}, both for the {split} split: keep one."
            )
        found[split] = entry
    return found if {"train", "test"} <= found.keys() else {}


def given_paths(name: str | Path, validation: str | Path | None, test: str | Path | None) -> Paths:
    """Return the file of each split, as they are named, or as the folder `name` holds them; nothing for one file of all rows.

    Raises:
        UsageError: a file for validation and none for the test.
    """
    if validation is None and test is None:
        return split_paths(Path(name).expanduser())
    if test is None:
        raise UsageError(
            f"--validation {validation} without --test: name a file for the test, too. With --test alone a tenth of the "
            "training rows is held out for validation."
        )
    named = {"train": name, "validation": validation, "test": test}
    return {split: Path(path).expanduser() for split, path in named.items() if path is not None}


def read_splits(paths: Paths, seed: int, options: TableOptions, sequences: bool = False) -> Source:
    """Read a file for each split. Columns of tables are those of the training file, by name; labels are the same codes in all.

    Raises:
        DataError: a file that is missing or damaged, holds splits of its own, or lacks a column of the training rows.
        UsageError: files that stay on disk, or are sparse; a column that splits the rows, beside files that do.
    """
    if options.split_by is not None:
        raise UsageError(f"--split-by {options.split_by} beside files for each split: give either")
    read = partial(read_part, seed=seed, sequences=sequences)
    train = read("train", paths["train"], options=options)
    known = train.parts[0].columns if paths["train"].suffix.lower() in TABLES else ()
    others = replace(options, known=known, columns=None) if known else options
    sources = [train, *(read(s, paths[s], options=others) for s in SPLITS[1:] if s in paths)]
    names = [split for split in SPLITS if split in paths]
    parts = [replace(s.parts[0], name=f"x_{split}") for s, split in zip(sources, names, strict=True)]
    parts = list(alike(parts))
    cut: Callable[[Sequence[Split]], Sequence[Split]] = tuple
    notes = [
        f"{paths[n].name} ({n}): {note}" for n, s in zip(names, sources, strict=True) for note in notes_but_split(s)
    ]
    notes.append(f"split by file: {', '.join(f'{n} {paths[n].name}' for n in names)}")
    if len(parts) < len(SPLITS):
        cut = partial(shuffle_train, seed=seed)
        notes.append(f"validation: a tenth of the training rows, by a permutation from seed {seed}")
    return Source(train.name, tuple(parts), cut, train.policy, train.scale, train.grey, tuple(notes))


def read_part(split: str, path: Path, *, seed: int, sequences: bool, options: TableOptions) -> Source:
    """Read the rows of one split, which are one array."""
    if is_sparse_file(path):
        raise UsageError(
            f"{path} is sparse, and splits by file are of dense rows: join the matrices, and let them be split"
        )
    if path.is_dir():
        if options.given:
            raise UsageError(f"--{options.given[0]} is of a table, and {path} is a folder of pictures: leave it out")
        return read_folder(path, seed)
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"--{split} {path}: rows are read from a file that ends in {', '.join(ENDINGS)}, or from a folder"
        )
    source = read_file(path, seed, options, sequences)
    if len(source.parts) > 1:
        raise DataError(f"{path} holds splits of its own, and is given as the {split} split: name it alone.")
    return source


def notes_but_split(source: Source) -> list[str]:
    """Return what a file says of itself, but for how its rows would be split if they were all."""
    return [note for note in source.notes if not note.startswith("split ")]


def alike(parts: Sequence[Part]) -> Sequence[Part]:
    """Give labels with names the same codes in all parts.

    Raises:
        DataError: labels in some of the parts alone, or names in some and numbers in others.
    """
    kinds = {part.name: "none" if part.y is None else "names" if part.classes else "numbers" for part in parts}
    if len(set(kinds.values())) > 1:
        raise DataError(
            f"labels differ in kind: {', '.join(f'{name} has {kind}' for name, kind in kinds.items())}. Give each file such "
            "labels, or none (--label)."
        )
    if not parts[0].classes:
        return parts
    classes = tuple(sorted({name for part in parts for name in part.classes}))
    codes = {name: code for code, name in enumerate(classes)}
    return [
        replace(part, y=np.array([*(codes[n] for n in part.classes), -1])[part.y], classes=classes) for part in parts
    ]  # -1, which is missing, finds the last


def shared_rows(train: Split, validation: Split, test: Split) -> list[str]:
    """Say how many rows of the validation and of the test split equal training rows, value for value."""
    known = row_digests([train.x])
    notes = []
    for name, split in (("validation", validation), ("test", test)):
        if seen := int(torch.isin(row_digests([split.x]), known).sum()):
            notes.append(
                f"{seen} of {len(split)} {name} rows equal training rows, value for value: their log p(x) is that of rows that "
                "the model has seen"
            )
    return notes
