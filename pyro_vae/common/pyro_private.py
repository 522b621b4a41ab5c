"""Every private name of Pyro that the package uses, each with the public way where a Pyro has it no more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import pyro
from pyro.infer import ELBO
from pyro.poutine import runtime

STORE = ("_params", "_constraints", "_param_to_name")


def active_handlers() -> Sequence[Any]:
    """The handlers that a program runs under, outermost first; none where Pyro does not tell.

    Example:
        >>> from pyro import poutine
        >>> with poutine.block() as handler:
        ...     active_handlers() == [handler]
        True
    """
    handlers: Sequence[Any] = getattr(runtime, "_PYRO_STACK", ())
    return handlers


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Whether a site is made by ``pyro.deterministic``; a Pyro that marks it otherwise has it observed, at density 1."""
    return bool((site["infer"] or {}).get("_deterministic"))


@contextmanager
def own_store() -> Iterator[None]:
    """Pyro's parameter store as it is now, inside; what is added to it is forgotten after."""
    store = pyro.get_param_store()
    if any(getattr(store, name, None) is None for name in STORE):
        with store.scope(store.get_state()):
            yield
        return
    before = {name: getattr(store, name) for name in STORE}
    try:
        for name, values in before.items():
            setattr(store, name, dict(values))
        yield
    finally:
        for name, values in before.items():
            setattr(store, name, values)


def vectorizes() -> bool:
    """Whether an ELBO of this Pyro can be told how to trace its particles, all of them at once."""
    try:
        inspect.signature(getattr(ELBO, "_get_trace", None)).bind(None, None, None, (), {})  # type: ignore[arg-type]
        inspect.signature(getattr(ELBO, "_get_traces", None)).bind(None, None, None, (), {})  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True


def vectorized_traces(
    objective: Any, trace_pair: Callable[..., Any], model: Any, guide: Any, batch: tuple[Any, ...]
) -> Iterator[Any]:
    """What `trace_pair` makes of the programs under an ELBO's own plate of particles; only where it :func:`vectorizes`."""
    plain = copy(objective)
    plain._get_trace = trace_pair
    for pair in plain._get_traces(model, guide, batch, {}):
        objective.max_plate_nesting = plain.max_plate_nesting  # found by a run of the programs: once is enough
        yield pair
