r"""Aggregate posterior q(z) = E_x q(z | x) of a minibatch: the parts of the KL, and its distance from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_vae.common.log_sums import log_sum_exp
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.masks import mask_of_site
from pyro_vae.programs.units import univariate

from .particles import Draw, ParticleRun

SCALES = (0.2, 0.5, 1.0, 2.0, 5.0)  # of the kernel's squared width, as multiples of the latents' dimension


class Decomposition(NamedTuple):
    """KL = mutual information + total correlation + dimension-wise KL, each ``(N,)`` at the draws, in nats."""

    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


def decompose_kl(draw: Draw, dataset_size: int, stratified: bool = False) -> Decomposition:
    r"""E KL(q(z | x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ Π_d q(z_d)) + Σ_d KL(q(z_d) ‖ p(z_d)), estimated from a batch.

        log q(z_i) ≈ log Σ_j w_ij q(z_i | x_j)   over the B rows of the batch, N the size of the data set

    *Weighted* (Chen et al.): w_ij = 1 / (N B), too small by a factor between B (rows whose latents are far apart) and N (all
    alike), whatever B is. So log q(z) comes out log B to log N too small, I(x; z) as much too large, and the total
    correlation, which sets one log q(z) against D of them, up to (D − 1) log N too large: nearly constants, which a gradient
    does not see; the figures are not to be quoted. *Stratified*: w_ii = 1 / N and w_ij = (N − 1) / (N (B − 1)), unbiased for
    q(z), hence log q(z) too small by Jensen's inequality alone; exact for B = N. Its gradient has more variance. Under a prior
    that does not factorise the last part is KL(Π_d q(z_d) ‖ p(z)) at the draws.

    Raises:
        UsageError: a data set smaller than the batch.
        ProgramError: more than one latent site, a masked one, or a posterior that does not factorise.

    References:
        Isolating Sources of Disentanglement in VAEs (Chen et al., 2018), https://arxiv.org/abs/1802.04942
    """
    parts = zip(*(decompose_run(run, dataset_size, stratified) for run in draw.runs), strict=True)
    return Decomposition(*(torch.cat(part).mean(0) for part in parts))


def decompose_run(run: ParticleRun, dataset_size: int, stratified: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms of :func:`decompose_kl`, ``(P, N)``."""
    q, p, z = factors(run)
    if dataset_size < z.shape[1]:
        raise UsageError(f"dataset_size={dataset_size}, but a batch has {z.shape[1]} rows: give the size of the data")
    each = q.log_prob(z.transpose(0, 1).unsqueeze(2)).transpose(0, 1)  # (P, i, j, D): z_i under q(z | x_j)
    log_weight = minibatch_weights(z.shape[1], dataset_size, stratified).log().to(z)
    log_qz = log_sum_exp(each.sum(-1) + log_weight, 2)
    log_product = log_sum_exp(each + log_weight.unsqueeze(-1), 2).sum(-1)
    log_qzx, log_pz = q.log_prob(z).sum(-1), p.log_prob(z)
    return log_qzx - log_qz, log_qz - log_product, log_product - log_pz


def factors(run: ParticleRun) -> tuple[Any, Any, Tensor]:
    """Return q of each unit of the one latent site, batch ``(P, N, D)``, the prior, and the draws."""
    name, *more = run.q
    if more:
        raise ProgramError(f"the decomposition is of one latent site; here are {list(run.q)}")
    refuse_masks(run)
    site = run.q[name]
    q = univariate(site["fn"])
    if q is None or run.problem.plates.nesting != 1 or site["fn"].event_dim != 1:
        raise ProgramError(
            f"site {name!r}: the posterior must be a product of one-dimensional distributions, "
            "such as dist.Normal(loc, scale).to_event(1)"
        )
    return q, run.p[name]["fn"], site["value"]


def refuse_masks(run: ParticleRun) -> None:
    """Refuse latents under a mask: rows that have not the same latents have no one q(z)."""
    for name in run.q:
        if mask_of_site(run.q[name]) is not True or mask_of_site(run.p[name]) is not True:
            raise ProgramError(
                f"site {name!r} is masked: rows that differ in the latents they have share no q(z) to compare. Train rows of "
                "one mask, without it; or use terms that are row by row (free_bits, capacity)."
            )


def minibatch_weights(rows: int, dataset_size: int, stratified: bool) -> Tensor:
    """w_ij, ``(B, B)``: 1 / (N B), or stratified weights; in float64, as N may be large."""
    if not stratified:
        return torch.full((rows, rows), 1 / (rows * dataset_size), dtype=torch.float64)
    others = (dataset_size - 1) / (dataset_size * (rows - 1)) if rows > 1 else 0.0
    return torch.full((rows, rows), others, dtype=torch.float64).fill_diagonal_(1 / dataset_size)


def flat(run: ParticleRun, values: Mapping[str, Tensor]) -> Tensor:
    """Concatenate the latents, ``(P, N, units)``."""
    plates = run.problem.plates
    return torch.cat([plates.by_unit(values[name], site["fn"].event_dim) for name, site in run.q.items()], -1)


def prior_draws(run: ParticleRun) -> Mapping[str, Tensor]:
    """Draw the latents as the model does: in a hierarchy, each given its own parents."""
    if len(run.q) == 1:
        return {name: run.p[name]["fn"].expand(site["fn"].batch_shape)() for name, site in run.q.items()}
    free = run.problem.sites(run.problem.model, run.particles)
    return {name: free[name]["value"] for name in run.q}


def squared_mmd(a: Tensor, b: Tensor) -> Tensor:
    """Estimate MMD² of samples ``(..., n, d)`` without bias."""
    n, width = a.shape[-2], a.shape[-1]

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        squared = (u.square().sum(-1).unsqueeze(-1) + v.square().sum(-1).unsqueeze(-2) - 2 * u @ v.mT).clamp_min(0)
        return torch.stack([(-squared / (2 * s * width)).exp() for s in SCALES]).mean(0)

    def off_diagonal(k: Tensor) -> Tensor:
        return (k.sum((-2, -1)) - k.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))

    return off_diagonal(kernel(a, a)) + off_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean((-2, -1))
