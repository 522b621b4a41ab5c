"""Parts of one's own, beside the registry: objects that the caller passes, under names that a config may then use.

A config holds the name alone, never an import path. What a component may be, by the role that the config gives its name:

- prior: ``MyPrior(dim, **options)``, a class or function that returns p(z);
- posterior: ``MyPosterior(encoder, dim, **options)`` that returns q(z | x), where ``encoder(features)`` makes its network;
- likelihood: a family, ``features -> distribution``. How many features it takes for each element is its attribute
  ``features`` if it has one, and else found by feeding it zeros; a module is copied, so the caller's own is never trained.

Options are the further parameters by name, plain values as JSON has them. Parameters ``prior``, ``posterior``,
``likelihood`` and ``shape`` without a default are given by the model itself. Such parts go with parts of any support; a
:class:`~pyro_vae.Spec` in their place says more.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pyro_vae.common.spec import REQUIRED, Spec
from pyro_vae.errors import UsageError

Components = Mapping[str, Any]
NOTHING: Components = MappingProxyType({})
GIVEN = {"prior": ("posterior", "likelihood", "shape"), "posterior": ("prior", "likelihood", "shape")}
PROBE = 2520  # features: 1 to 10 an element all divide them
CALLS = {
    "prior": "a class or function MyPrior(dim, **options), or a Spec",
    "posterior": "a class or function MyPosterior(encoder, dim, **options), or a Spec",
    "likelihood": "a function features -> distribution, or a Spec with `features` (for one that takes options)",
}


def adopt(role: str, name: str, part: Any) -> Spec:
    """What the registry would know of a part of the caller's own.

    Raises:
        UsageError: a part that this role cannot call.

    Example:
        >>> from pyro_vae.runs.custom_components import adopt
        >>> adopt("prior", "mine", lambda dim, df=3.0: ...).options
        {'df': 3.0}
    """
    of_likelihood = role == "likelihood"
    if isinstance(part, Spec) and (part.features is not None) == of_likelihood:
        return part
    made = inspect.isclass(part) if of_likelihood else isinstance(part, nn.Module)
    if made or not callable(part):
        what = f"the class {part.__name__}" if inspect.isclass(part) else f"a {type(part).__name__}"
        raise UsageError(f"component {name!r} is {what}; as a {role} it has to be {CALLS[role]}")
    return likelihood_spec(name, part) if of_likelihood else part_spec(role, part)


def part_spec(role: str, part: Callable[..., Any]) -> Spec:
    """Of a prior or a posterior: its options and needs are read off its parameters."""
    named = [p for p in inspect.signature(part).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = named[1 if role == "prior" else 2 :]
    needs = tuple(p.name for p in named if p.name in GIVEN[role] and p.default is p.empty)
    options = {p.name: p.default for p in named if p.name not in needs}
    return Spec(make=part, support="any", formula="the caller's own", options=options, needs=needs, reference="")


def likelihood_spec(name: str, family: Callable[..., Any]) -> Spec:
    """Of a family without options."""
    return Spec(
        make=lambda: copy.deepcopy(family),
        features=lambda: features_of(name, family),
        support="any",
        formula="the caller's own",
        reference="",
    )


def features_of(name: str, family: Any) -> int:
    """How many features a family takes for each element: as it says, or by what it makes of zeros."""
    if isinstance(said := getattr(family, "features", None), int):
        return said
    hint = f"Give it an attribute: {getattr(family, '__name__', 'family')}.features = 2, say."
    what = f"how many features the likelihood {name!r} takes for each element is unknown"
    try:
        with torch.no_grad():
            d = family(torch.zeros(PROBE))
            width = (d.batch_shape + d.event_shape)[-1]
    except Exception as error:
        raise UsageError(f"{what}: fed {PROBE} zeros, it says {str(error)[:200]!r}. {hint}") from error
    if PROBE % width:
        raise UsageError(f"{what}: of {PROBE} zeros it makes {width} elements. {hint}")
    return PROBE // width


def plain(what: str, value: Any) -> Any:
    """An option's value, if config.json can hold it (a list as a tuple, which is what comes back as a list).

    Raises:
        UsageError: anything else than a number, a string, true, false, null, or a list of them.
    """
    values = tuple(value) if isinstance(value, list | tuple) else value
    if all(
        isinstance(v, str | int | float | bool | None) for v in (values if isinstance(values, tuple) else (values,))
    ):
        return values
    raise UsageError(
        f"{what}: {value!r} is no plain value (number, string, true, false, or a list of them), and config.json holds no "
        "other. Let the component itself hold it: functools.partial(MyPrior, net=net)."
    )


def read(what: str, value: Any, default: Any) -> Any:
    """A value of the type of the default (a whole number where there is none): 4, 0.5, true, nsf, or 64,64."""
    if isinstance(default, str):
        return value
    if isinstance(default, tuple) and isinstance(value, str):
        value = f"[{value}]"
    try:
        value = json.loads(value.lower()) if isinstance(value, str) else value
    except ValueError as error:
        raise UsageError(f"{what}: cannot read {value!r}") from error
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, list) else (value,)
    kind = int if default is REQUIRED else type(default)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{what}: {value!r} is not {'true or false' if kind is bool else 'a number'}")
    if kind is int and value != int(value):
        raise UsageError(f"{what}: {value!r} is not a whole number")
    return kind(value)
