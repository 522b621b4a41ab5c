"""The order of the rows, batch after batch, with a place in it that can be noted and found again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHUFFLE, NOISE, ELBO_NOISE, FIXED = range(4)  # streams of a seed: order and binarization, z, ELBO, drawn once
LATENTS, FURTHER = 4, 5  # what latents carry, batches of the aggressive encoder


class Order:
    """Row numbers in batches, a new permutation each pass, from a generator of its own.

    Whoever makes the batches may draw from `generator`, too (binarization does); what it drew is part of the place.

    Args:
        rows: N.
        size: rows a batch; the last of a pass may have fewer.
        seed: of the generator.
        device: where permutations are drawn.
        rows_on: where they are handed out; None is the same device.

    Example:
        >>> from pyro_vae.training.shuffle import Order
        >>> order, again = Order(5, 2, seed=0), Order(5, 2, seed=0)
        >>> batches = order.one_pass()
        >>> first = next(batches)
        >>> again.find(order.place, order.states())
        >>> [a.tolist() == b.tolist() for a, b in zip(batches, again.one_pass(), strict=True)]
        [True, True]
    """

    def __init__(
        self,
        rows: int,
        size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rows_on: torch.device | None = None,
    ) -> None:
        self.rows, self.size, self.rows_on = rows, size, rows_on
        self.chunks: tuple[Tensor, ...] = ()
        self.generator = torch.Generator(device).manual_seed(seed)
        self.place = 0  # batches of this pass that were handed out
        self.before = self.generator.get_state()  # its permutation was drawn from
        self.within: Tensor | None = None  # a state to go on from, once the permutation is drawn again

    def one_pass(self) -> Iterator[Tensor]:
        """The batches that are left of this pass; called again, those of the next."""
        if self.within is None:
            self.before = self.generator.get_state()
        order = torch.randperm(self.rows, generator=self.generator, device=self.generator.device)
        if self.within is not None:
            self.generator.set_state(self.within)
            self.within = None
        self.chunks = order.to(self.rows_on or order.device).split(self.size)
        while self.place < len(self.chunks):
            self.place += 1
            yield self.chunks[self.place - 1]
        self.place, self.chunks = 0, ()

    @property
    def ahead(self) -> Tensor | None:
        """The batch that comes next in this pass; None after its last."""
        return self.chunks[self.place] if self.place < len(self.chunks) else None

    def several(self, count: int) -> Tensor | None:
        """The next `count` batches, ``(count, size)``, not handed out yet; None if there are not so many whole ones left."""
        chunks = self.chunks[self.place : self.place + count]
        if len(chunks) < count or len(chunks[-1]) < self.size:
            return None
        return torch.stack(chunks)

    def states(self) -> dict[str, Tensor]:
        """What `find` needs beside the place."""
        now = self.generator.get_state() if self.within is None else self.within
        return {"before": self.before, "now": now}

    def find(self, place: int, states: dict[str, Tensor]) -> None:
        """Goes to a place in a pass."""
        self.place, self.before, self.within = place, states["before"], states["now"]
        self.generator.set_state(self.before)
