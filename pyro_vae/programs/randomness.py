"""Programs that draw random numbers outside ``pyro.sample``: their densities are another number at each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError

from .sites import Program, Site, sample_sites

OTHER_NOISE = 1  # the stream of the second run


def refuse_hidden_randomness(
    program: Program, trace: poutine.Trace, args: tuple[Any, ...], seed: int, *block: int, device: Any = "cpu"
) -> None:
    """Run a program again, on the values of `trace` and on other noise: each site's density must be what it was.

    Args:
        program: the program that `trace` is of.
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
        pyro_vae.errors.ProgramError: site 'z': ...
    """
    with seeded(seed, *block, OTHER_NOISE, device=device):
        again = sample_sites(poutine.trace(poutine.replay(program, trace=trace)).get_trace(*args))
    first = sample_sites(trace)
    changed = next((name for name, site in again.items() if name in first and differs(first[name], site)), None)
    unlike = sorted(set(first) ^ set(again))
    if changed is None and not unlike:
        return
    raise ProgramError(
        f"site {changed or unlike[0]!r}: its density is another one at a second run on the same values: the program draws "
        "random numbers outside pyro.sample (torch.randn, numpy's or Python's random state, dropout in training mode), or each "
        "run changes a state that it reads. What is random is a latent: draw it with pyro.sample; put networks in eval mode."
    )


def differs(a: Site, b: Site) -> bool:
    """Return whether the log-density of the first site's value differs; False where it cannot be taken."""
    try:
        with torch.no_grad():
            before, after = (site["fn"].log_prob(a["value"]) for site in (a, b))
    except (NotImplementedError, ValueError, RuntimeError, TypeError):
        return False
    return before.shape != after.shape or not torch.allclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True)


def same_values(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str | None:
    """Name the first site whose values differ, or that one side lacks; None if all are alike."""
    for name in dict.fromkeys((*a, *b)):
        if name not in a or name not in b or a[name].shape != b[name].shape:
            return name
        if torch.equal(a[name], b[name]):  # the rule, and fast
            continue
        if not torch.allclose(a[name].double(), b[name].double(), equal_nan=True):
            return name
    return None
