r"""F_{−k}, the bound with log w_k replaced by the mean of the others: VIMCO's baseline, in the memory of the weights.

A copy of the weights for each particle is K² N numbers. Sums over all particles but one are two running sums instead, and
bounds without such a form are taken of some replaced particles at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_vae.errors import UsageError

from .bounds import ciwae, elbo, iwae, miwae

BoundFunction = Callable[[Tensor], Tensor]
AT_ONCE = 2**20  # numbers in the copies of the weights that are made at a time


def without_one(bound: BoundFunction, log_w: Tensor) -> Tensor:
    """F_{−k}, a baseline for particle k: the bound, log w_k replaced by the others' mean (of its group), ``(*K, N)``.

    Raises:
        UsageError: one particle, which has no others.
    """
    if (k := log_w.shape[-2]) < 2:
        raise UsageError(f"vimco's baseline is made of the other particles: num_particles must be at least 2, got {k}")
    others = sum_of_others(log_w.double(), -2) / (k - 1)
    baseline = replaced(bound, log_w, others)
    return baseline.to(log_w.dtype).nan_to_num(nan=0.0, neginf=0.0)  # all others weigh 0: any constant is a baseline


def replaced(bound: BoundFunction, log_w: Tensor, others: Tensor) -> Tensor:
    """Return the bound with one particle after the other replaced by `others`, ``(*K, N)``."""
    if bound is elbo:
        return others
    if bound is iwae or bound is miwae:
        kept = log_sum_of_others(log_w.double(), -2)
        one_group = torch.logaddexp(kept, others) - math.log(log_w.shape[-2])
        if bound is iwae:
            return one_group
        groups = bound_of_groups(log_w.double())
        return (one_group + sum_of_others(groups, 0).unsqueeze(1)) / len(groups)
    if isinstance(bound, ciwae) and 0 < bound.beta < 1:
        return bound.beta * others + (1 - bound.beta) * replaced(iwae, log_w, others)
    return torch.cat([bound_of_copies(bound, log_w, others, some) for some in particles_at_once(log_w)]).view_as(log_w)


def bound_of_groups(log_w: Tensor) -> Tensor:
    """log 1/K Σ_k w_mk, ``(M, N)``."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def particles_at_once(log_w: Tensor) -> Iterator[Tensor]:
    """Yield the numbers of all particles, as many at a time as copies of the weights may be made."""
    particles = log_w.numel() // max(1, log_w.shape[-1])
    yield from torch.arange(particles, device=log_w.device).split(max(1, AT_ONCE // max(1, log_w.numel())))


def bound_of_copies(bound: BoundFunction, log_w: Tensor, others: Tensor, particles: Tensor) -> Tensor:
    """Return the bound of a copy of the weights for each of some particles, that one replaced: ``(particles, N)``."""
    *groups, k, rows = log_w.shape
    all_particles = torch.arange(log_w.numel() // rows, device=log_w.device)
    one = (particles.unsqueeze(-1) == all_particles).reshape(-1, *groups, k, 1)
    each = torch.where(one, others.to(log_w.dtype), log_w)  # (particles, *K, N)
    return bound(each.movedim(0, -2).reshape(*groups, k, -1)).reshape(-1, rows)


def sum_of_others(values: Tensor, dim: int) -> Tensor:
    """Σ_{j≠k} values_j along `dim`, for every k: nothing is subtracted, which would cancel, or be ∞ − ∞."""
    zero = torch.zeros_like(values.narrow(dim, 0, 1))
    count = values.shape[dim] - 1
    before = torch.cat([zero, values.narrow(dim, 0, count)], dim).cumsum(dim)
    after = torch.cat([zero, values.flip(dim).narrow(dim, 0, count)], dim).cumsum(dim).flip(dim)
    return before + after


def log_sum_of_others(log_values: Tensor, dim: int) -> Tensor:
    """log Σ_{j≠k} e^(log_values_j) along `dim`, for every k."""
    nothing = torch.full_like(log_values.narrow(dim, 0, 1), -math.inf)
    count = log_values.shape[dim] - 1
    before = torch.cat([nothing, log_values.narrow(dim, 0, count)], dim).logcumsumexp(dim)
    after = torch.cat([nothing, log_values.flip(dim).narrow(dim, 0, count)], dim).logcumsumexp(dim).flip(dim)
    return torch.logaddexp(before, after)
