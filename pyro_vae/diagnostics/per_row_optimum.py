r"""The best of the guide's own family for each row: q(z | x_n) = q(z; λ_n), every λ_n free, none from an encoder.

Where a site's parameters depend on draws of another, η(z′, x_n), a row has no one set of them: the guide's own map of z′ stays,
and is moved by an offset of the row, q(z | z′, x_n) = q(z; η(z′, x_n) + δ_n), δ_n free from 0. So is the base of a flow, whose
transforms stay. Such a q* is of the guide's family, and as good as the guide at least; with maps of its own a row might find a
better one.

Sites that are drawn without a path to their parameters (discrete ones, angles, mixtures) climb by the score, q's log-density
times how much better a draw did than the others of its row.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.log_density import fixed, known_support
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import Program, Site
from pyro_vae.programs.vectorize_probe import refuse_random_guide
from pyro_vae.programs.wrapped import base_name

from .flat_gradient import FlatGradient
from .posterior_families import (
    DependsOnDraws,
    Families,
    OffsetFamily,
    PosteriorFamily,
    family_of,
    of_first,
    offsets_of,
)

PROBES = 4  # particles on which a site's parameters must agree, to be those of the row alone
UNMOVED = "pyro_vae: as the guide drew it"  # of a site's infer: its distribution before the offset
Free = dict[str, list[Tensor]]


def has_paths(problem: Problem) -> bool:
    """Return whether every site of the guide is drawn by a path to its parameters."""
    return all(site["fn"].has_rsample for site in problem.draw(1)[0].values())


def local_sites(problem: Problem) -> Families:
    """Find the families of the guide's sites, with parameters of each row's own; a ProgramError for a site that has none."""
    q, _ = problem.draw(PROBES)
    sites = {name: local_site(name, site) for name, site in q.items()}
    if moved := moved_sites(sites):
        check_movable(problem, moved[0], q[moved[0]]["fn"])
    return sites


def moved_sites(sites: Families) -> list[str]:
    """Name the sites that have offsets."""
    return [name for name, site in sites.items() if isinstance(site, OffsetFamily)]


def check_movable(problem: Problem, name: str, fn: Any) -> None:
    """Refuse a guide that cannot be run with another distribution in a site's place, K particles at a time."""
    refuse_random_guide(problem)
    if problem.vectorizing.guide != "plate":
        raise refused(name, fn, "its parameters depend on the draws of other sites, and the guide does not broadcast")
    if getattr(problem.guide, "moves", None):
        raise refused(
            name, fn, "its parameters depend on the draws of other sites, some of which are made of auxiliary ones"
        )


