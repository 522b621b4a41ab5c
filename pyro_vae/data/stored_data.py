"""A data set on disk in its split: training rows stay there, and some rows are held out, and looked at, in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.errors import ShapeError, UsageError

from .binarize import check_grey
from .columns import JUDGED_BY, check_precision
from .data_set import MOST, Data, DataOptions, check_enough, draw, format_sample
from .manifest import MANIFEST, format_bytes
from .splits import Split
from .stored import Stored
from .user_files import channels_first
from .value_kinds import kind_of
from .zarr_rows import is_zarr

SHARE = 8  # of the memory, at most, for each of these
MEMORY = "1 GB"


def is_stored(path: Path, memory: str | None) -> bool:
    """Return whether rows are left on disk: where the memory is limited, and where shards or chunks are many files."""
    return memory is not None or (path / MANIFEST).is_file() or is_zarr(path)


def read_stored(path: Path, options: DataOptions) -> Data:
    """Open rows on disk and hold some out: a tenth, 10,000 at most, for validation, and as many for the test.

    They are drawn among all rows from numpy's ``default_rng(seed)``, whatever blocks they lie in, and are in the order of the
    file. Fewer are held out where they would take more than an eighth of the memory.

    Raises:
        DataError: as :class:`~pyro_vae.data.Stored`; fewer than 3 rows; columns that single precision takes for others.
        ShapeError: rows of more than three dimensions, or images with their channels last.
        UsageError: static binarization, which draws each row once for all; options of tables and sequences.
    """
    refuse_options_in_memory(path, options)
    stored = Stored(path, memory=options.memory or MEMORY, missing=options.missing, num_rows=options.num_rows)
    shape = shape_of(stored)
    flat = stored.flat()
    numbers = held_out(flat, math.prod(shape), options.seed)
    train: Any = flat.without(np.sort(np.concatenate(numbers)))
    most = len(numbers[0])
    some = np.arange(0, len(train), max(1, len(train) // most), dtype=np.int64)[:most]
    as_stored = train.converted(torch.float64, None, options.missing, "x").read_held(some)
    if judged := len(shape) == 1 and stored.source_dtype.itemsize > 4:
        for i, column in enumerate(as_stored.T):
            check_precision(f"x[:, {i}]", column)
    sample = Split(train[torch.from_numpy(some)], rows=train.numbers_in_files(some))
    if options.binary:
        check_grey(sample.x, "x")
    train_rows, validation, test = draw(
        [Split(train), *(Split(flat[torch.from_numpy(n)], rows=n) for n in numbers)], options
    )
    return Data(
        path.name,
        train_rows,
        validation,
        test,
        shape=shape,
        policy=options.policy or "values as given",
        digest=stored.digest,
        transform=options.transform,
        notes=notes_of(stored, train, most, format_sample(len(some)) + JUDGED_BY * judged, options.seed),
        kind=kind_of([as_stored]),
        part=sample,
    )


def refuse_options_in_memory(path: Path, options: DataOptions) -> None:
    """Refuse what is asked of rows in memory alone."""
    if options.sequences or options.table.given:
        what = "sequences" if options.sequences else f"--{options.table.given[0].replace('_', '-')}"
        raise UsageError(f"{path}: rows on disk are plain numbers, and {what} needs all rows in memory: leave it out")
    if options.binarization == "static":
        raise UsageError(
            "binarization static draws each training row once, and those of rows on disk are read anew each epoch: take "
            "binarization dynamic, or write a file of zeros and ones."
        )


def held_out(flat: Stored, elements: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the numbers of the rows of `elements` that are held out for validation, and for the test, in order."""
    check_enough(flat.path, len(flat))
    most = max(1, min(MOST, len(flat) // 10, flat.memory // SHARE // (4 * elements)))
    numbers = np.random.default_rng(seed).choice(len(flat), 2 * most, replace=False)
    return np.sort(numbers[:most]), np.sort(numbers[most:])


def notes_of(stored: Stored, train: Stored, most: int, sample: str, seed: int) -> tuple[str, ...]:
    """Say what was read as what, how it is split, and what is of a sample of the rows."""
    files = f"{len(stored.files):,} file{'s' * (len(stored.files) > 1)}"
    return (
        f"x: {len(stored):,} rows × {' × '.join(map(str, stored.shape[1:])) or 1} columns of {stored.source_dtype} in {files}, "
        f"{format_bytes(stored.numel() * stored.source_dtype.itemsize)}, on disk; labels: none",
        f"{most:,} rows for validation and {most:,} for the test, drawn from seed {seed}; {len(train):,} to train on, shuffled "
        f"in {len(train.bounds) - 1:,} blocks, among {min(train.window, len(train)):,} rows at a time (--memory)",
        sample,
    )


def shape_of(stored: Stored) -> tuple[int, ...]:
    """Return (channels, height, width) of images, (d,) of tables."""
    event = tuple(stored.shape[1:])
    if len(event) > 3:
        raise ShapeError(
            f"{stored.path}: rows of shape {event}, wanted (d,), (height, width) or (channels, height, width)."
        )
    if channels_first(np.zeros((1, *event))).shape[1:] != event:
        raise ShapeError(
            f"{stored.path}: rows of shape {event} look like images with their channels last: write them as (channels, height, "
            "width), x.transpose(0, 3, 1, 2)."
        )
    return {0: (1,), 1: event, 2: (1, *event), 3: event}[len(event)]
