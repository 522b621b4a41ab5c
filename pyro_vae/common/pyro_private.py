"""Every private name of Pyro that the package uses, each with the public way where a Pyro has it no more."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.infer import ELBO
from pyro.poutine import runtime


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


def mask_of_distribution(fn: Any) -> Any:
    """Return the mask that ``fn.mask(...)`` put on a distribution, a tensor or True or False; None without one.

    Example:
        >>> import pyro.distributions as dist
        >>> mask_of_distribution(dist.Normal(0.0, 1.0).mask(False)), mask_of_distribution(dist.Normal(0.0, 1.0))
        (False, None)
    """
    if not isinstance(fn, MaskedDistribution):
        return None
    mask = getattr(fn, "_mask", None)
    return fn.log_prob(fn.base_dist.sample()) != 0 if mask is None else mask  # what is masked scores 0


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
