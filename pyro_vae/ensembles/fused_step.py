"""Adam of all members by torch's fused kernel: one pass over weights and moments, where operations take ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common import torch_private

from .adam import Number, StackedAdam

Moments = Sequence[Sequence[Tensor]]


@dataclass(eq=False)
class FusedStep:
    """Moves stacked parameters ``(M, ...)`` in place: all in one call where the members that move have the same settings."""

    adam: StackedAdam
    stacked: tuple[Sequence[Tensor], ...]  # parameters, means, squares
    each: list[tuple[list[Tensor], ...]]  # of every member: views of these
    clock: list[Tensor]  # what the kernel reads the number of the step from

    @classmethod
    def of(cls, adam: StackedAdam, parameters: Sequence[Tensor], moments: Moments) -> FusedStep | None:
        """Make it where torch's kernel is there, and works: for float32 on a CPU; None elsewhere."""
        fits = all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in parameters)
        if not fits or not torch_private.kernel_works():
            return None
        stacked = (parameters, *moments)
        each = [tuple([t[i] for t in tensors] for tensors in stacked) for i in range(len(adam.rates))]
        return cls(adam, stacked, each, [torch.zeros(()) for _ in parameters])

    def __call__(self, gradients: Sequence[Tensor], row: Tensor, moves: Tensor, number: int) -> None:
        """Make the step of that number, from 1, of the members that move; `row` is one of :meth:`StackedAdam.table`."""
        gradients = [g.contiguous() for g in gradients]  # the kernel goes through memory as it lies
        settings = [self.settings(i, size, number) for i, size in enumerate(row[0].tolist())]
        moving = moves.tolist()
        if all(moving) and all(other == settings[0] for other in settings):
            self.step(self.stacked, gradients, settings[0], number)
            return
        for i, (tensors, setting) in enumerate(zip(self.each, settings, strict=True)):
            if moving[i]:
                self.step(tensors, [g[i] for g in gradients], setting, number)

    def settings(self, i: int, size: float, number: int) -> dict[str, Any]:
        """Return a member's settings; lr is what its step size, lr / (1 − β₁ᵗ), is of."""
        betas = self.adam.betas[i]
        eps, decay = of_member(self.adam.eps, i), of_member(self.adam.weight_decay, i)
        return {"lr": size * (1 - betas[0] ** number), "betas": betas, "eps": eps, "weight_decay": decay}

    def step(
        self, tensors: tuple[Sequence[Tensor], ...], gradients: list[Tensor], settings: dict[str, Any], number: int
    ) -> None:
        parameters, means, squares = tensors
        for tensor in self.clock:
            tensor.fill_(number - 1)  # the kernel's caller counts on
        torch_private.adam_kernel(parameters, gradients, (means, squares, self.clock), settings, False, None)


def of_member(number: Number, i: int) -> float:
    """Return one member's of a setting."""
    return float(number[i]) if isinstance(number, Tensor) else float(number)
