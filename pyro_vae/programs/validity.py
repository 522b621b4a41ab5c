r"""Parameters and supports, checked where numbers are made.

With its validation off, torch evaluates a density's formula for any parameters and at any value: a negative binomial of
total_count −2.5 gives P(0) = 2.19, an Exponential 1.7 nats at −1.7. Here invalid parameters are an error, and outside its
support a density is 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, constraints

from pyro_vae.common.pyro_private import mask_of
from pyro_vae.errors import ProgramError

from .pair import quiet
from .plates import Plates, frames_of, sum_rows
from .sites import Program, Site, has_density, trace_pair
from .support import bare, format_support
from .vectorize import ParticleDistribution, join, split_support

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)
REAL = type(constraints.real)
SIMPLEX = type(constraints.simplex)
CIRCULAR = ("VonMises", "SineBivariateVonMises")  # torch calls their support real; one turn holds all of their mass
TURN = constraints.interval(-math.pi, math.pi)
THIN = 1e-3  # of vectors that sum to 1 or have length 1: what rounding leaves of that, not what torch's 1e-6 admits


# --- densities ------------------------------------------------------------------------------------------------------------


def log_density(fn: Any, value: Tensor, latent: bool = True) -> Tensor:
    """log p(value), −∞ outside the support, where torch's formula goes on; NaN values stay NaN.

    A support that is not declared, or holds all real numbers, is not checked. An observed angle (`latent` False) counts
    modulo one turn.

    Example:
        >>> import pyro.distributions as dist
        >>> log_density(dist.Exponential(1.0), torch.tensor([-1.0, 1.0]))
        tensor([-inf, -1.])
    """
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
    if value.device.type == "cpu" and surely_inside(support, value) and not event_dim:
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
    base = fn.base_dist
    while isinstance(base, WRAPPERS):
        base = base.base_dist
    support = known_support(base, True)
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
    """The support that a distribution declares, None where it declares none."""
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
    """A value inside a support, of the type of `value`, where one is known by its kind."""
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


def row_log_density(name: str, site: Site, plates: Plates, checked: bool = False, scale: Any = 1.0) -> Tensor:
    """One site's :func:`log_density` times `scale`, summed over inner plates and masked: ``(K, N)``.

    `checked`: the site's value was found in its support before; only a support that moves with the latents is checked again.
    """
    fn, value = site["fn"], site["value"]
    latent = not site["is_observed"]
    as_it_is = not bounded(fn, latent) or (checked and fixed(known_support(fn, latent)))
    log_prob = fn.log_prob(value) if as_it_is else inside_density(fn, value, latent)
    if isinstance(scale, float | int) and scale == 0:
        log_prob = torch.zeros_like(log_prob)  # 0 · −∞ would be NaN
    return sum_rows(name, scale_and_mask(log_prob, scale=scale, mask=site["mask"]), plates)


def score_sites(
    sites: Mapping[str, Site],
    plates: Plates,
    *,
    first: int = 0,
    program: str = "",
    checked: Container[str] = (),
    scales: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Score sites at their values, ``(K, N)`` each, inside their supports; a ProgramError for invalid parameters.

    Where a latent of these sites lies outside its support p(z) is 0, and what the program computes from it counts for
    nothing: invalid parameters there are no error, and NaN is −∞.

    Args:
        first: number of the first row, for messages.
        program: "model" or "guide", likewise.
        checked: sites whose data was found in its support.
        scales: a factor by site.
    """
    weights = scales or {}
    terms = {n: row_log_density(n, site, plates, n in checked, weights.get(n, 1.0)) for n, site in sites.items()}
    finite = all(map(surely_finite, terms.values()))
    nowhere = () if finite else [terms[n] == -math.inf for n, site in sites.items() if not site["is_observed"]]
    dead = reduce(operator.or_, nowhere) if nowhere else None
    check_site_parameters(sites, plates.dim, first=first, program=program, dead=dead, plates=plates, finite=finite)
    if dead is None:
        return terms
    return {name: torch.where(dead & term.isnan(), -math.inf, term) for name, term in terms.items()}


def surely_finite(term: Tensor) -> bool:
    """Return whether all entries are finite, where nothing needs to wait for it: then their sum is."""
    return term.device.type == "cpu" and math.isfinite(term.detach().sum().item())


# --- parameters -----------------------------------------------------------------------------------------------------------


