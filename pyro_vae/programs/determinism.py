"""Programs whose densities depend on the random state: log w would be no function of the latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

ROWS = 2  # that are run again
CLOSE = 1e-4  # relative to log p, or in nats where it is small: what rounding leaves (sums on a GPU are in any order)


def same_terms(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two runs at the same latents gave the same log-probabilities, but for rounding."""
    return next(differing(one, other), None) is None


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the sites whose log-probabilities differ between two runs, also those of one run alone."""
    for name in dict.fromkeys([*one, *other]):
        if (
            name not in one
            or name not in other
            or one[name].shape != other[name].shape
            or not torch.allclose(one[name].double(), other[name].double(), CLOSE, CLOSE, equal_nan=True)
        ):
            yield name


def refuse_random(problem: Any, seed: int = 0, guide: bool = False) -> None:
    """Refuse a model that gives the same latents two densities, when the random state is another.

    `problem` is a :class:`~pyro_vae.programs.problem.Problem`. Runs guide and model twice on the first rows, in eval mode, on
    the same draws and two random streams of their own. A guide that draws its parameters (a semi-amortized one, dropout) and
    then z of them gives right importance weights, as the mean of p(x, z) / q(z | x, e) over e and z is p(x): with `guide`, it
    is refused, too, where q is scored at draws of another run.

    Raises:
        ProgramError: names the program and the site.
    """
    some = problem.rows(slice(ROWS))
    with some.quiet(seed, 0):
        draws = some.trace(some.guide)
    runs = []
    for stream in (1, 2):
        with some.quiet(seed, stream):
            sites = (some.sites(some.guide, at=draws), some.sites(some.model, at=draws))
        runs.append([{name: site["fn"].log_prob(site["value"]) for name, site in of.items()} for of in sites])
    for program, one, other in zip(("guide", "model"), *runs, strict=True):
        for name in differing(one, other) if guide or program == "model" else ():
            raise ProgramError(
                f"site {name!r} of the {program} has another density at the same latents when it is called again: the "
                f"{program} draws random numbers outside of pyro.sample (torch.randn, a dropout that stays on in eval mode), "
                "so that its log-probability is none of the latents. Fix: draw them by pyro.sample, or only where "
                "module.training holds."
            )
