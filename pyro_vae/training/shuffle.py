"""Shuffling: batches of row numbers in random order, and a position among them that can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHUFFLE, NOISE, ELBO_NOISE, FIXED = range(4)  # streams of a seed: order and binarization, z, ELBO, drawn once
LATENTS, FURTHER = 4, 5  # latent usage, batches of the aggressive encoder
Device = torch.device | str


class ShuffledBatches:
    """Row numbers in batches, a new permutation each pass, from a generator of its own.

    `size` is of a batch; the last of a pass may have fewer rows, or is left out then (`drop_last`). Permutations are drawn on
    `device`, and moved to `rows_device`. Binarization may draw from `generator`, too: its state is part of the position.

    Example:
        >>> from pyro_vae.training.shuffle import ShuffledBatches
        >>> order, again = ShuffledBatches(5, 2, seed=0), ShuffledBatches(5, 2, seed=0)
        >>> batches = order.one_pass()
        >>> first = next(batches)
        >>> again.seek(order.taken, order.states())
        >>> [a.tolist() == b.tolist() for a, b in zip(batches, again.one_pass(), strict=True)]
        [True, True]
    """

    def __init__(
        self,
        rows: int,
        size: int,
        seed: int,
        device: Device = "cpu",
        rows_device: torch.device | None = None,
        drop_last: bool = False,
    ) -> None:
        self.rows, self.size, self.rows_device = rows, size, rows_device
        self.taken_rows = rows - rows % size if drop_last else rows  # of a pass
        self.chunks: tuple[Tensor, ...] = ()
        self.generator = torch.Generator(device).manual_seed(seed)
        self.taken = 0  # batches of this pass so far
        self.pass_start = self.generator.get_state()  # its permutation was drawn from
        self.resume_at: Tensor | None = None  # a state to continue from, once the permutation is drawn again

    def one_pass(self) -> Iterator[Tensor]:
        """Yield the rest of this pass; called again, the next pass."""
        self.begin()
        while self.taken < len(self.chunks):
            self.taken += 1
            yield self.chunks[self.taken - 1]
        self.taken, self.chunks = 0, ()

    def begin(self) -> None:
        """Draw the permutation of a pass, unless that is done."""
        if self.chunks:
            return
        if self.resume_at is None:
            self.pass_start = self.generator.get_state()
        order = torch.randperm(self.rows, generator=self.generator, device=self.generator.device)
        if (
            self.size >= self.rows
        ):  # one batch: a guide with parameters of each row (AutoNormal) finds them in their places
            order = torch.arange(self.rows, device=order.device)
        if self.resume_at is not None:
            self.generator.set_state(self.resume_at)
            self.resume_at = None
        self.chunks = order[: self.taken_rows].to(self.rows_device or order.device).split(self.size)

    @property
    def next_rows(self) -> Tensor | None:
        """The batch that comes next in this pass; None after its last."""
        return self.chunks[self.taken] if self.taken < len(self.chunks) else None

    @property
    def full_left(self) -> int:
        """Count the full batches that are left in this pass."""
        left = self.chunks[self.taken :]
        return len(left) - (len(left) > 0 and len(left[-1]) < self.size)

    def next_batches(self, count: int) -> Tensor:
        """Look ahead at `count` batches, ``(count, size)``, of the full ones that are left."""
        return torch.stack(self.chunks[self.taken : self.taken + count])

    def states(self) -> dict[str, Tensor]:
        """Read what `seek` needs beside the number of batches."""
        now = self.generator.get_state() if self.resume_at is None else self.resume_at
        return {"before": self.pass_start, "now": now}

    def seek(self, taken: int, states: dict[str, Tensor]) -> None:
        """Return to the position after `taken` batches of a pass."""
        self.taken, self.pass_start, self.resume_at = taken, states["before"], states["now"]
        self.generator.set_state(self.pass_start)
