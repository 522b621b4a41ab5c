r"""Imputation of missing elements of x from the observed ones: x_mis | x_obs, by importance resampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.importance.sampler import checked
from pyro_vae.programs.pair import programs
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.sites import Site
from pyro_vae.programs.structured import refuse_structure


@suggest_keywords
def impute(
    vae: Any, x: Any, *c: Any, num_samples: int = 1000, draws: int = 1, seed: int = 0, chunk_size: int = 16384
) -> Tensor:
    r"""x_mis ~ p(x_mis | x_obs), with what was observed unchanged: ``(draws, N, *event)``.

    z_k ~ q(z | x_obs) with weights w_k = p(x_obs | z_k) p(z_k) / q(z_k | x_obs); each draw takes one z_k with probability
    w_k / Σ w, and x_mis from p(x | z_k). Exact as K grows; for finite K its error is that of the weights, so look at the
    effective sample size of these rows (``log_likelihood(...).ess``). Draws of one row share its K particles.

    Args:
        vae: a :class:`VAE`, any object with ``model`` and ``guide``, or a tuple of two Pyro programs, whose likelihood and
            encoder take NaN (:class:`~pyro_vae.models.missing.SkipMissing`, :class:`~pyro_vae.models.missing.WithMask`).
        x, *c: data ``(N, *event)``, where NaN was not observed; contexts with N rows, where the model has them.
        num_samples, draws: K particles, and imputations, of each row.
        seed: the same seed draws the same, whatever was drawn before; the global random state is left as it was.
        chunk_size: (row, particle) pairs run at a time, of one row at least.

    Raises:
        SupportError, DataError: values that the likelihood does not take (NaN is one, for a plain likelihood).
        ProgramError: a pair that has no importance weight for each row, or no one site that x is observed at.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (Mattei & Frellsen, 2019),
        https://arxiv.org/abs/1812.02633

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> from pyro_vae.evidence.imputation import impute
        >>> from pyro_vae.models.missing import SkipMissing, WithMask
        >>> decoder, encoder = Conditional(MLP(2, 3), bernoulli), Conditional(WithMask(MLP(6, 4)), normal)
        >>> vae = VAE(StandardNormal(2), SkipMissing(decoder), encoder)
        >>> x = torch.tensor([[1.0, torch.nan, 0.0]])
        >>> impute(vae, x, num_samples=10, draws=5)[:, 0, ::2].unique(dim=0)
        tensor([[1., 0.]])
    """
    if draws < 1:
        raise UsageError(f"draws must be at least 1, got {draws}")
    return in_chunks(lambda particles: particles.draw(draws), vae, x, c, num_samples, seed, chunk_size)


@suggest_keywords
def impute_mean(vae: Any, x: Any, *c: Any, num_samples: int = 1000, seed: int = 0, chunk_size: int = 16384) -> Tensor:
    r"""E[x_mis | x_obs] ≈ Σ_k w_k E[x | z_k] / Σ_k w_k, with what was observed unchanged: ``(N, *event)``.

    Arguments, errors and reference as for :func:`impute`; the likelihood must have a mean in closed form.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> from pyro_vae.evidence.imputation import impute_mean
        >>> from pyro_vae.models.missing import SkipMissing, WithMask
        >>> decoder, encoder = Conditional(MLP(2, 3), bernoulli), Conditional(WithMask(MLP(6, 4)), normal)
        >>> vae = VAE(StandardNormal(2), SkipMissing(decoder), encoder)
        >>> impute_mean(vae, torch.tensor([[1.0, torch.nan, 0.0]]), num_samples=10).shape
        torch.Size([1, 3])
    """
    return in_chunks(lambda particles: particles.mean()[None], vae, x, c, num_samples, seed, chunk_size).squeeze(0)


def in_chunks(
    each: Callable[[Particles], Tensor], vae: Any, x: Any, c: tuple[Any, ...], num: int, seed: int, chunk_size: int
) -> Tensor:
    """Apply `each` to K weighted particles of each row, in chunks of rows: ``(draws, N, *event)``."""
    if num < 1 or chunk_size < 1:
        raise UsageError(f"num_samples and chunk_size must be at least 1, got {num} and {chunk_size}")
    model, guide = programs(vae)
    refuse_structure(x, "imputation")
    problem = Problem.of(model, guide, x, *c, seed=seed, missing=True)  # the likelihood says whether it takes NaN
    with problem.quiet(seed):
        check_reach(problem)
    chunks = []
    for i, some in enumerate(problem.split(chunk_size // num)):
        with some.quiet(seed, i):
            chunks.append(each(Particles(some, num)))
    return torch.cat(chunks, 1)


class Particles:
    """K particles of each row, z_k ~ q(z | x_obs), with their weights w_k / Σ w, ``(K, N)`` in float64."""

    def __init__(self, problem: Problem, num: int) -> None:
        self.problem, self.x = problem, problem.args[0]
        self.latents, self.sites = problem.draw(num)
        log_w = checked(
            problem.log_prob(self.sites, "model") - problem.log_prob(self.latents, "guide"), num, problem
        ).double()
        if (hopeless := (log_w == -math.inf).all(0)).any():
            rows = problem.numbers(hopeless)
            raise ProgramError(f"all weights are 0 for rows {rows}: no particle explains what was observed there.")
        self.weights = log_w.softmax(0)

    def mean(self) -> Tensor:
        """Fill the gaps of x by the weighted mean of E[x | z_k]."""
        site = site_of(self.x, self.sites)
        try:
            means = site["fn"].mean
        except NotImplementedError as error:
            raise ProgramError(
                f"the likelihood is a {type(site['fn']).__name__}, which has no mean in closed form; average draws of impute"
            ) from error
        weights = self.problem.plates.beside(self.weights, site["fn"].event_dim).to(means)
        filled = fill(self.x, (weights * means).sum(0))
        if filled.isnan().any():
            raise ProgramError("E[x | z] is NaN in columns that have no mean, such as classes; average draws of impute")
        return filled

    def draw(self, draws: int) -> Tensor:
        """Fill the gaps of x by draws from p(x | z), of z resampled by weight."""
        _, z = self.resampled(draws)
        sites = self.problem.sites(self.problem.model, draws, z)
        return fill(self.x, site_of(self.x, sites)["fn"].sample())

    def resampled(self, draws: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw particles by weight: their numbers ``(draws, N)``, and their latents."""
        chosen = torch.multinomial(self.weights.T, draws, replacement=True).T
        beside = self.problem.plates.beside
        return chosen, {
            name: torch.take_along_dim(site["value"], beside(chosen, site["fn"].event_dim), 0)
            for name, site in self.latents.items()
        }


def site_of(x: Tensor, sites: dict[str, Site]) -> Site:
    """Find the one site that x is observed at."""
    observed = [site for site in sites.values() if site["value"] is x]
    if len(observed) != 1 or observed[0]["fn"].shape()[1:] != x.shape:
        raise ProgramError(
            f"x is observed at {len(observed)} sites, wanted one of its own shape {tuple(x.shape)}: "
            'pass it whole, pyro.sample("x", likelihood, obs=x).'
        )
    return observed[0]


def fill(x: Tensor, filled: Tensor) -> Tensor:
    """Return x, and `filled` where x is NaN."""
    return torch.where(x.isnan(), filled.to(x), x)
