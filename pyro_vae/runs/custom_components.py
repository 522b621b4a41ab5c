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
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pyro_vae.common.keywords import suggest
from pyro_vae.common.spec import REQUIRED, Spec
from pyro_vae.errors import UsageError

Components = Mapping[str, Any]
NOTHING: Components = MappingProxyType({})
GIVEN = {"prior": ("posterior", "likelihood", "shape"), "posterior": ("prior", "likelihood", "shape")}
OWN: dict[str, Any] = {"support": "any", "formula": "the caller's own", "reference": ""}
PROBE = 2520  # features: 1 to 10 an element all divide them
CALLS = {
    "prior": "a class or function MyPrior(dim, **options), or a Spec",
    "posterior": "a class or function MyPosterior(encoder, dim, **options), or a Spec",
    "likelihood": "a function features -> distribution, or a Spec with `features` (for one that takes options)",
}


def adopt(role: str, name: str, part: Any) -> Spec:
    """Describe a part of the caller's own as the registry does its parts.

    Raises:
        UsageError: a part that this role cannot call.

    Example:
        >>> adopt("prior", "mine", lambda dim, df=3.0: ...).options
        {'df': 3.0}
    """
    of_likelihood = role == "likelihood"
    if isinstance(part, Spec) and (part.features is not None) == of_likelihood:
        return part
    unfit = inspect.isclass(part) if of_likelihood else isinstance(part, nn.Module)
    if unfit or not callable(part):
        what = f"the class {part.__name__}" if inspect.isclass(part) else f"a {type(part).__name__}"
        raise UsageError(f"component {name!r} is {what}; as a {role} it has to be {CALLS[role]}")
    if of_likelihood:
        return Spec(make=lambda: copy.deepcopy(part), features=lambda: features_of(name, part), **OWN)
    named = [p for p in inspect.signature(part).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    named = named[1 if role == "prior" else 2 :]
    needs = tuple(p.name for p in named if p.name in GIVEN[role] and p.default is p.empty)
    options = {p.name: p.default for p in named if p.name not in needs}
    return Spec(make=part, options=options, needs=needs, **OWN)


def features_of(name: str, family: Any) -> int:
    """Count the features that a family takes for each element: as it says, or by what it makes of zeros."""
    if isinstance(declared := getattr(family, "features", None), int):
        return declared
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
    """Return an option's value, if config.json can hold it (a list as a tuple, which is what comes back as a list)."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if all(isinstance(v, str | int | float | bool | None) for v in values):
        return values if isinstance(value, list | tuple) else value
    raise UsageError(
        f"{what}: {value!r} is no plain value (number, string, true, false, or a list of them), and config.json holds no "
        "other. Let the component itself hold it: functools.partial(MyPrior, net=net)."
    )


def read(what: str, value: Any, default: Any) -> Any:
    """Read a value of the type of the default (a whole number where there is none): 4, 0.5, true, nsf, or 64,64."""
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


def read_options(
    part: str, options: Mapping[str, Any], given: Mapping[str, Any], flag: str, own: bool = False
) -> dict[str, Any]:
    """Read a part's options, each of the type of its default.

    Args:
        part: starts the messages: "prior 'vamp'".
        options: name to default.
        given: what the config says, strings where it came from the command line.
        flag: how an option is given: "--prior.NAME VALUE".
        own: the part is the caller's own: where it has no default, or None, any plain value will do.

    Raises:
        UsageError: an option that the part does not have, lacks, or cannot read.
    """
    values: dict[str, Any] = {}
    for key, value in given.items():
        if (name := key.replace("-", "_")) not in options:
            raise UsageError(f"{part} has no option {name!r}; {suggest(name, options, otherwise='it has')}")
        free, what = own and (options[name] is None or options[name] is REQUIRED), f"{part}: option {name!r}"
        values[name] = plain(what, value) if free else read(what, value, options[name])
    if lacking := [name for name, default in options.items() if default is REQUIRED and name not in values]:
        raise UsageError(f"{part} needs {lacking[0]!r}: {flag.replace('NAME', lacking[0].replace('_', '-'))}")
    return values
