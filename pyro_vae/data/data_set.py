"""A data set in its split, and how one is asked to be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataError, UsageError

from .binarize import binarize
from .columns import Column
from .splits import Split
from .table_layout import TableOptions

MOST = (
    10_000  # rows that are held out for validation, and for the test, where they are made dense, or come off the disk
)
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

    Example:
        >>> from pyro_vae.data.datasets import load
        >>> digits = load("digits", verbose=False)
        >>> len(digits.train), len(digits.validation), len(digits.test), digits.shape, digits.policy
        (1437, 180, 180, (1, 8, 8), 'counts 0..16')
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


@dataclass(frozen=True)
class DataOptions:
    """How a data set is to be read: what :func:`~pyro_vae.data.load` is asked for, whatever form the rows have.

    Attributes:
        binarization, seed, missing, table, sequences, memory, num_rows: as for :func:`~pyro_vae.data.load`.

    Raises:
        UsageError: an unknown binarization, one of missing values, a seed that numpy and torch do not both take.
    """

    binarization: str = "none"
    seed: int = 0
    missing: bool = False
    table: TableOptions = field(default_factory=TableOptions)
    sequences: bool = False
    memory: str | None = None
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if self.missing and self.binary:
            raise UsageError(
                f"binarization {self.binarization!r} takes each value for a probability, and what is missing has none: take "
                "binarization none, or leave out missing."
            )
        if self.binarization not in ("none", *POLICIES):
            raise UsageError(
                f"binarization {self.binarization!r} is unknown. Take one of: none, {', '.join(POLICIES)}."
            )
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed {self.seed} is out of range. Take one from 0 to 2**63 - 1.")

    @property
    def binary(self) -> bool:
        """Whether values are taken for probabilities, and drawn."""
        return self.binarization != "none"

    @property
    def transform(self) -> Callable[[Tensor, torch.Generator | None], Tensor] | None:
        """What draws a training batch anew each time, if anything does."""
        return binarize if self.binarization == "dynamic" else None

    @property
    def policy(self) -> str:
        """How values are drawn, in a sentence; "" where they stay as they are."""
        return POLICIES[self.binarization].format(seed=self.seed) if self.binary else ""


def draw(splits: Sequence[Split], options: DataOptions) -> tuple[Split, Split, Split]:
    """Binarize training, validation and test rows as asked for; those that a transform draws stay grey."""
    train, validation, test = splits
    if not options.binary:
        return train, validation, test
    generator = torch.Generator().manual_seed(options.seed)
    # test, validation, then train: the first two are the same rows whether training rows are drawn here or each epoch
    test = replace(test, x=binarize(test.x, generator))
    validation = replace(validation, x=binarize(validation.x, generator))
    if options.transform is None:
        train = replace(train, x=binarize(train.x, generator))
    return train, validation, test


def check_enough(path: Path, rows: int) -> None:
    """Refuse fewer rows than there are splits."""
    if rows < 3:
        raise DataError(
            f"{path} has {counted(rows, 'row')}: training, validation and test need one each, so at least 3."
        )


def format_sample(rows: int) -> str:
    """Note what is taken of a sample of the training rows, where they are not all in memory and dense."""
    return f"units, first biases and the floor are of {rows:,} training rows, evenly spaced"
