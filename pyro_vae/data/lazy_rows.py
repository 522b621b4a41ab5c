"""The contract of rows that are not in memory: what looks like a tensor as far as rows are asked for by number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.digests import digest_of, tensor_digest
from pyro_vae.errors import UsageError

AT_ONCE = 2**22  # numbers that are read at a time, where a pass over all rows is made


class LazyRows:
    """Rows ``(N, *event)`` that are read as they are asked for: ``rows[2:5]``, ``rows[numbers]`` are tensors in memory.

    Whoever can work through rows a part at a time takes these in place of a tensor. What needs them at once asks for
    :meth:`whole`, which refuses what does not fit.
    """

    shape: torch.Size
    dtype: torch.dtype  # of what is handed out
    device: torch.device  # where that is
    source_dtype: np.dtype[Any]  # of what is stored
    chunk: int = 2000  # rows that are looked at together, at most

    def read(self, numbers: np.ndarray) -> Tensor:
        """Read the rows of these numbers, 0 to N − 1, in their order."""
        raise NotImplementedError

    def whole(self, name: str) -> np.ndarray:
        """Read all rows as they are stored; a DataError where they do not fit, with the `name` that messages have."""
        raise NotImplementedError

    def head(self, rows: int) -> np.ndarray:
        """Read the first rows as they are stored."""
        raise NotImplementedError

    def converted(self, dtype: torch.dtype, device: torch.device | None, missing: bool, name: str) -> LazyRows:
        """Return the same rows, handed out in this dtype, on this device; NaN passes if `missing`."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """Of what is stored."""
        raise NotImplementedError

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Tensor:
        if isinstance(rows, slice):
            return self.read(np.arange(*rows.indices(len(self)), dtype=np.int64))
        if isinstance(rows, int | np.integer) or (isinstance(rows, Tensor) and not rows.dim()):
            rows = int(rows)
            return self.read(np.array([range(len(self))[rows]], dtype=np.int64))[0]
        return self.read(self.numbers_of(rows))

    def numbers_of(self, rows: Any) -> np.ndarray:
        """Number the rows that numbers, some below 0 perhaps, or a mask of all rows ask for.

        Raises:
            UsageError: neither of these, such as columns.
            IndexError: rows that are not there.
        """
        unclear = (
            isinstance(rows, tuple) or getattr(rows, "dtype", None) == torch.uint8
        )  # to torch a mask, to numpy numbers
        found = None if unclear else np.asarray(rows.cpu() if isinstance(rows, Tensor) else rows)
        if found is not None and found.dtype == bool and found.shape == (len(self),):
            return np.flatnonzero(found)
        if found is None or found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise UsageError(
                f"rows of a {type(self).__name__} are asked for by a number, a slice, a list of numbers or a mask of all "
                f"{len(self):,} rows: take columns of the tensor that comes of it, x[:1000][:, 0]"
            )
        numbers = found.astype(np.int64)
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if (outside := (numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"there are {len(self):,} rows, and row {int(found[outside][0])} was asked for")
        return numbers

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """As :meth:`torch.Tensor.index_select` along rows."""
        assert dim == 0
        return self[rows]

    def split(self, size: int) -> Iterator[Tensor]:
        """Read parts of `size` rows one after the other."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def chunks(self) -> Iterator[Tensor]:
        """Read all rows once, some megabytes at a time."""
        return self.split(max(1, AT_ONCE // max(1, math.prod(self.shape[1:]))))

    def dim(self) -> int:
        return len(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return math.prod(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"a {type(self).__name__} has no {name!r}: its rows are on disk. Take some of them, as a tensor: rows[:1000]"
        )


def chunk_of(args: Sequence[Any], most: int) -> int:
    """Return how many rows are looked at together: `most`, or fewer where the arguments say so."""
    return min([most, *(a.chunk for a in args if isinstance(a, LazyRows))])


def rows_digest(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of named tensors; of rows on disk their own digest stands for them."""
    if not any_lazy(*arrays.values()):
        return tensor_digest(arrays)
    return digest_of(
        {name: a.digest if isinstance(a, LazyRows) else tensor_digest({name: a}) for name, a in arrays.items()}
    )


def any_lazy(*args: Any) -> bool:
    """Return whether some of the arguments are on disk."""
    return any(isinstance(a, LazyRows) for a in args)
