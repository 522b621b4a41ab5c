"""Training, validation and test splits of a data set, and its source: arrays as its files hold them, unconverted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataError

from .columns import Column
from .row_ids import RowIds


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one purpose: training, validation or test.

    Attributes:
        x: ``(N, d)``, float32.
        y: labels with N rows, or None.
        rows: where each row stands in the array that it comes from (a header not counted); None is in order, from 0.
        index: the name of each row, where a table has a column of them.
        classes: names of the labels 0, 1, …, where they were text.
    """

    x: Tensor
    y: Tensor | None = None
    rows: np.ndarray | None = None
    index: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | np.ndarray) -> Split:
        index = None if self.index is None else self.index[rows]
        return Split(self.x[rows], None if self.y is None else self.y[rows], self.numbers[rows], index, self.classes)

    @property
    def numbers(self) -> np.ndarray:
        """Number of each row in the array that it comes from."""
        return np.arange(len(self)) if self.rows is None else self.rows

    @property
    def ids(self) -> RowIds:
        """What a reader knows the rows by: where they come from, their names and labels."""
        labels = None if self.y is None else self.y.tolist()
        names = None if labels is None else tuple(self.classes[n] if self.classes else str(n) for n in labels)
        index = None if self.index is None else tuple(map(str, self.index))
        return RowIds(source=torch.from_numpy(self.numbers.astype(np.int64)), index=index, label=names)


@dataclass(frozen=True, eq=False)
class Part:
    """One array as its file holds it, with labels, names of rows, classes and columns; `name` is what messages call it."""

    name: str
    x: np.ndarray
    y: np.ndarray | None = None
    index: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as its files hold it.

    Attributes:
        name: what the data set is called.
        parts: its arrays.
        cut: the parts, converted, to (train, validation, test).
        policy: what the values are where nothing is binarized.
        scale: what x is always divided by.
        grey: what x is further divided by before binarization.
        notes: what the reader should know of the reading.
    """

    name: str
    parts: tuple[Part, ...]
    cut: Callable[[Sequence[Split]], Sequence[Split]]
    policy: str = "values as given"
    scale: float = 1.0
    grey: float = 1.0
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 over dtype, shape and bytes of each part's x, in hexadecimal."""
        total = hashlib.sha256()
        for part in self.parts:
            total.update(f"{part.x.dtype.str}{part.x.shape}".encode())
            total.update(np.ascontiguousarray(part.x).data.cast("B"))
        return total.hexdigest()


def hold_out(parts: Sequence[Split], rows: int) -> tuple[Split, Split, Split]:
    """Hold out the last `rows` of train for validation: (train, validation, test); 400 of MNIST's in Burda et al. (2016)."""
    train, test = parts
    return train[: len(train) - rows], train[len(train) - rows :], test


def shuffle(parts: Sequence[Split], seed: int) -> tuple[Split, Split, Split]:
    """Split one part 80 / 10 / 10 per cent, by a permutation from numpy's ``default_rng(seed)``."""
    (rows,) = parts
    if len(rows) < 3:
        raise DataError(
            f"{len(rows)} rows are too few: training, validation and test need one each, so at least 3 are needed."
        )
    tenth = max(1, round(len(rows) / 10))
    order = np.random.default_rng(seed).permutation(len(rows))
    train = len(rows) - 2 * tenth
    return rows[order[:train]], rows[order[train:-tenth]], rows[order[-tenth:]]
