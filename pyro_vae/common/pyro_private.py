"""Every private name of Pyro that the package uses, each with the public way where a Pyro has it no more."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.infer import ELBO
from pyro.poutine import runtime
from torch import nn


def active_handlers() -> Sequence[Any]:
    """Return the handlers that a program runs under, outermost first; none where Pyro does not tell.

    Example:
        >>> from pyro import poutine
        >>> with poutine.block() as handler:
        ...     active_handlers() == [handler]
        True
    """
    handlers: Sequence[Any] = getattr(runtime, "_PYRO_STACK", ())
    return handlers


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Return whether a site is made by ``pyro.deterministic``; a Pyro that marks it otherwise has it observed, at density 1."""
    return bool((site["infer"] or {}).get("_deterministic"))


def is_intervened(site: Mapping[str, Any]) -> bool:
    """Return whether ``poutine.do`` sets a site: it is drawn beside the value that the program goes on with.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> program = poutine.do(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), data={"z": 1.0})
        >>> is_intervened(poutine.trace(program).get_trace().nodes["z"])
        True
    """
    return site.get("_intervener_id") is not None


def vectorizes() -> bool:
    """Return whether an ELBO of this Pyro can be told how to trace its particles, all of them at once."""
    methods: Any = (getattr(ELBO, "_get_trace", None), getattr(ELBO, "_get_traces", None))
    try:
        return all(inspect.signature(method).bind(None, None, None, (), {}) for method in methods)
    except (TypeError, ValueError):
        return False


def vectorized_traces(
    objective: Any, trace_pair: Callable[..., Any], model: Any, guide: Any, batch: tuple[Any, ...]
) -> Iterator[Any]:
    """Yield what `trace_pair` makes of the programs under an ELBO's own plate of particles, where it :func:`vectorizes`."""
    plain = copy(objective)
    plain._get_trace = trace_pair
    for pair in plain._get_traces(model, guide, batch, {}):
        objective.max_plate_nesting = plain.max_plate_nesting  # found by a run of the programs: once is enough
        yield pair


def mask_of(fn: Any) -> Any:
    """Return the mask that ``fn.mask(...)`` gave a distribution, a bool or a tensor of its batch shape; None without one.

    Example:
        >>> import pyro.distributions as dist
        >>> mask_of(dist.Normal(0.0, 1.0).mask(False)), mask_of(dist.Normal(0.0, 1.0))
        (False, None)
    """
    if not isinstance(fn, MaskedDistribution):
        return None
    mask = getattr(fn, "_mask", None)
    return seen_mask(fn) if mask is None else mask


def seen_mask(fn: Any) -> Any:
    """Read the mask of a distribution off its density, which is 0 where the mask is off; the public way."""
    value = fn.sample()
    return (fn.log_prob(value) != 0) | (fn.base_dist.log_prob(value) == 0)


def message_at(error: BaseException) -> Mapping[str, Any] | None:
    """Return the message of the sample site that an error came up at, from the frames that it passed; None between sites.

    Example:
        >>> import pyro, torch
        >>> try:
        ...     with pyro.plate("data", 5):
        ...         pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 1.0))
        ... except ValueError as error:
        ...     message_at(error)["name"]
        'z'
    """
    messages = [f.f_locals.get("msg") for f, _ in traceback.walk_tb(error.__traceback__) if of_pyro(f)]
    return next((m for m in reversed(messages) if isinstance(m, dict) and m.get("type") == "sample"), None)


def of_pyro(frame: Any) -> bool:
    """Return whether a frame runs Pyro's own code."""
    return str(frame.f_globals.get("__name__", "")).startswith("pyro.")


def as_raised(error: Exception) -> Exception:
    """Return what a program raised, without the table of shapes that ``poutine.trace`` puts in its place.

    It makes a new error of the same class from the message alone, which fails for a class that takes other arguments.
    """
    cause, context = error.__cause__, error.__context__
    if type(cause) is type(error) and "Trace Shapes:" in str(error).removeprefix(str(cause)):
        return as_raised(cause)
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if of_pyro(frame)]
    names = [frame.f_globals["__name__"] for frame in frames[-1:]]
    if isinstance(context, ValueError | RuntimeError) and names == ["pyro.poutine.trace_messenger"]:
        return as_raised(context)
    return error


def sampled_attributes(module: Any) -> list[str]:
    """Name the sites of a module's attributes that are drawn (``PyroSample``); none where a Pyro keeps them elsewhere.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro.nn import PyroModule, PyroSample
        >>> layer = PyroModule[torch.nn.Linear](2, 1)
        >>> layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        >>> sampled_attributes(layer)
        ['weight']
    """
    inside = getattr(module, "__dict__", {})
    prefix = inside.get("_pyro_name", "")
    return [f"{prefix}.{name}" if prefix else name for name in inside.get("_pyro_samples", ())]


def forget_store(module: nn.Module) -> None:
    """Take off a module's parameters the weak references that Pyro's store has left there, which no pickle can hold.

    The store puts them back whenever a parameter is asked for; :class:`pyro.nn.PyroModule` takes them off likewise.

    Example:
        >>> import pickle, pyro
        >>> layer = nn.Linear(1, 1)
        >>> with pyro.get_param_store().scope():
        ...     _ = pyro.module("layer", layer)
        ...     forget_store(layer)
        ...     pickle.loads(pickle.dumps(layer)).in_features
        1
    """
    for parameter in module.parameters():
        vars(parameter).pop("unconstrained", None)
