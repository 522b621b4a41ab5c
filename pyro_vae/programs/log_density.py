r"""Densities inside their supports.

With its validation off, torch evaluates a density's formula at any value: an Exponential has 1.7 nats at −1.7. Outside its
support a density is 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, TransformedDistribution, constraints

from pyro_vae.common.doubts import putting_off
from pyro_vae.common.pyro_private import mask_of

from .sites import Site
from .vectorize import ParticleDistribution
from .wide_scoring import wide_enough
from .wrapped import WRAPPERS, bare, elements

REAL = type(constraints.real)
SIMPLEX = type(constraints.simplex)
CIRCULAR = ("VonMises", "SineBivariateVonMises")  # torch calls their support real; one turn holds all of their mass
TURN = constraints.interval(-math.pi, math.pi)
THIN = 1e-3  # of vectors that sum to 1 or have length 1: what rounding leaves of that, not what torch's 1e-6 admits


def log_density(fn: Any, value: Tensor, latent: bool = True) -> Tensor:
    """log p(value), −∞ outside the support, where torch's formula goes on; NaN values stay NaN.

    A support that is not declared, or holds all real numbers, is not checked. An observed angle (`latent` False) counts
    modulo one turn. What cancels is taken in float64 (:func:`~pyro_vae.programs.wide_scoring.wide_enough`).

    Example:
        >>> import pyro.distributions as dist
        >>> log_density(dist.Exponential(1.0), torch.tensor([-1.0, 1.0]))
        tensor([-inf, -1.])
    """
    fn, value = wide_enough(fn, value, latent)
    return inside_density(fn, value, latent) if bounded(fn, latent) else fn.log_prob(value)


def inside_density(fn: Any, value: Tensor, latent: bool) -> Tensor:
    """:func:`log_density` where there is something to check."""
    if isinstance(fn, Independent):
        return sum_rightmost(log_density(fn.base_dist, value, latent), fn.reinterpreted_batch_ndims)
    if isinstance(fn, ExpandedDistribution):
        batch = value.shape[: value.dim() - fn.event_dim]
        return log_density(fn.base_dist, value, latent).expand(torch.broadcast_shapes(fn.batch_shape, batch))
    if isinstance(fn, ParticleDistribution):
        return fn.scored(value, lambda part, own: log_density(part, own, latent))
    if isinstance(fn, MaskedDistribution):
        return scale_and_mask(log_density(fn.base_dist, value, latent), mask=mask_of(fn))
    if isinstance(fn, MixtureSameFamily):
        each = log_density(fn.component_distribution, value.unsqueeze(-1 - len(fn.event_shape)), latent)
        return (each + fn.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)
    return of_leaf(fn, value, latent)


def of_leaf(fn: Any, value: Tensor, latent: bool) -> Tensor:
    """:func:`log_density` of a distribution that wraps no other."""
    event_dim, support = len(fn.event_shape), known_support(fn, latent)
    if value.device.type == "cpu" and not putting_off() and surely_inside(support, value) and not event_dim:
        return fn.log_prob(value)
    inside = within(fn, support, value)
    unknown = value.isnan() if value.is_floating_point() else torch.zeros_like(value, dtype=torch.bool)
    unknown = unknown.flatten(-event_dim).any(-1) if event_dim else unknown
    outside = ~inside & ~unknown
    if (
        anchor := feasible(bare(support), value)
    ) is not None:  # a formula may raise outside, or poison a gradient by NaN
        value = torch.where(outside.reshape(outside.shape + (1,) * event_dim), anchor, value)
    return fn.log_prob(value).masked_fill(outside, -math.inf)


def surely_inside(support: Any, value: Tensor) -> bool:
    """Return whether all values lie between bounds that are plain numbers: one pass, where nothing needs to wait for it."""
    low, high = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    if low is None or not (isinstance(low, float | int) and isinstance(high, float | int)) or support.is_discrete:
        return False
    if (low, high) == (-math.inf, math.inf) or not value.numel():
        return False
    least, largest = (end.item() for end in value.aminmax())
    return low < least and largest < high


def within(fn: Any, support: Any, value: Tensor) -> Tensor:
    """Return which values lie in the support, without their event dimensions."""
    if isinstance(bare(support), SIMPLEX):
        return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < THIN)
    inside: Tensor = torch.ones((), dtype=torch.bool, device=value.device)
    if support is not None:
        inside = support.check(value)
        excess = len(fn.event_shape) - support.event_dim
        inside = inside.flatten(-excess).all(-1) if excess > 0 else inside
    if isinstance(fn, TransformedDistribution) and composed(fn):
        return inside & pulled_back(fn, value)
    return inside


def composed(fn: TransformedDistribution) -> bool:
    """Return whether a support narrower than its last transform's codomain lies further down."""
    return any(narrow(t.codomain) for t in fn.transforms[:-1]) or narrow(known_support(fn.base_dist, True))


