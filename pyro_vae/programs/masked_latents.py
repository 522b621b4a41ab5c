"""Masked latents: where guide and model leave out the same ones, and nothing reads the values that stand in their place.

A masked latent has no density in its row: it is not there, and each number is of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

from .masks import mask_of_site, present
from .proposal_guide import RefusedGuide
from .sites import Site, latent_sites, trace_pair

Problem = Any  # :class:`~pyro_vae.programs.problem.Problem`, whose module imports this one
Sites = dict[str, Site]
DRAWS = 8  # particles of a row that tell whether a masked value is read
ROWS = 512  # that the pair is run on at a time


def refuse_masked(sites: Mapping[str, Site], problem: Problem, why: str) -> None:
    """Raise a ProgramError that names the first masked site and its rows; `why` ends it."""
    for name, site in sites.items():
        if (where := present(site)) is not None:
            rows = problem.numbers((~problem.plates.by_unit(where, site["fn"].event_dim)).any(-1).any(0))
            raise ProgramError(f"site {name!r} is masked in rows {rows}{why}")


def check_masks(problem: Problem) -> None:
    """Refuse a pair, as :func:`check_masked` does, on all rows; a pair that masks no latent is traced once, on one row."""
    if isinstance(problem.guide, RefusedGuide):
        refuse_masked_model(problem)
        return
    one = problem.few(1)
    with problem.quiet(0):  # a stream of its own: what is drawn after it stays the same
        q, p = trace_pair(one.model, one.guide, *one.args, **one.kwargs)
        if any(mask_of_site(site) is not True for sites in (q, p) for site in latent_sites(sites).values()):
            for some in problem.split(ROWS):
                check_masked(some, some.draw(DRAWS)[0])


def refuse_masked_model(problem: Problem) -> None:
    """Raise what the guide is refused for, where the model masks a latent: without the guide nothing tells what reads it."""
    with problem.quiet(0):
        latents = latent_sites(problem.sites(problem.model))
    if any(not torch.as_tensor(mask_of_site(site)).all() for site in latents.values()):
        problem.guide()


def check_masked(problem: Problem, q: Sites) -> dict[str, Tensor]:
    """Return where each masked latent of a draw is there, by site; a ProgramError where a density reads a masked value.

    Both programs are run twice at latents that differ in what is masked alone (the next particle's stands in its place); no
    density may change. Nothing is run where no latent is masked.

    Args:
        problem: the pair and the rows that were drawn for.
        q: the guide's sites of ``problem.draw(particles)``, which has compared their masks with the model's.
    """
    where = {name: mask for name, site in q.items() if (mask := present(site)) is not None}
    if where:
        values = {name: site["value"] for name, site in q.items()}
        others = {n: torch.where(where[n], v, v.roll(1, 0)) if n in where else v for n, v in values.items()}
        for program, what in ((problem.model, "model"), (problem.guide, "guide")):
            one, other = (scores(problem, program, at, seed=0) for at in (values, others))
            for name in one:
                refuse_changed(name, what, one[name], other[name], problem, where)
    return where


def scores(problem: Problem, program: Any, at: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Score a program's sites at these latents, on one random stream."""
    with problem.quiet(seed, 1):
        return problem.score(problem.sites(program, len(next(iter(at.values()))), at))


def refuse_changed(
    name: str, what: str, one: Tensor, other: Tensor, problem: Problem, where: dict[str, Tensor]
) -> None:
    """Refuse a site whose log-probability changes with what is masked."""
    changed = ~torch.isclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)
    if changed.any():
        masked = " and ".join(map(repr, where))
        raise ProgramError(
            f"site {name!r} of the {what} reads the value of {masked} in rows {problem.numbers(changed.any(0))}, where a mask "
            "takes its density away: the result would depend on draws that nothing scores. Mask what depends on it too, or "
            "put a constant in its place: torch.where(mask, z, torch.zeros_like(z))."
        )
