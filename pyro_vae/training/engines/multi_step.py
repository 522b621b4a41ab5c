"""Whole steps, several to a replay: rows, binarization, loss, gradients and update stay on the device between logging points.

Written against torch's documentation and exercised on the CPU with a recorder that runs the function again; on a device it
has not been run yet. What it replays is the traced step that was checked against eager, and the optimizer's own kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.objectives.scheduled import Scheduled
from pyro_vae.training.batch_source import Feed, Resident, Transform
from pyro_vae.training.finite_checks import Late
from pyro_vae.training.fused_adam import begun, fused_adam
from pyro_vae.training.schedules import Schedule
from pyro_vae.training.shuffle import Order
from pyro_vae.training.step import Step

from .cuda_graph import CudaRecorder, Recorder
from .flat_graph import Flat
from .scheduled_values import holds
from .traced import Traced
from .verify import replayed

STEPS = 16  # to a replay
MakeRecorder = Callable[[torch.device, Sequence[torch.Generator]], Recorder]


class Whole:
    """A run's steps, :data:`STEPS` at a time, wherever there is a checked graph for whole batches.

    Row numbers, learning rates and numbers that change are written into buffers before each replay; losses are summed on the
    device. Binarization draws from a generator of its own, which is set to the order's state before and hands it back after,
    so that every draw is the one that single steps would have made.

    Args:
        step: whose engine holds the graph.
        feed: rows on the device.
        transform: what makes a training batch of them, or None.
        size: rows a batch.
        schedule: fraction of training done to a multiple of the learning rates.
        scheduled: as for :func:`~pyro_vae.fit`.
        recorder: makes what records.
    """

    def __init__(
        self,
        step: Step,
        feed: Resident,
        transform: Transform | None,
        size: int,
        schedule: Schedule,
        scheduled: Sequence[Scheduled] = (),
        *,
        recorder: MakeRecorder,
    ) -> None:
        self.step, self.feed, self.transform, self.size = step, feed, transform, size
        self.schedule, self.scheduled, self.make = schedule, scheduled, recorder
        self.generator = torch.Generator(feed.device)
        self.flat: Flat | None = None  # what was recorded
        self.places: list[int] = []  # and where in memory it reads and writes
        self.failed = False

    def __call__(self, order: Order, done: int, planned: int) -> Tensor | None:
        """The summed loss of the next steps; None, and nothing done, where they must go one by one."""
        engine, watch, optimizer = self.step.engine, self.step.watch, self.step.optimizer
        if self.failed or not isinstance(engine, Traced) or not isinstance(watch, Late) or optimizer is None:
            return None
        rows = order.several(STEPS) if begun(optimizer) else None
        numbers = None if rows is None else self.numbers(engine, done, planned)  # moves what is scheduled
        if rows is None or numbers is None:
            return None
        flat, rates, dials = numbers
        changing = [*self.step.parameters, *engine.buffers, *moments(optimizer), *watch.tensors, *engine.panel.tensors]
        places = [t.data_ptr() for t in (*changing, *flat.state)]
        if flat is not self.flat or places != self.places:
            try:
                with replayed(changing, self.feed.device):
                    self.record(engine, flat, optimizer, len(rates[0]), len(dials[0]))
            except RuntimeError as error:
                self.failed = True
                engine.said.append(f"steps are replayed one by one: {str(error).splitlines()[0]}")
                return None
            self.flat, self.places = flat, places
            engine.said.append(f"{STEPS} whole steps to a replay")
        self.rows.copy_(rows)
        self.rates.copy_(torch.tensor(rates), non_blocking=True)
        self.dials.copy_(torch.tensor(dials, dtype=self.dials.dtype), non_blocking=True)
        self.generator.set_state(order.generator.get_state())
        self.total.zero_()
        self.recorder.replay()
        order.place += STEPS
        order.generator.set_state(self.generator.get_state())
        for group, rate in zip(optimizer.param_groups, rates[-1], strict=True):
            group["lr"] = rate
        for p in self.step.parameters:
            p.grad = None  # it is the recording's own memory
        return self.total.clone()

    def numbers(
        self, engine: Traced, done: int, planned: int
    ) -> tuple[Flat, list[list[float]], list[list[float]]] | None:
        """The graph, learning rates and moving numbers of the next steps; None unless one graph is good for all of them."""
        flat: Flat | None = None
        rates, dials = [], []
        for at in range(done, done + STEPS):
            for moved in self.scheduled:
                moved.at(at / planned)
            flat = flat or engine.ready(self.size)
            if flat is None or not holds(flat.known) or len(flat.wanted) < len(self.step.parameters):
                return None
            rates.append([base * self.schedule((at + 1) / planned) for base in self.step.base_rates])
            dials.append([float(getattr(owner, name)) for owner, name in engine.panel.numbers])
        assert flat is not None
        return flat, rates, dials

    def record(self, engine: Traced, flat: Flat, optimizer: torch.optim.Optimizer, groups: int, dials: int) -> None:
        """Has the steps recorded; whoever calls puts back what running them changed."""
        device = self.feed.device
        self.rows = torch.zeros(STEPS, self.size, dtype=torch.long, device=device)
        self.rates = torch.zeros(STEPS, groups, device=device)  # fused Adam reads float32
        self.dials = torch.zeros(STEPS, dials, dtype=self.step.parameters[0].dtype, device=device)
        self.total = torch.zeros((), dtype=torch.float64, device=device)
        self.recorder = self.make(device, [self.generator])

        def steps() -> list[Tensor]:
            for row in range(STEPS):
                self.total.add_(self.one(engine, flat, optimizer, row))
            return []

        with torch.no_grad():
            self.recorder.record(steps)

    def one(self, engine: Traced, flat: Flat, optimizer: torch.optim.Optimizer, row: int) -> Tensor:
        """One step, from what the buffers hold for it."""
        for tensor, number in zip(engine.panel.tensors, self.dials[row], strict=True):
            tensor.copy_(number)
        x, *context = self.feed.take(self.rows[row])
        batch = (self.transform(x, self.generator) if self.transform else x, *context)
        loss, *gradients = flat.module.forward(*batch, *flat.state)
        engine.take(loss, gradients, flat.wanted)
        self.step.watch.loss(loss)
        self.step.watch.gradients(gradients, optimizer)
        for group, rate in zip(optimizer.param_groups, self.rates[row], strict=True):
            fused_adam(optimizer, group, rate)
        return loss


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What it keeps of each parameter."""
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]


def whole_of(
    step: Step,
    feed: Feed,
    transform: Transform | None,
    size: int,
    schedule: Schedule,
    scheduled: Sequence[Scheduled],
) -> Whole | None:
    """For the graph engine, with rows on the device, where nobody asks at each step whether it was finite."""
    if not isinstance(feed, Resident) or step.engine.name != "graph" or step.prompt:
        return None
    return Whole(step, feed, transform, size, schedule, scheduled, recorder=CudaRecorder)
