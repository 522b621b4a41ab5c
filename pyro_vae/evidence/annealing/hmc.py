r"""Hamiltonian Monte Carlo, chains × rows at once: each accepts or rejects by itself, one gradient serves all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .point import Point

Density = Callable[[Tensor], Point]


@runtime_checkable
class Recorded(Protocol):
    """A density that may have its own way to make a transition, on the same noise."""

    def transition(self, beta: float, point: Point, step: Tensor, leapfrogs: int) -> tuple[Point, Tensor] | None:
        """Return the next point and the acceptance; None, and nothing drawn, where it has none."""


def transition(density: Density, beta: float, point: Point, step: Tensor, leapfrogs: int) -> tuple[Point, Tensor]:
    r"""Run one trajectory, accepted with probability min(1, exp(−ΔH)): leaves log start + β ratio invariant.

    H(u, v) = −log density_β(u) + ½ |v|², v ~ N(0, I). Takes L `leapfrogs` of size ε = `step`, ``(N,)``: one for each row,
    fixed before the run. Returns the chains' next point, and their acceptance probabilities ``(chains, N)``.

    References:
        MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901
    """
    if isinstance(density, Recorded) and (made := density.transition(beta, point, step, leapfrogs)) is not None:
        return made
    momentum = torch.randn_like(point.u)
    end, final = leapfrog(density, beta, point, momentum, step[:, None].to(momentum), leapfrogs)
    change = end.log_density(beta) - point.log_density(beta) + kinetic(momentum) - kinetic(final)
    return point.replaced(end, accepts(change)), change.clamp(max=0).exp().nan_to_num(0)


def leapfrog(
    density: Density, beta: float | Tensor, point: Point, momentum: Tensor, step: Tensor, leapfrogs: int
) -> tuple[Point, Tensor]:
    """Take half a kick, L drifts with whole kicks between them, half a kick: reversible, and keeps volume."""
    momentum = momentum + step / 2 * point.slope(beta)
    for i in range(leapfrogs):
        point = density(point.u + step * momentum)
        momentum = momentum + (step if i < leapfrogs - 1 else step / 2) * point.slope(beta)
    return point, momentum


def kinetic(momentum: Tensor) -> Tensor:
    """½ |v|², in float64: a difference of energies decides, and each is a sum of D terms."""
    return momentum.double().square().sum(-1) / 2


def accepts(change: Tensor) -> Tensor:
    """Accept with probability min(1, exp(change)), and never where the change is NaN (a trajectory that diverged)."""
    return torch.rand_like(change).log() < change


def adapt(step: Tensor, acceptance: Tensor, target: float) -> Tensor:
    """ε · exp((acceptance − target) / 2), row by row, with the mean acceptance over chains. For pilot runs only."""
    return step * (0.5 * (acceptance.mean(0) - target)).exp()
