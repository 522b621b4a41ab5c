r"""Pareto k̂ of importance weights: how heavy each row's tail is, from its largest weights alone.

The weights' largest M are taken to exceed the next by a generalised Pareto variable of shape k: moments of order 1/k and
above are infinite. Below 0.7 the error of log 1/K Σ w falls fast enough with K to be believed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.errors import ShapeError

MIN_TAIL = 5  # weights; with fewer k̂ is not known
LEAST = 5 * MIN_TAIL  # particles for a k̂
LOW_ESS = 10  # below it a row's estimate rests on a handful of particles, and its own error bar is not to be believed
SPARE = 64  # largest weights kept beyond the tail: six standard deviations of what adding particles can call for
FLAT = 1e-3  # the largest weight is within this of the mean weight: there is no tail to speak of
EQUAL = 1e-10  # nats: a tail no wider than this is rounding
ROWS = 256  # fitted at a time


def tail_size(count: int) -> int:
    """M = ⌊3 √K⌋, or ⌊K / 5⌋ for K ≤ 225: as arviz-stats counts (the paper and R's loo round up)."""
    return math.floor(3 * math.sqrt(count)) if count > 225 else count // 5


def khat_threshold(count: int) -> float:
    """min(1 − 1 / log10 K, 0.7): the k̂ below which K particles suffice; −∞ for K = 1 (Vehtari et al., as :func:`pareto_khat`).

    Example:
        >>> [round(khat_threshold(k), 3) for k in (100, 1000, 5000)]
        [0.5, 0.667, 0.7]
    """
    return min(1 - 1 / math.log10(count), 0.7) if count > 1 else -math.inf


def steady_rows(khat: Tensor, max_share: Tensor, counts: Tensor) -> Tensor:
    """Mark rows of 25 particles or more (one weight alone is no sign) with k̂ below the threshold or all but equal weights.

    Args:
        khat, max_share, counts: k̂, the largest weight's share of their sum, and K, ``(N,)`` each.
    """
    threshold = counts.clone().apply_(lambda k: khat_threshold(int(k)))
    return ((khat < threshold) | (max_share * counts < 1 + FLAT)) & (counts >= LEAST)


def pareto_khat(log_w: Tensor) -> Tensor:
    r"""Estimate k̂ of the K weights of each row: the shape of a generalised Pareto fitted to the largest M, shrunk towards 0.5.

    Args:
        log_w: log weights ``(K, N)``, nats.

    Returns:
        ``(N,)`` in float64. −∞ where the M largest are all equal (no tail); NaN where it is not known (K < 25, or most of the
        tail tied with the next weight or lost to underflow).

    Raises:
        ShapeError: log weights of another number of dimensions.

    References:
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024), https://arxiv.org/abs/1507.02646
        A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang & Stephens, 2009),
        https://doi.org/10.1198/tech.2009.08017

    Example:
        >>> uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        >>> pareto_khat(torch.stack([-0.4 * uniform.log(), -1.0 * uniform.log()], 1))    # w = u^-k has shape k
        tensor([0.4035, 0.9764], dtype=torch.float64)
    """
    if log_w.dim() != 2:
        raise ShapeError(f"k̂ takes log weights (K, N), got shape {tuple(log_w.shape)}")
    largest = log_w.detach().to(torch.float64).T.topk(min(tail_size(len(log_w)) + 1, len(log_w)), dim=1).values
    return khat_of(largest, len(log_w))


def khat_of(largest: Tensor, count: int) -> Tensor:
    """Estimate k̂ from the M + 1 largest log weights ``(N, M + 1)`` out of `count`, in descending order."""
    tail = tail_size(count)
    if tail < MIN_TAIL:
        return torch.full_like(largest[:, 0], math.nan)
    shifted = largest[:, : tail + 1] - largest[:, :1]
    excess = (shifted[:, :-1].exp() - shifted[:, -1:].exp()).flip(1)
    shape = torch.cat([gpd_shape(rows) for rows in excess.split(ROWS)])
    return torch.where(shifted[:, -2] > -EQUAL, -math.inf, shape)


def gpd_shape(y: Tensor) -> Tensor:
    r"""Fit the shape k of a generalised Pareto to each row: k(b) = mean log(1 − b y), b by its posterior mean.

    b is summed over a grid of 30 + √M points under Zhang & Stephens' prior, with the profile likelihood
    M (log(−b / k(b)) − k(b) − 1). A prior of 10 observations at 0.5 steadies k. Excesses y are ``(N, M)``, ascending.
    """
    m = y.shape[1]
    points = 30 + math.isqrt(m)
    grid = 1 - (points / (torch.arange(1, points + 1, dtype=y.dtype, device=y.device) - 0.5)).sqrt()
    b = 1 / y[:, -1:] + grid / (3 * y[:, math.floor(m / 4 + 0.5) - 1, None])
    k = shape_at(b, y)
    weight = (m * ((-b / k).log() - k - 1)).softmax(1)
    weight = torch.where(weight >= 10 * torch.finfo(y.dtype).eps, weight, 0 * weight)  # as arviz does
    b = (b * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    return (m * shape_at(b, y).squeeze(1) + 10 * 0.5) / (m + 10)


def shape_at(b: Tensor, y: Tensor) -> Tensor:
    """k(b) = mean log(1 − b y): ``(N, points)`` from ``(N, points)`` and ``(N, M)``."""
    return torch.log1p(-b.unsqueeze(-1) * y.unsqueeze(1)).mean(-1)


class LargestWeights:
    """Largest `keep` log weights of each row so far, whatever the order they came in; memory O(N · keep)."""

    def __init__(self, num_rows: int, keep: int) -> None:
        self.keep = keep
        self.values = torch.empty(num_rows, 0, dtype=torch.float64)  # (N, ≤ 2 keep), in no order
        # the largest of those dropped, below which the values are incomplete
        self.cut = torch.full((num_rows,), -math.inf, dtype=torch.float64)

    def add(self, log_w: Tensor) -> None:
        """Add log weights ``(particles, N)``."""
        self.values = torch.cat([self.values, log_w.T], 1)
        if self.values.shape[1] > 2 * self.keep:
            self.trim()

    def trim(self) -> None:
        """Drop all but the largest `keep`, which are then in descending order."""
        ordered = self.values.topk(min(self.keep + 1, self.values.shape[1]), dim=1).values
        self.values = ordered[:, : self.keep].clone()
        if ordered.shape[1] > self.keep:
            self.cut = torch.maximum(self.cut, ordered[:, self.keep])

    def khat(self, count: int) -> Tensor:
        """k̂ of the `count` weights that these are the largest of; NaN where too many of them were dropped to know."""
        tail = min(tail_size(count) + 1, count)
        if self.values.shape[1] < tail:
            return torch.full_like(self.cut, math.nan)
        largest = self.values.topk(tail, dim=1).values
        return torch.where(self.cut > largest[:, -1], math.nan, khat_of(largest, count))
