"""A captured step against the eager one, on the same state and noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.identical import identical
from pyro_vae.training.training_state import PreStepSnapshot

from .adam_update import AdamGroup
from .flat_graph import Result

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a gradient's norm, over all parameters
ROUNDED = (
    2e-3  # the same, where products round to the 8 bits of bfloat16 or the 10 of TF32: a compiler rounds elsewhere
)


@contextmanager
def replayed(buffers: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Restore the random state and the buffers after, however it ends, so that the next run sees the same."""
    before = PreStepSnapshot(buffers, device)
    try:
        yield
    finally:
        before.restore()


def disagreement(eager: Result, captured: Result, rounded: bool = False) -> tuple[float, str | None]:
    """Measure the larger relative difference of loss and gradients, and describe it; None where it is rounding.

    `rounded`: layers multiply in bfloat16 or TF32.
    """
    (loss, gradients), (other, others) = eager, captured
    if [g is None for g in gradients] != [g is None for g in others]:
        return float("inf"), "gradients reach other parameters"
    tolerance = ROUNDED if rounded else TOLERANCE.get(loss.dtype, 2e-2)
    off_loss = relative([loss], [other])
    off = relative([g for g in gradients if g is not None], [g for g in others if g is not None])
    if off_loss > tolerance / 10:
        return off_loss, f"its loss is {other.item():.8g}, eager's {loss.item():.8g}"
    return max(off, off_loss), f"its gradient is off by {off:.1g} of eager's" if off > tolerance else None


def relative(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """‖a − b‖ / ‖a‖ over the finite entries; infinite where others are finite in b."""
    if any(not torch.equal(x.isfinite(), y.isfinite()) for x, y in zip(a, b, strict=True)):
        return float("inf")
    pairs = [[t.double().nan_to_num(0.0, 0.0, 0.0) for t in pair] for pair in zip(a, b, strict=True)]
    norm = sum(x.square().sum().item() for x, _ in pairs) ** 0.5
    off = sum((x - y).square().sum().item() for x, y in pairs) ** 0.5
    return off / norm if norm else off


def close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(
        torch.allclose(x, y, rtol=1e-4, atol=1e-6, equal_nan=True) if x.is_floating_point() else x.equal(y)
        for x, y in pairs
    )


@dataclass(frozen=True, eq=False)
class EagerStep:
    """What an eager step left: its loss, whether it and the gradients were finite, the tensors that it moves, and buffers."""

    loss: Tensor
    finite: bool
    reached: list[Tensor]  # parameters, by gradients
    moved: list[Tensor]
    buffers: list[Tensor]


def step_disagreement(
    groups: Sequence[AdamGroup],
    numbers: Sequence[Sequence[float]],
    before: Sequence[Tensor],
    eager: EagerStep,
    loss: Tensor,
    rounded: bool = False,
) -> tuple[float, str | None]:
    """Compare a whole step with the eager one from the same state: its loss, the moments, and what became of the parameters.

    Moments tell the gradients. A parameter whose gradient is all rounding may go anywhere within a step's length, so that
    what is compared is each step's update less what its own moments make of it. `groups` hold the state after the whole step,
    `before` and `eager.moved` are copies of it. Returns the largest relative difference, and describes it; None where it is
    rounding.
    """
    moved = [tensor for group in groups for tensor in group.tensors]
    if not eager.finite:
        still = all(map(identical, before, moved))
        return (0.0, None) if still else (float("inf"), "it moves parameters though the step is not finite")
    if {id(p) for p in eager.reached} != {id(p) for group in groups for p in group.parameters}:
        return float("inf"), "gradients reach other parameters"
    tolerance = ROUNDED if rounded else TOLERANCE.get(loss.dtype, 2e-2)
    off_loss, at = relative([eager.loss], [loss]), 0
    if off_loss > tolerance / 10:
        return off_loss, f"its loss is {loss.item():.8g}, eager's {eager.loss.item():.8g}"
    for group, of in zip(groups, numbers, strict=True):
        size = len(group.tensors)
        old, theirs, ours = (quarters(tensors[at : at + size]) for tensors in (before, eager.moved, moved))
        at += size
        off, what = update_disagreement(group, of, (old, theirs, ours), tolerance)
        off_loss = max(off, off_loss)
        if what is not None:
            return off, what
    return off_loss, None


Moved = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # parameters, means, squares, steps


def quarters(tensors: Sequence[Tensor]) -> Moved:
    """Cut a group's tensors into parameters, means, squares and steps."""
    n = len(tensors) // 4
    held = [t.detach() for t in tensors]
    return held[:n], held[n : 2 * n], held[2 * n : 3 * n], held[3 * n :]


def update_disagreement(
    group: AdamGroup, numbers: Sequence[float], states: tuple[Moved, Moved, Moved], tolerance: float
) -> tuple[float, str | None]:
    """Compare one group's state after two updates, the states being those before, after eager's, and after the graph's."""
    (_, m0, *_), (p1, m1, v1, t1), (p2, m2, v2, t2) = states
    digits = 8 * torch.finfo(group.parameters[0].dtype).eps if group.parameters else 0.0
    (beta1, beta2), (_, length, eps, _) = group.betas, numbers
    if any(not torch.equal(a, b) for a, b in zip(t1, t2, strict=True)):
        return float("inf"), "it counts another number of steps"
    gradients = [old + (new - old) / (1 - beta1) for old, new in zip(m0, m1, strict=True)]
    size, off = norm(gradients), norm(minus(m1, m2)) / (1 - beta1)
    if off > tolerance * size + digits * norm(m1) / (1 - beta1):
        return off / (size or 1), f"its gradient is off by {off / (size or 1):.1g} of eager's"
    largest = max((g.abs().max().item() for g in gradients if g.numel()), default=0.0)
    if norm(minus(v1, v2)) > 4 * tolerance * (1 - beta2) * largest * size + digits * norm(v1):
        return float("inf"), "the squares of its gradient are off"
    steps = [[length * m / (v.sqrt() + eps) for m, v in zip(ms, vs, strict=True)] for ms, vs in ((m1, v1), (m2, v2))]
    moved, wrong = norm(steps[0]), norm([p + u for p, u in zip(minus(p1, p2), minus(*steps), strict=True)])
    if wrong > tolerance * moved + digits * norm(p1):
        return wrong / (moved or 1), f"its update is off by {wrong / (moved or 1):.1g} of eager's"
    return off / (size or 1), None


def minus(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(t).item() for t in tensors))
