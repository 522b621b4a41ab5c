"""Sums over a block of log weights, and of two blocks together; in float64, and nothing in them cancels."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def scatter(total: Tensor, square: Tensor, count: int) -> Tensor:
    """n Var(w), from Σ w, Σ w² and n."""
    return (square - total.square() / count).clamp_min(0) * count / (count - 1)


def sums_of(log_w: Tensor, prior: list[bool] | None = None) -> Tensor:
    """Return log Σ w, log Σ w², Σ log w, Σ (log w)², max log w, and log Σ w less the largest, ``(6, N)``, of ``(K, N)``.

    Of a mixture, also the first two of the particles from the prior, ``(8, N)``.
    """
    sums = [
        log_w.logsumexp(0),
        (2 * log_w).logsumexp(0),
        log_w.sum(0),
        log_w.square().sum(0),
        *largest_and_others(log_w),
    ]
    if prior is not None:
        chosen = [k for k, of_prior in enumerate(prior) if of_prior]  # numbers, as a mask would wait for a GPU
        stratum = log_w[torch.tensor(chosen, dtype=torch.long, device=log_w.device)]
        sums += [stratum.logsumexp(0), (2 * stratum).logsumexp(0)]
    return torch.stack(sums)


def largest_and_others(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """max log w, and the log of the sum of all other weights: what 1 − max w / Σ w cannot say where it rounds to 0."""
    if not len(log_w):
        nothing = log_w.new_full(log_w.shape[1:], -math.inf)
        return nothing, nothing
    largest, at = log_w.max(0, keepdim=True)
    return largest[0], log_w.scatter(0, at, -math.inf).logsumexp(0)


def joined_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the :func:`sums_of` two sets of particles together."""
    low, high = torch.minimum(a[4], b[4]), torch.maximum(a[4], b[4])
    others = torch.logaddexp(torch.logaddexp(a[5], b[5]), low)
    logs, plain, strata = torch.logaddexp(a[:2], b[:2]), a[2:4] + b[2:4], torch.logaddexp(a[6:], b[6:])
    return torch.cat([logs, plain, torch.stack([high, others]), strata])
