"""Where the rows of a batch come from: the device that trains, or the host's memory (or disk), a batch ahead of the step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = tuple[Tensor, ...]
Transform = Callable[[Tensor, torch.Generator], Tensor]  # what makes a training batch of x's rows
SHARE = 0.5  # of a device's free memory that the rows may take; the rest is for the model and its steps


class Feed(Protocol):
    """Hands out the batch of these rows.

    Attributes:
        device: where batches are.
        rows_on: where the row numbers should be.
    """

    device: torch.device
    rows_on: torch.device

    def take(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        """The batch of these rows; `then` are those that will be asked for next."""

    def close(self) -> None:
        """Lets go of what was being fetched."""


class Resident:
    """Rows on the device itself."""

    def __init__(self, data: Batch) -> None:
        self.data, self.device = data, data[0].device
        self.rows_on = self.device

    def take(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        return tuple(a.index_select(0, rows) for a in self.data)

    def close(self) -> None:
        """Nothing is under way."""


class Streamed:
    """Rows that stay on the host: while a step runs, a thread gathers the next batch and sends it ahead.

    On CUDA it is gathered into one of two pinned buffers and copied on a stream of its own, so that the copy runs beside the
    step's kernels. The batches are those of :class:`Resident`, to the bit.

    Example:
        >>> feed = Streamed((torch.arange(10.0).view(5, 2),), torch.device("cpu"))
        >>> feed.take(torch.tensor([3, 0]), torch.tensor([4]))[0].tolist()
        [[6.0, 7.0], [0.0, 1.0]]
        >>> feed.take(torch.tensor([4]))[0].tolist()
        [[8.0, 9.0]]
        >>> feed.close()
    """

    def __init__(self, data: Batch, device: torch.device) -> None:
        self.data, self.device, self.rows_on = data, device, data[0].device
        self.pool = ThreadPoolExecutor(1, "pyro_vae-rows")
        self.coming: tuple[Tensor, Future[Any]] | None = None
        self.lane = Pinned(data, device) if device.type == "cuda" else None

    def take(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        ahead, future = self.coming or (None, None)
        batch: Any = None if future is None else future.result()  # waited for even if nobody wants it: one at a time
        batch = batch if ahead is rows else self.fetch(rows)
        self.coming = None if then is None else (then, self.pool.submit(self.fetch, then))
        return self.lane.arrived(batch) if self.lane else batch

    def fetch(self, rows: Tensor) -> Any:
        if self.lane is not None:
            return self.lane.send(rows)
        return tuple(a.index_select(0, rows).to(self.device) for a in self.data)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Pinned:
    """Two buffers that the device can read from, filled in turn, and the stream that it reads them on.

    Written against torch's documentation; it has not been run on a device yet.
    """

    def __init__(self, data: Batch, device: torch.device) -> None:
        self.data, self.device = data, device
        self.stream: Any = torch.cuda.Stream(device)
        self.buffers: list[list[Tensor]] = [[], []]
        self.sent: list[Any] = [None, None]
        self.turn = 0

    def send(self, rows: Tensor) -> tuple[Batch, Any]:
        """Gathers rows and starts their copy; the batch, and what happens once it is there."""
        i, self.turn = self.turn, 1 - self.turn
        if self.sent[i] is not None:
            self.sent[i].synchronize()  # its last copy is over, long since
        if not self.buffers[i] or len(self.buffers[i][0]) < len(rows):
            self.buffers[i] = [torch.empty(len(rows), *a.shape[1:], dtype=a.dtype, pin_memory=True) for a in self.data]
        held = [
            torch.index_select(a, 0, rows, out=b[: len(rows)]) for a, b in zip(self.data, self.buffers[i], strict=True)
        ]
        with torch.cuda.stream(self.stream):
            batch = tuple(a.to(self.device, non_blocking=True) for a in held)
            self.sent[i] = torch.cuda.Event()
            self.sent[i].record(self.stream)
        return batch, self.sent[i]

    def arrived(self, sent: tuple[Batch, Any]) -> Batch:
        """The batch, for the stream of now: it waits for the copy, and the host does not."""
        batch, event = sent
        now = torch.cuda.current_stream(self.device)
        now.wait_event(event)
        for a in batch:
            a.record_stream(now)
        return batch


def feed_of(data: Batch, device: torch.device) -> tuple[Batch, Feed]:
    """The rows where they are to stay, and what hands them out on `device`: there, if they fit in half of what is free."""
    if all(a.device == device for a in data):
        return data, Resident(data)
    if sum(a.nbytes for a in data) <= SHARE * room(device):
        moved = tuple(a.to(device) for a in data)
        return moved, Resident(moved)
    return data, Streamed(data, device)


def room(device: torch.device) -> float:
    """Bytes that are free on it."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def near(x: Any, device: torch.device | None) -> torch.device | None:
    """Where to convert x: on `device`, but for what is elsewhere than a GPU, which may not fit there."""
    if device is None or device.type != "cuda" or (isinstance(x, Tensor) and x.device == device):
        return device
    return torch.device("cpu")
