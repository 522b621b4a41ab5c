r"""Parameters of distributions, checked where numbers are made.

With its validation off, torch evaluates a density's formula for any parameters: a negative binomial of total_count −2.5 gives
P(0) = 2.19. Here invalid parameters are an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution, constraints

from pyro_vae.common.doubts import is_doubtful, putting_off
from pyro_vae.common.pyro_private import mask_of
from pyro_vae.errors import ProgramError

from .log_density import REAL, SIMPLEX, THIN, ends_of, vars_of_class
from .plates import Plates
from .site_rows import rows_where
from .sites import Site
from .support import format_support
from .vectorize import ParticleDistribution, join, split_support
from .wrapped import WRAPPERS, bare

Masks = tuple[
    tuple[Tensor, int], ...
]  # each with how many of its dimensions lie to the right of the site's batch shape
Ends = tuple[float, float] | None


class Parameter(NamedTuple):
    """A parameter of a distribution, or of one that it is made of, with the constraint that its class declares."""

    owner: str  # the distribution's class
    name: str
    value: Tensor
    constraint: Any
    right: int  # dimensions of the value to the right of the site's batch shape
    masks: Masks  # where it counts
    logged: bool  # log of it is a term of log p: where it is below 0 that is NaN
    ends: Ends  # between which it is valid, if that is all there is to it


def parameters_of(fn: Any, right: int = 0, masks: Masks = (), direct: bool = True) -> Iterator[Parameter]:
    """Yield each parameter that has a constraint, of a distribution and of all that it is made of."""
    if isinstance(fn, ParticleDistribution):
        yield from of_particles(fn, right, masks, direct)
        return
    held, kind = vars(fn), type(fn)
    for name, constraint, logged, event_dim, ends in constrained(fn):
        value = held.get(name)
        if isinstance(value, Tensor) and value.numel():
            yield Parameter(kind.__name__, name, value, constraint, right + event_dim, masks, logged and direct, ends)
    direct = direct and isinstance(fn, COMPOSED)
    for name, part in held.items():
        for one in part if isinstance(part, LISTS) else (part,):
            if isinstance(one, Distribution):
                yield from parameters_of(one, right + inner_dims(fn, name), masks + masks_of(fn, name, right), direct)


def of_particles(fn: ParticleDistribution, right: int, masks: Masks, direct: bool) -> Iterator[Parameter]:
    """Yield the parameters of all parts, ``(K, ..., N, ...)``."""
    grouping, codes = (
        replace(fn.grouping, taken=0),
        fn.codes_on_the_right,
    )  # components of a mixture have one dimension more
    for same in zip(*(parameters_of(part, right - codes, masks, direct) for part in fn.parts), strict=True):
        value = join([grouping.split(p.value, p.right) for p in same])
        constraint = split_support(
            [p.constraint for p in same], grouping, same[0].right
        )  # its bounds may be of rows, too
        of = same[0]
        ends = plain_ends(constraint)
        yield Parameter(of.owner, of.name, value, constraint, of.right + codes, of.masks, of.logged, ends)


class Constrained(NamedTuple):
    """What a class declares of a parameter, as :class:`Parameter` has it."""

    name: str
    constraint: Any
    logged: bool
    event_dim: int
    ends: Ends


COMPOSED = (*WRAPPERS, TransformedDistribution)
LISTS = (list, tuple)
LOGGED = {"Exponential": "rate"} | dict.fromkeys(
    ("Normal", "Laplace", "Cauchy", "StudentT", "Gumbel", "Logistic"), "scale"
)


def inner_dims(fn: Any, name: str) -> int:
    """Count the batch dimensions that a part has to the right of the whole's."""
    if isinstance(fn, Independent):
        return int(fn.reinterpreted_batch_ndims)
    return int(isinstance(fn, MixtureSameFamily) and name == "_component_distribution")


def masks_of(fn: Any, name: str, right: int) -> Masks:
    """Return where a part of a distribution counts, if not everywhere."""
    if isinstance(fn, MaskedDistribution):
        return ((torch.as_tensor(mask_of(fn)), right),)
    if name in ("component0", "component1") and isinstance(mask := getattr(fn, "mask", None), Tensor):
        return ((mask if name == "component1" else ~mask, right),)
    return ()


