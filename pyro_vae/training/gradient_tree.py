"""Losses and gradients of the shards of a batch, added in one order whatever the number of processes: a binary tree.

Floating-point addition is not associative. So the sum of S parts is ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)), whoever holds
them: a process adds up the subtree of its own contiguous parts, and all together the rest (:class:`SumOverProcesses`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.exchange import exchange, gather
from pyro_vae.common.processes import processes

LARGE = 1 << 18  # numbers of a gradient that is sent by itself


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

    So a process sends 2 (W - 1) / W times its gradients. Large ones are sent from where they lie, and become the sums; the
    others are laid one behind the other, and are views of that memory until the next call. It is kept: pages that are new at
    each step would cost as much again.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters, self.world = parameters, processes().world
        self.large = {i for i, p in enumerate(parameters) if self.is_large(p)}
        self.small = [i for i in range(len(parameters)) if i not in self.large]
        self.rows: list[Tensor] = []  # small gradients of each dtype, a W-th in a row; then their sums
        self.received: dict[torch.dtype, Tensor] = {}  # of one W-th, from all processes
        for dtype, of in by_dtype(parameters, self.small, parameters).items():
            length = -(-sum(p.numel() for p in of) // self.world)
            self.rows.append(torch.empty(self.world, length, dtype=dtype, device=of[0].device))
        for rows in (*self.rows, *(parameters[i].detach() for i in self.large)):
            if rows.numel() > len(self.received.get(rows.dtype, ())):
                self.received[rows.dtype] = torch.empty(rows.numel(), dtype=rows.dtype, device=rows.device)

    def is_large(self, parameter: Tensor) -> bool:
        return parameter.numel() >= LARGE and parameter.numel() % self.world == 0 and parameter.is_contiguous()

    def __call__(self, gradients: Sequence[Tensor | None], anywhere: Sequence[bool], what: str) -> list[Tensor | None]:
        """Return the sums over processes; `gradients` are overwritten.

        Args:
            gradients: of this process, None where none reaches a parameter.
            anywhere: whether one reaches it on any process.
            what: where in the work that is, for an error.

        Raises:
            ProcessesError: a process did not come.
        """
        given = self.filled(gradients)
        sums: list[Tensor | None] = [None] * len(given)
        for i in sorted(self.large):
            if anywhere[i]:
                sums[i] = given[i].detach().contiguous()
                self.add_up(sums[i].view(self.world, -1), what)  # type: ignore[union-attr]
        self.lay_out(given)
        for rows in self.rows:
            self.add_up(rows, what)
        for i, sum_ in zip(self.small, self.views(), strict=True):
            sums[i] = sum_ if anywhere[i] else None
        return sums

    def filled(self, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Put -0.0 where there is no gradient: what it is added to keeps its bits."""
        return [torch.full_like(p, -0.0) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]

    def add_up(self, rows: Tensor, what: str) -> None:
        """Put the sums over processes in the place of numbers, of which row r is added up by process r."""
        received = self.received[rows.dtype][: rows.numel()].view(rows.shape)
        gather(tree_sum(exchange(rows, what, received)), what, rows)

    def lay_out(self, gradients: Sequence[Tensor]) -> None:
        """Lay small gradients one behind the other, by dtype."""
        for rows, of in zip(self.rows, by_dtype(self.parameters, self.small, gradients).values(), strict=True):
            flat = [g.detach().reshape(-1) for g in of]
            torch.cat([*flat, flat[0].new_full((rows.numel() - sum(map(len, flat)),), -0.0)], out=rows.view(-1))

    def views(self) -> Iterator[Tensor]:
        """Cut the rows into small gradients."""
        left = {rows.dtype: rows.view(-1) for rows in self.rows}
        for p in (self.parameters[i] for i in self.small):
            gradient, left[p.dtype] = left[p.dtype].tensor_split([p.numel()])
            yield gradient.view(p.shape)


def by_dtype(
    parameters: Sequence[Tensor], which: Sequence[int], of: Sequence[Tensor]
) -> dict[torch.dtype, list[Tensor]]:
    """Group what belongs to some parameters by their dtypes, in the order in which these are met."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for i in which:
        groups.setdefault(parameters[i].dtype, []).append(of[i])
    return groups
