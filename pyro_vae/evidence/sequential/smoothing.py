r"""Smoothing: z_t given all of a sequence, by trajectories drawn backwards through a filter's particles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.programs.wide_scoring import wide_log_prob

from .filtering import Cloud, beside, clouds
from .particle_filter import (
    BLOCK,
    FilterOptions,
    Pool,
    Proposal,
    checked_problem,
    ess_of_runs,
    least_ess_at,
    log_mean,
    too_few,
)
from .steps import StateSpace, Steps, validated


@dataclass(frozen=True, eq=False)
class Smoothed:
    """E[z_t | x_1, …, x_T] of N sequences, and its error; NaN where a sequence has no such step.

    Attributes:
        mean, mean_se: ``(N, T, *event)``, with the Monte Carlo error over R filters.
        sd: of z_t given x, ``(N, T, *event)``.
        lengths: ``(N,)``.
        num_particles, num_runs, num_trajectories, seed: how it was computed.
        flagged: numbers of the rows not to believe, as :class:`~pyro_vae.Filtered`'s: their `mean_se` may be far too small.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import StateSpaceModel, smooth
        >>> walk = StateSpaceModel(
        ...     initial=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        ...     transition=lambda z: dist.Normal(0.9 * z, 0.5).to_event(1),
        ...     likelihood=lambda z: dist.Normal(z, 1.0).to_event(1),
        ...     encoder=lambda x, lengths=None: x,
        ...     posterior=lambda z, h: dist.Normal(0.7 * z + 0.2 * h, 0.5).to_event(1),
        ... )
        >>> smoothed = smooth(walk, torch.zeros(1, 3, 1), num_particles=50, num_trajectories=10)
        >>> smoothed.mean.shape, bool((smoothed.mean.abs() < 4 * smoothed.mean_se).all())   # 0 by symmetry
        (torch.Size([1, 3, 1]), True)
        >>> bool((smoothed.sd < 1).all())   # narrower than the prior
        True
    """

    mean: Tensor
    mean_se: Tensor
    sd: Tensor
    lengths: Tensor
    num_particles: int
    num_runs: int
    num_trajectories: int
    seed: int
    flagged: Tensor

    def __str__(self) -> str:
        how = f"{self.num_runs} runs of {self.num_particles} particles, {self.num_trajectories} trajectories each"
        believed = torch.ones(len(self.mean), dtype=torch.bool).index_fill(0, self.flagged, False)
        said = [f"{counted(len(self.flagged), 'row')} flagged"] if len(self.flagged) else []
        if believed.any():
            of = " of the others" if said else ""
            said.append(f"largest Monte Carlo error{of} {self.mean_se[believed].nan_to_num(0).max().item():.3g}")
        return f"smoothing means of {counted(len(self.mean), 'sequence')} ({how}; {', '.join(said)})"

    __repr__ = __str__


@suggest_keywords
def smooth(
    vae: StateSpace,
    x: Any,
    *c: Any,
    num_particles: int = 200,
    num_trajectories: int = 50,
    num_runs: int = 16,
    proposal: Proposal = "guide",
    missing: bool = False,
    seed: int = 0,
) -> Smoothed:
    r"""E[z_t | x_1, …, x_T] at each step, with standard deviations: of the model's own posterior.

    A particle filter runs forward; then each trajectory is drawn backwards, z_t = z_t^k with probability
    ∝ w_t^k p(z_{t+1} | z_t^k). Cost: K · J evaluations of the transition's density a step, beside the filter's.

    Args:
        vae, x, *c, num_particles, num_runs, proposal, missing, seed: as for :func:`~pyro_vae.particle_filter`.
        num_trajectories: J, of each filter.

    Raises:
        As :func:`~pyro_vae.particle_filter`.

    References:
        Monte Carlo Smoothing for Nonlinear Time Series (Godsill, Doucet & West, 2004),
        https://doi.org/10.1198/016214504000000151

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import StateSpaceModel, smooth
        >>> walk = StateSpaceModel(
        ...     initial=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        ...     transition=lambda z: dist.Normal(z, 0.1).to_event(1),
        ...     likelihood=lambda z: dist.Normal(z, 1.0).to_event(1),
        ...     encoder=lambda x, lengths=None: x,
        ...     posterior=lambda z, h: dist.Normal(z, 0.3).to_event(1),
        ... )
        >>> smooth(walk, torch.tensor([[[0.0], [2.0]]]), proposal="prior").mean.shape
        torch.Size([1, 2, 1])
    """
    whole("num_trajectories", num_trajectories, 1)
    problem = checked_problem(vae, x, c, FilterOptions(num_particles, num_runs, proposal, missing, seed))
    parts = []
    for i, some in enumerate(problem.split(BLOCK)):
        with some.quiet(seed, i, 3), validated():
            pool = Pool.of(vae, some, num_runs, proposal == "guide")
            parts.append(smoothed_block(pool, num_particles, num_trajectories))
    mean, mean_se, sd, lengths, low = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
    flagged = low.nonzero().flatten()
    return Smoothed(mean, mean_se, sd, lengths, num_particles, num_runs, num_trajectories, seed, flagged)


def smoothed_block(pool: Pool, particles: int, trajectories: int) -> list[Tensor]:
    """Return mean, its error, sd, lengths, and which are flagged, of some sequences; runs weigh as their estimates of p(x)."""
    history = list(clouds(pool.steps, particles))
    log_z = torch.stack([cloud.log_increment for cloud in history]).sum(0)
    shares = log_mean(pool.by_run(log_z))[1]
    paths = backwards(pool.steps, history, trajectories).double()  # (J, M, T, *event)
    first, second = (pool.by_run(m) for m in (paths.mean(0), paths.square().mean(0)))
    least_ess = torch.stack([least_ess_at(pool, t, cloud) for t, cloud in enumerate(history)]).amin(0)
    low = too_few(least_ess, ess_of_runs(shares), pool.runs)
    shares = shares.reshape(*shares.shape, *[1] * (first.dim() - 2))
    mean, square = ((shares * m).mean(0) for m in (first, second))
    error = pool.error(shares * (first - mean))
    sd = (square - mean.square()).clamp_min(0).sqrt()
    there = torch.stack([pool.there(t) for t in range(pool.steps.num_steps)], 1)
    absent = ~there.reshape(*there.shape, *[1] * (mean.dim() - 2))
    return [*(m.masked_fill(absent, math.nan) for m in (mean, error, sd)), pool.steps.lengths[: pool.rows], low]


def backwards(steps: Steps, history: list[Cloud], trajectories: int) -> Tensor:
    """Draw trajectories z_T, …, z_1 of each sequence, ``(J, M, T, *event)``, from each one's last step."""
    z = pick(history[-1].z, history[-1].log_weights.unsqueeze(0), trajectories)
    path = [z]
    for t in reversed(range(steps.num_steps - 1)):
        cloud = history[t]
        onwards = steps.there(t + 1)  # else z_t is the last one still
        log_w = cloud.log_weights + log_transition(steps, cloud.z, z)
        z = torch.where(beside(onwards, z), pick(cloud.z, log_w, trajectories), z)
        path.append(z)
    return torch.stack(path[::-1], 2)


def log_transition(steps: Steps, particles: Tensor, after: Tensor) -> Tensor:
    """log p(z_{t+1}^j | z_t^k), ``(J, K, M)``, of particles ``(K, M, ...)`` and what follows ``(J, M, ...)``."""
    (k, m), j = particles.shape[:2], len(after)
    values = after.unsqueeze(1).expand(j, k, *after.shape[1:]).flatten(1, 2)
    log_prob = wide_log_prob(steps.prior(particles, k), values, True, "z")
    return log_prob.double().reshape(j, k, m)


def pick(z: Tensor, log_w: Tensor, num: int) -> Tensor:
    """Draw `num` particles of each sequence, ``(num, M, ...)``, by log weights ``(num, K, M)`` or, for all, ``(1, K, M)``."""
    weights = log_w.movedim(1, 2)  # (J, M, K)
    weights = weights.expand(num, *weights.shape[1:]).softmax(-1)
    chosen = torch.multinomial(weights.reshape(-1, weights.shape[-1]), 1).reshape(num, -1)
    return torch.take_along_dim(z, beside(chosen, z), 0)
