"""What a whole step is held against: the same step as the programs and torch's optimizer make it, and where training was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.fused_adam import take_step
from pyro_vae.training.shuffle import ShuffledBatches
from pyro_vae.training.training_state import PreStepSnapshot, TrainingState

from .traced import TracedEngine
from .verify import EagerStep
from .whole_step import WholeStep


@dataclass(frozen=True, eq=False)
class LastLook:
    """Where training was when its steps were last known to be finite, and what steps that may not be so change."""

    taken: int
    step: int
    updates: int
    loss_sum: Tensor | float
    before: PreStepSnapshot
    transform: Tensor  # state of its generator

    def restore(self, order: ShuffledBatches, state: TrainingState) -> None:
        """Return to it."""
        self.before.restore()
        order.generator.set_state(self.transform)
        order.taken, state.step, state.updates = self.taken, self.step, self.updates
        state.position.loss_sum = self.loss_sum


class NextRows(Protocol):
    """The rows of the next batch, and the generator that their transform draws from."""

    @property
    def next_rows(self) -> Tensor | None: ...

    @property
    def generator(self) -> torch.Generator: ...


class OtherRows(NamedTuple):
    """Rows that are looked at, and are no step of the run."""

    next_rows: Tensor
    generator: torch.Generator


def eager_step(
    engine: TracedEngine, data: TrainingData, whole: WholeStep, order: NextRows, wait: bool = True
) -> EagerStep:
    """Make the next step as the programs and torch's optimizer do; move nothing if it is not finite, unless nobody waits."""
    step = engine.step
    loss, gradients = loss_and_gradients(engine, data, order)
    reached = [p for p, g in zip(step.parameters, gradients, strict=True) if g is not None]
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    finite: Tensor | bool = loss.isfinite() & norm.isfinite()
    finite = bool(finite) if wait else finite
    if finite is not False:
        take_step(step.optimizer)  # type: ignore[arg-type]
    for p in step.parameters:
        p.grad = None
    return EagerStep(loss, finite, reached, *([t.clone() for t in ts] for ts in (whole.moved, engine.buffers)))


def loss_and_gradients(engine: TracedEngine, data: TrainingData, order: NextRows) -> tuple[Tensor, list[Tensor | None]]:
    """Run the programs on the next rows, transformed."""
    rows = order.next_rows
    assert rows is not None
    with torch.enable_grad():
        return engine.run_eager(data.transformed(data.source.fetch(rows), order.generator))


def look_at(order: ShuffledBatches, state: TrainingState, changing: Sequence[Tensor]) -> LastLook:
    """Note where training is, and copy the tensors that the steps to come change."""
    before, transform = PreStepSnapshot(changing, order.generator.device), order.generator.get_state()
    return LastLook(order.taken, state.step, state.updates, state.position.loss_sum, before, transform)
