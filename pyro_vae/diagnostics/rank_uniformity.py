r"""Rank uniformity: an exact test that N ranks are uniform on 0..L, and the simultaneous band of their ECDF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad


@dataclass(frozen=True, eq=False)
class Band:
    """Bounds within which the counts #{rank < i}, i = 1..L, of uniform ranks all lie at once.

    Attributes:
        lower, upper: the least and the largest, ``(L,)`` each.
        coverage: the probability of that: at least what was asked for, and not exactly that, as counts are whole.
    """

    lower: Tensor
    upper: Tensor
    coverage: float


def cumulative(ranks: Tensor, num_ranks: int) -> Tensor:
    """#{n: rank_n < i} for i = 1..L, ``(Q, L)``, of ranks ``(N, Q)`` on 0..L, L = num_ranks − 1."""
    counts = torch.zeros(ranks.shape[1], num_ranks, dtype=torch.int64)
    counts.scatter_add_(1, ranks.T, torch.ones_like(ranks.T))
    return counts.cumsum(1)[:, :-1]


def p_values(ranks: Tensor, num_ranks: int) -> Tensor:
    r"""P(γ ≤ γ_observed) for γ = min_i 2 min{P(C_i ≤ c_i), P(C_i ≥ c_i)}, C_i ~ Binomial(N, i / (L + 1)); ``(Q,)``.

    γ is the smallest pointwise p-value of the empirical distribution function, and its own distribution under N independent
    uniform ranks is computed, not simulated and not approximated. P(p ≤ α) ≤ α, with equality at the values that p takes.

    Args:
        ranks: ``(N, Q)``, whole numbers 0..L, rows independent.
        num_ranks: L + 1.

    References:
        Graphical Test for Discrete Uniformity and its Applications (Säilynoja, Bürkner & Vehtari, 2022),
        https://arxiv.org/abs/2103.10522
        Fast Calculation of Boundary Crossing Probabilities for Poisson Processes (Moscovich & Nadler, 2017),
        https://arxiv.org/abs/1503.04363

    Example:
        >>> all_alike = torch.full((50, 1), 3)
        >>> evenly = torch.arange(50).remainder(10).unsqueeze(1)
        >>> bool(p_values(all_alike, 10) < 1e-9), float(p_values(evenly, 10).round(decimals=3))
        (True, 1.0)
    """
    pointwise = tails(len(ranks), num_ranks)
    seen = cumulative(ranks, num_ranks).unsqueeze(-1)
    gamma = pointwise.expand(len(seen), -1, -1).gather(-1, seen).squeeze(-1).amin(-1)
    levels, back = gamma.unique(return_inverse=True)
    some = levels.view(-1, 1, 1).split(max(1, 10**7 // pointwise.numel()))
    inside = torch.cat([stays_inside(pointwise > g * (1 + 1e-9), num_ranks) for g in some])[back]
    # at least one tail of one point, at most the union of all points: that decides where 1 − inside is lost in rounding
    least, most = gamma / 2, ((num_ranks - 1) * gamma).clamp_max(1)
    return torch.minimum(torch.maximum(1 - inside, least), most).clamp_min(torch.finfo(gamma.dtype).tiny)


@lru_cache(maxsize=4)
def tails(num: int, num_ranks: int) -> Tensor:
    """2 min{P(C_i ≤ c), P(C_i ≥ c)} for i = 1..L and c = 0..N, ``(L, N + 1)``: the pointwise p-value of each count."""
    share = torch.arange(1, num_ranks, dtype=torch.float64).unsqueeze(1) / num_ranks
    c = torch.arange(num + 1, dtype=torch.float64)
    ways = torch.lgamma(c[-1] + 1) - torch.lgamma(c + 1) - torch.lgamma(c[-1] - c + 1)
    pmf = (ways + c * share.log() + (num - c) * (-share).log1p()).exp()
    return 2 * torch.minimum(pmf.cumsum(1), pmf.flip(1).cumsum(1).flip(1)).clamp_max(0.5)


def stays_inside(allowed: Tensor, num_ranks: int) -> Tensor:
    r"""P(all counts C_i are allowed), ``(Q,)``, for masks ``(Q, L, N + 1)``.

    The histogram of N uniform ranks is one of independent Poisson(N / (L + 1)) counts given that they add up to N: so the
    mass on each C_i is convolved L times, cut to what is allowed each time, and divided by P(the sum is N).
    """
    num = allowed.shape[-1] - 1
    rate = num / num_ranks
    step = poisson(torch.arange(min(num, int(rate + 12 * rate**0.5 + 40)) + 1), rate)
    mass = torch.zeros(len(allowed), 1, num + 1, dtype=torch.float64)
    mass[..., 0] = 1
    for at_i in allowed.unbind(1):
        mass = conv1d(pad(mass, (len(step) - 1, 0)), step.flip(0).view(1, 1, -1)) * at_i.unsqueeze(1)
    last = poisson(torch.arange(num, -1, -1), rate)
    return (mass.squeeze(1) @ last / poisson(torch.tensor(num), num)).clamp(0, 1)


def poisson(count: Tensor, rate: float) -> Tensor:
    """P(count) under Poisson(rate), in float64."""
    count = count.double()
    return (count * torch.tensor(rate, dtype=torch.float64).log() - rate - torch.lgamma(count + 1)).exp()


@lru_cache(maxsize=16)
def band(num: int, num_ranks: int, level: float = 0.95) -> Band:
    """Return the band that holds all counts of N uniform ranks at once with probability `level` at least.

    Equal pointwise tails, as in the test: a curve leaves the band at level 1 − α where its p-value is at most α.

    Args:
        num, num_ranks: N and L + 1.
        level: probability, simultaneous.

    Example:
        >>> within = band(100, 10)
        >>> bool(within.coverage >= 0.95), within.lower[4].item(), within.upper[4].item()
        (True, 37, 63)
    """
    pointwise, low, high = tails(num, num_ranks), -20.0, 0.0
    for _ in range(36):  # γ by halving its logarithm's interval: 20 / 2^36
        middle = (low + high) / 2
        enough = stays_inside((pointwise > 10**middle).unsqueeze(0), num_ranks).item() >= level
        low, high = (middle, high) if enough else (low, middle)
    inside = pointwise > 10**low
    counts = torch.arange(num + 1)
    lower = torch.where(inside, counts, num).amin(1)
    upper = torch.where(inside, counts, 0).amax(1)
    return Band(lower, upper, stays_inside(inside.unsqueeze(0), num_ranks).item())


def holm(p: Tensor) -> Tensor:
    """Correct the p-values of m tests: the least is at most α with probability α at most if all hypotheses hold.

    References:
        A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979), https://www.jstor.org/stable/4615733

    Example:
        >>> holm(torch.tensor([0.01, 0.5, 0.02]))
        tensor([0.0300, 0.5000, 0.0400])
    """
    ordered, order = p.sort()
    steps = (ordered * torch.arange(len(p), 0, -1)).clamp_max(1).cummax(0).values
    return torch.empty_like(p).scatter_(0, order, steps)


def moments(ranks: Tensor, num_ranks: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of u = (rank + ½) / (L + 1), in standard errors from those of uniform ranks; ``(Q,)`` each."""
    exact = (torch.arange(num_ranks, dtype=torch.float64) + 0.5) / num_ranks - 0.5
    u = (ranks.double() + 0.5) / num_ranks - 0.5
    both = [(u.mean(0), exact), (u.square().mean(0), exact.square())]
    shift, spread = (
        (seen - truth.mean()) / (truth.var(correction=0) / len(ranks)).sqrt().clamp_min(1e-12) for seen, truth in both
    )
    return shift, spread
