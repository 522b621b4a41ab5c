"""Training rows, batch by batch: on the device that trains, or in the host's memory (or disk) and sent a step ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.common.mapped_files import MappedFile, mapped_files
from pyro_vae.common.random import stream
from pyro_vae.data.lazy_rows import any_lazy, rows_digest

from .shuffle import FURTHER, SHUFFLE, ShuffledBatches
from .training_state import EpochPosition, load_noise_states, noise_states

Batch = tuple[Tensor, ...]
Transform = Callable[[Tensor, torch.Generator], Tensor]  # makes a training batch of x's rows
STREAMS = {"order": SHUFFLE, "further": FURTHER}  # of a seed; "further" batches are the aggressive encoder's
SHARE = 0.5  # of a device's free memory that the rows may take; the rest is for the model and its steps


class BatchSource(Protocol):
    """Hands out batches that lie on `device`, of row numbers on `rows_device`."""

    device: torch.device
    rows_device: torch.device

    def fetch(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        """Return the batch of these rows; `then` are those that will be asked for next."""

    def shuffled(self, rows: int, size: int, seed: int, drop_last: bool) -> ShuffledBatches:
        """Make a random order of the rows, in batches of `size`."""
        return ShuffledBatches(rows, size, seed, self.device, self.rows_device, drop_last)

    def follow(self, order: ShuffledBatches) -> None:
        """Know that rows will be fetched in this order."""
        return None

    def close(self) -> None:
        """Drop whatever is being fetched."""
        return None


class Resident(BatchSource):
    """Rows on the device itself."""

    def __init__(self, data: Batch) -> None:
        self.data, self.device, self.rows_device = data, data[0].device, data[0].device

    def fetch(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        return tuple(a.index_select(0, rows) for a in self.data)


class Streamed(BatchSource):
    """Rows that stay on the host: while a step runs, a thread gathers the next batch and sends it ahead.

    On CUDA it is gathered into one of two pinned buffers and copied on a stream of its own, so that the copy runs beside the
    step's kernels. The batches are those of :class:`Resident`, to the bit.

    Example:
        >>> source = Streamed((torch.arange(10.0).view(5, 2),), torch.device("cpu"))
        >>> source.fetch(torch.tensor([3, 0]), torch.tensor([4]))[0].tolist()
        [[6.0, 7.0], [0.0, 1.0]]
        >>> source.fetch(torch.tensor([4]))[0].tolist()
        [[8.0, 9.0]]
        >>> source.close()
    """

    def __init__(self, data: Batch, device: torch.device) -> None:
        self.data, self.device, self.rows_device = data, device, data[0].device
        self.pool = ThreadPoolExecutor(1, "pyro_vae-rows")
        self.upcoming: tuple[Tensor, Future[Any]] | None = None
        pinned = device.type == "cuda" and not any_lazy(*data)  # a sparse matrix makes its batches itself
        self.pinned = Pinned(data, device) if pinned else None

    def fetch(self, rows: Tensor, then: Tensor | None = None) -> Batch:
        ahead, future = self.upcoming or (None, None)
        batch: Any = None if future is None else future.result()  # waited for even if nobody wants it: one at a time
        batch = batch if ahead is rows else self.gather(rows)
        self.upcoming = None if then is None else (then, self.pool.submit(self.gather, then))
        return self.pinned.arrived(batch) if self.pinned else tuple(a.to(self.device) for a in batch)

    def gather(self, rows: Tensor) -> Any:
        if self.pinned is not None:
            return self.pinned.send(rows)
        return tuple(a.index_select(0, rows) for a in self.data)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class Pinned:
    """Two buffers that the device reads from in turn, and the stream that it reads them on (not run on a device yet)."""

    def __init__(self, data: Batch, device: torch.device) -> None:
        self.data, self.device = data, device
        self.stream: Any = torch.cuda.Stream(device)
        self.buffers: list[list[Tensor]] = [[], []]
        self.sent: list[Any] = [None, None]  # events of their last copies
        self.turn = 0

    def send(self, rows: Tensor) -> tuple[Batch, Any]:
        """Gather rows and start their copy; return the batch, and the event of its arrival."""
        i, self.turn = self.turn, 1 - self.turn
        if self.sent[i] is not None:
            self.sent[i].synchronize()  # its last copy is over, long since
        n = len(rows)
        if not self.buffers[i] or len(self.buffers[i][0]) < n:
            self.buffers[i] = [torch.empty(n, *a.shape[1:], dtype=a.dtype, pin_memory=True) for a in self.data]
        gathered = [torch.index_select(a, 0, rows, out=b[:n]) for a, b in zip(self.data, self.buffers[i], strict=True)]
        with torch.cuda.stream(self.stream):
            batch = tuple(a.to(self.device, non_blocking=True) for a in gathered)
            self.sent[i] = torch.cuda.Event()
            self.sent[i].record(self.stream)
        return batch, self.sent[i]

    def arrived(self, sent: tuple[Batch, Any]) -> Batch:
        """Have the current stream wait for the copy, which the host does not; return the batch."""
        batch, event = sent
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for a in batch:
            a.record_stream(current)  # else its memory could be given away while a kernel still reads it
        return batch


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The rows of a run, x and its contexts, and how training batches are made of them."""

    train: Batch  # where they stay
    source: BatchSource  # of batches on the device that trains
    batch_size: int  # the last of a pass may have fewer rows, if it is not dropped
    validation: Batch | None = None  # as evaluation sees them
    transform: Transform | None = None  # such as binarization, drawing from the generator that it is given
    drop_last: bool = False  # the shorter last batch of a pass

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows_per_epoch // self.batch_size)

    @property
    def rows_per_epoch(self) -> int:
        """Count the rows that a pass takes."""
        rows = len(self.train[0])
        return rows - rows % self.batch_size if self.drop_last else rows

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the training and validation rows."""
        return rows_digest({f"{i}": a for i, a in enumerate((*self.train, *(self.validation or ())))})

    @cached_property
    def files(self) -> tuple[MappedFile, ...]:
        """Files that rows are mapped from."""
        return mapped_files((*self.train, *(self.validation or ())))

    def check_files(self) -> None:
        """Raise a DataError where a file that rows are mapped from has changed since training began."""
        for file in self.files:
            file.check()

    def shuffle(self, seed: int) -> ShuffledBatches:
        """Make a random order of the training rows, another each pass."""
        return self.source.shuffled(len(self.train[0]), self.batch_size, seed, self.drop_last)

    def one_pass(self, order: ShuffledBatches) -> Iterator[tuple[Tensor, Batch]]:
        """Yield the rest of a pass: row numbers, and the batch of them."""
        for rows in order.one_pass():
            self.source.follow(order)
            yield rows, self.transformed(self.source.fetch(rows, order.next_rows), order.generator)

    def fixed_batch(self, batch: Batch, seed: int) -> Batch:
        """Move a batch to the device and transform it, from a seed of its own."""
        batch = tuple(a.to(self.device) for a in batch)
        return self.transformed(batch, torch.Generator(self.device).manual_seed(seed))

    def transformed(self, batch: Batch, generator: torch.Generator) -> Batch:
        x, *context = batch
        return (self.transform(x, generator) if self.transform else x, *context)


class EpochBatches:
    """The shuffled batches of one epoch, from a position on; order and binarization depend on seed and epoch alone."""

    def __init__(self, data: TrainingData, seed: int, position: EpochPosition, further: bool) -> None:
        self.data, self.position = data, position
        self.orders: dict[str, ShuffledBatches] = {}
        for name, number in STREAMS.items() if further else [("order", SHUFFLE)]:
            order = data.shuffle(stream(seed, number, position.epoch))
            if name in position.batches_taken:
                states = {k: position.generator_states[f"{name}.{k}"] for k in ("before", "now")}
                order.seek(position.batches_taken[name], states)
            self.orders[name] = order
        load_noise_states(position.generator_states, data.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield the rest of the epoch: row numbers, and the batch of them."""
        return self.data.one_pass(self.orders["order"])

    def further(self) -> Iterator[tuple[Tensor, Batch]]:
        """Yield other batches, without end."""
        while True:
            yield from self.data.one_pass(self.orders["further"])

    def note(self, versions: tuple[int, ...]) -> None:
        """Note the generators' states in the position, between two steps; `versions` are of weights and buffers."""
        states = noise_states(self.data.device)
        for name, order in self.orders.items():
            states |= {f"{name}.{k}": state for k, state in order.states().items()}
        self.position.generator_states = states
        self.position.batches_taken = {name: order.taken for name, order in self.orders.items()}
        self.position.versions = versions  # last: an interruption here must not pass for a complete state


def choose_batch_source(data: Batch, device: torch.device) -> tuple[Batch, BatchSource]:
    """Move the rows to `device` if they fit in half of its free memory, and are dense; return them, and their source."""
    if any_lazy(*data):
        return data, Streamed(data, device)
    if all(a.device == device for a in data):
        return data, Resident(data)
    if sum(a.nbytes for a in data) <= SHARE * free_bytes(device):
        moved = tuple(a.to(device) for a in data)
        return moved, Resident(moved)
    return data, Streamed(data, device)


def free_bytes(device: torch.device) -> float:
    """Ask how many bytes are free on a device."""
    return float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else float("inf")


def conversion_device(x: Any, device: torch.device | None) -> torch.device | None:
    """Choose where to convert x: on a GPU only what lies there already, as the whole of x may not fit beside the model."""
    if device is None or device.type != "cuda" or (isinstance(x, Tensor) and x.device == device):
        return device
    return torch.device("cpu")
