"""A captured step against the eager one, on the same state and noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vae.training.training_state import PreStepSnapshot

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
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) if x.is_floating_point() else x.equal(y) for x, y in pairs)
