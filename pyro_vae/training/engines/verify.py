"""A captured step against the eager one, on the same state and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.training.training_state import PreStepSnapshot

from .adam_update import AdamGroup
from .flat_graph import Result

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of a gradient's norm, over all parameters
ROUNDED = (
    2e-3  # the same, where products round to the 8 bits of bfloat16 or the 10 of TF32: a compiler rounds elsewhere
)
GRADIENT = "its gradient is"


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
    return max(off, off_loss), f"{GRADIENT} off by {off:.1g} of eager's" if off > tolerance else None


def is_kink(what: str | None) -> bool:
    """Return whether a disagreement may be one of kinks alone: the losses are the same, and the gradients are not.

    A ReLU whose argument rounding puts on one side of 0 here and on the other there changes the gradient, and not the loss.
    """
    return what is not None and what.startswith(GRADIENT)


def parts_of_rows(rows: int) -> Iterator[Tensor]:
    """Yield row numbers, as many as there are, of a half to a sixteenth of the rows: a row with a kink is in few of them.

    Example:
        >>> [part.tolist() for part in parts_of_rows(4)][:3]
        [[0, 1, 0, 1], [2, 3, 2, 3], [0, 2, 0, 2]]
    """
    every, half = torch.arange(rows), max(1, rows // 2)
    parts = [every[:half], every[-half:], *(every[i::2] for i in range(2)), *(every[i::4] for i in range(4))]
    parts += [every[3 * i :: apart] for apart in (8, 16) for i in range(4)]  # a wide network's rows have many
    for part in parts:
        if 0 < len(part) < rows:
            yield part.repeat(-(-rows // len(part)))[:rows]


def kink_alone(rows: int, look: Callable[[Tensor], str | None]) -> bool:
    """Return whether gradients differ by kinks of some rows alone: of other rows they do not.

    Args:
        rows: of a batch.
        look: describes the disagreement on rows of these numbers.
    """
    for part in parts_of_rows(rows):
        if not is_kink(what := look(part)):
            return what is None
    return False


def relative(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """‖a − b‖ / ‖a‖ over the finite entries; infinite where others are finite in b.

    Example:
        >>> a = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
        >>> relative(a, [a[0], torch.tensor([0.0, 1.0])]), relative(a, [torch.tensor([torch.inf, 4.0]), a[1]])
        (0.2, inf)
    """
    norm, off = norm_of(a), norm_of(minus(a, b))
    if not math.isfinite(norm + off):  # only then is each entry looked at, which takes ten times as long
        if any(not torch.equal(x.isfinite(), y.isfinite()) for x, y in zip(a, b, strict=True)):
            return float("inf")
        finite = [[t.double().nan_to_num(0.0, 0.0, 0.0) for t in tensors] for tensors in (a, b)]
        norm, off = norm_of(finite[0]), norm_of(minus(*finite))
    return off / norm if norm else off


def norm_of(tensors: Sequence[Tensor]) -> float:
    """√Σ t² over all tensors."""
    return math.hypot(*(torch.linalg.vector_norm(t).item() for t in tensors))


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
    finite: Tensor | bool
    reached: list[Tensor]  # parameters, by gradients
    moved: list[Tensor]
    buffers: list[Tensor]


@dataclass(eq=False)
class Comparison:
    """A whole step beside the eager one from the same state: the loss, the moments, and what became of the parameters.

    Moments tell the gradients. A parameter whose gradient is all rounding may go anywhere within a step's length, so that
    what is compared is each step's update less what its own moments make of it. What there is to be seen is one tensor of
    norms on the device: nothing waits for it until :meth:`verdict` asks.

    Args:
        groups: of the parameters that the whole step moves, `numbers` those of its update.
        before, moved: copies of ``whole.moved`` before the step, and what it was after; `eager.moved` is eager's.
        buffers: as the whole step left them.
        rounded: layers multiply in bfloat16 or TF32.
    """

    groups: Sequence[AdamGroup]
    eager: EagerStep
    loss: Tensor
    buffers: Sequence[Tensor]
    norms: list[list[Tensor]]  # by group
    rounded: bool = False

    @classmethod
    def of(
        cls,
        groups: Sequence[AdamGroup],
        numbers: Sequence[Sequence[float]],
        before: Sequence[Tensor],
        eager: EagerStep,
        whole: tuple[Tensor, Sequence[Tensor], Sequence[Tensor]],
        rounded: bool = False,
    ) -> Comparison:
        """Measure it; `whole` are its loss, the tensors that it moved, and buffers."""
        loss, moved, buffers = whole
        at, norms = 0, []
        for group, of in zip(groups, numbers, strict=True):
            size = len(group.tensors)
            old, theirs, ours = (quarters(tensors[at : at + size]) for tensors in (before, eager.moved, moved))
            at += size
            norms.append(norms_of(group, of, (old, theirs, ours), loss))
        return cls(groups, eager, loss, buffers, norms, rounded)

    def verdict(self) -> tuple[float, str | None]:
        """Return the largest relative difference, and describe it; None where it is rounding."""
        eager, groups = self.eager, self.groups
        if {id(p) for p in eager.reached} != {id(p) for group in groups for p in group.parameters}:
            return float("inf"), "gradients reach other parameters"
        found = torch.stack(
            [n.double() for n in (eager.loss, self.loss, *(n for of in self.norms for n in of))]
        ).tolist()
        theirs, ours, norms = found[0], found[1], [found[i : i + NORMS] for i in range(2, len(found), NORMS)]
        tolerance = ROUNDED if self.rounded else TOLERANCE.get(self.loss.dtype, 2e-2)
        off = abs(theirs - ours) / abs(theirs) if theirs else abs(ours)
        if not off <= tolerance / 10:
            return off, f"its loss is {ours:.8g}, eager's {theirs:.8g}"
        for group, of in zip(groups, norms, strict=True):
            apart, what = update_disagreement(group, of, tolerance)
            off = max(apart, off)
            if what is not None:
                return apart, what
        if not close(eager.buffers, self.buffers):
            return float("inf"), "it leaves other buffers (batch statistics)"
        return off, None


Moved = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # parameters, means, squares, steps
NORMS = 10


def quarters(tensors: Sequence[Tensor]) -> Moved:
    """Cut a group's tensors into parameters, means, squares and steps."""
    n = len(tensors) // 4
    held = [t.detach() for t in tensors]
    return held[:n], held[n : 2 * n], held[2 * n : 3 * n], held[3 * n :]


