r"""Forecasts: x_{T+1}, …, x_{T+H} given x_1, …, x_T, by draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError

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
class Forecast:
    """Draws of the H steps after each of N sequences: made by :func:`forecast`.

    Attributes:
        draws: of x, ``(S, N, H, *event)``.
        latents: of z, ``(S, N, H, *event)``, that they were drawn from.
        lengths: steps that each sequence had, ``(N,)``.
        seed: of the draws.
        flagged: numbers of the rows not to believe, as :class:`~pyro_vae.Filtered`'s: few particles stand for their z_T.

    Example:
        >>> draws = torch.arange(5.0).reshape(5, 1, 1)                         # 5 draws of one step of one sequence
        >>> ahead = Forecast(draws, draws, torch.tensor([9]), 0, flagged=torch.tensor([]))
        >>> ahead.quantiles((0.25, 0.5)).flatten().tolist()
        [1.0, 2.0]
        >>> ahead.probability_below(torch.tensor([[3.0]])).item()              # of what came: draws 0, 1, 2 and half of 3
        0.7
    """

    draws: Tensor
    latents: Tensor
    lengths: Tensor
    seed: int
    flagged: Tensor

    def quantiles(self, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> Tensor:
        """Return quantiles of each step and element of x, ``(levels, N, H, *event)``.

        Their Monte Carlo error, in probability, is √(p (1 − p) / S).
        """
        if not levels or not all(0 < level < 1 for level in levels):
            raise UsageError(f"levels of quantiles are probabilities between 0 and 1, got {list(levels)}")
        draws = self.draws.double()
        return torch.quantile(draws, torch.tensor(levels, dtype=draws.dtype, device=draws.device), 0)

    def probability_below(self, x: Tensor) -> Tensor:
        """P(x_{T+h} < x) for each element of what came, ``(N, H, *event)``: uniform on 0..1 if forecasts are calibrated.

        Ties count half.
        """
        below, tied = (self.draws < x).double(), (self.draws == x).double()
        return (below + tied / 2).mean(0)

    def __str__(self) -> str:
        s, n, h = self.draws.shape[:3]
        told = f" ({counted(len(self.flagged), 'row')} flagged)" if len(self.flagged) else ""
        return f"{s} draws of {h} steps after each of {n} sequences{told}"

    __repr__ = __str__


@suggest_keywords
def forecast(
    vae: StateSpace,
    x: Any,
    *c: Any,
    steps: int,
    num_samples: int = 1000,
    num_particles: int = 500,
    num_runs: int = 16,
    proposal: Proposal = "guide",
    missing: bool = False,
    seed: int = 0,
) -> Forecast:
    r"""x_{T+h} ~ p(x_{T+h} | x_1, …, x_T) for h = 1..H: z_T by a particle filter, then the transition and the likelihood.

    Each sequence goes on from its own last step.

    Args:
        vae, x, *c, num_particles, num_runs, proposal, missing: as for :func:`~pyro_vae.particle_filter`.
        steps: H, at least 1.
        num_samples: S, draws of each sequence.
        seed: of all draws.

    Raises:
        As :func:`~pyro_vae.particle_filter`.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import StateSpaceModel, forecast
        >>> walk = StateSpaceModel(
        ...     initial=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        ...     transition=lambda z: dist.Normal(z, 0.1).to_event(1),
        ...     likelihood=lambda z: dist.Normal(z, 0.1).to_event(1),
        ...     encoder=lambda x, lengths=None: x,
        ...     posterior=lambda z, h: dist.Normal(h, 0.1).to_event(1),
        ... )
        >>> ahead = forecast(walk, torch.full((1, 5, 1), 2.0), steps=3)
        >>> low, high = ahead.quantiles((0.05, 0.95))[:, 0, :, 0]
        >>> bool(((low < 2) & (2 < high)).all()), bool((high - low).diff().min() > 0)          # wider, further ahead
        (True, True)
    """
    whole("steps", steps, 1)
    whole("num_samples", num_samples, 1)
    problem = checked_problem(vae, x, c, FilterOptions(num_particles, num_runs, proposal, missing, seed))
    parts = []
    for i, some in enumerate(problem.split(BLOCK)):
        with some.quiet(seed, i, 4), validated():
            pool = Pool.of(vae, some, num_runs, proposal == "guide")
            own = Steps.of(vae, some.args, False)
            last, low = last_states(pool, num_particles, num_samples)
            parts.append((*ahead(own, last, steps), own.lengths, low))
    draws, latents = (torch.cat([part[i] for part in parts], 1).cpu() for i in (0, 1))
    lengths, flags = (torch.cat([part[i] for part in parts]).cpu() for i in (2, 3))
    return Forecast(draws, latents, lengths, seed, flags.nonzero().flatten())


def last_states(pool: Pool, particles: int, num: int) -> tuple[Tensor, Tensor]:
    """Draw z_T given all of each sequence, ``(S, N, *event)``, from R filters, each by its estimate of p(x); mark few, (N,)."""
    log_z = torch.zeros(len(pool.steps), dtype=torch.float64, device=pool.steps.x.device)
    least_ess = log_z.new_full((pool.rows,), math.inf)
    last: Cloud | None = None
    for t, last in enumerate(clouds(pool.steps, particles)):
        log_z = log_z + last.log_increment
        least_ess = torch.minimum(least_ess, least_ess_at(pool, t, last))
    assert last is not None
    by_run = log_mean(pool.by_run(log_z))[1]
    low, shares = too_few(least_ess, ess_of_runs(by_run), pool.runs), by_run.log().unsqueeze(1)  # (N,), (R, 1, N)
    k, r, n = particles, pool.runs, pool.rows
    log_w = shares + last.log_weights.reshape(k, r, n).movedim(1, 0)  # (R, K, N)
    z = last.z.reshape(k, r, n, *last.z.shape[2:]).movedim(1, 0).flatten(0, 1)
    chosen = torch.multinomial(log_w.flatten(0, 1).T.softmax(-1), num, replacement=True).T
    return torch.take_along_dim(z, beside(chosen, z), 0), low


def ahead(steps: Steps, z: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Draw x and z of the next steps, ``(S, N, H, *event)`` each."""
    drawn, states = [], []
    for _ in range(num):
        z = steps.prior(z, len(z)).sample().reshape(z.shape)
        x = steps.likelihood(z).sample()
        drawn.append(x.reshape(*z.shape[:2], *x.shape[1:]))
        states.append(z)
    return torch.stack(drawn, 2), torch.stack(states, 2)
