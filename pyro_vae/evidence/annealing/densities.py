r"""Log densities of a (model, guide) pair, and their gradients, at latents on the real line: what annealing walks on."""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.log_density import outside_support
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.sites import latent_sites, observed_sites, sum_terms
from pyro_vae.programs.unconstrained import SiteLayout, SubstituteLatents, check_continuous
from pyro_vae.programs.vectorize_probe import refuse_random_guide

from .flat_density import DensityGraphs
from .point import Point
from .singular import NaNWhereSingular


class Densities:
    r"""log start(u) and log p(x, z(u)) + log |∂z/∂u| for a batch of rows, with gradients in u; `start` is "prior" or "guide".

    z = T(u) site by site, T = ``biject_to`` of the support that the *model* gives the site, which may depend on latents
    before it. Nothing is scaled: plate sizes and ``poutine.scale`` stay out, masks stay in. A ProgramError names a latent
    that is discrete, or whose support no smooth map takes to the real line.
    """

    def __init__(self, problem: Problem, start: str, graphs: DensityGraphs | None = None) -> None:
        self.problem, self.from_prior, self.graphs = problem, start == "prior", graphs
        if not self.from_prior:
            refuse_random_guide(problem)
        self.layouts: list[SiteLayout] = []  # known from the first trace on

    def over(self, *args: Tensor) -> Densities:
        """Return the densities of other rows, without graphs."""
        other = copy(self)
        other.problem, other.graphs = self.problem.over(*args), None
        return other

    def draw(self, chains: int) -> Tensor:
        """u at exact draws of the start, ``(chains, N, D)``."""
        if self.from_prior:
            return self.flat(self.problem.sites(self.problem.model, chains))
        q, p = self.problem.draw(chains)
        for name in latent_sites(p):
            check_continuous(f"{name} (guide)", q[name])
        return self.flat(p)

    def at(self, latents: dict[str, Tensor], chains: int) -> Tensor:
        """u with every chain at the same latents, each as a site holds it without chains."""
        return self.flat(self.problem.sites(self.problem.model, chains, SubstituteLatents(latents)))

    def flat(self, p: Sites) -> Tensor:
        """Unconstrain the latent sites of the model's trace, side by side: ``(chains, N, D)``."""
        latents, plates = latent_sites(p), self.problem.plates
        self.layouts = [SiteLayout.of(name, site, plates, unconstrained=True) for name, site in latents.items()]
        columns = {layout.name: layout.unconstrain(latents[layout.name]) for layout in self.layouts}
        for name, column in columns.items():
            inside = self.problem.plates.by_unit(~outside_support(latents[name])).all(-1)
            check_finite(name, column.masked_fill(~inside[..., None], math.nan), self.problem)
        u = torch.cat(list(columns.values()), -1)
        if u.shape[1] != len(self.problem):
            raise ProgramError(
                f"the model draws latents for {u.shape[1]} rows where x has {len(self.problem)}: a subsampling plate cannot be "
                "scored. Let the data plate run over the rows that are passed in."
            )
        return u

    def __call__(self, u: Tensor) -> Point:
        """Compute values and gradients at u ``(chains, N, D)``: one run of the model, and one of the guide if it starts.

        Values are NaN for the chains at which a covariance is singular: no chain moves there, and a start there is refused.
        """
        if self.graphs is not None and (point := self.graphs(self, u)) is not None:
            return point
        try:
            return self.evaluate(u)
        except torch.linalg.LinAlgError:
            with NaNWhereSingular():
                return self.evaluate(u)

    def transition(self, beta: float, point: Point, step: Tensor, leapfrogs: int) -> tuple[Point, Tensor] | None:
        """Make a transition as it is recorded on a GPU; None where it is not."""
        return None if self.graphs is None else self.graphs.transition(self.problem.args, beta, point, step, leapfrogs)

    def evaluate(self, u: Tensor) -> Point:
        """Compute values and gradients, or raise where torch does."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            start, ratio = self.scores(u)
            d_start, d_ratio = gradient(start, u), gradient(ratio, u)
            d_ratio = d_ratio.masked_fill((ratio == -math.inf)[..., None], 0)  # where p(x, z) is 0 it may be NaN
        return Point(u.detach(), start.detach(), ratio.detach(), d_start, d_ratio)

    def scores(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(log start, log joint − log start), each ``(chains, N)``."""
        substituted = SubstituteLatents.at(u, self.layouts)
        p = self.problem.sites(self.problem.model, len(u), substituted)
        latents, jacobian = latent_sites(p), total(substituted.log_jacobians(p))
        prior, likelihood = self.log_prior(latents), self.log_prob(observed_sites(p))
        if self.from_prior:
            return prior + jacobian, likelihood
        same = SubstituteLatents({name: site["value"] for name, site in latents.items()})
        guide = total(self.problem.score(self.problem.sites(self.problem.guide, len(u), same), "guide"))
        start = self.log_start(prior, guide)
        return start + jacobian, likelihood + prior - start

    def log_start(self, prior: Tensor, guide: Tensor) -> Tensor:
        """Log density of the start, of the prior's and the guide's: the guide's own."""
        return guide

    def log_prior(self, latents: Sites) -> Tensor:
        """log p(z), ``(chains, N)``."""
        return self.log_prob(latents)

    def log_prob(self, sites: Sites) -> Tensor:
        """Add up sites' log-probabilities, ``(chains, N)``."""
        return total(self.problem.score(sites, "model"))


def total(terms: dict[str, Tensor]) -> Tensor:
    """Add up the sites' terms in float64."""
    return sum_terms({name: term.double() for name, term in terms.items()})


def gradient(y: Tensor, u: Tensor) -> Tensor:
    """∂y/∂u for y ``(chains, N)`` whose every entry depends on its own u alone; zero where it depends on none."""
    if not y.requires_grad:
        return torch.zeros_like(u)
    return torch.autograd.grad(y.sum(), u, retain_graph=True, materialize_grads=True)[0]


def check_finite(name: str, u: Tensor, problem: Problem) -> None:
    """Refuse draws on the edge of the support, which lie at infinity in u, or outside it."""
    if (bad := ~u.isfinite().flatten(2).all(2).all(0)).any():
        raise ProgramError(
            f"site {name!r}: draws for rows {problem.numbers(bad)} lie on the edge of the support that the "
            "model gives it, or outside: they have no place on the real line. Give the guide the support of the prior, and "
            "keep either away from 0 and 1 (float64 helps)."
        )
