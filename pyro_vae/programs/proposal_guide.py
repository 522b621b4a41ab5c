"""A guide as what it proposes: its latents alone, each with a density; what it observes and its auxiliary sites hidden."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_vae.errors import ProgramError, PyroVAEError

from .latent_masks import check_masks
from .one_measure import check_measure
from .pair import owners
from .plates import Plates, frames_of, plates_of
from .pushforward import MoveLatents, Pushforward, auxiliary_sites, find_pushforwards
from .sites import (
    Program,
    Site,
    check_sites,
    latent_sites,
    observed_sites,
    proposal_sites,
    sample_sites,
    trace_pair,
)

T = TypeVar("T")


@dataclass(frozen=True)
class ProposalGuide:
    """Run a guide so that the sites around it see are its latents, one density each: q(z | x), and nothing else.

    Sites that the guide observes (the heads that CEVAE trains) and ``pyro.factor`` are terms of a loss, no proposal: they are
    hidden. A latent that is a Delta of an auxiliary site (AutoNormal, EasyGuide) is drawn from the density of both.
    """

    guide: Program
    moves: Mapping[str, Pushforward]  # by auxiliary site
    data: str  # the data plate
    own_rows: int | None = None  # how many rows the guide has parameters for, one by one
    observed: bool = False  # the sites that it observes are seen

    @property
    def __wrapped__(self) -> Program:  # how modules behind a program are found
        return self.guide

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.own_rows is not None and len(args[0]) != self.own_rows:
            raise ProgramError(of_own_rows(self.data, self.own_rows, len(args[0])))
        with MoveLatents(self.moves, self.observed):
            return self.guide(*args, **kwargs)


def of_own_rows(plate: str, own: int, came: int) -> str:
    """Say that a guide cannot be run on these rows."""
    return (
        f"the guide's plate {plate!r} has {own} rows of its own, each with its own parameters (as AutoNormal's), and was asked for "
        f"{came}. Pass exactly these {own} rows, all at once (batch_size={own}, chunk_size of {own} or more), or take an encoder, "
        "which serves any row."
    )


def with_observed(guide: Program) -> Program:
    """The guide as it is trained: the sites that it observes are seen, too."""
    return replace(guide, observed=True) if isinstance(guide, ProposalGuide) else guide


def without_observed(guide: Program) -> Program:
    """Hide the sites that a guide observes, for an ELBO of Pyro's to leave them out."""
    return poutine.block(guide, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])


def as_proposal(
    model: Program, guide: Program, *args: Any, own_rows: int | None = None, **kwargs: Any
) -> tuple[Program, Plates]:
    """Return the guide as what it proposes (itself, where that is all it does), and the data plate, by a run of the pair.

    Raises:
        NoWeightError: a latent that has no importance weight: a point, rounded draws, two measures, a mask of one program.
        ProgramError, ShapeError: two programs that are no pair, or that cannot be treated row by row.
    """
    with torch.no_grad():
        q, p = trace_pair(model, guide, *args, **kwargs)
        moves = find_pushforwards(p, q, whole=own_rows is not None)
    drawn = proposed(q, moves)
    check_measure(latent_sites(p), drawn)
    check_masks(latent_sites(p), drawn)
    check_sites(p, drawn)
    plates = plates_of(p, q)
    if not moves and not observed_sites(q) and own_rows is None:
        return guide, plates
    return ProposalGuide(guide, moves, plates.data, own_rows), plates


def proposed(q: Mapping[str, Site], moves: Mapping[str, Pushforward]) -> dict[str, Site]:
    """The guide's latents, those of an auxiliary site with the density of both."""
    moved = {move.latent: move.distribution(q[u]["fn"]) for u, move in moves.items()}
    return {name: {**site, "fn": moved.get(name, site["fn"])} for name, site in proposal_sites(q).items()}


def on_fewest_rows(run: Callable[..., T], guide: Program, args: Sequence[Tensor]) -> tuple[T, int]:
    """Run a probe on the first row, or on all where the guide has rows of its own; return how many it took, too.

    A guide of Pyro's that makes its parameters in its first run (AutoNormal) makes them for all the rows.
    """
    set_up(guide, args)
    try:
        return run(*(a[:1] for a in args)), 1
    except (ValueError, RuntimeError) as error:
        if isinstance(error, PyroVAEError) or not has_own_rows(guide, args):
            raise
        return run(*args), len(args[0])


def set_up(guide: Program, args: Sequence[Tensor]) -> None:
    """Let a guide that makes its parameters in its first run make them for all the rows."""
    if any(isinstance(module, AutoGuide | EasyGuide) and module.prototype_trace is None for module in owners(guide)):
        with torch.no_grad(), poutine.block():
            guide(*args)


def has_own_rows(guide: Program, args: Sequence[Tensor]) -> bool:
    """Return whether a guide runs on just these rows; a ProgramError where it has rows of its own, and other ones."""
    came = len(args[0])
    try:
        name, own = rows_of_guide(guide, tuple(a[:1] for a in args))
    except ValueError as error:
        if not str(error).startswith("Shape mismatch inside plate"):
            return False
        with suppress(ValueError, RuntimeError):
            return rows_of_guide(guide, args)[1] == came
        return False
    if own not in (1, came):
        raise ProgramError(of_own_rows(name, own, came))
    return own == came


def rows_of_guide(guide: Program, args: Sequence[Tensor]) -> tuple[str, int]:
    """Name and size of the guide's plate that is called "data", or holds most sites; no rows where it has none."""
    with torch.no_grad():
        sites = sample_sites(poutine.trace(guide).get_trace(*args))
    frames = [frame for site in sites.values() for frame in frames_of(site).values()]
    names = [frame.name for frame in frames]
    name = "data" if "data" in names else max(names, key=names.count, default="")
    return name, next((frame.size for frame in frames if frame.name == name), 1)