def constrained(fn: Any) -> tuple[Constrained, ...]:
    """Return the parameters of a distribution that its classes put a constraint on."""
    of_all = of_class(fn.__class__)
    return checkable(type(fn), fn.arg_constraints) if of_all is None else of_all


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
    logged = LOGGED.get(kind.__name__) if theirs else None
    return tuple(Constrained(n, c, logged == n, int(c.event_dim), plain_ends(c)) for n, c in left.items())


def plain_ends(constraint: Any) -> Ends:
    """Return the ends of an interval that are numbers, None of any other constraint."""
    inner = bare(constraint)
    low, high = (0.0, None) if isinstance(inner, SIMPLEX) else ends_of(inner)
    if inner.is_discrete or (low is None and high is None):
        return None
    if not all(end is None or isinstance(end, float | int) for end in (low, high)):
        return None
    return -math.inf if low is None else low, math.inf if high is None else high


def suspicious(parameter: Parameter) -> bool | Tensor:
    """Return whether a parameter may be invalid somewhere (or NaN): one pass over what is stored of it."""
    value = stored(parameter.value.detach() if parameter.value.requires_grad else parameter.value)
    waits = putting_off() or value.device.type != "cpu"
    if parameter.ends is None:
        flag = violated(value, parameter.constraint).any()
        return flag if waits else bool(flag)
    low, high = parameter.ends
    if waits:
        return ~((value >= low) & (value <= high)).all()
    if value.numel() == 1:
        return not low <= value.item() <= high
    least, largest = value.aminmax()
    return not (low <= least.item() and largest.item() <= high)


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
    """Return whether any flag holds, and wait for a GPU once, or not at all where questions are put off."""
    waiting = [flag for flag in flags if isinstance(flag, Tensor)]
    return any(flag is True for flag in flags) or (bool(waiting) and is_doubtful(torch.stack(waiting).any()))


def where_it_counts(site: Site, parameter: Parameter, dead: Tensor | None, plates: Plates | None) -> Tensor:
    """Return where a parameter is invalid and its density counts, in the batch shape of the site."""
    wrong = violated(parameter.value.detach(), parameter.constraint)
    dims = parameter.right - (parameter.value.dim() - wrong.dim())
    for mask, right in parameter.masks:
        beside = mask.to(wrong.device).reshape(*mask.shape, *[1] * (dims - right)) if mask.dim() else mask
        wrong = wrong & in_shape(beside, wrong.shape)
    wrong = wrong.flatten(-dims).any(-1) if dims > 0 and wrong.dim() >= dims else wrong
    wrong = in_shape(wrong, site["fn"].batch_shape)
    if site["mask"] is not None:
        wrong = wrong & in_shape(torch.as_tensor(site["mask"], device=wrong.device), wrong.shape)
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
    wrong = wrong if wrong.dim() >= -dim else wrong.any().expand([1] * -dim)
    rows = rows_where(wrong, dim)
    value, inner = parameter.value.detach(), bare(parameter.constraint)
    bad = violated(value, parameter.constraint)
    entries = value[bad].flatten() if bad.shape == value.shape else value[bad].amin(-1).flatten()
    where = f"{name!r}{f' of the {program}' if program else ''}"
    some = "" if bool(wrong.index_select(dim, rows).all()) else " at some draws or entries"
    number = f"{entries[0].item():g}" if entries.numel() else "invalid"
    bounds = {"ends": "numbers below high" if hasattr(inner, "upper_bound") else "numbers above low"}
    wanted = bounds["ends"] if fix_of(inner) == FIXES["ends"] else words_of(inner)
    return (
        f"site {where}: {parameter.owner} has {parameter.name} {number} for rows {(first + rows[:5]).tolist()}{some}; "
        f"wanted {wanted}. {fix_of(inner)}"
    )


def words_of(constraint: Any) -> str:
    """Return a constraint in words."""
    return "probabilities from 0" if isinstance(constraint, SIMPLEX) else format_support(constraint)
