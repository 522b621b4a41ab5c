r"""The jackknife of IWAE: an estimate of log p(x) with less bias, from the weights that a bound is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.errors import UsageError

from .bounds import FLOOR, check_weights, log_mean_exp


@dataclass(frozen=True)
class jackknife:
    r"""Σ_j c_j L_{K−j}, c_j = (−1)^j (K − j)^m / ((m − j)! j!), j = 0 … m: IWAE with its bias cut from O(1/K) to O(K^−(m+1)).

    L_{K−j} is the mean of IWAE over all subsets of K − j of the K weights. **An estimate of log p(x), not a bound**: its
    expectation may lie above. Order m = 0 is IWAE, 1 is K L_K − (K − 1) L_{K−1}; the paper takes 1 and 2. Time grows as K^m,
    memory too for a gradient; it works in float64. In a row with m or fewer weights above 0 the value is infinite.

    The c_j grow as K^m and sum to 1. Only what leaving weights out changes is multiplied by them,

        L_{K−j} − L_K = mean over sets S of j weights of log [(1 − s_S) K / (K − j)],   s_S the share of S in Σ w,

    which is of order 1/K: the rounding is that of K^(m−1) numbers near 1, whatever the size of the weights.

    Raises:
        UsageError: a negative order, or one that is no whole number; once called, K weights where K is not above m.

    References:
        Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife Variational Inference
        (Nowozin, 2018), https://openreview.net/forum?id=HyZoi-WRb

    Example:
        >>> jackknife(order=1)(torch.tensor([[0.0, -2.0], [0.0, -4.0]]))   # 2 (−2.5662) − (−2 − 4) / 2
        tensor([ 0.0000, -2.1324])
    """

    order: int

    def __post_init__(self) -> None:
        if isinstance(self.order, bool) or not isinstance(self.order, int) or self.order < 0:
            raise UsageError(f"jackknife takes order 0 (IWAE), 1, 2 …, got {self.order!r}")

    def __call__(self, log_w: Tensor) -> Tensor:
        check_weights(log_w, 2, "jackknife")
        k, m = len(log_w), self.order
        if k <= m:
            raise UsageError(f"jackknife({m}) wants at least {m + 1} weights a row, got {k}: raise num_particles.")
        floored = log_w.double().clamp_min(FLOOR)
        total, log_share = log_mean_exp(floored, 0), floored.log_softmax(0)
        for j in range(1, m + 1):
            c = (-1) ** j * (k - j) ** m / (math.factorial(m - j) * math.factorial(j))
            total = total + c * change_without(log_share, j)
        # a FLOOR that is left in the sum means a weight of 0: the limit is infinite, and has no gradient
        total = torch.where(total.abs() < -FLOOR / 1e6, total, total.detach() * math.inf)
        return total.to(log_w.dtype)


def change_without(log_share: Tensor, count: int) -> Tensor:
    """L_{K−j} − L_K for j = `count` ≥ 1: the mean over all sets that are left out, ``(N,)``; nothing where all are equal."""
    k, nothing = len(log_share), torch.full_like(log_share[0], FLOOR)
    after = torch.cat([log_share[1:].flip(0).logcumsumexp(0).flip(0), nothing[None]])
    log_all = math.log1p(count / (k - count))  # of all to those that stay, were they equal
    parts = logs_of_rest(log_share, torch.zeros_like(nothing), nothing, after, count)
    sums = torch.stack([(part + log_all).sum(0) for part in parts])
    return sums.sum(0) / math.comb(k, count)


def logs_of_rest(log_share: Tensor, gone: Tensor, before: Tensor, after: Tensor, count: int) -> Iterator[Tensor]:
    """Yield log(1 − s_S) for every choice S of `count` ≥ 1 more weights to leave out, in parts ``(choices, N)``.

    From s_S where that is below ½, and from the sum of what stays where it is not: either way nothing cancels. `gone`,
    ``(N,)``, is the share that is left out already, `before` the log of what stays of the weights before these, and after[i]
    that of all weights behind weight i.
    """
    before = torch.cat([before[None], log_share[:-1]]).logcumsumexp(0)
    if count == 1:
        left_out = gone + log_share.exp()
        small = torch.log1p(-left_out.clamp_max(0.5))
        yield torch.where(left_out < 0.5, small, torch.logaddexp(before, after))
        return
    for first in range(len(log_share) - count + 1):  # the first that is left out
        more = gone + log_share[first].exp()
        yield from logs_of_rest(log_share[first + 1 :], more, before[first], after[first + 1 :], count - 1)
