"""Whole steps, several to a replay: rows, binarization, loss, gradients and update stay on the device between logging points.

Written against torch's documentation and exercised on the CPU with a recorder that runs the function again; on a device it
has not been run yet. What it replays is the traced step that was checked against eager, and the optimizer's own kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.training.batch_source import Resident, TrainingData
from pyro_vae.training.finite_checks import DeferredFiniteCheck
from pyro_vae.training.fused_adam import begun, fused_adam
from pyro_vae.training.precision import whole_step
from pyro_vae.training.shuffle import ShuffledBatches
from pyro_vae.training.step import Step
from pyro_vae.training.training_state import TrainingOptions, TrainingState

from .cuda_graph import CudaRecorder
from .flat_graph import FlatGraph
from .scheduled_values import answers_hold
from .traced import TracedEngine
from .verify import replayed

STEPS = 16  # to a replay


@dataclass(frozen=True, eq=False)
class NextSteps:
    """The graph of the next steps, and for each of them a row of learning rates and one of scheduled numbers."""

    flat: FlatGraph
    rates: list[list[float]]
    numbers: list[list[float]]


class MultiStep:
    """Makes a run's steps, :data:`STEPS` at a time, wherever there is a checked graph for whole batches.

    Row numbers, learning rates and numbers that change are written into buffers before each replay; losses are summed on the
    device. Binarization draws from a generator of its own, which is set to the order's state before and hands it back after,
    so that every draw is the one that single steps would have made.
    """

    def __init__(self, step: Step, data: TrainingData, options: TrainingOptions) -> None:
        self.step, self.data, self.options = step, data, options
        self.generator = torch.Generator(data.device)
        self.flat: FlatGraph | None = None  # that was recorded
        self.addresses: list[int] = []  # in memory, that it reads and writes
        self.failed = False

    def run(self, order: ShuffledBatches, state: TrainingState, planned: int) -> Tensor | float:
        """Make the next steps, as far as they can be made several at a time; return their summed loss."""
        total: Tensor | float = 0.0
        while (loss := self(order, state.step, planned)) is not None:
            total, state.step, state.updates = total + loss, state.step + STEPS, state.updates + STEPS
        return total

    def __call__(self, order: ShuffledBatches, done: int, planned: int) -> Tensor | None:
        """Make the next steps and return their summed loss; None, and nothing done, where they must go one by one."""
        engine, optimizer = self.step.engine, self.step.optimizer
        deferred = isinstance(self.step.finite_check, DeferredFiniteCheck)
        if self.failed or not isinstance(engine, TracedEngine) or not deferred or optimizer is None:
            return None
        rows = order.next_batches(STEPS) if begun(optimizer) else None
        steps = None if rows is None else self.next_steps(engine, done, planned)  # moves what is scheduled
        if rows is None or steps is None or not self.record_if_needed(engine, optimizer, steps):
            return None
        self.rows.copy_(rows)
        self.rates.copy_(torch.tensor(steps.rates), non_blocking=True)
        self.numbers.copy_(torch.tensor(steps.numbers, dtype=self.numbers.dtype), non_blocking=True)
        self.generator.set_state(order.generator.get_state())
        self.total.zero_()
        self.recorder.replay()
        order.taken += STEPS
        order.generator.set_state(self.generator.get_state())
        for group, rate in zip(optimizer.param_groups, steps.rates[-1], strict=True):
            group["lr"] = rate
        for p in self.step.parameters:
            p.grad = None  # it is the recording's own memory
        return self.total.clone()

    def next_steps(self, engine: TracedEngine, done: int, planned: int) -> NextSteps | None:
        """Look ahead at the schedules; None unless one graph is good for all of the steps."""
        flat: FlatGraph | None = None
        rates, numbers = [], []
        for at in range(done, done + STEPS):
            self.options.tell_progress(at / planned)
            flat = flat or engine.ready(self.data.batch_size)
            if flat is None or not answers_hold(flat.answers) or not all(flat.reached):
                return None
            rates.append([base * self.options.schedule((at + 1) / planned) for base in self.step.base_rates])
            numbers.append([float(getattr(owner, name)) for owner, name in engine.scheduled_values.numbers])
        assert flat is not None
        return NextSteps(flat, rates, numbers)

    def record_if_needed(self, engine: TracedEngine, optimizer: torch.optim.Optimizer, steps: NextSteps) -> bool:
        """Record the graph, unless that was done and nothing has moved in memory since; False where it cannot be recorded."""
        moments = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        changing = [*self.step.parameters, *engine.buffers, *moments, *engine.scheduled_values.tensors]
        changing += self.step.finite_check.tensors
        addresses = [t.data_ptr() for t in (*changing, *steps.flat.state)]
        if steps.flat is self.flat and addresses == self.addresses:
            return True
        try:
            with replayed(changing, self.data.device):  # recording runs the steps
                self.record(engine, optimizer, steps)
        except RuntimeError as error:
            self.failed = True
            engine.log.append(f"steps are replayed one by one: {str(error).splitlines()[0]}")
            return False
        self.flat, self.addresses = steps.flat, addresses
        engine.log.append(f"{STEPS} whole steps to a replay")
        return True

    def record(self, engine: TracedEngine, optimizer: torch.optim.Optimizer, steps: NextSteps) -> None:
        """Record the steps, which runs them: the caller restores the state before."""
        device = self.data.device
        self.rows = torch.zeros(STEPS, self.data.batch_size, dtype=torch.long, device=device)
        self.rates = torch.zeros(STEPS, len(steps.rates[0]), device=device)  # fused Adam reads float32
        self.numbers = torch.zeros(STEPS, len(steps.numbers[0]), dtype=self.step.parameters[0].dtype, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.recorder = CudaRecorder(device, self.generator)

        def all_steps() -> list[Tensor]:
            for row in range(STEPS):
                self.total.add_(self.one_step(engine, steps.flat, optimizer, row))
            return []

        with torch.no_grad(), whole_step(self.step.precision):
            self.recorder.record(all_steps)

    def one_step(self, engine: TracedEngine, flat: FlatGraph, optimizer: torch.optim.Optimizer, row: int) -> Tensor:
        """Make one step from its row of the buffers."""
        for tensor, number in zip(engine.scheduled_values.tensors, self.numbers[row], strict=True):
            tensor.copy_(number)
        batch = self.data.transformed(self.data.source.fetch(self.rows[row]), self.generator)
        loss, *gradients = flat.module.forward(*batch, *flat.state)
        engine.assign_gradients(loss, gradients)
        self.step.finite_check.check_loss(loss)
        self.step.finite_check.check_gradients(gradients, optimizer)
        for group, rate in zip(optimizer.param_groups, self.rates[row], strict=True):
            fused_adam(optimizer, group, rate)
        return loss


def choose_multi_step(step: Step, data: TrainingData, options: TrainingOptions) -> MultiStep | None:
    """Take several steps at a time under the graph engine, with rows on the device, unless each is checked or told."""
    one_by_one = step.immediate or options.on_step is not None
    together = isinstance(data.source, Resident) and step.engine.name == "graph" and not one_by_one
    return MultiStep(step, data, options) if together else None
