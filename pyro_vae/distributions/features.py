"""Features of a network as parameters: their layout, the floor under every positive one, the checks of options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.distributions.conditional import Family
from pyro_vae.errors import ShapeError, UsageError

MIN_SCALE = 1e-4  # keeps the density finite, in float32 too, where softplus underflows to 0


def parts(h: Tensor, count: int, name: str) -> Tensor:
    """``(*batch, count d)`` as ``(count, *batch, d)``: part j of element i is feature j d + i, as `chunk` has it.

    Raises:
        ShapeError: a number of features that `count` does not divide.
    """
    if h.dim() == 0 or h.shape[-1] % count:
        got = h.shape[-1] if h.dim() else "a number with no dimension"
        raise ShapeError(
            f"{name} takes {count} feature{'s' * (count > 1)} an element, got {got}. "
            f"Let the network put out {count} times as many features as there are elements."
        )
    return h.unflatten(-1, (count, h.shape[-1] // count)).movedim(-2, 0)


def positive(h: Tensor) -> Tensor:
    """log(1 + e^h) + 1e-4: at least 1e-4, and linear in large h."""
    return softplus(h) + MIN_SCALE


def at_least(low: int, value: int, name: str) -> int:
    """Return a whole number of at least `low`; refuse all else."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return value


def above_zero(value: float, name: str) -> None:
    """Refuse what is not positive and finite."""
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} must be positive and finite, got {value!r}")


def softclip(h: Tensor) -> Tensor:
    """h / (1 + |h| / 10): the identity near 0, and within ±10, so that float32 can still factor and solve."""
    return h / (1 + h.abs() / 10.0)


class FamilyOfOptions:
    """A family that a function made of options: it goes by these in messages, and is pickled as the call that made it."""

    def __init__(self, family: Family, make: Callable[..., Any], options: tuple[Any, ...]) -> None:
        self.family, self.make, self.options = family, make, options
        self.__name__ = f"{make.__name__}({', '.join(map(str, options))})"

    def __call__(self, h: Tensor) -> Any:
        return self.family(h)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.make, self.options

    def __repr__(self) -> str:
        return self.__name__


def made_by(make: Callable[..., Any], options: tuple[Any, ...], family: Family) -> Family:
    """Return a family that ``make(*options)`` makes, which knows that it does."""
    return FamilyOfOptions(family, make, options)


def widths(h: Tensor, per_dim: int, extra: int, family: str) -> int:
    """Return d, where h has per_dim · d + extra features."""
    d, rest = divmod(h.shape[-1] - extra, per_dim)
    if d < 1 or rest:
        raise ShapeError(
            f"{family} takes {per_dim} features for each latent{f' and {extra} more' if extra else ''}, "
            f"got {h.shape[-1]} features. Change the width that the network puts out."
        )
    return d


def check_sizes(minimum: float, **sizes: float) -> None:
    """Refuse sizes below `minimum`, by name."""
    for name, size in sizes.items():
        if size < minimum:
            raise UsageError(f"{name} must be at least {minimum}, got {size}")


def unsoftplus(y: float) -> float:
    """log(e^y − 1): the number whose softplus is y."""
    return math.log(math.expm1(y))


UNIT = unsoftplus(1 - MIN_SCALE)  # softplus(UNIT) + MIN_SCALE = 1
