r"""Proposals of particles: the guide, a mixture of guide and prior, or a wider guide; each with its exact density.

    q(z) = (1 − weight) · guide(z | x) + weight · p(z)

Any of them leaves E[p̂] = p(x): only the spread of the weights differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import LogProbs, Program, is_latent, latent_sites, sum_terms
from pyro_vae.programs.vectorize_probe import refuse_random_guide

from .strata import Strata


@dataclass(frozen=True)
class Proposal:
    """(1 − weight) · guide + weight · prior, the guide's scales multiplied by `factor`."""

    weight: float = 0.0  # 0 ≤ weight < 1
    factor: float = 1.0  # above 0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < 1:
            raise UsageError(f"the prior's weight must be from 0 to below 1, got {self.weight}")
        if not 0 < self.factor < math.inf:
            raise UsageError(f"the factor of the guide's scales must be above 0 and finite, got {self.factor}")

    def guide(self, guide: Program) -> Program:
        """Widen the guide."""
        return guide if self.factor == 1 else Widened(self.factor)(guide)

    def strata(self, offset: float) -> Strata:
        """Say which particles come from the prior, by a start that is uniform on [0, 1)."""
        return Strata(self.weight, offset)

    def log_w(self, terms: LogProbs) -> Tensor:
        """log p(x, z) − log q(z), ``(K, N)``; `terms.posterior` is the (widened) guide's."""
        if not self.weight:
            return terms.log_w
        prior = sum_terms(terms.prior)
        return terms.reconstruction + prior - self.log_q(prior, sum_terms(terms.posterior))

    def log_q(self, prior: Tensor, guide: Tensor) -> Tensor:
        """Log density of the mixture, of the log densities of the prior and the (widened) guide."""
        if not self.weight:
            return guide
        return torch.logaddexp(math.log1p(-self.weight) + guide, math.log(self.weight) + prior)

    def __str__(self) -> str:
        guide = "guide" if self.factor == 1 else f"guide widened by {self.factor:g}"
        return guide if not self.weight else f"{1 - self.weight:g} {guide} + {self.weight:g} prior"


GUIDE = Proposal()


@suggest_keywords
def defensive(weight: float = 0.1) -> Proposal:
    r"""q(z) = (1 − weight) · guide(z | x) + weight · p(z), row by row, for the whole program; so w ≤ p(x | z) / weight.

    Weights are bounded wherever p(x | z) is, as for any likelihood of discrete data: their variance is finite, whatever the
    guide leaves out. It may still take many particles to show: k̂ says whether K were enough. The price is a share `weight` of
    the particles, and a second run of the guide. log q is of the mixture, whichever of the two z was drawn from. The prior's
    particles are stratified: every 1 / weight-th, from a random start; `mc_se` and `bias` are those of two strata, and
    `jackknife` is `log_px` + ½ mc_se², as leaving out single particles would not do.

    Args:
        weight: share of the prior, 0 ≤ weight < 1.

    References:
        Weighted Average Importance Sampling and Defensive Mixture Distributions (Hesterberg, 1995),
        https://doi.org/10.1080/00401706.1995.10484303

    Example:
        >>> print(defensive(0.1))
        0.9 guide + 0.1 prior
    """
    return Proposal(weight=weight)


@suggest_keywords
def widened(factor: float = 1.5) -> Proposal:
    r"""q(z) = guide(z | x) with the scale of every latent multiplied by `factor`.

    For guides that are too narrow, as those trained by the ELBO are. Takes location-scale latents (normal, Student's t,
    Laplace, lognormal, multivariate normal …) and refuses others, by site.

    Args:
        factor: above 0.

    Example:
        >>> print(widened(1.5))
        guide widened by 1.5
    """
    return Proposal(factor=factor)


