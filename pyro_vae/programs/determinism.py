"""Two runs of a program at the same values: its log-probabilities are functions of these, or there is no density."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.identical import identical as identical
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError

from .sites import Program, sample_sites

OTHER_NOISE = 1  # the stream of the second run


def refuse_hidden_randomness(
    program: Program, trace: poutine.Trace, args: tuple[Any, ...], seed: int, *block: int, device: Any = "cpu"
) -> None:
    """Run a model again, on the values of `trace` and on other noise: each site's density must be what it was.

    Args:
        program: the model that `trace` is of.
        trace: a run of it on `args`; every value is replayed.
        seed, *block: of the first run; the second takes another stream.
        device: where the program draws.

    Raises:
        ProgramError: a site whose log-density at the same value is another one: it depends on numbers that are drawn outside
            ``pyro.sample`` (``torch.randn`` in the program, numpy's random state, dropout in training mode), which no guide
            can know and no importance weight contains; or on a state that each run changes.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("z", dist.Normal(torch.randn(()), 1.0))
        >>> refuse_hidden_randomness(model, poutine.trace(model).get_trace(), (), 0)
        Traceback (most recent call last):
        ...
        pyro_vae.errors.ProgramError: site 'z' of the model has another density ...
    """
    with seeded(seed, *block, OTHER_NOISE, device=device):
        again = sample_sites(poutine.trace(poutine.replay(program, trace=trace)).get_trace(*args))
    first = sample_sites(trace)
    values = {name: site["value"] for name, site in (again | first).items()}
    before, after = ({n: density_at(site["fn"], values[n]) for n, site in sites.items()} for sites in (first, again))
    changed = list(differing(before, after))
    if changed:
        name = next((name for name in changed if name in first and name in again), min(changed))
        raise ProgramError(random_density("model", name))


def density_at(fn: Any, value: Tensor) -> Tensor:
    """Take a log-density; an empty tensor where it cannot be taken."""
    try:
        with torch.no_grad():
            log_prob: Tensor = fn.log_prob(value)
            return log_prob
    except (NotImplementedError, ValueError, RuntimeError, TypeError):
        return torch.empty(0)


def random_density(role: str, site: str) -> str:
    """Describe a site of the model or guide whose density is not one of the values that programs draw."""
    return (
        f"site {site!r} of the {role} has another density when it runs again on the same values: the {role} draws random "
        "numbers outside of pyro.sample (torch.randn, numpy's or Python's random state, a dropout that stays on in eval mode), "
        "or keeps a state that each run changes, so that its log-probability is none of the latents. Fix: draw what is random "
        "by pyro.sample, or only where module.training holds."
    )


def same_terms(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two runs at the same latents gave the same log-probabilities, but for rounding."""
    return next(differing(one, other), None) is None


def same(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors of log-probabilities, but for rounding: half of the digits of their dtype."""
    near = math.sqrt(torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=near, atol=near, equal_nan=True)


def same_draws(a: Tensor, b: Tensor) -> bool:
    """Compare what two runs on one random stream drew: nearly all digits are the same."""
    return identical(a, b) or (a.shape == b.shape and torch.allclose(a.double(), b.double(), equal_nan=True))


def differing(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], alike: Callable[[Tensor, Tensor], bool] = same
) -> Iterator[str]:
    """Yield the sites whose tensors differ between two runs, also those of one run alone."""
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other or not alike(one[name], other[name]):
            yield name


def first_other(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """Name the first site that two runs on one random stream drew differently; None for none."""
    return next(differing(one, other, same_draws), None)
