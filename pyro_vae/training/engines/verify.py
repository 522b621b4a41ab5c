"""A captured step against the eager one, on the same state and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.training.training_state import PreStepSnapshot

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a gradient's norm, over all parameters
ROUNDED = 2e-3  # the same, where layers round to the 8 bits of bfloat16: a compiler fuses, and rounds elsewhere
Result = tuple[Tensor, list[Tensor | None]]  # loss, and each parameter's gradient


@contextmanager
def replayed(buffers: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Put the random state and buffers back after, however it ends, so that the next run sees the same."""
    before = PreStepSnapshot.take(buffers, device)
    try:
        yield
    finally:
        before.restore()


def disagreement(eager: Result, captured: Result, rounded: bool = False) -> tuple[float, str | None]:
    """Measure the larger relative difference of loss and gradients, and say what it is; None where it is rounding.

    `rounded`: layers multiply in bfloat16.
    """
    (loss, gradients), (other, others) = eager, captured
    reached = [g is not None for g in gradients]
    if reached != [g is not None for g in others]:
        return float("inf"), "gradients reach other parameters"
    ours = [g.double() for g in gradients if g is not None]
    theirs = [g.double() for g in others if g is not None]
    tolerance = ROUNDED if rounded else TOLERANCE.get(loss.dtype, 2e-2)
    off_loss = relative([loss.double()], [other.double()])
    off = relative(ours, theirs)
    if off_loss > tolerance / 10:
        return off_loss, f"its loss is {other.item():.8g}, eager's {loss.item():.8g}"
    return max(off, off_loss), f"its gradient is off by {off:.1g} of eager's" if off > tolerance else None


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    """‖a − b‖ / ‖a‖; 0 where both are not finite in the same places."""
    pairs = [(x.nan_to_num(0.0, 0.0, 0.0), y.nan_to_num(0.0, 0.0, 0.0)) for x, y in zip(a, b, strict=True)]
    if any(not torch.equal(x.isfinite(), y.isfinite()) for x, y in zip(a, b, strict=True)):
        return float("inf")
    norm = sum(x.square().sum().item() for x, _ in pairs) ** 0.5
    off = sum((x - y).square().sum().item() for x, y in pairs) ** 0.5
    return off / norm if norm else off


def gradients_of(run: Callable[..., Tensor], parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> Result:
    """Run eager; return the loss, and the gradients that are left on the parameters."""
    for p in parameters:
        p.grad = None
    loss = run(*batch)
    return loss, [p.grad for p in parameters]


def close(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) if x.is_floating_point() else x.equal(y) for x, y in pairs)
