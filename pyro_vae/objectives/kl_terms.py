r"""KL terms added to a bound (free bits, capacity, total correlation, MMD): functions of the draw, ``(N,)`` in nats.

``Bound(elbo, terms=[free_bits(0.5)])`` trains another objective; the logged ELBO and every evaluation stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.sites import sum_terms
from pyro_vae.programs.units import closed_kl, masked, univariate

from .analytic_kl import kl, not_closed, same_scale, site_kl
from .minibatch_aggregate import decompose_kl, flat, prior_draws, refuse_masks, squared_mmd
from .particles import Draw, ParticleRun


def at_least(name: str, value: float, least: float) -> None:
    """Refuse an option that is less than it may be, or NaN."""
    if not value >= least:
        raise UsageError(f"{name} must be {least} or more, got {value}")


@dataclass(frozen=True)
class free_bits:
    r"""Σ_g [mean_n KL_g < λ] (KL_gn − λ): the ELBO becomes log p(x | z) − Σ_g max(λ, mean_n KL_g).

    A group g of latents whose KL, averaged over the batch, is below λ pays no more for being used: it cannot collapse.
    The trained loss is a bound still, a looser one. Its KL is in closed form where there is one, so that the gradient of a
    group below λ is 0 under ``analytic_kl``, and 0 in expectation under estimators that take the KL at the draws. Under
    :class:`~pyro_vae.Beta` it is β max(λ, mean_n KL_g). Rows in which a group is masked count as 0 in its mean.

    Args:
        nats: λ for each group.
        per: "unit" for each latent coordinate (of sites whose prior and posterior both factorise), "site" for whole sites.

    Raises:
        UsageError: a negative λ, or another `per`.
        ProgramError: under "unit", a site that does not factorise; a handler that weighs rows of a latent differently.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), appendix C.8,
        https://arxiv.org/abs/1606.04934

    Example:
        >>> from pyro_vae import Bound, elbo
        >>> Bound(elbo, terms=[free_bits(0.25)]).terms
        (free_bits(nats=0.25, per='unit'),)
    """

    nats: float
    per: str = "unit"

    def __post_init__(self) -> None:
        at_least("nats", self.nats, 0)
        if self.per not in ("unit", "site"):
            raise UsageError(f"free bits are per 'unit' or per 'site', got {self.per!r}")

    def __call__(self, draw: Draw) -> Tensor:
        return sum_terms({name: self.of_site(draw, name) for name in draw.first.q})

    def of_site(self, draw: Draw, name: str) -> Tensor:
        """β Σ_g [mean_n KL_g < λ] (KL_gn − λ), ``(N,)``."""
        beta, unit = beta_of(draw.first, name), self.per == "unit"
        kls = [unit_kl(run, name) if unit else site_kl(run, name).unsqueeze(-1) for run in draw.runs]
        groups = torch.cat(kls).mean(0)  # (N, groups)
        below = groups.detach().mean(0) < self.nats  # decided by the batch, not by single rows
        return beta * torch.where(below, groups - self.nats, torch.zeros_like(groups)).sum(-1)


def beta_of(run: ParticleRun, name: str) -> Any:
    """Return the weight that :class:`~pyro_vae.Beta` gives a site's KL: one number."""
    beta = run.scales.inner["guide", name]
    if isinstance(beta, Tensor) or not same_scale(run, name):
        raise ProgramError(
            f"site {name!r}: a handler weighs its rows, or log p and log q, by different numbers, so it has no one β. "
            "Weigh model and guide alike, by Beta(β) or by poutine.scale around both of them whole."
        )
    return beta


def unit_kl(run: ParticleRun, name: str) -> Tensor:
    """Return the KL of each unit of a site, ``(P, N, units)``, not weighed by handlers."""
    site = run.q[name]
    q, p, z, dims = univariate(site["fn"]), univariate(run.p[name]["fn"]), site["value"], site["fn"].event_dim
    if q is None or p is None:
        raise ProgramError(
            f"site {name!r}: {type(site['fn']).__name__} and {type(run.p[name]['fn']).__name__} are not both products "
            'of one-dimensional distributions, so there is no KL per unit. Take free_bits(nats, per="site").'
        )
    if not_closed(run, name) or (term := closed_kl(q, p)) is None:
        kl_of_unit = masked(q.log_prob(z), site["mask"], dims) - masked(p.log_prob(z), run.p[name]["mask"], dims)
    else:
        kl_of_unit = masked(term.expand(z.shape), site["mask"], dims)
    return run.problem.plates.by_unit(kl_of_unit, dims)


