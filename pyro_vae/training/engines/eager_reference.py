"""What a whole step is held against: the same step as the programs and torch's optimizer make it, and where training was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.shuffle import ShuffledBatches
from pyro_vae.training.training_state import TrainingState, noise_states

from .traced import TracedEngine
from .verify import EagerStep
from .whole_step import WholeStep


@dataclass(frozen=True, eq=False)
class LastLook:
    """Where training was when its steps were last known to be finite."""

    taken: int
    step: int
    updates: int
    noise: dict[str, Tensor]
    transform: Tensor  # state of its generator


def eager_step(engine: TracedEngine, data: TrainingData, whole: WholeStep, order: ShuffledBatches) -> EagerStep:
    """Make the next step as the programs and torch's optimizer do."""
    step, rows = engine.step, order.next_rows
    assert rows is not None and step.optimizer is not None
    with torch.enable_grad():
        batch = data.transformed(data.source.fetch(rows), order.generator)
        loss, gradients = engine.run_eager(batch)
    reached = [p for p, g in zip(step.parameters, gradients, strict=True) if g is not None]
    norm = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
    finite = bool(loss.isfinite() & norm.isfinite())
    if finite:
        step.optimizer.step()
    for p in step.parameters:
        p.grad = None
    return EagerStep(loss, finite, reached, *([t.clone() for t in ts] for ts in (whole.moved, engine.buffers)))


def look_at(order: ShuffledBatches, state: TrainingState) -> LastLook:
    """Note where training is."""
    noise, transform = noise_states(order.generator.device), order.generator.get_state()
    return LastLook(order.taken, state.step, state.updates, noise, transform)