class Parameter(NamedTuple):
    """A parameter of a distribution, or of one that it is made of, with the constraint that its class declares."""

    owner: str  # the distribution's class
    name: str
    value: Tensor
    constraint: Any
    right: int  # dimensions of the value to the right of the site's batch shape
    masks: tuple[Tensor, ...]  # where it counts
    logged: bool  # log of it is a term of log p: where it is below 0 that is NaN


def parameters_of(fn: Any, right: int = 0, masks: tuple[Tensor, ...] = (), direct: bool = True) -> Iterator[Parameter]:
    """Yield each parameter that has a constraint, of a distribution and of all that it is made of."""
    if isinstance(fn, ParticleDistribution):
        yield from of_particles(fn, right, masks, direct)
        return
    held, kind = vars(fn), type(fn)
    for name, constraint, logged in constrained(fn):
        value = held.get(name)
        if isinstance(value, Tensor) and value.numel():
            event_dim = constraint.event_dim
            yield Parameter(kind.__name__, name, value, constraint, right + event_dim, masks, logged and direct)
    direct = direct and isinstance(fn, (*WRAPPERS, TransformedDistribution))
    for name, part in held.items():
        for one in part if isinstance(part, list | tuple) else (part,):
            if isinstance(one, Distribution):
                yield from parameters_of(one, right + inner_dims(fn, name), masks + masks_of(fn, name), direct)


def of_particles(fn: ParticleDistribution, right: int, masks: tuple[Tensor, ...], direct: bool) -> Iterator[Parameter]:
    """Yield the parameters of all parts, ``(K, ..., N, ...)``."""
    grouping = replace(fn.grouping, taken=0)
    for same in zip(*(parameters_of(part, right, masks, direct) for part in fn.parts), strict=True):
        value = join([grouping.split(p.value, p.right) for p in same])
        constraint = split_support(
            [p.constraint for p in same], grouping, same[0].right
        )  # its bounds may be of rows, too
        of = same[0]
        yield Parameter(of.owner, of.name, value, constraint, of.right, of.masks, of.logged)


Constrained = tuple[str, Any, bool]  # name, constraint, and whether log of it is a term of log p
LOGGED = {"Exponential": "rate"} | dict.fromkeys(
    ("Normal", "Laplace", "Cauchy", "StudentT", "Gumbel", "Logistic"), "scale"
)


def inner_dims(fn: Any, name: str) -> int:
    """Count the batch dimensions that a part has to the right of the whole's."""
    if isinstance(fn, Independent):
        return int(fn.reinterpreted_batch_ndims)
    return int(isinstance(fn, MixtureSameFamily) and name == "_component_distribution")


def masks_of(fn: Any, name: str) -> tuple[Tensor, ...]:
    """Return where a part of a distribution counts, if not everywhere."""
    if isinstance(fn, MaskedDistribution):
        return (torch.as_tensor(mask_of(fn)),)
    if name in ("component0", "component1") and isinstance(mask := getattr(fn, "mask", None), Tensor):
        return (mask if name == "component1" else ~mask,)
    return ()


def constrained(fn: Any) -> tuple[Constrained, ...]:
    """The parameters of a distribution that its classes put a constraint on."""
    of_all = of_class(fn.__class__)
    return checkable(type(fn), fn.arg_constraints) if of_all is None else of_all


def vars_of_class(kind: type, name: str) -> Any:
    """Look up an attribute of a class without calling it."""
    return next((vars(c)[name] for c in kind.__mro__ if name in vars(c)), None)


@cache
def of_class(kind: type) -> tuple[Constrained, ...] | None:
    """Gather the constraints of a class and of its bases (Chi2 is a Gamma); None where bounds are parameters (Uniform)."""
    if isinstance(vars_of_class(kind, "arg_constraints"), property):
        return None
    declared: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        own = vars(base).get("arg_constraints")
        declared |= own if isinstance(own, Mapping) else {}
    return checkable(kind, declared)


def checkable(kind: type, declared: Mapping[str, Any]) -> tuple[Constrained, ...]:
    """Leave out what any number satisfies, and what cannot be told."""
    theirs = kind.__module__.startswith(("torch.", "pyro."))
    left = {n: c for n, c in declared.items() if not (constraints.is_dependent(c) or isinstance(bare(c), REAL))}
    return tuple((name, constraint, theirs and LOGGED.get(kind.__name__) == name) for name, constraint in left.items())


