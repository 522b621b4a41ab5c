"""Losses and gradients of the shards of a batch, added in one order whatever the number of processes: a binary tree.

Floating-point addition is not associative. So the sum of S parts is ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), whoever holds
them: a process adds up the subtree of its own contiguous parts, and all together the rest (:class:`SumOverProcesses`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.exchange import exchange, gather
from pyro_vae.common.processes import processes


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


def tree_sum(rows: Tensor) -> Tensor:
    """Add up a power of two of rows, in place, in the order of :class:`TreeSum`.

    Example:
        >>> tree_sum(torch.tensor([[1e8], [1.0], [-1e8], [1.0]]))
        tensor([0.])
    """
    while len(rows) > 1:
        rows = rows[0::2].add_(rows[1::2])
    return rows[0]


class SumOverProcesses:
    """Adds up the gradients of W processes: each adds up a W-th of the numbers of all, and tells the others.

    So a process sends 2 (W - 1) / W times its gradients. The memory that this takes is kept: pages that are new at each
    step would cost as much again. Gradients are views of it, until the next call.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters, self.world = parameters, processes().world
        self.rows: list[Tensor] = []  # gradients of each dtype, a W-th in a row; then their sums
        self.received: list[Tensor] = []  # of one W-th, a row of each process
        for dtype, of in by_dtype(parameters, parameters).items():
            length = -(-sum(p.numel() for p in of) // self.world)
            for kept in (self.rows, self.received):
                kept.append(torch.empty(self.world, length, dtype=dtype, device=of[0].device))

    def __call__(self, gradients: Sequence[Tensor | None], anywhere: Sequence[bool], what: str) -> list[Tensor | None]:
        """Return the sums over processes.

        Args:
            gradients: of this process, None where none reaches a parameter.
            anywhere: whether one reaches it on any process.
            what: where in the work that is, for an error.

        Raises:
            ProcessesError: a process did not come.
        """
        self.lay_out(gradients)
        for rows, received in zip(self.rows, self.received, strict=True):
            gather(tree_sum(exchange(rows, what, received)), what, rows)
        return self.views(anywhere)

    def lay_out(self, gradients: Sequence[Tensor | None]) -> None:
        """Lay gradients one behind the other, by dtype; -0.0 stands for none, as what it is added to keeps its bits."""
        given = [torch.full_like(p, -0.0) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]
        for rows, of in zip(self.rows, by_dtype(self.parameters, given).values(), strict=True):
            flat = [g.detach().reshape(-1) for g in of]
            torch.cat([*flat, flat[0].new_full((rows.numel() - sum(map(len, flat)),), -0.0)], out=rows.view(-1))

    def views(self, anywhere: Sequence[bool]) -> list[Tensor | None]:
        """Cut the rows into gradients; None where there is none anywhere."""
        left = {rows.dtype: rows.view(-1) for rows in self.rows}
        gradients: list[Tensor | None] = []
        for p, reached in zip(self.parameters, anywhere, strict=True):
            gradient, left[p.dtype] = left[p.dtype].tensor_split([p.numel()])
            gradients.append(gradient.view(p.shape) if reached else None)
        return gradients


def by_dtype(parameters: Sequence[Tensor], of: Sequence[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Group what belongs to parameters by their dtypes, in the order in which these are met."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for parameter, each in zip(parameters, of, strict=True):
        groups.setdefault(parameter.dtype, []).append(each)
    return groups
