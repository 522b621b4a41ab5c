r"""The best of the guide's own family for each row: q(z | x_n) = q(z; λ_n), every λ_n free, none from an encoder."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, transform_to

from pyro_vae.common.pyro_private import mask_of
from pyro_vae.errors import ProgramError
from pyro_vae.programs.log_density import fixed, known_support
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import Site
from pyro_vae.programs.wrapped import base_name

from .flat_gradient import FlatGradient

PROBES = 4  # particles on which a site's parameters must agree, to be those of the row alone
SAME = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}  # the latter is free
Free = dict[str, list[Tensor]]


@dataclass(frozen=True)
class PosteriorFamily:
    """A distribution as a function of unconstrained tensors, ``(1, N, …)`` each, where they start, and the mask of its site."""

    start: list[Tensor]
    build: Callable[[Sequence[Tensor]], Any]
    mask: Any = None


def family_of(fn: Any) -> PosteriorFamily:
    """Find the family of a distribution: its class, over all values of its arguments."""
    if isinstance(fn, Independent):
        base, dims = family_of(fn.base_dist), fn.reinterpreted_batch_ndims
        return PosteriorFamily(base.start, lambda free: dist.Independent(base.build(free), dims))
    if isinstance(fn, dist.MaskedDistribution):
        inner, mask = family_of(fn.base_dist), of_first(mask_of(fn), fn.base_dist.batch_shape)
        return PosteriorFamily(inner.start, lambda free: inner.build(free).mask(mask))
    if isinstance(fn, MixtureSameFamily):
        weights, parts = family_of(fn.mixture_distribution), family_of(fn.component_distribution)
        count, kind = len(weights.start), type(fn)
        return PosteriorFamily(
            weights.start + parts.start,
            lambda free: kind(weights.build(free[:count]), parts.build(free[count:]), validate_args=False),
        )
    return elementary(fn)


def elementary(fn: Any) -> PosteriorFamily:
    """Find the family of a distribution of tensors: those that have a constraint are free, the others stay."""
    kind, arguments = type(fn), inspect.signature(type(fn).__init__).parameters
    limits = {n: c for n, c in fn.arg_constraints.items() if n in arguments and not c.is_discrete}
    limits = {n: c for n, c in limits.items() if SAME.get(n) not in fn.arg_constraints}
    if not limits:
        raise TypeError("it has no parameters of its own")
    needed = [n for n, a in arguments.items() if n != "self" and a.default is a.empty and n not in limits]
    fixed = {n: one_particle(getattr(fn, n), fn) for n in needed}
    maps = {n: transform_to(c) for n, c in limits.items()}
    start = [transform.inv(one_particle(getattr(fn, n), fn)).clone() for n, transform in maps.items()]

    def build(free: Sequence[Tensor]) -> Any:
        values = {n: transform(v) for (n, transform), v in zip(maps.items(), free, strict=True)}
        return kind(**values, **fixed, validate_args=False)

    return PosteriorFamily(start, build)


def one_particle(value: Any, fn: Any) -> Any:
    """Return a parameter of the first particle, ``(1, N, …)``, if it is that of all."""
    if not isinstance(value, Tensor) or value.shape[: len(fn.batch_shape)] != fn.batch_shape:
        return value
    if not torch.equal(value, value[:1].expand_as(value)):
        raise ValueError("its parameters depend on the draws of other sites, so a row has no one set of them")
    return value[:1].detach()


def of_first(mask: Any, batch_shape: torch.Size) -> Any:
    """Return the mask of the first particle, if it is that of all."""
    if not isinstance(mask, Tensor) or mask.dim() < len(batch_shape):
        return mask
    if not torch.equal(mask, mask[:1].expand_as(mask)):
        raise ValueError("its mask depends on the draws of other sites, so a row has no one best distribution")
    return mask[:1]


def local_sites(problem: Problem) -> dict[str, PosteriorFamily]:
    """Find the families of the guide's sites, with parameters of each row's own; a ProgramError for a site that has none."""
    q, _ = problem.draw(PROBES)
    return {name: local_site(name, site) for name, site in q.items()}


def local_site(name: str, site: Site) -> PosteriorFamily:
    fn, mask = site["fn"], site["mask"]
    if not fn.has_rsample:
        raise refused(name, fn, "it has no reparameterised draws (rsample), whose gradient finds the best parameters")
    if not fixed(known_support(fn, latent=True)):
        raise refused(name, fn, "its support moves with its parameters, and may come to leave out what p(x, z) allows")
    try:
        family = replace(family_of(fn), mask=of_first(mask, fn.batch_shape))
        again = family.build(family.start).log_prob(site["value"])
        first = fn.log_prob(site["value"])
    except (NotImplementedError, TypeError, AttributeError, IndexError, RuntimeError, ValueError) as error:
        raise refused(name, fn, str(error) or type(error).__name__) from error
    if not all(t.isfinite().all() for t in family.start):
        raise refused(name, fn, "its parameters are not finite, or on the edge of what they may be, for some rows")
    if again.shape != first.shape or not torch.allclose(again, first, rtol=1e-3, atol=1e-3):
        raise refused(name, fn, "made again from its parameters it has another density")
    return family


def refused(name: str, fn: Any, why: str) -> ProgramError:
    return ProgramError(
        f"site {name!r}: the best {base_name(fn)} for each row cannot be found: {why}. Gaps are taken of guides whose "
        "sites are distributions with parameters of x alone (Normal, MultivariateNormal, LogNormal, Gamma, Beta, mixtures "
        "with rsample …); of others, log p(x) − ELBO is one number: log_likelihood(...).gap."
    )


def fitted(problem: Problem, sites: dict[str, PosteriorFamily], free: Free) -> Problem:
    """Give the problem a guide that draws each site from its family at these parameters."""
    plates = problem.plates

    def guide(*args: Any) -> None:
        with pyro.plate(plates.data, len(args[0]), dim=plates.dim):
            for name, site in sites.items():
                with nullcontext() if site.mask is None else poutine.mask(mask=site.mask):
                    pyro.sample(name, site.build(free[name]))

    return replace(problem, guide=guide, vectorizing=replace(problem.vectorizing, guide="plate"))


def start_of(sites: dict[str, PosteriorFamily]) -> Free:
    return {name: site.start for name, site in sites.items()}


def copy_of(free: Free) -> Free:
    return {name: [t.detach().clone() for t in tensors] for name, tensors in free.items()}


def path_bound(problem: Problem, sites: dict[str, PosteriorFamily], free: Free, particles: int) -> Tensor:
    r"""mean_k log p(x, z_k) − log q(z_k; λ fixed), ``(N,)``: its gradient is that of the ELBO, and 0 where q is exact."""
    q, p = fitted(problem, sites, free).draw(particles)
    log_p, fixed = problem.log_prob(p), copy_of(free)  # in this order: it is that in which gradients are added up
    log_q = problem.log_prob({n: {**q[n], "fn": site.build(fixed[n])} for n, site in sites.items()})
    return (log_p - log_q).mean(0)


def loss_gradient(problem: Problem, sites: dict[str, PosteriorFamily], particles: int, *leaves: Tensor) -> list[Tensor]:
    """Differentiate −:func:`path_bound`, summed over rows, by the free tensors of all sites, one after the other."""
    with torch.enable_grad():
        own = [leaf.detach().requires_grad_() for leaf in leaves]
        rest = iter(own)
        free = {name: [next(rest) for _ in site.start] for name, site in sites.items()}
        loss = -path_bound(problem, sites, free, particles).sum()
        return list(torch.autograd.grad(loss, own))


def optimise(
    problem: Problem, sites: dict[str, PosteriorFamily], steps: int, particles: int, lr: float
) -> tuple[Free, Free]:
    r"""λ_n about half way and after all steps: Adam with fresh draws, its rate from `lr` down to 0 by a cosine.

    Half way is the mean over the middle fifth of the steps, so that the jitter of single steps is no lack of convergence.
    Adam is elementwise, so rows do not see one another. No gradient is left on the programs' parameters.
    """
    free = copy_of(start_of(sites))
    leaves = [t.requires_grad_() for tensors in free.values() for t in tensors]
    adam, half = torch.optim.Adam(leaves, lr=lr), {name: [0 * t.detach() for t in ts] for name, ts in free.items()}
    halves = [t for tensors in half.values() for t in tensors]
    middle = range(2 * steps // 5, max(3 * steps // 5, 2 * steps // 5 + 1))
    gradient_of = FlatGradient(partial(loss_gradient, problem, sites, particles), steps)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        for leaf, gradient in zip(leaves, gradient_of(leaves), strict=True):
            leaf.grad = gradient.nan_to_num(0.0, 0.0, 0.0)  # a draw that has no gradient moves nothing
        adam.step()
        if step in middle:
            for mean, leaf in zip(halves, leaves, strict=True):
                mean += leaf.detach() / len(middle)
    return half, copy_of(free)