def local_site(name: str, site: Site) -> PosteriorFamily | OffsetFamily:
    fn, mask = site["fn"], site["mask"]
    if not fixed(known_support(fn, latent=True)):
        raise refused(name, fn, "its support moves with its parameters, and may come to leave out what p(x, z) allows")
    try:
        family = family_of_site(fn, mask)
        again = family.at(family.start, fn).log_prob(site["value"])
        first = fn.log_prob(site["value"])
    except (NotImplementedError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise refused(name, fn, str(error) or type(error).__name__) from error
    if not all(t.isfinite().all() for t in family.start):
        raise refused(name, fn, "its parameters are not finite, or on the edge of what they may be, for some rows")
    if again.shape != first.shape or not torch.allclose(again, first, rtol=1e-3, atol=1e-3):
        raise refused(name, fn, "made again from its parameters it has another density")
    return family


def family_of_site(fn: Any, mask: Any) -> PosteriorFamily | OffsetFamily:
    """Find the family of a site's distribution: with parameters of the row alone, or else offsets to them."""
    own = of_first(mask, fn)
    try:
        return replace(family_of(fn), mask=own)
    except DependsOnDraws:
        return offsets_of(fn)


def refused(name: str, fn: Any, why: str) -> ProgramError:
    return ProgramError(
        f"site {name!r}: the best {base_name(fn)} for each row cannot be found: {why}. Gaps are taken of guides whose "
        "sites are distributions with parameters (Normal, MultivariateNormal, LogNormal, Gamma, Beta, Categorical, mixtures, "
        "flows of these …); of others, log p(x) − ELBO is one number: log_likelihood(...).gap."
    )


class MoveSites(Messenger):
    """Draw each site from its family at these parameters, or moved by these offsets, in the place of what the guide says."""

    def __init__(self, sites: Families, free: Free) -> None:
        super().__init__()
        self.sites, self.free = sites, free

    def _pyro_sample(self, msg: Any) -> None:
        if (site := self.sites.get(msg["name"])) is not None:
            msg["infer"] = {**(msg["infer"] or {}), UNMOVED: msg["fn"]}
            msg["fn"] = site.at(self.free[msg["name"]], msg["fn"])


def fitted(problem: Problem, sites: Families, free: Free) -> Problem:
    """Give the problem a guide that draws each site from its family at these parameters."""
    if moved_sites(sites):  # what a site is moved from, the guide alone can say
        return replace(problem, guide=MoveSites(sites, free)(problem.guide))
    return replace(
        problem, guide=of_parameters(problem, sites, free), vectorizing=replace(problem.vectorizing, guide="plate")
    )


def of_parameters(problem: Problem, sites: Families, free: Free) -> Program:
    """Make a guide of parameters alone, which needs no encoder."""
    plates = problem.plates

    def guide(*args: Any) -> None:
        with pyro.plate(plates.data, len(args[0]), dim=plates.dim):
            for name, site in sites.items():
                mask = getattr(site, "mask", None)
                with nullcontext() if mask is None else poutine.mask(mask=mask):
                    pyro.sample(name, site.at(free[name], None))

    return guide


def start_of(sites: Families) -> Free:
    return {name: site.start for name, site in sites.items()}


def copy_of(free: Free) -> Free:
    return {name: [t.detach().clone() for t in tensors] for name, tensors in free.items()}


def path_bound(problem: Problem, sites: Families, free: Free, particles: int) -> Tensor:
    r"""mean_k log p(x, z_k) − log q(z_k; λ fixed), ``(N,)``: its gradient is that of the ELBO, and 0 where q is exact."""
    q, p = fitted(problem, sites, free).draw(particles)
    log_p, fixed = problem.log_prob(p), copy_of(free)  # in this order: it is that in which gradients are added up
    again = {n: site.at(fixed[n], (q[n]["infer"] or {}).get(UNMOVED)) for n, site in sites.items()}
    log_w = log_p - problem.log_prob({n: {**q[n], "fn": fn} for n, fn in again.items()})
    if pathless := {name: site for name, site in q.items() if not site["fn"].has_rsample}:
        log_w = log_w + scored(log_w, problem.log_prob(pathless))
    return log_w.mean(0)


def scored(log_w: Tensor, log_q: Tensor) -> Tensor:
    r"""0, with the gradient (log w_k − mean_{j≠k} log w_j) ∇ log q(z_k), ``(K, N)``: Kool, van Hoof & Welling (2019)."""
    particles, finite = len(log_w), log_w.detach().nan_to_num(0.0, 0.0, 0.0)
    better = finite if particles == 1 else (finite - finite.mean(0)) * particles / (particles - 1)
    return better * (log_q - log_q.detach())


def loss_gradient(problem: Problem, sites: Families, particles: int, *leaves: Tensor) -> list[Tensor]:
    """Differentiate −:func:`path_bound`, summed over rows, by the free tensors of all sites, one after the other."""
    with torch.enable_grad():
        own = [leaf.detach().requires_grad_() for leaf in leaves]
        rest = iter(own)
        free = {name: [next(rest) for _ in site.start] for name, site in sites.items()}
        loss = -path_bound(problem, sites, free, particles).sum()
        return list(torch.autograd.grad(loss, own))


def optimise(problem: Problem, sites: Families, steps: int, particles: int, lr: float) -> tuple[Free, Free]:
    r"""λ_n about half way and after all steps: Adam with fresh draws, its rate from `lr` down to 0 by a cosine.

    Half way is the mean over the middle fifth of the steps, so that the jitter of single steps is no lack of convergence.
    Adam is elementwise, so rows do not see one another. No gradient is left on the programs' parameters.
    """
    free = copy_of(start_of(sites))
    leaves = [t.requires_grad_() for tensors in free.values() for t in tensors]
    adam, half = torch.optim.Adam(leaves, lr=lr), {name: [0 * t.detach() for t in ts] for name, ts in free.items()}
    halves = [t for tensors in half.values() for t in tensors]
    middle = range(2 * steps // 5, max(3 * steps // 5, 2 * steps // 5 + 1))
    traced = steps if has_paths(problem) else 0  # draws without a path may ask their values how to go on: no one graph
    gradient_of = FlatGradient(partial(loss_gradient, problem, sites, particles), traced)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        for leaf, gradient in zip(leaves, gradient_of(leaves), strict=True):
            leaf.grad = gradient.nan_to_num(0.0, 0.0, 0.0)  # a draw that has no gradient moves nothing
        adam.step()
        if step in middle:
            for mean, leaf in zip(halves, leaves, strict=True):
                mean += leaf.detach() / len(middle)
    return half, copy_of(free)
