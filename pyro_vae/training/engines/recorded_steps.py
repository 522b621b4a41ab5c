"""Many whole steps to a replay of one CUDA graph: nothing comes back to the host between them.

Exercised on the CPU with a recorder that runs the function again, and run on an H200.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData

from .cuda_graph import CudaRecorder
from .traced import TracedEngine
from .verify import replayed
from .whole_step import WholeStep, inputs_of

STEPS = 16  # to a replay


class NextStep(NamedTuple):
    """What a step takes beside its rows: the numbers of the update by group, those that are scheduled, and learning rates."""

    numbers: list[list[float]]
    scheduled: list[float]
    rates: list[float]


class RecordedSteps:
    """Replays :data:`STEPS` steps of a whole-step graph, from buffers that are written before each replay.

    A transform draws from a generator of its own, which is set to the order's state before and hands it back after, so that
    every draw is the one that single steps would have made. `failed` is 1 from the first step on that was not finite, and
    `good` counts those before it.
    """

    def __init__(self, engine: TracedEngine, data: TrainingData, failed: Tensor, good: Tensor) -> None:
        self.engine, self.data, self.failed, self.good = engine, data, failed, good
        self.generator = torch.Generator(data.device)
        self.whole: WholeStep | None = None  # that was recorded
        self.addresses: list[int] = []  # in memory, that it reads and writes
        self.refused = False

    def ready(self, whole: WholeStep, following: Sequence[NextStep]) -> bool:
        """Record the graph, unless that was done and nothing has moved since; False where it cannot be recorded."""
        scheduled = self.engine.scheduled_values.tensors
        changing = [*self.engine.buffers, *whole.moved, *scheduled, self.failed, self.good]
        addresses = [t.data_ptr() for t in (*changing, *whole.flat.state)]
        if self.refused or (whole is self.whole and addresses == self.addresses):
            return not self.refused
        try:
            with replayed(changing, self.data.device):  # recording runs the steps
                self.record(whole, following[0])
        except RuntimeError as error:
            self.refused = True
            self.engine.log.append(f"steps are replayed one by one: {str(error).splitlines()[0]}")
            return False
        self.whole, self.addresses = whole, addresses
        self.engine.log.append(f"{STEPS} whole steps to a replay")
        return True

    def record(self, whole: WholeStep, like: NextStep) -> None:
        """Record the steps, which runs them: the caller restores the state before."""
        device = self.data.device
        self.rows = torch.zeros(STEPS, self.data.batch_size, dtype=torch.long, device=device)
        self.numbers = whole.numbers.new_zeros(STEPS, *whole.numbers.shape)
        self.scheduled = torch.zeros(STEPS, len(like.scheduled), dtype=torch.float64, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.recorder = CudaRecorder(device, self.generator)

        def all_steps() -> list[Tensor]:
            for at in range(STEPS):
                for tensor, number in zip(self.engine.scheduled_values.tensors, self.scheduled[at], strict=True):
                    tensor.copy_(number)
                loss = whole(inputs_of(self.data, whole.draws, self.rows[at], self.generator), self.numbers[at])
                self.total.add_(torch.where(self.failed > 0, 0.0, loss.double()))
                self.good.add_(1 - self.failed)
            return []

        self.recorder.record(all_steps)

    def replay(self, rows: Tensor, following: Sequence[NextStep], generator: torch.Generator) -> Tensor:
        """Make the steps on these rows, ``(STEPS, size)``; return their summed loss, without those that were not finite."""
        self.rows.copy_(rows)
        for table, values in (
            (self.numbers, [step.numbers for step in following]),
            (self.scheduled, [step.scheduled for step in following]),
        ):
            table.copy_(torch.tensor(values, dtype=table.dtype), non_blocking=True)
        self.generator.set_state(generator.get_state())
        self.total.zero_()
        self.recorder.replay()
        generator.set_state(self.generator.get_state())
        return self.total.clone()
