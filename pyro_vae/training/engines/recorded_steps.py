"""Many whole steps to a replay of one CUDA graph: nothing comes back to the host between them.

Exercised on the CPU with a recorder that runs the function again, and run on an H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData

from .cuda_graph import CudaRecorder
from .traced import TracedEngine
from .verify import replayed
from .whole_step import WholeStep, inputs_of

STEPS = 16  # to a replay, at most; what is left of an epoch is made by halves of it, which are recorded as well


class NextStep(NamedTuple):
    """What a step takes beside its rows: the numbers of the update by group, those that are scheduled, and learning rates."""

    numbers: list[list[float]]
    scheduled: list[float]
    rates: list[float]


class RecordedSteps:
    """Replays several steps of a whole-step graph, from buffers that are written before each replay.

    A transform draws from a generator of its own, which is set to the order's state before and hands it back after, so that
    every draw is the one that single steps would have made.
    """

    def __init__(self, engine: TracedEngine, data: TrainingData, failed: Tensor) -> None:
        self.engine, self.data, self.failed = engine, data, failed
        self.generator = torch.Generator(data.device)
        self.whole: WholeStep | None = None  # that was recorded
        self.addresses: list[int] = []  # in memory, that it reads and writes
        self.recordings: dict[int, Recording] = {}  # by their number of steps
        self.refused = False

    def ready(self, whole: WholeStep, following: Sequence[NextStep]) -> bool:
        """Record so many steps, unless that was done and nothing has moved since; False where they cannot be recorded."""
        if self.refused:
            return False
        scheduled = self.engine.scheduled_values.tensors
        changing = [*self.engine.buffers, *whole.moved, *scheduled, self.failed]
        addresses = [t.data_ptr() for t in (*changing, *whole.flat.state)]
        if whole is not self.whole or addresses != self.addresses:
            self.whole, self.addresses = whole, addresses
            self.recordings.clear()
        if len(following) in self.recordings:
            return True
        try:
            with replayed(changing, self.data.device):  # recording runs the steps
                self.recordings[len(following)] = self.record(whole, following)
        except RuntimeError as error:
            self.refused = True
            self.recordings.clear()
            self.engine.log.append(f"steps are replayed one by one: {str(error).splitlines()[0]}")
            return False
        if len(following) == STEPS:
            self.engine.log.append(f"{STEPS} whole steps to a replay")
        return True

    def record(self, whole: WholeStep, following: Sequence[NextStep]) -> Recording:
        """Record the steps, which runs them: the caller restores the state before."""
        device, count = self.data.device, len(following)
        made = Recording(
            CudaRecorder(device, self.generator),
            torch.zeros(count, self.data.batch_size, dtype=torch.long, device=device),
            whole.numbers.new_zeros(count, *whole.numbers.shape),
            torch.zeros(count, len(following[0].scheduled), dtype=torch.float64, device=device),
            torch.zeros((), dtype=torch.float64, device=device),
        )

        def all_steps() -> list[Tensor]:
            losses = []
            for rows, numbers, scheduled in zip(made.rows, made.numbers, made.scheduled, strict=True):
                for tensor, number in zip(self.engine.scheduled_values.tensors, scheduled, strict=True):
                    tensor.copy_(number)
                losses.append(whole(inputs_of(self.data, whole.draws, rows, self.generator), numbers))
            made.total.copy_(torch.stack(losses).double().sum())
            return []

        made.recorder.record(all_steps)
        return made

    def replay(self, rows: Tensor, following: Sequence[NextStep], generator: torch.Generator) -> Tensor:
        """Make the steps on these rows, ``(steps, size)``; return their summed loss."""
        recording = self.recordings[len(following)]
        recording.rows.copy_(rows)
        for table, values in (
            (recording.numbers, [step.numbers for step in following]),
            (recording.scheduled, [step.scheduled for step in following]),
        ):
            if table.numel():
                table.copy_(torch.tensor(values, dtype=table.dtype), non_blocking=True)
        self.generator.set_state(generator.get_state())
        recording.recorder.replay()
        generator.set_state(self.generator.get_state())
        return recording.total.clone()


@dataclass(frozen=True, eq=False)
class Recording:
    """Some steps as one graph, and the buffers that it reads and writes."""

    recorder: CudaRecorder
    rows: Tensor  # (steps, size)
    numbers: Tensor  # (steps, groups, 4)
    scheduled: Tensor  # (steps, numbers)
    total: Tensor  # of the losses
