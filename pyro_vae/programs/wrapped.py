"""Distributions within others: what ``to_event``, masks and expansions wrap, bases and components."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch.distributions import Independent, MixtureSameFamily, constraints

WRAPPERS = (Independent, MaskedDistribution, ExpandedDistribution)


def layers(fn: Any) -> Iterator[Any]:
    """Yield a distribution and what it wraps, of the same values: a base that is transformed lies on another space.

    What leaves missing values out (``Observed``) says so by an attribute ``skips_missing``.
    """
    yield fn
    while isinstance(fn, WRAPPERS) or getattr(fn, "skips_missing", False):
        fn = fn.base_dist
        yield fn


def elements(fn: Any) -> Any:
    """Return the distribution of single elements (numbers, vectors) that `fn` is a product of, without masks.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> elements(dist.Beta(torch.ones(2), 1.0).mask(True).to_event(1))
        Beta()
    """
    return list(layers(fn))[-1]


def base_name(fn: Any) -> str:
    """Return the class of a distribution, beneath to_event and masks."""
    return type(elements(fn)).__name__


def last(fn: Any) -> Any:
    """Return the distribution whose support is that of `fn`: of elements, in a mixture of its components."""
    while isinstance(fn := elements(fn), MixtureSameFamily):
        fn = fn.component_distribution
    return fn


def parts(fn: Any) -> Iterator[Any]:
    """Yield a distribution and all that it is made of: bases, components."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "component_distribution", None) or getattr(fn, "base_dist", None)


def bare(support: Any) -> Any:
    """Return a support without the dimensions it is declared over, and without what stands for missing values."""
    support = getattr(support, "observed", support)
    return bare(support.base_constraint) if isinstance(support, constraints.independent) else support