def suspicious(parameter: Parameter) -> bool | Tensor:
    """Return whether a parameter may be invalid somewhere (or NaN): one pass over what is stored of it."""
    value, inner = stored(parameter.value.detach()), bare(parameter.constraint)
    low, high = (0.0, None) if isinstance(inner, SIMPLEX) else ends_of(inner)
    if inner.is_discrete or not any(isinstance(end, float | int) for end in (low, high)):
        flag = violated(value, parameter.constraint).any()
        return bool(flag) if value.device.type == "cpu" else flag
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if value.device.type != "cpu":
        return ~((value >= low) & (value <= high)).all()
    least, largest = (value.item(),) * 2 if value.numel() == 1 else (end.item() for end in value.aminmax())
    return not (low <= least and largest <= high)


def ends_of(constraint: Any) -> tuple[Any, Any]:
    """Return the bounds of a constraint, None where it has none."""
    return getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)


def stored(value: Tensor) -> Tensor:
    """Leave out repetitions along dimensions that were expanded."""
    if value.layout != torch.strided or 0 not in (strides := value.stride()):
        return value
    return value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in strides)]


def violated(value: Tensor, constraint: Any) -> Tensor:
    """Return where a parameter is invalid; never where it is NaN, which the weights show.

    The end of an open bound passes: there a network's exp or softplus has underflowed, and the density is 0 or NaN.
    """
    inner, kind = bare(constraint), type(bare(constraint)).__name__
    low, high = ends_of(inner)
    if low is not None or high is not None:
        outside = torch.zeros_like(value, dtype=torch.bool)
        outside = outside if low is None else outside | (value < low)
        outside = outside if high is None else outside | (value > high)
        return outside | (value % 1 != 0) & ~value.isnan() if inner.is_discrete else outside
    if isinstance(inner, SIMPLEX):  # torch divides by the sum itself
        return (value < 0).any(-1)
    if "PositiveDefinite" in kind:  # that it is definite, its Cholesky factor has shown
        return ~torch.isclose(value, value.mT, rtol=1e-3, atol=1e-5, equal_nan=True).flatten(-2).all(-1)
    if "Sphere" in kind:
        return (value.norm(dim=-1) - 1).abs() > THIN
    if "Corr" in kind:
        return value.new_zeros(value.shape[:-2], dtype=torch.bool)
    wrong: Tensor = ~constraint.check(value)
    event_dim = value.dim() - wrong.dim()
    return wrong & ~(value.isnan().flatten(-event_dim).any(-1) if event_dim else value.isnan())


def check_site_parameters(
    sites: Mapping[str, Site],
    dim: int,
    *,
    first: int = 0,
    program: str = "",
    dead: Tensor | None = None,
    plates: Plates | None = None,
    finite: bool = False,
) -> None:
    """Refuse invalid parameters by site, row and parameter; nothing is said where a mask leaves them out.

    Args:
        dim: the data plate's dimension, from the right.
        dead: ``(K, N)``, particles at which p(z) is 0 already; `plates` says where they lie.
        finite: all log-probabilities are: some invalid parameters would have made them NaN, and need no look.
    """
    found = [
        (name, parameter, suspicious(parameter))
        for name, site in sites.items()
        for parameter in parameters_of(site["fn"])
        if not (finite and parameter.logged)
    ]
    if not any_of([flag for _, _, flag in found]):
        return
    for name, parameter, flag in found:
        if flag:
            wrong = where_it_counts(sites[name], parameter, dead, plates)
            if wrong.any():
                raise ProgramError(describe_parameter(name, parameter, wrong, dim, first, program))


def any_of(flags: Sequence[bool | Tensor]) -> bool:
    """Return whether any flag holds, and wait for a GPU once."""
    waiting = [flag for flag in flags if isinstance(flag, Tensor)]
    return any(flag is True for flag in flags) or (bool(waiting) and bool(torch.stack(waiting).any()))


def where_it_counts(site: Site, parameter: Parameter, dead: Tensor | None, plates: Plates | None) -> Tensor:
    """Return where a parameter is invalid and its density counts, in the batch shape of the site."""
    wrong = violated(parameter.value.detach(), parameter.constraint)
    dims = parameter.right - (parameter.value.dim() - wrong.dim())
    wrong = wrong.flatten(-dims).any(-1) if dims > 0 and wrong.dim() >= dims else wrong
    wrong = in_shape(wrong, site["fn"].batch_shape)
    for mask in (*parameter.masks, site["mask"]):
        if mask is not None:
            wrong = wrong & in_shape(torch.as_tensor(mask, device=wrong.device), wrong.shape)
    return wrong if dead is None or plates is None else wrong & ~plates.beside(dead)


