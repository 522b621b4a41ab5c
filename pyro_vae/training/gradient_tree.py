"""Losses and gradients of the shards of a batch, added in one order whatever the number of processes: a binary tree.

Floating-point addition is not associative. So the sum of S parts is ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), whoever holds
them: a process adds up the subtree of its own contiguous parts, all exchange their sums, and each adds the rest of the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALIGNED = 16  # bytes: a view as another dtype begins at a multiple of its size


@dataclass(eq=False)
class Sums:
    """A loss, and each parameter's gradient, None where none reaches it, in memory that is no one else's."""

    loss: Tensor
    gradients: list[Tensor | None]

    def copy(self) -> Sums:
        """Return the same sums in memory of their own."""
        return Sums(self.loss.clone(), [None if g is None else g.clone() for g in self.gradients])

    def add(self, other: Sums) -> Sums:
        """Add the sums to the right of these, in place; a gradient that only those have is taken over."""
        self.loss = self.loss + other.loss
        for i, (mine, theirs) in enumerate(zip(self.gradients, other.gradients, strict=True)):
            if theirs is not None:
                self.gradients[i] = theirs if mine is None else mine.add_(theirs)
        return self


class TreeSum:
    """Adds up a power of two of sums, given one after the other, as a binary tree: at most log2 of them are held.

    Example:
        >>> tree = TreeSum()
        >>> for value in (1e8, 1.0, -1e8, 1.0):  # in float32 (1e8 + 1) + (-1e8 + 1) is 0, added one by one it is 1
        ...     tree.add(Sums(torch.tensor(value), []))
        >>> tree.total.loss
        tensor(0.)
    """

    def __init__(self) -> None:
        self.held: list[tuple[int, Sums]] = []  # how many leaves each subtree has, larger ones first

    def add(self, leaf: Sums) -> None:
        """Add the next leaf, and every subtree that is complete now."""
        count = 1
        while self.held and self.held[-1][0] == count:
            leaf, count = self.held.pop()[1].add(leaf), 2 * count
        self.held.append((count, leaf))

    @property
    def total(self) -> Sums:
        """The sum of all leaves, a power of two."""
        ((_, total),) = self.held
        return total


def owned(gradients: Iterable[Tensor | None], copied: bool) -> list[Tensor | None]:
    """Return gradients in memory of their own, as they are added to in place.

    `copied`: whoever made them overwrites them, as the replay of a graph does. Autograd's own are new at each step, but two
    parameters may have one gradient between them.
    """
    given = list(gradients)
    places = [g.untyped_storage().data_ptr() for g in given if g is not None]
    if copied or len(set(places)) < len(places):
        return [None if g is None else g.clone() for g in given]
    return given


def packed(sums: Sums, parameters: Sequence[Tensor], control: Sequence[float]) -> Tensor:
    """Put numbers, loss and gradients into one row of bytes; zeros stand for no gradient."""
    here = [0.0 if g is None else 1.0 for g in sums.gradients]
    head = torch.tensor([*control, *here], dtype=torch.float64, device=sums.loss.device)
    gradients = [p.new_zeros(p.shape) if g is None else g for g, p in zip(sums.gradients, parameters, strict=True)]
    chunks = [t.detach().reshape(-1).view(torch.uint8) for t in (head, sums.loss, *gradients)]
    return torch.cat([part for chunk in chunks for part in (chunk, chunk.new_zeros(-len(chunk) % ALIGNED))])


def unpacked(row: Tensor, sums: Sums, parameters: Sequence[Tensor], count: int) -> tuple[list[float], Sums]:
    """Read what :func:`packed` wrote of `count` numbers and of sums such as `sums`."""
    place = 0

    def read(shape: torch.Size, dtype: torch.dtype, itemsize: int) -> Tensor:
        nonlocal place
        size = shape.numel() * itemsize
        value = row[place : place + size].view(dtype).view(shape)
        place += size + -size % ALIGNED
        return value

    head = read(torch.Size([count + len(parameters)]), torch.float64, 8).tolist()
    loss = read(sums.loss.shape, sums.loss.dtype, sums.loss.element_size())
    gradients = [read(p.shape, p.dtype, p.element_size()) for p in parameters]
    return head[:count], Sums(loss, [g if there else None for g, there in zip(gradients, head[count:], strict=True)])
