"""A model run with its observations undone: each observed site draws, and remembers what it observed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.common.pyro_private import is_deterministic, is_intervened
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError

from .determinism import identical
from .masks import kept_entries
from .one_measure import UNNORMALISED
from .sites import Program, Site, latent_sites, sample_sites
from .user_errors import MODEL, explained
from .valid_draws import ValidDraws
from .wrapped import elements

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Unconditioned:
    """One run of a model with its observations undone."""

    model: Program
    args: Batch  # copies, so that a program that works on its data in place spoils no other run
    trace: poutine.Trace

    @property
    def sites(self) -> dict[str, Site]:
        """The sites that carry a density."""
        return sample_sites(self.trace)

    @property
    def values(self) -> dict[str, Tensor]:
        """What each site drew."""
        return {name: site["value"] for name, site in self.sites.items()}

    @property
    def observed(self) -> dict[str, Site]:
        """The sites that the model observes; ``site["infer"]["obs"]`` is what."""
        return {name: site for name, site in self.sites.items() if was_observed(site)}

    @property
    def all_entries(self) -> dict[str, Tensor]:
        """Masks that keep all entries of each site."""
        return {name: torch.ones_like(value, dtype=torch.bool) for name, value in self.values.items()}

    @property
    def kept(self) -> dict[str, Tensor]:
        """Which entries of each site no mask leaves out."""
        return {name: kept_entries(site) for name, site in self.sites.items()}


def was_observed(site: Site) -> bool:
    """Return whether the site was an observation before it was undone."""
    return bool(site["infer"].get("was_observed"))


class Undone(Messenger):
    """Undo observations, as ``poutine.uncondition`` does, but for those of some sites, and for values that are no data.

    A ``pyro.deterministic`` takes all dimensions of its value for an event: drawn anew, inside a plate, it would get those of
    the plate once more.
    """

    def __init__(self, kept: Collection[str]) -> None:
        super().__init__()
        self.kept = kept

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] not in self.kept and not is_computed(msg):
            infer = {**msg["infer"], "was_observed": True, "obs": msg["value"]}
            msg.update(is_observed=False, infer=infer, value=None, done=False)


def is_computed(msg: Any) -> bool:
    """Return whether a site observes what the program itself computes: ``pyro.deterministic``, or a reparametrized latent."""
    fn, value = elements(msg["fn"]), msg["value"]
    return is_deterministic(msg) or (isinstance(fn, Delta) and isinstance(value, Tensor) and same_memory(fn.v, value))


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are one, or a view of it that plates have expanded."""
    return a is b or (a.numel() > 0 and a.data_ptr() == b.data_ptr())


def refuse_factors(sites: Mapping[str, Site]) -> None:
    """Refuse draws of a model with a ``pyro.factor``, which they know nothing of: there is no value of it to draw.

    Raises:
        ProgramError: names the site.
    """
    for name, site in sites.items():
        if was_observed(site) and type(elements(site["fn"])).__name__ in UNNORMALISED:
            raise ProgramError(
                f"site {name!r} of the model is a pyro.factor, a term of log p(x, z) that nothing is drawn of: what the other "
                "sites draw is not of the model that it is a part of. Write it as a distribution that is drawn or observed; or "
                f"leave it out, poutine.block(model, hide=[{name!r}]), where that is the model that is meant."
            )


def refuse_interventions(sites: Mapping[str, Site]) -> None:
    """Refuse draws of a latent that ``poutine.do`` sets: they are of its prior, and the model goes on with another value.

    Raises:
        ProgramError: names the site.
    """
    for name, site in latent_sites(sites).items():
        if is_intervened(site) and not was_observed(site):
            raise ProgramError(
                f"site {name!r} of the model is set by poutine.do, which still draws it from its prior, beside the value that "
                "the program goes on with: x is drawn given that value, and the draw is of nothing. Hide it, "
                f"poutine.block(poutine.do(model, data=...), hide=[{name!r}]), for draws given do({name})."
            )


def undone(model: Program, kept: Collection[str] = ()) -> Program:
    """Return the model with its observations undone, but for those of `kept` sites."""
    program: Program = Undone(kept)(model)
    return program


def run_unconditioned(
    model: Program, args: Batch, seed: int, *block: int, checked: bool = True, kept: Collection[str] = ()
) -> Unconditioned:
    """Run a model with its observations undone, on the random stream of (seed, *block) and on copies of its arguments.

    Those of `kept` sites stay.

    Raises:
        ProgramError: a model that changes an argument in place; if `checked`, parameters that are invalid, and NaN.
    """
    copies = tuple(a.clone() for a in args)
    valid = ValidDraws() if checked else nullcontext()
    with seeded(seed, *block, device=args[0].device), explained(MODEL, *args), valid:
        trace = poutine.trace(undone(model, kept)).get_trace(*copies)
    for i, (copy, a) in enumerate(zip(copies, args, strict=True)):
        if not identical(copy, a):
            raise ProgramError(
                f"the model changes {argument(i)} in place (x[...] = ..., x.mul_(...), x.clamp_(...)): each run would leave "
                "other data to the next one. Work on a copy: x = x.clone()."
            )
    return Unconditioned(model, copies, trace)


def argument(i: int) -> str:
    """Name an argument of the programs."""
    return "x" if i == 0 else f"context {i - 1}"
