"""Batches that do not fit into memory: the same gradient from parts of their rows, one after the other.

A loss that is a sum over rows has the sum of the parts' gradients for its own. Whether it is one is asked of the objective,
of the sites, and of the programs themselves: run on a few rows under constant noise, whole and in parts. What is no such sum
(batch statistics, an MMD of the whole batch, latents that all rows share) is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.common.identical import identical
from pyro_vae.common.memory import out_of_memory
from pyro_vae.errors import ProgramError
from pyro_vae.objectives.bound_objective import Bound
from pyro_vae.objectives.kl_terms import capacity
from pyro_vae.objectives.pyro_elbos import tensor_loss
from pyro_vae.programs.pair import owners, without_validation
from pyro_vae.programs.parameters import ParametersRegistered, store_restored
from pyro_vae.programs.plates import find_plates
from pyro_vae.programs.proposal_guide import set_up_undone
from pyro_vae.programs.site_rows import frames_of
from pyro_vae.programs.sites import trace_pair

from .constant_noise import UnknownNoise, constant_noise
from .training_state import PreStepSnapshot, buffers_of

Batch = tuple[Tensor, ...]
LossAndGradients = Callable[..., Tensor]  # leaves gradients on the parameters, whose own are None before
ROW_WISE = (capacity,)  # terms of a Bound that are functions of each row by itself
ROWS, PARTS = 5, (3, 2)  # of the check: parts of two sizes, so that a mean is told from a sum
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CLOSE = {torch.float64: 1e-9}  # relative differences that are rounding
ROUNDING = 1e-4


class MicroBatches:
    """Computes a batch as a whole while it fits, and from then on in parts of half as many rows, a quarter, and so on.

    Each part draws noise of its own, as its rows would have in the whole: the estimate has the same law. Parts whose loss is
    not the batch's share are refused, by what couples the rows.
    """

    def __init__(self) -> None:
        self.rows: int | None = None  # of a part; None while batches fit
        self.notes: list[str] = []
        self.fitted = 0  # the most rows that were computed at once

    def __call__(self, step: Any, compute: LossAndGradients, *batch: Tensor) -> Tensor:
        """Return the loss of a batch, its gradients left on the step's parameters.

        Args:
            step: the :class:`~pyro_vae.training.step.Step`.
            compute: of a batch, or of a part of it; the first time it may declare the parameters.

        Raises:
            torch.OutOfMemoryError: a batch that does not fit, and whose rows are coupled, or are too large one by one.
        """
        while True:
            size = min(self.rows or len(batch[0]), len(batch[0]))
            before = snapshot(step, batch[0].device) if size > self.fitted else None
            try:
                loss = self.in_parts(step, compute, batch, size)
                self.fitted = max(size, self.fitted)
                return loss
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = (str(error).strip().splitlines() or ["no message"])[0]
            # outside of the handler, whose error holds the frames of the attempt, and their tensors
            self.forget(step, batch[0].device, before)
            self.halve(step, batch, size, reason)

    def in_parts(self, step: Any, compute: LossAndGradients, batch: Batch, size: int) -> Tensor:
        """Add up losses and gradients of parts of so many rows."""
        if size >= len(batch[0]):
            return compute(*batch)
        losses: list[Tensor] = []
        sums: list[Tensor | None] = []
        for part in zip(*(a.split(size) for a in batch), strict=True):
            for parameter in step.parameters:
                parameter.grad = None
            losses.append(compute(*part).clone())
            sums = added(sums or [None] * len(step.parameters), [p.grad for p in step.parameters])
        for parameter, gradient in zip(step.parameters, sums, strict=True):
            parameter.grad = gradient
        return torch.stack(losses).sum()

    def halve(self, step: Any, batch: Batch, size: int, reason: str) -> None:
        """Take smaller parts from here on, or raise for rows that cannot be parted."""
        why = "its rows are one" if size < 2 else coupled(step, batch) if self.rows is None else None
        if why is not None:
            raise torch.OutOfMemoryError(f"{reason.rstrip('.')}; it cannot be computed in parts, as {why}")
        self.rows = -(-size // 2)
        self.notes = [
            f"batches of {len(batch[0])} rows do not fit into memory ({reason.rstrip('.')}): they are computed in parts of "
            f"{self.rows}, and the parts' gradients added up, which gives the batch's own"
        ]

    def forget(self, step: Any, device: torch.device, before: PreStepSnapshot | None) -> None:
        """Free what an attempt left, and undo what it drew."""
        for parameter in step.parameters:
            parameter.grad = None
        if before is not None:
            before.restore()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def snapshot(step: Any, device: torch.device) -> PreStepSnapshot:
    """Note what an attempt may change: noise and buffers."""
    return PreStepSnapshot(buffers_of(owners(step.model, step.guide)), device)


def added(sums: Sequence[Tensor | None], gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Add gradients to sums that are no one else's memory (a replay overwrites its own); None where there is neither."""
    return [
        total if gradient is None else gradient.clone() if total is None else total.add_(gradient)
        for total, gradient in zip(sums, gradients, strict=True)
    ]