def pulled_back(fn: TransformedDistribution, value: Tensor) -> Tensor:
    """Return whether a value is the image of one in the base's support, transform by transform."""
    shape = value.shape[: value.dim() - len(fn.event_shape)]
    inside = torch.ones(shape, dtype=torch.bool, device=value.device)
    for transform in reversed(fn.transforms):
        inside = inside & over(transform.codomain.check(value), shape)
        value = transform.inv(value)
    support = known_support(elements(fn.base_dist), True)
    return inside if support is None else inside & over(support.check(value), shape)


def over(mask: Tensor, shape: torch.Size) -> Tensor:
    """Reduce a mask of elements to one of events, of a batch shape."""
    return mask.flatten(len(shape)).all(-1) if mask.dim() > len(shape) else mask


def bounded(fn: Any, latent: bool = True) -> bool:
    """Return whether a distribution declares a support narrower than all real numbers."""
    if isinstance(fn, MaskedDistribution) and mask_of(fn) is False:
        return False
    if isinstance(fn, WRAPPERS):
        return bounded(fn.base_dist, latent)
    if isinstance(fn, ParticleDistribution):
        return bounded(fn.parts[0], latent)
    if isinstance(fn, MixtureSameFamily):
        return bounded(fn.component_distribution, latent)
    if isinstance(fn, Delta):  # its own log_prob is −∞ elsewhere
        return False
    by_class = narrow_by_class(fn.__class__)
    narrower = narrow(known_support(fn, latent)) if by_class is None else by_class
    return narrower or (isinstance(fn, TransformedDistribution) and composed(fn))


@cache
def narrow_by_class(kind: type) -> bool | None:
    """:func:`narrow` of a support that is the same for all distributions of a class; None where it is not."""
    support = vars_of_class(kind, "support")
    constant = isinstance(support, constraints.Constraint) and not constraints.is_dependent(support)
    return narrow(support) if constant and kind.__name__ not in CIRCULAR else None


def known_support(fn: Any, latent: bool) -> Any:
    """Return the support that a distribution declares, None where it declares none."""
    if latent and type(fn).__name__ in CIRCULAR:
        return constraints.independent(TURN, 1) if fn.event_shape else TURN
    try:
        return fn.support
    except (NotImplementedError, AttributeError):
        return None


def narrow(support: Any) -> bool:
    """Return whether a support is checked: not where it is all of R^n, unknown, or a thin set that only rounding leaves.

    Values on another thin set (a sphere's, correlation matrices) have no density against it at all; none is invented here.
    """
    inner = bare(support)
    if inner is None or constraints.is_dependent(inner) or isinstance(inner, REAL):
        return False
    return not any(word in type(inner).__name__ for word in ("Sphere", "Corr", "Definite", "definite"))


def feasible(support: Any, value: Tensor) -> Tensor | None:
    """Return a value inside a support, of the type of `value`, where one is known by its kind."""
    low, high = ends_of(support)
    if isinstance(support, type(constraints.boolean)):
        return value.new_zeros(())
    if isinstance(support, SIMPLEX):
        return torch.ones_like(value[..., :1]) / value.shape[-1]
    if low is None and high is None:
        return None
    if low is None:
        return torch.as_tensor(high).detach().to(value) - 1
    if support.is_discrete:
        return torch.as_tensor(low).detach().to(value)
    lower = torch.as_tensor(low).detach().to(value)
    return lower + 1 if high is None else (lower + torch.as_tensor(high).detach().to(value)) / 2


def fixed(support: Any) -> bool:
    """Return whether a support has no bound that a program computes: it is the same whatever the latents are."""
    if isinstance(support, list | tuple):
        return all(map(fixed, support))
    parts = vars(support).values() if isinstance(support, constraints.Constraint) else ()
    return not isinstance(support, Tensor) and all(map(fixed, parts))


def vars_of_class(kind: type, name: str) -> Any:
    """Look up an attribute of a class without calling it."""
    return next((vars(c)[name] for c in kind.__mro__ if name in vars(c)), None)


def ends_of(constraint: Any) -> tuple[Any, Any]:
    """Return the bounds of a constraint, None where it has none."""
    return getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)


def outside_support(site: Site) -> Tensor:
    """Return where a latent's value lies outside its support, of the batch shape; NaN counts as outside."""
    value, fn = site["value"], site["fn"]
    if bounded(fn):
        return ~(log_density(fn, value) > -math.inf)
    return value.isnan().reshape(*value.shape[: value.dim() - fn.event_dim], -1).any(-1)
