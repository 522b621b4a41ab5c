"""Training, validation and test splits of a data set, and its source: arrays as its files hold them, unconverted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyro_vae.errors import DataError


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one purpose: training, validation or test.

    Attributes:
        x: ``(N, d)``, float32.
        y: labels with N rows, or None.
        rows: where each row stands in the array that it comes from; None is in order, from 0.
    """

    x: Tensor
    y: Tensor | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | np.ndarray) -> Split:
        return Split(self.x[rows], None if self.y is None else self.y[rows], self.numbers[rows])

    @property
    def numbers(self) -> np.ndarray:
        """Number of each row in the array that it comes from."""
        return np.arange(len(self)) if self.rows is None else self.rows


@dataclass(frozen=True, eq=False)
class Part:
    """One array as its file holds it, with its labels; `name` is what messages call it."""

    name: str
    x: np.ndarray
    y: np.ndarray | None = None


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
