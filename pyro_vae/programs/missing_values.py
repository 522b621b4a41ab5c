"""Missing values (NaN in x, or in contexts) that a program does not take: refused by site, before anything is drawn of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.errors import ProgramError, PyroVAEError

from .sites import Program, is_latent, trace_pair
from .wrapped import base_name

TAKE_NAN = "Give it an encoder that takes NaN: WithMask(net), whose net has 2 d inputs where x has d columns."


def gaps(*args: Any) -> Tensor:
    """Return which rows have missing values in x or in a context, ``(N,)``."""
    missing: Tensor = torch.stack([a.isnan().reshape(len(a), -1).any(1) for a in args]).any(0)
    return missing


def without_gaps(a: Tensor) -> Tensor:
    """Return a with 0 in the place of NaN."""
    return torch.nan_to_num(a, nan=0.0) if a.is_floating_point() and a.isnan().any() else a


class KnownParameters(Messenger):
    """Messenger that refuses to draw a latent of NaN parameters: torch's samplers stop without naming it, or never do.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> with KnownParameters([1]), pyro.plate("data", 2):
        ...     pyro.sample("z", dist.VonMises(0.0, torch.tensor([1.0, torch.nan]), validate_args=False))
        Traceback (most recent call last):
        pyro_vae.errors.ProgramError: site 'z': its VonMises is given NaN for rows [1], which have missing values. Give it ...
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = list(rows[:5])

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and msg["value"] is None and of_nan(msg["fn"]):
            raise ProgramError(
                f"site {msg['name']!r}: its {base_name(msg['fn'])} is given NaN for rows {self.rows}, which have missing "
                f"values. {TAKE_NAN}"
            )


def of_nan(fn: Any) -> bool:
    """Return whether a distribution, or one that it is made of, has a NaN parameter."""
    parts = [one for held in vars(fn).values() for one in (held if isinstance(held, list | tuple) else (held,))]
    given = [one for one in parts if isinstance(one, Tensor) and one.is_floating_point()]
    return any(bool(one.isnan().any()) for one in given) or any(of_nan(p) for p in parts if isinstance(p, Distribution))


@contextmanager
def gaps_explained(model: Program, guide: Program, args: tuple[Any, ...], numbers: Sequence[int]) -> Iterator[None]:
    """Refuse a pair that does not run on missing values and runs without: the ProgramError says at which site it stopped.

    Args:
        args: what it is run on, x first.
        numbers: the rows' numbers, for messages.
    """
    if not (where := gaps(*args)).any():
        yield
        return
    rows = [int(numbers[row]) for row in where.nonzero().flatten().tolist()]
    try:
        with KnownParameters(rows):
            yield
    except PyroVAEError:
        raise
    except Exception as error:
        if not runs(model, guide, *map(without_gaps, args)):
            raise
        raise ProgramError(describe(error, rows)) from error


def runs(model: Program, guide: Program, *args: Any) -> bool:
    """Return whether a pair runs at all."""
    try:
        trace_pair(model, guide, *(a.clone() for a in args))
    except Exception:
        return False
    return True


def describe(error: Exception, rows: list[int]) -> str:
    """Say what a program said of NaN, where, and the way out."""
    note = " ".join(getattr(error, "__notes__", ["raised in the pair"])[-1:])
    site = re.search(r"(at|after) site '([^']*)'", note)
    where = f"{site[1]} site {site[2]!r}" if site else "x"
    said = " ".join(str(error).split()).rstrip(".")
    return (
        f"{where}: the pair does not run on the missing values (NaN) of rows {rows[:5]}, and runs with 0 in their place: "
        f"{type(error).__name__}: {said} ({note}). {TAKE_NAN} In a model, leave them out: SkipMissing(likelihood)."
    )
