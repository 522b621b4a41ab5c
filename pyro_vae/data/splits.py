"""Training, validation and test splits of a data set, and its source: arrays as its files hold them, unconverted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataError

from .columns import Column
from .row_ids import RowIds
from .table_layout import is_number

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = dict.fromkeys(("train", "training"), "train") | {"test": "test"}
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one purpose: training, validation or test.

    Attributes:
        x: ``(N, d)``, float32.
        y: labels with N rows, or None.
        rows: where each row stands in the array that it comes from (a header not counted); None is in order, from 0.
        index: the name of each row, where a table has a column of them.
        classes: names of the labels 0, 1, …, where they were text; -1 is a label that is missing.
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
        called = dict(enumerate(self.classes)) | {-1: ""}  # which is a label that is not there
        names = None if labels is None else tuple(called[n] if self.classes else str(n) for n in labels)
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
        split: what the rows are split by, where a column says it; part of the digest.
    """

    name: str
    parts: tuple[Part, ...]
    cut: Callable[[Sequence[Split]], Sequence[Split]]
    policy: str = "values as given"
    scale: float = 1.0
    grey: float = 1.0
    notes: tuple[str, ...] = ()
    split: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 over dtype, shape and bytes of each part's x, in hexadecimal."""
        total = hashlib.sha256()
        for part in self.parts:
            total.update(f"{part.x.dtype.str}{part.x.shape}".encode())
            total.update(np.ascontiguousarray(part.x).reshape(-1).view(np.uint8).data)  # dates and no rows, too
        if self.split:
            total.update("\0".join(self.split).encode(errors="surrogatepass"))
        return total.hexdigest()


def hold_out(parts: Sequence[Split], rows: int | None = None) -> tuple[Split, Split, Split]:
    """Hold out the last `rows` of train, a tenth by default, for validation: (train, validation, test).

    Of MNIST 400, as Burda et al. (2016) did.
    """
    train, test = parts
    rows = max(1, len(train) // 10) if rows is None else rows
    return train[: len(train) - rows], train[len(train) - rows :], test


def split_by(parts: Sequence[Split], values: Sequence[str], seed: int) -> tuple[Split, Split, Split]:
    """Split one part as its rows say (train, validation, test), or by whole groups, about 80 / 10 / 10 per cent.

    Rows of one value, a patient or a place, are then all in one split: what is known of a group tells nothing of the test rows.

    Raises:
        DataError: fewer than three groups, or no row of a split.
    """
    (rows,) = parts
    names = {value: SPLIT_NAMES.get(value.lower()) for value in values}
    if None in names.values():
        check_groups(names)
        names = groups_of(values, seed)
    chosen = np.array([names[value] for value in values])
    train, validation, test = (rows[np.flatnonzero(chosen == name)] for name in SPLITS)
    for name, split in (("train", train), ("validation", validation), ("test", test)):
        if not len(split):
            raise DataError(f"no row is of the {name} split, as its column says: each split needs one at least.")
    return train, validation, test


def check_groups(names: dict[str, str | None]) -> None:
    """Refuse values that are names of splits beside others, and one number written in two ways.

    Raises:
        DataError: dealt as groups, rows called test might become training rows, and rows of one patient be in two splits.
    """
    others = [value for value, name in names.items() if name is None]
    if called := [value for value, name in names.items() if name]:
        raise DataError(
            f"the column that splits the rows has {called[0]!r}, the name of a split, beside {others[0]!r}, which is none: "
            "write train, validation and test; or groups that are called otherwise."
        )
    numbers: dict[float, str] = {}
    for value in filter(is_number, names):
        if (other := numbers.setdefault(float(value), value)) != value:
            raise DataError(f"the column that splits the rows has {other!r} and {value!r}, one number: write it alike.")


def groups_of(values: Sequence[str], seed: int) -> dict[str, str | None]:
    """Deal whole groups to the splits, in an order from the seed: test and validation until they have a tenth of the rows."""
    groups, counts = np.unique(np.array(values), return_counts=True)
    if len(groups) < 3:
        raise DataError(f"{len(groups)} groups are too few: training, validation and test need one each.")
    dealt: dict[str, str | None] = {}
    left = list(np.random.default_rng(seed).permutation(len(groups)))
    for name, keep in (("test", 2), ("validation", 1)):
        rows = 0
        while rows < len(values) / 10 and len(left) > keep:
            group = left.pop()
            dealt[str(groups[group])], rows = name, rows + int(counts[group])
    return dealt | {str(groups[group]): "train" for group in left}


def shuffle_train(parts: Sequence[Split], seed: int) -> tuple[Split, Split, Split]:
    """Hold out a tenth of train for validation, by a permutation from numpy's ``default_rng(seed)``; the test rows stay."""
    train, test = parts
    return hold_out((train[np.random.default_rng(seed).permutation(len(train))], test))


def shuffle(parts: Sequence[Split], seed: int) -> tuple[Split, Split, Split]:
    """Split one part 80 / 10 / 10 per cent, by a permutation from numpy's ``default_rng(seed)``."""
    (rows,) = parts
    if len(rows) < 3:
        raise DataError(
            f"{counted(len(rows), 'row')} {'is' if len(rows) == 1 else 'are'} too few: training, validation and "
            "test need one each, so at least 3 are needed."
        )
    tenth = max(1, round(len(rows) / 10))
    order = np.random.default_rng(seed).permutation(len(rows))
    train = len(rows) - 2 * tenth
    return rows[order[:train]], rows[order[train:-tenth]], rows[order[-tenth:]]


def format_shuffle(seed: int) -> str:
    """Say how :func:`shuffle` splits rows that neither their file nor a column splits."""
    return f"split 80/10/10 per cent by a permutation from seed {seed}"