def norms_of(
    group: AdamGroup, numbers: Sequence[float], states: tuple[Moved, Moved, Moved], like: Tensor
) -> list[Tensor]:
    """Measure one group's state after two updates, the states being those before, after eager's, and after the graph's.

    The norms are where `like` is, those of a group that no gradient reaches, too.
    """
    (_, m0, *_), (p1, m1, v1, t1), (p2, m2, v2, t2) = states
    beta1, (_, length, eps, _) = group.betas[0], numbers
    gradients = [old + (new - old) / (1 - beta1) for old, new in zip(m0, m1, strict=True)]
    steps = [[length * m / (v.sqrt() + eps) for m, v in zip(ms, vs, strict=True)] for ms, vs in ((m1, v1), (m2, v2))]
    largest = [g.abs().max() for g in gradients if g.numel()]
    return [
        norm(minus(t1, t2), like),
        norm(gradients, like),
        norm(minus(m1, m2), like) / (1 - beta1),
        norm(m1, like),
        torch.stack(largest).max() if largest else like.new_zeros(()),
        norm(minus(v1, v2), like),
        norm(v1, like),
        norm(steps[0], like),
        norm([p + u for p, u in zip(minus(p1, p2), minus(*steps), strict=True)], like),
        norm(p1, like),
    ]


def update_disagreement(group: AdamGroup, norms: Sequence[float], tolerance: float) -> tuple[float, str | None]:
    """Judge one group's state after two updates."""
    counts, size, off, mean, largest, square, squares, moved, wrong, parameters = norms
    digits = 8 * torch.finfo(group.parameters[0].dtype).eps if group.parameters else 0.0
    beta1, beta2 = group.betas
    if not counts <= 0:
        return float("inf"), "it counts another number of steps"
    if not off <= tolerance * size + digits * mean / (1 - beta1):
        return off / (size or 1), f"{GRADIENT} off by {off / (size or 1):.1g} of eager's"
    if not square <= 4 * tolerance * (1 - beta2) * largest * size + digits * squares:
        return float("inf"), "the squares of its gradient are off"
    if not wrong <= tolerance * moved + digits * parameters:
        return wrong / (moved or 1), f"its update is off by {wrong / (moved or 1):.1g} of eager's"
    return off / (size or 1), None


def minus(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x - y for x, y in zip(a, b, strict=True)]


def norm(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """√Σ t² over all tensors, where `like` is."""
    each = [torch.linalg.vector_norm(t).to(like.device, torch.float64) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(each)) if each else like.new_zeros((), dtype=torch.float64)
