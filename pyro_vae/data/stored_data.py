"""A data set on disk in its split: training rows stay there, and some rows are held out, and looked at, in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.errors import DataError, ShapeError, UsageError

from .binarize import binarize, check_grey
from .columns import check_precision
from .manifest import MANIFEST
from .splits import Split
from .stored import Stored
from .user_files import channels_first
from .zarr_rows import is_zarr

MOST = 10_000  # rows that are held out for validation, and for the test, and that are looked at of the training rows
SHARE = 8  # of the memory, at most, for each of these
MEMORY = "1 GB"


@dataclass(frozen=True, eq=False)
class StoredSplits:
    """Training rows on disk, a sample of them, and the rows that are held out, all flat; with what to say of them."""

    train: Split
    sample: Split
    validation: Split
    test: Split
    shape: tuple[int, ...]
    digest: str
    kind_of: np.ndarray  # of the sample, as stored
    notes: tuple[str, ...]


def is_stored(path: Path, memory: str | None) -> bool:
    """Return whether rows are left on disk: where the memory is limited, and where shards or chunks are many files."""
    return memory is not None or (path / MANIFEST).is_file() or is_zarr(path)


def read_stored(path: Path, memory: str | None, seed: int, missing: bool, binarization: str) -> StoredSplits:
    """Open rows on disk and hold some out: a tenth, 10,000 at most, for validation, and as many for the test.

    They are drawn among all rows from numpy's ``default_rng(seed)``, whatever blocks they lie in, and are in the order of the
    file. Fewer are held out where they would take more than an eighth of the memory.

    Raises:
        DataError: as :class:`~pyro_vae.data.Stored`; fewer than 3 rows; columns that single precision takes for others.
        ShapeError: rows of more than three dimensions, or images with their channels last.
        UsageError: static binarization, which draws each row once for all.
    """
    if binarization == "static":
        raise UsageError(
            "binarization static draws each training row once, and those of rows on disk are read anew each epoch: take "
            "binarization dynamic, or write a file of zeros and ones."
        )
    stored = Stored(path, memory=memory or MEMORY, missing=missing)
    shape = shape_of(stored)
    flat = stored.flat()
    row = 4 * math.prod(shape)
    most = max(1, min(MOST, len(flat) // 10, flat.memory // SHARE // row))
    if len(flat) < 3:
        raise DataError(f"{path} has {len(flat)} rows: training, validation and test need one each, so at least 3.")
    held_out = np.random.default_rng(seed).choice(len(flat), 2 * most, replace=False)
    validation, test = np.sort(held_out[:most]), np.sort(held_out[most:])
    train: Any = flat.without(np.sort(held_out))
    some = np.arange(0, len(train), max(1, len(train) // most), dtype=np.int64)[:most]
    as_stored = train.converted(torch.float64, None, missing, "x").read_held(some)
    if len(shape) == 1 and stored.source_dtype.itemsize > 4:
        for i, column in enumerate(as_stored.T):
            check_precision(f"x[:, {i}]", column)
    kept = [Split(flat[torch.from_numpy(n)], rows=n) for n in (validation, test)]
    sample = Split(train[torch.from_numpy(some)], rows=train.numbers_in_files(some))
    if binarization == "dynamic":
        check_grey(sample.x, "x")
        generator = torch.Generator().manual_seed(seed)
        drawn = [binarize(kept[i].x, generator) for i in (1, 0)]
        kept = [Split(x, rows=split.rows) for x, split in zip(drawn[::-1], kept, strict=True)]
    files = f"{len(stored.files):,} file{'s' * (len(stored.files) > 1)}"
    notes = (
        f"x: {len(stored):,} rows × {' × '.join(map(str, stored.shape[1:])) or 1} columns of {stored.source_dtype} in {files}, "
        f"{stored.numel() * stored.source_dtype.itemsize / 1e9:.2f} GB, on disk; labels: none",
        f"{most:,} rows for validation and {most:,} for the test, drawn from seed {seed}; {len(train):,} to train on, shuffled "
        f"in {len(train.bounds) - 1:,} blocks, among {min(train.window, len(train)):,} rows at a time (--memory)",
        f"units, first biases and the floor are of {len(sample):,} training rows, evenly spaced",
    )
    return StoredSplits(
        Split(train),
        sample,
        kept[0],
        kept[1],
        shape,
        stored.digest,
        as_stored,
        notes,
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
