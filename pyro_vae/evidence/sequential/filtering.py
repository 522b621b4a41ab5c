"""Sequential importance resampling: weighted particles of z_t given x_1, …, x_t, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

from .steps import Steps

RESAMPLE = 0.5  # of K: below this effective sample size particles are resampled (Liu & Chen, 1995)


@dataclass(frozen=True)
class Cloud:
    """Particles after one step; of a sequence that has ended they stay those of its last one.

    Attributes:
        z: ``(K, M, *event)``.
        log_weights: normalised, ``(K, M)`` in float64.
        log_increment: log p̂(x_t | x_<t), ``(M,)``; 0 where the sequence has ended.
    """

    z: Tensor
    log_weights: Tensor
    log_increment: Tensor

    @property
    def ess(self) -> Tensor:
        """Effective sample size, 1 / Σ w², ``(M,)``."""
        return (-(2 * self.log_weights).logsumexp(0)).exp()


def clouds(steps: Steps, particles: int) -> Iterator[Cloud]:
    r"""Yield the particles of each step: z_t ~ q, w ∝ w_{t−1} p(z_t | z_{t−1}) p(x_t | z_t) / q(z_t | z_{t−1}), resampled.

    Π_t p̂(x_t | x_<t) is an unbiased estimate of p(x): log p̂(x_t | x_<t) = log Σ_k w^k_{t−1} α^k_t, with α the increments.

    References:
        On sequential Monte Carlo sampling methods for Bayesian filtering (Doucet, Godsill & Andrieu, 2000),
        https://doi.org/10.1023/A:1008935410038
    """
    uniform = torch.full((particles, len(steps)), -math.log(particles), dtype=torch.float64, device=steps.x.device)
    cloud: Cloud | None = None
    for t in range(steps.num_steps):
        there = steps.there(t)
        before = cloud if cloud is None else resampled(cloud, there)
        z, log_alpha = steps.draw(None if before is None else before.z, t, particles)
        log_w = log_alpha + (uniform if before is None else before.log_weights)
        refuse_bad(log_w, there, t)
        total = log_w.logsumexp(0)
        # no particle explains x_t: p̂ is 0 from here on, and which particles go on does not matter
        weights = torch.where(total == -math.inf, uniform, log_w - total)
        if before is not None:
            z = torch.where(beside(there, z), z, before.z)
            weights = torch.where(there, weights, before.log_weights)
        cloud = Cloud(z, weights, torch.where(there, total, 0.0))
        yield cloud


def refuse_bad(log_w: Tensor, there: Tensor, t: int) -> None:
    """Refuse weights that are NaN or infinite, in sequences that have this step."""
    bad = ((log_w.isnan() | (log_w == math.inf)) & there).any(0)
    if bad.any():
        raise ProgramError(
            f"weights of particles are NaN or +inf at step {t + 1} in {int(bad.sum())} of {len(bad)} sequences: a role "
            "puts out non-finite parameters. Look at the weights of its networks, and at x there."
        )


def beside(values: Tensor, z: Tensor) -> Tensor:
    """``(M,)``, or ``(K, M)``, as it stands beside z, ``(K, M, *event)``: with dimensions of size 1 for the event."""
    return values.reshape(*values.shape, *[1] * (z.dim() - 2))


def resampled(cloud: Cloud, there: Tensor) -> Cloud:
    """Resample systematically where a sequence goes on and its effective sample size has fallen below K / 2."""
    few = (cloud.ess < RESAMPLE * len(cloud.z)) & there
    if not few.any():
        return cloud
    chosen = systematic(cloud.log_weights[:, few])
    z, weights = cloud.z.clone(), cloud.log_weights.clone()
    z[:, few] = torch.take_along_dim(cloud.z[:, few], beside(chosen, z), 0)
    weights[:, few] = -math.log(len(z))
    return Cloud(z, weights, cloud.log_increment)


def systematic(log_weights: Tensor) -> Tensor:
    """Draw K particles of each column by weight, with one uniform number each: numbers ``(K, M)``, of weights ``(K, M)``.

    References:
        Comparison of Resampling Schemes for Particle Filtering (Douc, Cappé & Moulines, 2005),
        https://arxiv.org/abs/cs/0507025
    """
    particles, rows = log_weights.shape
    edges = log_weights.exp().cumsum(0)
    edges = edges / edges[-1]
    start = torch.rand(rows, dtype=torch.float64, device=log_weights.device)
    points = (torch.arange(particles, device=log_weights.device).unsqueeze(1) + start) / particles
    return torch.searchsorted(edges.T.contiguous(), points.T.contiguous(), right=True).clamp_max(particles - 1).T