@dataclass
class capacity:
    r"""KL − γ |KL − C|: the ELBO becomes log p(x | z) − γ |KL(q(z | x) ‖ p(z)) − C|, with C growing as training goes on.

    Row by row, and in place of a β: under a :class:`~pyro_vae.Beta` other than 1 it is refused.

    Args:
        nats: C at the end of training.
        gamma: γ, how strictly it is held.
        schedule: fraction of training done to a multiple of C; ``fit(..., scheduled=[term])`` tells it how far training is.

    References:
        Understanding disentangling in beta-VAE (Burgess et al., 2018), https://arxiv.org/abs/1804.03599

    Example:
        >>> term = capacity(25.0, gamma=100.0, schedule=lambda done: min(1.0, 2 * done))
        >>> term.at(0.25)
        >>> term.now
        12.5
    """

    scheduled_names: ClassVar[tuple[str, ...]] = ("now",)  # what `at` sets

    nats: float
    gamma: float = 1.0
    schedule: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        at_least("nats", self.nats, 0)
        at_least("gamma", self.gamma, 0)
        self.at(0.0)

    def at(self, done: float) -> None:
        """Set C for the next step, at a fraction `done` of training."""
        self.now = self.nats if self.schedule is None else self.nats * self.schedule(done)

    def __call__(self, draw: Draw) -> Tensor:
        if any(beta_of(draw.first, name) != 1 for name in draw.first.q):
            raise UsageError("capacity holds the KL itself, so Beta has nothing to weigh: take one of the two.")
        total = torch.cat([kl(run) for run in draw.runs]).mean(0)
        return total - self.gamma * (total - self.now).abs()


@dataclass(frozen=True)
class total_correlation:
    r"""−(β − 1) TC: the ELBO of β-TC-VAE, which weighs the total correlation KL(q(z) ‖ Π_d q(z_d)) by β, the rest by 1.

    For a data set of N = `dataset_size`, and β ≥ 0 (1 is the ELBO), it is estimated from a batch by
    :func:`~pyro_vae.objectives.minibatch_aggregate.decompose_kl`, where its bias and errors are stated.

    References:
        Isolating Sources of Disentanglement in VAEs (Chen et al., 2018), https://arxiv.org/abs/1802.04942

    Example:
        >>> from pyro_vae import Bound, elbo
        >>> objective = Bound(elbo, terms=[total_correlation(6.0, dataset_size=60_000)])
    """

    beta: float
    dataset_size: int
    stratified: bool = False

    def __post_init__(self) -> None:
        at_least("beta", self.beta, 0)
        at_least("dataset_size", self.dataset_size, 1)

    def __call__(self, draw: Draw) -> Tensor:
        return -(self.beta - 1) * decompose_kl(draw, self.dataset_size, self.stratified).total_correlation


@dataclass(frozen=True)
class mmd:
    r"""−λ MMD²(q(z), p(z)), the same for every row: draws of the batch shall look like draws of the prior (InfoVAE).

    MMD² = E k(z, z') − 2 E k(z, y) + E k(y, y') with z, z' ~ q(z) of different rows and y, y' ~ p(z), without bias, under a
    sum of Gaussian kernels whose squared widths are 0.2 to 5 times the number of latents. With ``Beta(1 − α)`` around model
    and guide it is InfoVAE's objective; with ``Beta(0)`` a Wasserstein autoencoder's.

    Raises:
        UsageError: a negative λ, or a batch of one row.
        ProgramError: a latent without ``rsample``, or under a mask.

    References:
        InfoVAE (Zhao, Song & Ermon, 2019), https://arxiv.org/abs/1706.02262
        A Kernel Two-Sample Test (Gretton et al., 2012), https://jmlr.org/papers/v13/gretton12a.html

    Example:
        >>> from pyro_vae import Bound, elbo
        >>> Bound(elbo, terms=[mmd(10.0)]).terms
        (mmd(weight=10.0),)
    """

    weight: float

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0)

    def __call__(self, draw: Draw) -> Tensor:
        run = draw.first
        refuse_masks(run)
        if sites := draw.without_path():
            raise ProgramError(f"site {sites[0]!r} has no rsample: mmd has no gradient for the guide there.")
        q, p = flat(run, {name: site["value"] for name, site in run.q.items()}), flat(run, prior_draws(run))
        if q.shape[1] < 2:
            raise UsageError("mmd compares the rows of a batch with one another: at least 2 are needed")
        return (-self.weight * squared_mmd(q, p).mean(0)).expand(q.shape[1])
