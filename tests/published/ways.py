"""Ways that refusals name, followed as a user would follow them: the pair, or the function, that is taken in their place.

A way is followed where the refusal's words name it, and the recipe has what it asks the user for. What comes out is held
against the same oracle: plain traces of the programs as they were, or as the refusal asks to write them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae import WholeDataSet

from .recipe import RECIPES, Pair, Program

ARROW = " → "  # between a program's name and the way that was taken


@dataclass(frozen=True)
class Way:
    """What a refusal says, and what is done instead: another pair, another function of the table, or both."""

    says: str  # a regular expression
    pair: Callable[[Pair], Pair | None] = lambda pair: pair
    functions: dict[str, str] = field(default_factory=dict)  # refused: to take; as they are, if empty

    def then(self, program: str, function: str, name: str, refusal: str) -> tuple[str, str] | None:
        """Return the program and function that are named instead; None where the refusal does not say it."""
        taken = self.functions.get(function) if self.functions else function
        if taken is None or not re.search(self.says, refusal) or name in program.split(ARROW):
            return None
        if self.functions:
            return program, taken
        return None if self.pair(made(program)) is None else (f"{program}{ARROW}{name}", taken)


def made(program: str) -> Pair:
    """Make a pair, as it is published, or by the ways that its name says."""
    name, *ways = program.split(ARROW)
    pair = RECIPES[name].make()
    for way in ways:
        found = WAYS[way].pair(pair)
        assert found is not None
        pair = found
    return pair


def unmarked(program: Program) -> Program:
    """The program without marks for enumeration."""
    return poutine.infer_config(program, config_fn=lambda site: {"enumerate": None})


def drop_marks(pair: Pair) -> Pair | None:
    """Draw what was marked, from a guide that draws it."""
    if pair.proposal is None:
        return None
    return replace(
        pair, model=unmarked(pair.model), guide=pair.proposal, proposal=None, elbo=None, summed=False,
        objective=lambda: None,
    )  # fmt: skip


def draw_from_density(pair: Pair) -> Pair | None:
    if pair.drawn is None or pair.plain is not None:
        return None
    return replace(pair, guide=pair.drawn, drawn=None, no_weight=None)


def pass_as_context(pair: Pair) -> Pair | None:
    return None if pair.as_context is None else pair.as_context()


def take_whole(pair: Pair) -> Pair | None:
    """The data set as one row; the oracle runs the programs as they are written, on all rows."""
    if pair.shared is None or pair.together:
        return None
    whole, exact = WholeDataSet(pair.model, pair.guide), pair.whole_px
    by_hand = {} if pair.collapsed is None else {"summed": False}
    return replace(
        pair, model=whole.model, guide=whole.guide, shared=None, together=True,
        plain=(of_set(pair.collapsed or pair.model), of_set(pair.guide)), x=pair.x[None],
        context=tuple(c[None] for c in pair.context),
        exact=None if exact is None else lambda *args: torch.atleast_1d(exact(*(a[0] for a in args))),
        x_of=lambda sites: set_of(pair, sites), **by_hand,
    )  # fmt: skip


def of_set(program: Program) -> Program:
    """The program as it is written, of the one data set that it is passed."""
    return lambda *args: program(*(a[0] for a in args))


def set_of(pair: Pair, sites: dict[str, Tensor]) -> Tensor:
    """x of a run of the data set."""
    if pair.collapsed is not None:
        return sites["x"].reshape(1, *pair.x.shape)
    return pair.simulated(sites).reshape(1, *pair.x.shape)


EXACT = ["importance", "defensive", "widened", "convergence", "quadrature", "ais", "ais-guide", "bracket"]
EXACT_SUM = dict.fromkeys(EXACT, "enumerate_latents") | {"bdmc": "simulate, then enumerate_latents"}
SAMPLED = ["exact", "quadrature", "ais", "ais-guide", "bracket"]
SAMPLE = dict.fromkeys(SAMPLED, "importance") | {"bdmc": "simulate, then importance"}
WAYS = {  # in this order
    "data_set_calibration": Way("data_set_calibration", functions={"sbc": "data_set_calibration"}),
    "WholeDataSet": Way(r"whole = WholeDataSet\(model, guide\)", take_whole),
    "drawn": Way("drop the mark so that the guide draws it", drop_marks),
    "a density": Way(
        "raw the site from (a density|Bernoulli or OneHotCategorical)|choose a posterior on the prior's support",
        draw_from_density,
    ),
    "a context": Way(r"Pass what it reads as a context", pass_as_context),
    "defensive": Way(r"Score with the guide itself, or with defensive", functions={"widened": "defensive"}),
    "vimco": Way("estimator=vimco", functions={"gradient_report": "gradient_report-vimco"}),
    "elbo": Way(r"Take Bound\(elbo\)", functions={"bound-iwae": "bound-elbo"}),
    "enumerated": Way("enumeration is exact|use enumerate_latents", functions=EXACT_SUM),
    "importance": Way(r"importance sampling|method='importance'", functions=SAMPLE),
}
