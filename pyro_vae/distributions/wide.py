r"""Families scored in float64, from their features on; draws, moments and results keep the dtype of the features.

In float32 log Γ(10⁵ + 1) is right to 0.06 nats, which is more than what is left of y log λ − λ − log Γ(y + 1) may lose.
Parameters are computed in float64, too: loc and scale of a narrow discretized logistic, rounded to float32, lose as much.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import cache, reduce, wraps
from types import new_class
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.torch_private import validate_sample
from pyro_vae.common.widen import HALF, at_least_float32, in_dtype

from .conditional import Family


class WideScore:
    """What a class of :func:`wide_class` does other than the class that it is made of."""

    make: Callable[..., Any] | None = None
    features: tuple[Tensor, ...] = ()
    plain: type  # the class that it is made of
    batch_shape: torch.Size

    def in_float64(self) -> Any:
        """Return the distribution of the features in float64; made anew each time, as gradients may be wanted or not."""
        if self.make is None:  # made of parameters, by who knows the class alone
            narrow: Any = copy(self)
            narrow.__class__ = self.plain
            return in_dtype(narrow, torch.float64)
        wide = self.make(*(h.double() for h in self.features))
        return wide if wide.batch_shape == self.batch_shape else wide.expand(self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:  # type: ignore[attr-defined]
            validate_sample(self, value)
        held = [t.dtype for t in (value, *self.features, *vars(self).values()) if isinstance(t, Tensor)]
        dtype = reduce(torch.promote_types, (d for d in held if d.is_floating_point))
        return self.in_float64().log_prob(value.double()).to(at_least_float32(dtype))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new: Any = super().expand(batch_shape, _instance)  # type: ignore[misc]
        new.make, new.features = self.make, self.features
        return new


@cache
def wide_class(kind: type) -> type:
    """Return the subclass of a distribution's class that is scored in float64; it goes by the same name."""
    body = {"__module__": kind.__module__, "plain": kind}
    return new_class(kind.__name__, (WideScore, kind), exec_body=lambda namespace: namespace.update(body))


def wide(make: Callable[..., Any], *features: Tensor) -> Any:
    """Build ``make(*features)``, scored in float64 from the features on.

    Example:
        >>> import pyro.distributions as dist
        >>> d = wide(dist.Poisson, torch.tensor(1e5))
        >>> y = torch.tensor(1e5)
        >>> d.log_prob(y), dist.Poisson(y).log_prob(y)  # −½ log(2π 10⁵) − 1 / (12 · 10⁵)
        (tensor(-6.6754), tensor(-6.7500))
    """
    d = make(*features)
    if all(h.dtype == torch.float64 for h in features):
        return d
    d.__class__ = wide_class(d.__class__)
    d.make, d.features = make, features
    return d


def in_float64(family: Family) -> Family:
    """Decorate a family whose terms cancel: it is scored in float64."""

    @wraps(family)
    def scored(h: Tensor) -> Any:
        return wide(family, h)

    return scored


def wide_if_half(make: Callable[..., Any], *features: Tensor) -> Any:
    """Build ``make(*features)``, which float32 has the digits for; scored in float64 where features are in half precision."""
    return wide(make, *features) if any(h.dtype in HALF for h in features) else make(*features)


def beyond_half(family: Family) -> Family:
    """Decorate a family that is right in float32, as :func:`wide_if_half`."""

    @wraps(family)
    def scored(h: Tensor) -> Any:
        return wide_if_half(family, h)

    return scored
