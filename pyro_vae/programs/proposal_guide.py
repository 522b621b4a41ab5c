"""A guide as what it proposes: its latents alone, each with a density; what it observes and its auxiliary sites hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.errors import NoWeightError, ProgramError, PyroVAEError

from .masks import check_same_masks
from .one_measure import check_measure
from .pair import owners, unwrapped
from .plates import WITHOUT_SIZE, OwnRowsError, Plates, plates_of
from .pushforward import Move, MoveLatents, auxiliary_sites, find_pushforwards
from .site_rows import frames_of
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

T = TypeVar("T", Plates, tuple[Program, Plates])


@dataclass(frozen=True)
class ProposalGuide:
    """Run a guide so that the sites around it see are its latents, one density each: q(z | x), and nothing else.

    Sites that the guide observes (the heads that CEVAE trains) and ``pyro.factor`` are terms of a loss, no proposal: they are
    hidden. A latent that is a Delta of an auxiliary site (AutoNormal, EasyGuide) is drawn from the density of both.
    """

    guide: Program
    moves: Mapping[str, Move]  # by auxiliary site
    data: str  # the data plate
    own_rows: int | None = None  # how many rows the guide has parameters for, one by one
    observed: bool = False  # the sites that it observes are seen

    @property
    def __wrapped__(self) -> Program:  # how modules behind a program are found
        return self.guide

    def check_rows(self, args: Sequence[Any]) -> None:
        """Refuse other rows than the guide has parameters for."""
        if self.own_rows is not None and len(args[0]) != self.own_rows:
            raise OwnRowsError(self.data, self.own_rows, len(args[0]))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.check_rows(args)
        with MoveLatents(self.moves, self.observed):
            return self.guide(*args, **kwargs)


@dataclass(frozen=True)
class RefusedGuide:
    """A guide whose draws have no importance weight: whoever runs it for one is told why; a model alone may still be asked.

    AIS from the prior, and what else takes the guide for the sake of the plates alone, goes on.
    """

    guide: Program
    error: ProgramError
    auxiliary: bool  # it draws sites that the model does not have

    @property
    def __wrapped__(self) -> Program:
        return self.guide

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise type(self.error)(str(self.error))


def as_written(guide: Program) -> Program:
    """Return the guide that a problem's guide was made of."""
    return guide.guide if isinstance(guide, ProposalGuide | RefusedGuide) else guide


def refuse_unweighed(program: Program, args: Sequence[Any] | None = None) -> None:
    """Raise for a guide, under handlers or not, whose draws have no importance weight, or that has other rows than these."""
    for layer in unwrapped(program):
        if isinstance(layer, RefusedGuide):
            layer()
        if args is not None and isinstance(layer, ProposalGuide):
            layer.check_rows(args)


def as_trained(guide: Program) -> Program:
    """Return the guide as a loss sees it: with what it observes; points and rounded draws are trained, if not scored."""
    if isinstance(guide, ProposalGuide):
        return replace(guide, observed=True)
    return guide.guide if isinstance(guide, RefusedGuide) and not guide.auxiliary else guide


def without_observed(guide: Program) -> Program:
    """Hide the sites that a guide observes, for an ELBO of Pyro's to leave them out."""
    return poutine.block(guide, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])


def as_proposal(
    model: Program, guide: Program, *args: Any, own_rows: int | None = None, **kwargs: Any
) -> tuple[Program, Plates]:
    """Return the guide as what it proposes (itself, where that is all it does), and the data plate, by a run of the pair.

    A guide whose latents have no importance weight (a point, rounded draws, two measures, a mask of one program) is returned as
    one that raises a NoWeightError when it is run.

    Raises:
        ProgramError, ShapeError: two programs that are no pair, or that cannot be treated row by row.
    """
    with torch.no_grad():
        q, p = trace_pair(model, guide, *args, **kwargs)
        moves, refusal = weighable(p, q, whole=own_rows is not None)
    try:
        check_sites(p, proposed(p, q, moves))
    except ProgramError:
        if isinstance(refusal, NoWeightError):
            raise refusal from None
        raise
    plates = plates_of(p, q)
    if refusal is not None:
        return RefusedGuide(guide, refusal, bool(auxiliary_sites(p, q))), plates
    if not moves and not observed_sites(q) and own_rows is None:
        return guide, plates
    return ProposalGuide(guide, moves, plates.data, own_rows), plates


def weighable(p: Mapping[str, Site], q: Mapping[str, Site], whole: bool) -> tuple[dict[str, Move], ProgramError | None]:
    """Find what the guide's auxiliary sites are made into, and why its draws have no weight, if they have none."""
    moves: dict[str, Move] = {}
    try:
        moves = find_pushforwards(p, q, whole)
        drawn = proposed(p, q, moves)
        check_measure(latent_sites(p), drawn)
        check_same_masks(latent_sites(p), drawn)
    except ProgramError as error:
        return moves, error.with_traceback(None)  # a guide that holds it would hold the frames of all that called it
    return moves, None


