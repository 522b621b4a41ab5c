r"""F_kk, the second derivative of a bound in each log weight by itself: what a doubly reparameterised gradient weighs paths by.

In closed form for the bounds of this package, in the memory of the weights; a bound of one's own is differentiated twice, for
some particles at a time.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from pyro_vae.errors import UsageError

from .bounds import FLOOR, ciwae, elbo, iwae, miwae, piwae, renyi, tvo
from .jackknife import jackknife
from .leave_one_out import BoundFunction, particles_at_once


def second(bound: BoundFunction, log_w: Tensor) -> Tensor:
    """F_kk = ∂²F / ∂ (log w_k)², of the shape of log_w, detached.

    Raises:
        UsageError: the jackknife.
    """
    log_w = log_w.detach()
    if isinstance(bound, jackknife):
        raise UsageError(
            f"{bound!r} has no second derivative here (torch's of logcumsumexp is wrong where a gradient is 0), which dreg "
            "and gdreg need: take estimator=pathwise."
        )
    if bound is elbo or bound in (renyi(1), ciwae(1)):
        return torch.zeros_like(log_w)
    if bound is iwae:
        return of_share(log_w.softmax(0))
    if bound is miwae:
        return of_share(log_w.softmax(1)) / len(log_w)
    if bound is piwae:
        return of_share(log_w.flatten(0, 1).softmax(0)).view_as(log_w)
    if isinstance(bound, ciwae):
        return (1 - bound.beta) * of_share(log_w.softmax(0))
    if isinstance(bound, renyi):
        return (1 - bound.alpha) * of_share(((1 - bound.alpha) * log_w).softmax(0))
    if isinstance(bound, tvo):
        return of_tempered_means(bound.betas, (log_w - log_w.amax(0).clamp_min(FLOOR)).clamp_min(FLOOR))
    return twice_differentiated(bound, log_w)


def of_share(share: Tensor) -> Tensor:
    """s (1 − s): the second derivative of log Σ w in one log weight, s being that weight's share."""
    return share * (1 - share)


def of_tempered_means(betas: tuple[float, ...], log_w: Tensor) -> Tensor:
    r"""Σ_j (β_{j+1} − β_j) ∂²/∂l_k² E_{π_β}[l], π_β = softmax(β l): β π_k (2 (1 − π_k) + β (l_k − E) (1 − 2 π_k))."""
    total = torch.zeros_like(log_w)
    for low, high in pairwise(betas[1:]):
        share = (low * log_w).softmax(0)
        above = low * (log_w - (share * log_w).sum(0))
        total = total + (high - low) * low * share * (2 * (1 - share) + above * (1 - 2 * share))
    return total


def twice_differentiated(bound: BoundFunction, log_w: Tensor) -> Tensor:
    """Differentiate any bound twice, one log weight beside itself, for some particles at a time."""
    rows = log_w.shape[-1]
    with torch.enable_grad():
        leaf = log_w.requires_grad_()
        slope = torch.autograd.grad(bound(leaf).sum(), leaf, create_graph=True)[0]
        if not slope.requires_grad:  # linear
            return torch.zeros_like(log_w)
        return (
            torch.cat([diagonal(slope, leaf, some) for some in particles_at_once(leaf)]).reshape(-1, rows).view_as(leaf)
        )


def diagonal(slope: Tensor, leaf: Tensor, particles: Tensor) -> Tensor:
    """∂ slope_k / ∂ leaf_k for some particles, ``(particles, N)``; rows do not see one another."""
    rows = leaf.shape[-1]
    all_particles = torch.arange(leaf.numel() // rows, device=leaf.device)
    one = (particles.unsqueeze(-1) == all_particles).to(leaf.dtype).unsqueeze(-1)
    each = one.expand(-1, -1, rows).reshape(-1, *leaf.shape)
    curved = torch.autograd.grad(slope, leaf, each, is_grads_batched=True, retain_graph=True)[0]
    return curved.reshape(len(particles), -1, rows)[torch.arange(len(particles)), particles]