def in_shape(mask: Tensor, shape: torch.Size) -> Tensor:
    """Lay out a mask as a batch, where it fits; a program may be run with particles and rows in one dimension."""
    if mask.numel() == math.prod(shape):
        return mask.reshape(shape)
    try:
        return mask.expand(torch.broadcast_shapes(mask.shape, shape))
    except RuntimeError:
        return mask.any().expand(shape)


FIXES = {
    "simplex": "Pass the network's output through softmax, or give it as logits=.",
    "unit": "Pass the network's output through sigmoid, or give it as logits=.",
    "whole": "Give whole numbers from 0.",
    "ends": "Compute one end from the other, as in high = low + softplus(width).",
    "positive": "Pass the network's output through softplus or exp.",
    "other": "Pass the network's output through transform_to(constraint) of torch.distributions.",
}


def fix_of(constraint: Any) -> str:
    """Say how to make a parameter satisfy a constraint."""
    inner = bare(constraint)
    low, high = ends_of(inner)
    if isinstance(inner, SIMPLEX):
        return FIXES["simplex"]
    if any(isinstance(end, Tensor) for end in (low, high)):
        return FIXES["ends"]
    if inner.is_discrete:
        return FIXES["whole"]
    return FIXES["other" if low is None else "positive" if high is None else "unit"]


def describe_parameter(name: str, parameter: Parameter, wrong: Tensor, dim: int, first: int, program: str) -> str:
    """Describe an invalid parameter: site, program, value, rows, what was wanted, and the fix."""
    wrong = wrong.movedim(dim, 0) if wrong.dim() >= -dim else wrong.any().unsqueeze(0)
    by_row = wrong.reshape(len(wrong), -1).any(1)
    rows = [first + row for row in by_row.nonzero().flatten()[:5].tolist()]
    value, inner = parameter.value.detach(), bare(parameter.constraint)
    bad = violated(value, parameter.constraint)
    entries = value[bad].flatten() if bad.shape == value.shape else value[bad].amin(-1).flatten()
    where = f"{name!r}{f' of the {program}' if program else ''}"
    some = "" if bool(wrong[by_row].all()) else " at some draws or entries"
    number = f"{entries[0].item():g}" if entries.numel() else "invalid"
    bounds = {"ends": "numbers below high" if hasattr(inner, "upper_bound") else "numbers above low"}
    wanted = bounds["ends"] if fix_of(inner) == FIXES["ends"] else words_of(inner)
    return (
        f"site {where}: {parameter.owner} has {parameter.name} {number} for rows {rows}{some}; wanted {wanted}. "
        f"{fix_of(inner)}"
    )


def words_of(constraint: Any) -> str:
    """A constraint in words."""
    return "probabilities from 0" if isinstance(constraint, SIMPLEX) else format_support(constraint)


def check_pair_parameters(model: Program, guide: Program, *args: Tensor) -> None:
    """Refuse invalid parameters of either program by one run on some rows, before torch's validation does without a row."""
    with quiet(model, guide, seed=0, device=args[0].device):
        q, p = trace_pair(model, guide, *args)
        dims = [frame.dim for site in (q | p).values() for frame in frames_of(site).values() if frame.dim is not None]
        check_site_parameters(q, max(dims, default=-1), program="guide")
        if not any(outside_support(p[name]).any() for name in q if name in p):  # what comes of those counts for nothing
            check_site_parameters(p, max(dims, default=-1), program="model")


class ValidParameters(Messenger):
    """Messenger that refuses invalid parameters before a site is drawn: torch's samplers stop without naming it, or draw.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with ValidParameters("model"), pyro.plate("data", 2):
        ...     pyro.sample("x", dist.Poisson(torch.tensor([1.0, -1.0])))
        Traceback (most recent call last):
        pyro_vae.errors.ProgramError: site 'x' of the model: Poisson has rate -1 for rows [1]; wanted numbers from 0. Pass ...
    """

    def __init__(self, program: str = "", first: int = 0) -> None:
        super().__init__()
        self.program, self.first = program, first

    def _pyro_sample(self, msg: Any) -> None:
        if has_density(msg):
            frames = frames_of(msg)
            frame = frames.get("data") or next(iter(frames.values()), None)
            dim = -1 if frame is None or frame.dim is None else frame.dim
            check_site_parameters({msg["name"]: msg}, dim, first=self.first, program=self.program)


def outside_support(site: Site) -> Tensor:
    """Return where a latent's value lies outside its support, of the batch shape; NaN counts as outside."""
    value, fn = site["value"], site["fn"]
    if bounded(fn):
        return ~(log_density(fn, value) > -math.inf)
    return value.isnan().reshape(*value.shape[: value.dim() - fn.event_dim], -1).any(-1)