def proposed(p: Mapping[str, Site], q: Mapping[str, Site], moves: Mapping[str, Move]) -> dict[str, Site]:
    """Return the guide's latents, those of an auxiliary site with the density of both."""
    moved = {name: fn for u, move in moves.items() for name, fn in move.densities(q[u]["fn"], q[u]["value"]).items()}
    return {name: {**site, "fn": moved.get(name, site["fn"])} for name, site in proposal_sites(q, p).items()}


class PlateSizes(Messenger):
    """Note the sizes of plates that subsample nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        frames = [f for f in msg["cond_indep_stack"] if f.size != WITHOUT_SIZE and f.full_size in (None, f.size)]
        self.sizes |= {frame.name: frame.size for frame in frames}

    def check_one(self, plates: Plates) -> None:
        """Raise where the data plate had other rows than the one that was passed: a replayed plate takes the guide's."""
        if (own := self.sizes.get(plates.data, 1)) != 1:
            raise OwnRowsError(plates.data, own, 1)


def on_fewest_rows(run: Callable[..., T], guide: Program, args: Sequence[Tensor]) -> tuple[T, int]:
    """Run a probe on the first row, or on all where the guide has rows of its own; return how many it took, too.

    A guide of Pyro's that makes its parameters in its first run (AutoNormal) makes them for all the rows.
    """
    if any_lazy(*args):
        return on_one_row(run, guide, args)
    set_up(guide, args)
    try:
        with PlateSizes() as plates:
            found = run(*(a[:1] for a in args))
        plates.check_one(found if isinstance(found, Plates) else found[1])
        return found, 1
    except OwnRowsError as error:
        if error.own != len(args[0]):
            raise OwnRowsError(error.plate, error.own, len(args[0])) from None
    except (ValueError, RuntimeError) as error:
        if (isinstance(error, PyroVAEError) and error.__cause__ is None) or not has_own_rows(guide, args):
            raise
    return run(*args), len(args[0])


def on_one_row(run: Callable[..., T], guide: Program, args: Sequence[Tensor]) -> tuple[T, int]:
    """Run a probe on the first of rows on disk; refuse a guide that has parameters of each of them."""
    first = tuple(a[:1] for a in args)
    found: T | None = None
    if not not_set_up(guide):
        with suppress(OwnRowsError), PlateSizes() as plates:
            found = run(*first)
            plates.check_one(found if isinstance(found, Plates) else found[1])
    if found is None or has_own_rows(guide, tuple(a[:2] for a in args)):
        raise ProgramError(
            "the guide has parameters of each row, or makes its own in a run on all of them (as AutoNormal does), and there "
            f"are {len(args[0]):,} rows on disk, or sparse: each step would need them all. Give it a network that reads x "
            "(amortized inference), or take some rows into memory: x[:10_000] (of a sparse matrix, x[:10_000].toarray())."
        )
    return found, 1


@contextmanager
def set_up_undone(guide: Program) -> Iterator[None]:
    """Forget the parameters that a guide of Pyro's made in its first run meanwhile: they would be of these rows alone."""
    fresh = {module: dict(vars(module)) for module in not_set_up(guide)}
    held = {
        module: {name: dict(v) for name, v in state.items() if isinstance(v, dict)} for module, state in fresh.items()
    }
    try:
        yield
    finally:
        for module, state in fresh.items():
            for name, entries in held[module].items():
                state[name].clear()
                state[name].update(entries)
            vars(module).clear()
            vars(module).update(state)


def not_set_up(guide: Program) -> list[Any]:
    """Return the guides of Pyro's among these modules that have not run yet."""
    return [m for m in owners(guide) if isinstance(m, AutoGuide | EasyGuide) and m.prototype_trace is None]


def set_up(guide: Program, args: Sequence[Tensor]) -> None:
    """Let a guide that makes its parameters in its first run make them for all the rows."""
    if not_set_up(guide):
        with torch.no_grad(), poutine.block():
            guide(*args)


def has_own_rows(guide: Program, args: Sequence[Tensor]) -> bool:
    """Return whether a guide runs on just these rows; a ProgramError where it has rows of its own, and other ones."""
    came = len(args[0])
    try:
        name, own = rows_of_guide(guide, tuple(a[:1] for a in args))
    except Exception as error:  # whatever the guide raises: it is shown as it came by whoever ran it first
        if not str(error).startswith("Shape mismatch inside plate"):
            return False
        with suppress(Exception):
            return rows_of_guide(guide, args)[1] == came
        return False
    if own not in (1, came):
        raise OwnRowsError(name, own, came)
    return own == came


def rows_of_guide(guide: Program, args: Sequence[Tensor]) -> tuple[str, int]:
    """Name and size of the guide's plate that is called "data", or holds most sites; no rows where it has none."""
    with torch.no_grad():
        sites = sample_sites(poutine.trace(guide).get_trace(*args))
    frames = [frame for site in sites.values() for frame in frames_of(site).values()]
    names = [frame.name for frame in frames]
    name = "data" if "data" in names else max(names, key=names.count, default="")
    return name, next((frame.size for frame in frames if frame.name == name), 1)
