r"""Shuffling of rows that are on disk: blocks in random order, and rows in random order within a window of blocks.

A pass visits each row once. Blocks of neighbouring rows, which are read as wholes, are permuted; as many of them as hold about
`window` rows make a window, and the rows of a window are permuted among each other. The order is a function of the seed, the
blocks and the window alone: not of the number of processes, of how fast the disk is, or of what was read before.

Two rows of one block are in one window in every epoch, and those of two blocks in some: batches are less mixed than by a
permutation of all rows, most where the file is sorted and the window is a small part of it. Shuffle such a file once when it is
written, or allow more memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.random import stream

from .shuffle import Device, ShuffledBatches

KEPT = 2  # batches, and windows, that are kept: this one and the next


@dataclass(frozen=True)
class Windows:
    """The windows of one pass: which blocks each has, and the order of its rows.

    Example:
        >>> windows = Windows.drawn(np.array([0, 2, 4, 6, 8]), 4, seed=0)
        >>> sorted(np.concatenate([windows.rows(0), windows.rows(1)]).tolist()), windows.ends.tolist()
        ([0, 1, 2, 3, 4, 5, 6, 7], [4, 8])
    """

    bounds: np.ndarray  # of blocks, in rows
    of_block: np.ndarray  # the window that each block is in
    ends: np.ndarray  # how many rows a pass has taken after each window
    seed: int

    @classmethod
    def drawn(cls, bounds: np.ndarray, window: int, seed: int) -> Windows:
        """Draw the order of blocks, and cut it where a window of rows is full."""
        sizes = np.diff(bounds)
        order = np.random.default_rng(stream(seed, 0)).permutation(len(sizes))
        begin = np.cumsum(sizes[order]) - sizes[order]
        cut = np.unique(begin // window, return_inverse=True)[
            1
        ]  # a window begins with the first block after it is full
        of_block = np.empty(len(sizes), np.int64)
        of_block[order] = cut
        return cls(bounds, of_block, np.cumsum(np.bincount(cut, weights=sizes[order])).astype(np.int64), seed)

    def blocks(self, window: int) -> np.ndarray:
        """List the blocks of a window as they lie in the file."""
        return np.flatnonzero(self.of_block == window)

    def stretches(self, window: int) -> list[tuple[int, int]]:
        """List the rows of a window as (start, stop) of its blocks."""
        return [(int(self.bounds[b]), int(self.bounds[b + 1])) for b in self.blocks(window)]

    def rows(self, window: int) -> np.ndarray:
        """Number the rows of a window in their random order."""
        rows = np.concatenate([np.arange(start, stop) for start, stop in self.stretches(window)])
        return np.random.default_rng(stream(self.seed, 1, window)).permutation(rows)

    def window_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the window that each row is in."""
        found: np.ndarray = self.of_block[np.searchsorted(self.bounds, rows, side="right") - 1]
        return found


class ShuffledBlocks(ShuffledBatches):
    """Row numbers in batches as :class:`~pyro_vae.training.shuffle.ShuffledBatches`, of blocks and within windows.

    Args:
        bounds: where each block begins, and where the last one ends, in rows.
        window: rows that are shuffled among each other, about; at least a batch.
        size: of a batch, as `seed`, `device` and `drop_last` of :class:`~pyro_vae.training.shuffle.ShuffledBatches`.

    Example:
        >>> order, again = (ShuffledBlocks(np.array([0, 3, 6, 9]), 6, 2, seed=0) for _ in range(2))
        >>> batches = order.one_pass()
        >>> first = next(batches)
        >>> again.seek(order.taken, order.states())
        >>> rest = [b.tolist() for b in batches]
        >>> rest == [b.tolist() for b in again.one_pass()], sorted(first.tolist() + sum(rest, []))
        (True, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    """

    def __init__(
        self, bounds: np.ndarray, window: int, size: int, seed: int, device: Device = "cpu", drop_last: bool = False
    ) -> None:
        super().__init__(int(bounds[-1]), size, seed, device, torch.device("cpu"), drop_last)
        self.bounds, self.window = bounds, window
        self.windows: Windows | None = None
        self.drawn: dict[int, np.ndarray] = {}  # rows of this window and the next
        self.cut: dict[int, Tensor] = {}  # this batch and the next: the same tensors each time they are asked for

    def one_pass(self) -> Iterator[Tensor]:
        self.begin()
        while (rows := self.next_rows) is not None:
            self.taken += 1
            yield rows
        self.taken, self.windows = 0, None
        self.drawn, self.cut = {}, {}

    def begin(self) -> None:
        if self.windows is not None:
            return
        if self.resume_at is None:
            self.pass_start = self.generator.get_state()
        seed = torch.randint(2**62, (), generator=self.generator, device=self.generator.device)
        if self.resume_at is not None:
            self.generator.set_state(self.resume_at)
            self.resume_at = None
        self.windows = Windows.drawn(self.bounds, self.window, int(seed))

    @property
    def next_rows(self) -> Tensor | None:
        start = self.taken * self.size
        if self.windows is None or start >= self.taken_rows:
            return None
        if self.taken not in self.cut:
            self.cut = dict(list(self.cut.items())[1 - KEPT :])
            self.cut[self.taken] = self.rows_between(start, min(start + self.size, self.taken_rows))
        return self.cut[self.taken]

    def rows_between(self, start: int, stop: int) -> Tensor:
        """Number the rows of a pass from one place to another."""
        assert self.windows is not None
        found, window = [], int(np.searchsorted(self.windows.ends, start, side="right"))
        while start < stop:
            begin = int(self.windows.ends[window - 1]) if window else 0
            if window not in self.drawn:
                self.drawn = dict(list(self.drawn.items())[1 - KEPT :])
                self.drawn[window] = self.windows.rows(window)
            some = self.drawn[window][start - begin : stop - begin]
            found.append(some)
            start, window = start + len(some), window + 1
        return torch.from_numpy(np.concatenate(found))
