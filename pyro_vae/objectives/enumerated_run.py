r"""Particles of a guide some of whose discrete sites are summed over: the ELBO weighs each code by q(code | x).

    ELBO = Σ_y q(y | x) { E_q(z | x, y) [log p(x, y, z) − log q(z | x, y)] − log q(y | x) }

exact in y and by draws in z, each code with its own: what TraceEnum_ELBO computes, row by row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.codes import Codes
from pyro_vae.programs.masks import mask_of_site
from pyro_vae.programs.pair import unwrapped
from pyro_vae.programs.plates import sum_rows
from pyro_vae.programs.score_sites import row_log_prob
from pyro_vae.programs.sites import LogProbs, Program, Site, check_sites, latent_sites, observed_sites, sample_sites
from pyro_vae.programs.summed_out import Enumerated
from pyro_vae.programs.unconstrained import SubstituteLatents

from .bounds import elbo
from .particles import ParticleRun, Path, Scales


def codes_of(guide: Program) -> Codes | None:
    """Return the codes that a guide's ELBO sums over; None where all of its sites are drawn."""
    return next((layer.codes for layer in unwrapped(guide) if isinstance(layer, Enumerated)), None)


@dataclass
class EnumeratedRun(ParticleRun):
    """One run of both programs under C codes, with K draws of each, as K particles whose terms are means under q(code | x)."""

    codes: Codes | None = None

    def __post_init__(self) -> None:
        assert self.codes is not None
        self.path, total = Path(self.problem.plates), self.particles * len(self.codes)
        self.trace = self.problem.trace(self.problem.guide, total, SubstituteLatents(self.tables()))
        sites = sample_sites(self.trace)
        q, self.guide_observed = latent_sites(sites), observed_sites(sites)
        refuse_observed(self.guide_observed)
        self.p = self.problem.sites(self.problem.model, total, self.trace)
        check_sites(self.p, q)
        self.scales = Scales.of(self.p, q, self.problem.plates)
        self.summed = {name: site for name, site in q.items() if name in self.codes.values}
        self.q = {name: site for name, site in q.items() if name not in self.codes.values}
        self.values = {name: site["value"] for name, site in q.items()}

    def tables(self) -> dict[str, Tensor]:
        """Return the values of each summed site for all particles, code by code: ``(C K, 1, ..., *event)``."""
        assert self.codes is not None
        ones = [1] * self.problem.plates.nesting
        each = {n: v.repeat_interleave(self.particles, 0) for n, v in self.codes.values.items()}
        return {name: value.reshape(len(value), *ones, *value.shape[1:]) for name, value in each.items()}

    @cached_property
    def terms(self) -> LogProbs:
        """log p(x | y, z), log p(y, z) and log q(y, z | x) by site, means under q(y | x): ``(K, N)``."""
        scores = self.score("model", self.p, {})
        posterior = self.score("guide", {**self.summed, **self.q}, {})
        observed, prior = ({n: scores[n] for n in part(self.p)} for part in (observed_sites, latent_sites))
        return LogProbs(*({n: self.mean(term) for n, term in part.items()} for part in (observed, prior, posterior)))

    def mean(self, term: Tensor) -> Tensor:
        """Σ_c q(c | x) term, of terms ``(C K, N)``."""
        weighed = torch.where(self.weights > 0, term, 0.0) * self.weights  # 0 · −∞ would be NaN
        return weighed.unflatten(0, (-1, self.particles)).sum(0)

    @cached_property
    def weights(self) -> Tensor:
        """q(code | x), ``(C K, N)``: handlers' weights left out; a masked site has no value, and its codes share the 1."""
        total: Any = 0.0
        for name, site in self.summed.items():
            total = total + row_log_prob(name, site, self.problem.plates) - self.left_out(name, site)
        weights: Tensor = total.exp()
        return weights

    def left_out(self, name: str, site: Site) -> Tensor | float:
        """log V for each element that a mask takes out, ``(C K, N)``."""
        if (kept := mask_of_site(site)) is True:
            return 0.0
        assert self.codes is not None
        value, dims = site["value"], site["fn"].event_dim
        absent = (~torch.as_tensor(kept, device=value.device)).expand(value.shape).to(torch.get_default_dtype())
        share = absent.flatten(value.dim() - dims).mean(-1) if dims else absent
        each = self.codes.elements[name] * math.log(self.codes.sizes[name])
        return sum_rows(name, share * each, self.problem.plates)


def refuse_observed(sites: Mapping[str, Site]) -> None:
    """Refuse what a guide observes beside a sum over its codes."""
    if sites:
        raise ProgramError(
            f"site {next(iter(sites))!r} is observed in a guide that sums over discrete sites (a pyro.factor, a head): how "
            "codes weigh it is open. Make it a term of the objective, as in Bound(elbo, terms=[supervised(100.0)])."
        )


def check_enumerable(guide: Program, bound: Any, estimator: Any, terms: tuple[Any, ...]) -> None:
    """Refuse bounds, estimators and terms that know nothing of sums over codes."""
    if (codes := codes_of(guide)) is None:
        return
    names = ", ".join(map(repr, codes.values))
    if bound is not elbo or getattr(estimator, "name", "") != "pathwise":
        raise ProgramError(
            f"site {names} of the guide is marked for enumeration: a sum over its codes, weighed by q, is an ELBO, and trains "
            f"by the pathwise gradient. Take Bound(elbo), not {bound!r} with {estimator!r}; or leave the site out of the guide "
            "and mark it in the model, which is then summed out under any bound."
        )
    if unfit := [term for term in terms if not getattr(term, "takes_codes", False)]:
        raise ProgramError(
            f"site {names} of the guide is marked for enumeration, and the term {unfit[0]!r} is of draws of all latents: leave "
            "it out, or drop the mark."
        )
