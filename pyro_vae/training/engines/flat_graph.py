"""One step's loss and gradients as a flat graph of tensor operations: handlers, plates and autograd run while it is traced.

Tensors that the programs hold (parameters, buffers, constants) become inputs of the graph, the same objects that the
programs see; what would read a number back is refused, by the operation and the site before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vae.common.flat_program import (
    FlatProgram,
    Unfinished,
    Untraceable,
    check_traces,
    flatten,
    flattened,
    leaves,
    lift,
)

from .scheduled_values import Answers

__all__ = ["FlatGraph", "Result", "Unfinished", "Untraceable", "check_traces", "flatten", "leaves", "lift", "trace"]


Result = tuple[Tensor, list[Tensor | None]]  # loss, and each parameter's gradient; None where none reaches it


@dataclass(eq=False)
class FlatGraph(FlatProgram):
    """A traced step: ``module(*batch, *state)`` returns the loss, and the gradients of parameters that are `reached`."""

    reached: list[bool] = field(default_factory=list)  # by a gradient, for each parameter
    answers: Answers = field(default_factory=list)  # to questions of the programs about numbers that change
    name: str = ""  # that it has in any process

    def difference(self, other: FlatGraph) -> str | None:
        """Describe the first difference to another trace of one step; None if they are the same."""
        return "gradients reach other parameters" if self.reached != other.reached else super().difference(other)

    def __call__(self, *batch: Tensor) -> Result:  # type: ignore[override]
        loss, *reached = super().__call__(*batch)
        gradients = iter(reached)
        return loss, [next(gradients) if r else None for r in self.reached]


def trace(loss_of: Callable[..., Tensor], parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> FlatGraph:
    """Trace ``loss_of(*batch)`` and its gradients into a flat graph.

    Raises:
        Untraceable: what the programs do that no graph can hold; the site before it is named.
    """
    reached: list[bool] = []

    def loss_and_gradients(*inputs: Tensor) -> list[Tensor]:
        loss = loss_of(*inputs)
        gradients = gradients_of(loss, parameters)
        reached[:] = [g is not None for g in gradients]
        return [loss.detach(), *(g for g in gradients if g is not None)]

    flat = flattened(loss_and_gradients, batch)
    return FlatGraph(flat.module, flat.state, reached=reached)


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Differentiate a loss by each parameter; None where it is frozen, or no gradient reaches it."""
    grads = iter(torch.autograd.grad(loss, [p for p in parameters if p.requires_grad], allow_unused=True))
    gradients = [next(grads) if p.requires_grad else None for p in parameters]
    return [None if g is None else like(g, p) for g, p in zip(gradients, parameters, strict=True)]


def like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Give a gradient memory of its own in the parameter's layout, as fused optimizers need it."""
    plain = gradient.stride() == parameter.stride() and gradient.untyped_storage().nbytes() == gradient.nbytes
    return gradient if plain else torch.empty_like(parameter).copy_(gradient)
