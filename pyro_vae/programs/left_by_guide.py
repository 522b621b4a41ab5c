"""A model that computes with what the guide left behind: it has no p(x, z) of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError

from .determinism import differing
from .row_coupling import LOOP, of_rows
from .sites import Program
from .vectorize_probe import drawing, undisturbed

ROWS = 2  # that the model is scored on


def refuse_left_by_guide(problem: Any) -> None:
    """Refuse a model whose densities, at the same rows and latents, are others once the guide has run on other rows.

    It reads an attribute or a global that the guide sets, such as features of the encoder. What runs the model by itself, as
    annealing does, or on rows of another chunk, would take what is left there of any rows. A model that reads what a guide
    makes of x is none of p(x, z) besides.

    Raises:
        ProgramError: names the site.
    """
    if drawing(problem) is problem.model or not all(isinstance(a, Tensor) for a in problem.few(1).args):
        return
    few = replace(problem.few(ROWS), vectorizing=LOOP)
    with undisturbed(problem):
        for other in other_rows(problem, few):
            if (site := site_that_moves(few, replace(other, vectorizing=LOOP), problem.guide)) is not None:
                raise ProgramError(
                    f"site {site!r} of the model has another density for the same rows and latents once the guide has run on "
                    "other rows: the model computes with what the guide left behind (an attribute or a global that the guide "
                    "sets, such as features of its encoder), so that it has no p(x, z) of its own. Compute in the model what "
                    "it needs, of latents and contexts; what is to come of x by the encoder is a latent."
                )


def other_rows(problem: Any, few: Any) -> Iterator[Any]:
    """Yield other rows for the guide, as many as `few`: the last ones, in reverse; and of few rows, ones."""
    rows = len(few)
    last = problem if problem.own_rows else problem.rows(slice(len(problem) - rows, len(problem)))
    yield few.over(*(a.flip(0) for a in last.args))
    if len(problem) <= ROWS:  # a mean over these is the same in reverse
        yield few.over(torch.ones_like(few.args[0]), *few.args[1:])


def site_that_moves(few: Any, other: Any, guide: Program) -> str | None:
    """Name a site of the model whose density is another after the guide ran on other rows; None where it does not run there."""

    def densities() -> dict[str, Tensor]:
        with seeded(
            0, device=few.device
        ):  # what the model draws beside latents is the same each time (a subsample of units)
            return of_rows(few, few.model, few.trace(few.model, 1, drawn))

    try:
        drawn = few.trace(guide, 1)
        before = densities()
        other.trace(guide, 1)
        after = densities()
    except Exception:  # no data of the programs, or programs of all rows alone
        return None
    return next(differing(before, after), None)
