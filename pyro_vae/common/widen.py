"""Distributions in a wider arithmetic than their own: what cancels in float32 keeps its digits in float64."""

from __future__ import annotations

from copy import copy
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, LowRankMultivariateNormal, Transform

from .torch_private import computed_attributes

HALF = (torch.bfloat16, torch.float16)


@runtime_checkable
class ScoredWide(Protocol):
    """A distribution that is scored by another one, the same in float64."""

    def in_float64(self) -> Any:
        """Return that other one, its parameters computed in float64 from the start."""


class NotWidenedError(TypeError):
    """A distribution that computes with a network's weights, which have the dtype that they have."""


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for half precision, any other dtype as it is."""
    return torch.float32 if dtype in HALF else dtype


def to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert floating-point numbers that are narrower; counts, classes and wider numbers stay."""
    narrower = value.is_floating_point() and torch.finfo(value.dtype).bits < torch.finfo(dtype).bits
    return value.to(dtype) if narrower else value


def in_dtype(d: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a distribution with all of its numbers, and those of all that it is made of, in a wider dtype.

    What was computed from its parameters is computed anew. Gradients reach the parameters.

    Raises:
        NotWidenedError: a distribution through a network (a normalizing flow).

    Example:
        >>> import pyro.distributions as dist
        >>> d = dist.Poisson(torch.full((2,), 1e5)).to_event(1)
        >>> y = torch.full((2,), 1e5)
        >>> d.log_prob(y).item(), round(in_dtype(d, torch.float64).log_prob(y.double()).item(), 5)
        (-13.5, -13.3508)
    """
    return converted(d, dtype, {})


def converted(part: Any, dtype: torch.dtype, done: dict[int, Any]) -> Any:
    """Convert tensors, distributions, transforms and lists of them; the same object twice becomes one."""
    if isinstance(part, Tensor):
        return to_dtype(part, dtype)
    if isinstance(part, list | tuple) and not isinstance(part, torch.Size):
        parts = [converted(p, dtype, done) for p in part]
        return parts if isinstance(part, list) else tuple(parts)
    if not isinstance(part, Distribution | Transform):
        return part
    if isinstance(part, nn.Module):
        raise NotWidenedError(f"{type(part).__name__} computes with the weights of a network")
    if isinstance(part, ScoredWide):
        return part.in_float64()
    if isinstance(part, Categorical):
        return renormalised(part, dtype)
    kind: Any = type(part)
    if isinstance(part, LowRankMultivariateNormal) and kind.__init__ is LowRankMultivariateNormal.__init__:
        # it keeps a factor of its own, which has lost what the difference of squares is about
        given = (to_dtype(t, dtype) for t in (part.loc, part.cov_factor, part.cov_diag))
        return kind(*given, validate_args=False)
    if id(part) not in done:
        done[id(part)] = new = copy(part)
        for name in computed_attributes(part):
            del new.__dict__[name]
        for name in list(vars(new)):
            new.__dict__[name] = converted(vars(part)[name], dtype, done)
    return done[id(part)]


def renormalised(categorical: Any, dtype: torch.dtype) -> Any:
    """Normalise logits once more: the constructor's h − log Σ e^h is rounded as the largest h is."""
    new = copy(categorical)
    vars(new).pop("probs", None)
    new.logits = to_dtype(categorical.logits, dtype).log_softmax(-1)
    return new
