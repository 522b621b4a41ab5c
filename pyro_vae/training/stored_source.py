"""Batches of rows that are on disk: a window of them is in memory, and the next one is read while steps run."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.stored import Stored
from pyro_vae.errors import UsageError

from .batch_source import Batch, BatchSource
from .block_shuffle import ShuffledBlocks, Windows
from .shuffle import ShuffledBatches


@dataclass(frozen=True)
class Window:
    """Rows of some blocks in memory, end to end."""

    starts: np.ndarray  # the first row of each block
    places: np.ndarray  # where that lies in the arrays
    arrays: Sequence[np.ndarray]

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return where rows lie in the arrays."""
        block = np.searchsorted(self.starts, rows, side="right") - 1
        found: np.ndarray = self.places[block] + rows - self.starts[block]
        return found


class StoredSource(BatchSource):
    """Rows of :class:`~pyro_vae.data.Stored` (and contexts in memory beside them), by windows of a shuffled order.

    One thread reads the window after this one; another makes the next batch, and sends it to the device. Two windows are in
    memory at most, but while a batch has rows of both. Without an order to follow, rows are read one by one.

    Raises:
        UsageError: windows that are smaller than a batch, or parts on disk in another state than the batch.
    """

    def __init__(self, data: Batch, device: torch.device) -> None:
        self.data, self.device, self.rows_device = data, device, torch.device("cpu")
        self.stored = [a for a in data if isinstance(a, Stored)]
        self.windows: Windows | None = None
        self.loaded: dict[int, Future[Window]] = {}
        self.batches, self.reader = (ThreadPoolExecutor(1, f"pyro_vae-{name}") for name in ("rows", "windows"))
        self.upcoming: tuple[Tensor, Future[Batch]] | None = None

    def shuffled(self, rows: int, size: int, seed: int, drop_last: bool) -> ShuffledBlocks:
        """Make a random order of the rows, by the blocks and the window of the first array that is on disk."""
        first = self.stored[0]
        window = min(
            first.window, *(max(1, s.memory // 3 // sum(t.row_bytes for t in self.stored)) for s in self.stored)
        )
        if window < size:
            raise UsageError(
                f"memory={first.memory:,} holds {window:,} rows of {first.row_bytes:,} bytes at a time, fewer than a batch "
                f"of {size}: allow more memory, or take a smaller batch_size."
            )
        return ShuffledBlocks(first.bounds, window, size, seed, self.device, drop_last)

    def follow(self, order: ShuffledBatches) -> None:
        if isinstance(order, ShuffledBlocks) and order.windows is not self.windows:
            self.windows, self.loaded = order.windows, {}

    def fetch(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        ahead, future = self.upcoming or (None, None)
        batch = None if future is None else future.result()  # waited for even if nobody wants it: one at a time
        batch = batch if batch is not None and ahead is rows else self.gather(rows)
        self.upcoming = None if then is None else (then, self.batches.submit(self.gather, then))
        return batch

    def gather(self, rows: Tensor) -> Batch:
        """Make a batch of rows in memory, and of the windows that hold those on disk."""
        numbers = rows.cpu().numpy()
        read = iter(
            self.from_windows(numbers) if self.windows is not None else [a.read_held(numbers) for a in self.stored]
        )
        gathered = (a.hand_out(next(read)) if isinstance(a, Stored) else a.index_select(0, rows) for a in self.data)
        return tuple(a.to(self.device) for a in gathered)

    def from_windows(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Take rows of this window, and perhaps of the next; drop those before, and have the one after read."""
        assert self.windows is not None
        of_row = self.windows.window_of(numbers)
        first, last = int(of_row.min()), int(of_row.max())
        for past in [w for w in self.loaded if w < first]:
            del self.loaded[past]
        ahead = last + 1 if last == first else last  # of three windows in memory, none is read before it is wanted
        for window in range(first, min(ahead + 1, len(self.windows.ends))):
            if window not in self.loaded:
                self.loaded[window] = self.reader.submit(self.load, self.windows, window)
        found = [np.empty((len(numbers), *a.shape[1:]), a.held_dtype) for a in self.stored]
        for window in range(first, last + 1):
            held, here = self.loaded[window].result(), of_row == window
            places = held.find(numbers[here])
            for into, array in zip(found, held.arrays, strict=True):
                into[here] = array[places]
        return found

    def load(self, windows: Windows, window: int) -> Window:
        """Read the blocks of a window, each as a whole."""
        stretches = windows.stretches(window)
        sizes = np.array([stop - start for start, stop in stretches])
        places = np.cumsum(sizes) - sizes
        arrays = [np.empty((int(sizes.sum()), *a.shape[1:]), a.held_dtype) for a in self.stored]
        for (start, stop), place in zip(stretches, places, strict=True):
            for array, stored in zip(arrays, self.stored, strict=True):
                array[place : place + stop - start] = stored.read_held(np.arange(start, stop))
        return Window(np.array([start for start, _ in stretches]), places, arrays)

    def close(self) -> None:
        for pool in (self.batches, self.reader):
            pool.shutdown(cancel_futures=True)
        self.loaded, self.upcoming = {}, None


def stored_parts(data: Sequence[Any]) -> bool:
    """Return whether some of the arguments are on disk."""
    return any(isinstance(a, Stored) for a in data)
