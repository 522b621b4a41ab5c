"""Noise that is the same for every row: draws as constants, so that a computation can be compared with that of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common import torch_private

CONSTANT = 0.375  # within the support of normal, uniform, exponential and Cauchy draws, at none of their centres
FILLED = "normal_ randn randn_like uniform_ rand rand_like exponential_ log_normal_ cauchy_ normal normal_functional"


class UnknownNoise(Exception):
    """A random operation that no constant is known for."""


class DrawCount:
    """How many numbers were drawn."""

    drawn = 0


@contextmanager
def constant_noise() -> Iterator[DrawCount]:
    """Have each random operation of torch return what depends on its arguments alone, row by row; count what is drawn.

    Raises:
        UnknownNoise: an operation that is marked as random, and that is not known here, or a torch without such a look.

    Example:
        >>> with constant_noise() as noise:
        ...     torch.randn(2, 3).unique(), torch.bernoulli(torch.tensor([0.2, 0.9]))
        (tensor([0.3750]), tensor([0., 1.]))
        >>> noise.drawn
        8
    """
    count = DrawCount()

    def handle(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        if name not in KNOWN:  # not all that draws is marked
            if torch.Tag.nondeterministic_seeded in func.tags and not without_dropout(func, args, kwargs):
                raise UnknownNoise(f"it draws by torch's {name}, which cannot be looked into")
            return func(*args, **kwargs)
        value = KNOWN[name](func, args, kwargs)
        first = value[0] if isinstance(value, tuple) else value
        count.drawn += first.numel()
        return value

    dispatching = torch_private.dispatching(handle)
    if dispatching is None:
        raise UnknownNoise(f"its noise cannot be looked into: torch has no {torch_private.MODE}")
    with dispatching:
        yield count


def without_dropout(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation that draws for its dropout alone (attention) has none."""
    names = [argument.name for argument in torch_private.schema(func).arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    return "dropout_p" in names and not given.get("dropout_p", 0.0)


Draw = Callable[[Any, Sequence[Any], dict[str, Any]], Any]


def filled(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return a location-scale draw at a constant: the operation runs for the sake of shape, dtype and device."""
    out: Tensor = func(*args, **kwargs)
    return out.fill_(CONSTANT)


def halves(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Coins that fall as their probabilities lie, in place (``bernoulli_``) or not."""
    out: Tensor = func(*args, **kwargs)
    probability = args[1] if len(args) > 1 and isinstance(args[1], Tensor | float | int) else kwargs.get("p", 0.5)
    if not func.overloadpacket.__name__.endswith("_") and not (len(args) > 1):
        probability = args[0]
    return out.copy_((torch.as_tensor(probability, device=out.device) > 0.5).expand_as(out))


def dropout(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)


def most_likely(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Categories: the largest, as often as draws were asked for."""
    out: Tensor = func(*args, **kwargs)
    return out.copy_(args[0].argmax(-1, keepdim=True).expand_as(out))


def in_order(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    out: Tensor = func(*args, **kwargs)
    return out.copy_(torch.arange(len(out), device=out.device))


def of_parameters(make: Callable[..., Tensor]) -> Draw:
    """Make draws a function of their parameters, element by element."""
    return lambda func, args, kwargs: make(*[a for a in args if isinstance(a, Tensor)])


KNOWN: dict[str, Draw] = dict.fromkeys(FILLED.split(), filled) | {
    "bernoulli": halves,
    "bernoulli_": halves,
    "native_dropout": dropout,
    "multinomial": most_likely,
    "randperm": in_order,
    "_standard_gamma": of_parameters(lambda shape: shape.clone()),
    "_sample_dirichlet": of_parameters(lambda shape: shape / shape.sum(-1, keepdim=True)),
    "poisson": of_parameters(lambda rate: rate.floor()),
    "binomial": of_parameters(lambda count, probability: (count * probability).floor()),
}