class Widened(Messenger):
    """Messenger that multiplies the scales of a guide's latents."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def _pyro_sample(self, msg: Message) -> None:
        if is_latent(msg):
            msg["fn"] = cast(Any, widen(msg["fn"], self.factor, str(msg["name"])))


def widen(d: Any, factor: float, site: str) -> Any:
    """Multiply the scale of a distribution; a ProgramError for one without location and scale."""
    if isinstance(d, torch.distributions.Independent):
        return dist.Independent(widen(d.base_dist, factor, site), d.reinterpreted_batch_ndims)
    if isinstance(d, dist.MultivariateNormal):
        return dist.MultivariateNormal(d.loc, scale_tril=factor * d.scale_tril)
    if isinstance(d, dist.LowRankMultivariateNormal):
        return dist.LowRankMultivariateNormal(d.loc, factor * d.cov_factor, factor**2 * d.cov_diag)
    if type(d) is dist.TransformedDistribution:
        return dist.TransformedDistribution(widen(d.base_dist, factor, site), d.transforms)
    if {"loc", "scale"} <= set(d.arg_constraints):
        given = {name: getattr(d, name) for name in d.arg_constraints}
        return type(d)(**given | {"scale": factor * d.scale})
    raise ProgramError(
        f"site {site!r} of the guide is a {type(d).__name__}, which has no location and scale to widen. Score with the guide "
        "itself, or with defensive(0.1), which takes any latent."
    )


@dataclass(frozen=True)
class Draws:
    """K particles of the latents of N rows, and log q of the (widened) guide at each, ``(K, N)`` by site."""

    values: dict[str, Tensor]
    event_dims: dict[str, int]
    posterior: dict[str, Tensor]
    plates: Plates

    def __len__(self) -> int:
        return len(next(iter(self.posterior.values())))

    def part(self, particles: slice, rows: slice = slice(None)) -> Draws:
        """Select some of the particles, of some of the rows."""
        values = {
            name: cut(cut(v, self.plates.particles - event, particles), self.plates.dim - event, rows)
            for (name, v), event in zip(self.values.items(), self.event_dims.values(), strict=True)
        }
        return replace(self, values=values, posterior={n: q[particles, rows] for n, q in self.posterior.items()})

    def arranged(self, order: Tensor) -> Draws:
        """Take the particles in another order; there is no density yet."""
        dims = {name: self.plates.particles - event for name, event in self.event_dims.items()}
        values = {name: v.index_select(dims[name], order.to(v.device)) for name, v in self.values.items()}
        return replace(self, values=values)

    @property
    def trace(self) -> poutine.Trace:
        """The latents' values, to be replayed."""
        trace = poutine.Trace()
        for name, value in self.values.items():
            trace.add_node(name, name=name, type="sample", is_observed=False, value=value, infer={})
        return trace


def cut(value: Tensor, dim: int, part: slice) -> Tensor:
    """value[…, part, …] along a dim from the right; what is the same all along it stays."""
    return value if value.shape[dim] == 1 else value.movedim(dim, 0)[part].movedim(0, dim)


def joined(parts: list[Draws]) -> Draws:
    """Join particles of the same rows, one after the other."""
    if len(parts) == 1:
        return parts[0]
    first, particles = parts[0], parts[0].plates.particles
    values = {n: torch.cat([p.values[n] for p in parts], particles - e) for n, e in first.event_dims.items()}
    posterior = {n: torch.cat([p.posterior[n] for p in parts]) for n in first.posterior}
    return replace(first, values=values, posterior=posterior)


def draw(problem: Problem, program: Program, particles: int, at: poutine.Trace | None = None) -> Draws:
    """Run a guide, or a model for its prior: its latents, and the log-probabilities of all its sites."""
    sites = problem.sites(program, particles, at)
    latent = latent_sites(sites)
    return Draws(
        {name: site["value"] for name, site in latent.items()},
        {name: site["fn"].event_dim for name, site in latent.items()},
        problem.score(sites, "model" if program is problem.model else "guide", fresh=at is None),
        problem.plates,
    )


def order_of(from_prior: Sequence[bool]) -> Tensor:
    """Return where each particle stands once those of the guide are followed by those of the prior, ``(K,)``."""
    return torch.tensor(from_prior, dtype=torch.uint8).argsort(stable=True).argsort()


def propose(proposal: Proposal, problem: Problem, from_prior: Sequence[bool]) -> Draws:
    """Draw a particle for each entry, from the prior where it is True, with the guide's log q at all of them."""
    return propose_in(order_of(from_prior), sum(from_prior), proposal, problem)


def propose_in(order: Tensor, prior: int, proposal: Proposal, problem: Problem) -> Draws:
    """Draw particles, so many of the `prior`, in an order: in their own places the first K of more are a mixture, too."""
    guide, particles = proposal.guide(problem.guide), len(order)
    counts = (guide, particles - prior), (problem.model, prior)
    drawn = [draw(problem, program, count) for program, count in counts if count]
    if not prior:
        return drawn[0]
    refuse_random_guide(problem)
    mixed = joined([replace(d, posterior={}) for d in drawn]).arranged(order)
    return draw(problem, guide, particles, mixed.trace)


def terms_at(problem: Problem, draws: Draws) -> LogProbs:
    """Score the model at particles that were drawn before."""
    return problem.terms(problem.sites(problem.model, len(draws), draws.trace), draws.posterior)