def coupled(step: Any, batch: Batch) -> str | None:
    """Say why a loss is not the sum of its parts' losses; None where it is."""
    objective, rows = (
        copy(step.objective),
        tuple(a[:ROWS] for a in batch),
    )  # it looks at the programs first, and remembers
    if (loss := tensor_loss(objective)) is None:
        return f"{type(objective).__name__} computes gradients of its own, which need not be sums over rows"
    terms = objective.terms if isinstance(objective, Bound) else ()
    if odd := next((term for term in terms if not isinstance(term, ROW_WISE)), None):
        return f"the term {odd!r} is of the whole batch"
    modules = owners(step.model, step.guide)
    if norm := next((m for o in modules for m in o.modules() if isinstance(m, BATCH_NORMS) and m.training), None):
        return f"{type(norm).__name__} takes the statistics of the whole batch"
    if len(rows[0]) < ROWS:
        return f"batches of fewer than {ROWS} rows are not parted"
    before = PreStepSnapshot(buffers_of(modules), rows[0].device)
    try:
        with without_validation(), ParametersRegistered(), store_restored(), set_up_undone(step.guide):
            return shared_site(step, rows) or unequal(step, loss, modules, rows, before)
    except UnknownNoise as error:
        return str(error)
    except Exception as error:  # whatever the programs raise on other rows than a whole batch
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"the programs do not run on {ROWS} of its rows: {first_line}"
    finally:
        before.restore()


def shared_site(step: Any, rows: Batch) -> str | None:
    """Name a site that is not in the plate of the rows: each part would count it."""
    try:
        plates = find_plates(step.model, step.guide, *rows)
        q, p = trace_pair(step.model, step.guide, *rows)
    except ProgramError as error:
        return f"the pair is not treated row by row: {error}"
    sites = [*q.items(), *p.items()]
    return next((f"site {name!r} belongs to no row" for name, s in sites if plates.data not in frames_of(s)), None)


def trained(step: Any, modules: list[nn.Module], rows: Batch) -> list[Tensor]:
    """List the parameters that a loss is differentiated by, before the first step those of modules and of Pyro's store."""
    with poutine.trace(param_only=True) as declared:
        step.guide(*rows)
        step.model(*rows)
    values: list[Any] = [site["value"] for site in declared.trace.nodes.values() if site["type"] == "param"]
    stored = [value.unconstrained() for value in values]
    every = [*step.parameters, *(p for module in modules for p in module.parameters()), *stored]
    return list(dict.fromkeys(p for p in every if p.requires_grad))


def unequal(step: Any, loss: Any, modules: list[nn.Module], rows: Batch, before: PreStepSnapshot) -> str | None:
    """Run the loss on some rows under constant noise, whole and in parts; describe what differs."""
    parameters = trained(step, modules, rows)
    before.restore()

    def run(*part: Tensor) -> tuple[int, list[Tensor]]:
        with constant_noise() as noise, torch.enable_grad():  # in float32: bfloat16 rounds away what is compared
            value = loss(step.model, step.guide, *part)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
        return noise.drawn, [
            value.detach(),
            *(torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)),
        ]

    run(*rows)  # a Bound draws for a look at the programs, once
    before.restore()
    drawn, whole = run(*rows)
    after = [b.clone() for b in buffers_of(modules)]
    before.restore()
    runs = [run(*part) for part in zip(*(a.split(PARTS) for a in rows), strict=True)]
    if drawn != sum(count for count, _ in runs):
        return "the programs draw noise that rows share"
    if not all(map(identical, after, buffers_of(modules))):
        return "the programs change a buffer once a batch"
    parts = [torch.stack(tensors).sum(0) for tensors in zip(*(tensors for _, tensors in runs), strict=True)]
    tolerance = CLOSE.get(whole[0].dtype, ROUNDING)
    off = max(relative(a, b) for a, b in zip(whole, parts, strict=True))
    return (
        None
        if off <= tolerance
        else f"its loss or gradient is not the sum of its parts' (off by {off:.1g} on {ROWS} rows)"
    )


def relative(whole: Tensor, parts: Tensor) -> float:
    """‖whole − parts‖ over ‖whole‖; infinite where one is finite and the other not."""
    if not torch.equal(whole.isfinite(), parts.isfinite()):
        return float("inf")
    a, b = (t.double().nan_to_num(0.0, 0.0, 0.0) for t in (whole, parts))
    return float((a - b).norm() / a.norm().clamp(min=1e-30)) if a.norm() else float(b.norm() > 1e-12)
