r"""Probe how a pair is to be run for K particles: what its densities are must not depend on it.

The truth is a program run for one particle at a time. A plate of particles on the left, the fastest way, is taken where it
gives the same log-probabilities at the same latents, site by site; else K · N rows, where these do; else one run a particle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.common.pyro_private import active_handlers
from pyro_vae.common.random import seeded
from pyro_vae.data.lazy_rows import LazyRows, any_lazy
from pyro_vae.errors import ProgramError

from .among_rows import among_rows, why_guide_reads_rows, why_rows_are_coupled
from .determinism import differing, random_density, same_terms
from .latent_coupling import FarLatents, far_latents, why_far_rows_count, why_latents_are_coupled
from .pair import quiet, unwrapped
from .parameters import ParametersRegistered, store_restored
from .plates import sum_rows
from .proposal_guide import RefusedGuide, as_written
from .row_coupling import (
    LOOP,
    Scores,
    has_rows,
    in_rows,
    of_rows,
    why_not_as_among_copies,
    why_not_row_by_row,
    with_indices,
)
from .sites import Program, latent_sites
from .vectorize import MODES, Mode, Vectorizing, particle_of

ROWS, PARTICLES = 2, 3  # of the probe: different numbers, so that a dimension taken for the other shows


@dataclass(frozen=True)
class Probe:
    """What the runs of a pair showed: how it runs, at which draws, the model's log-probabilities; why it is refused, if so."""

    vectorizing: Vectorizing
    draws: poutine.Trace
    truth: Scores
    refusal: str | None = None


def choose_vectorizing(problem: Any) -> Vectorizing:
    """Choose how the programs of a :class:`~pyro_vae.programs.problem.Problem` are run for particles, by a run on two rows.

    Programs that run on all their rows only (a plate of fixed size, local parameters) are probed on all of them. Nothing is
    drawn from the random stream around, no buffer or entry of Pyro's store is changed.

    Raises:
        ProgramError: a model whose log-probabilities of a row depend on the other rows that it is passed with, or a program
            that has other log-probabilities in a second run at the same latents; names the site.
    """
    handler = next((h for h in active_handlers() if isinstance(h, ProbedOnce)), None)
    if handler is not None and (known := handler.find(problem)) is not None:
        return known
    with undisturbed(problem):
        found = probe_few_rows(problem)
        few = found is not None
        if found is None:
            try:
                found = probe(problem.few(ROWS) if any_lazy(*problem.args) else problem)
            except NotImplementedError:  # a prior that cannot be drawn from, for a guide that is never run
                return LOOP
        among = among_rows(problem, drawing(problem)) if few and not found.refusal else None
        refusal = found.refusal or (why_rows_are_coupled(among) if few else why_model_is_coupled(problem))
        reads = "" if refusal or drawing(problem) is problem.model else why_guide_reads_rows(among)
    if refusal is not None:
        raise ProgramError(refusal)
    found = replace(found, vectorizing=replace(found.vectorizing, guide_reads=reads))
    if handler is not None:
        handler.found.append((problem.model, as_written(problem.guide), found.vectorizing))
    return found.vectorizing


def why_model_is_coupled(problem: Any) -> str | None:
    """Say why a model is refused whose rows are coupled, where the pair runs on all its rows only.

    A guide may have parameters for each of its rows: the model is then run alone, on part of them, at draws of its own. One
    that runs on all rows only is run on copies of its first row, too.
    """
    alone = replace(problem, guide=RefusedGuide(problem.guide, ProgramError("the model is run alone"), False))
    few = probe_few_rows(alone)
    if few is not None and (refusal := few.refusal or why_rows_are_coupled(among_rows(alone, alone.model))):
        return refusal
    if refusal := why_not_as_among_copies(problem, drawing(problem)):
        return refusal
    roles = {"model": problem.model, "guide": drawing(problem)}
    looked_at = {role: p for role, p in roles.items() if role == "model" or p is not problem.model}
    found = (why_far_rows_count(problem, drawing(problem), p, role) for role, p in looked_at.items())
    return next(filter(None, found), None)


class ProbedOnce(Messenger):
    """A handler within which a pair is probed once, however many times its plates are looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Program, Program, Vectorizing]] = []

    def find(self, problem: Any) -> Vectorizing | None:
        """Return how a pair runs that was probed before."""
        pair = problem.model, as_written(problem.guide)
        return next((known for *other, known in self.found if tuple(other) == pair), None)


@contextmanager
def undisturbed(problem: Any) -> Iterator[None]:
    """Run programs out of reach of handlers around, in eval mode, on a random stream and in a parameter store of their own."""
    with (
        poutine.block(),
        ParametersRegistered(),  # our own modules need not declare theirs in a store that is thrown away
        store_restored(),
        quiet(problem.model, problem.guide, seed=0, device=problem.device),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def probe_few_rows(problem: Any) -> Probe | None:
    """Probe a pair on its first rows; None where it does not run on them: all rows then say what is wrong, if anything is."""
    if (few := first_rows(problem)) is None:
        return None
    try:
        found = probe(few)
        refusal = found.refusal or why_not_row_by_row(few, found.draws, found.truth)
        return replace(found, refusal=refusal) if refusal else at_far_latents(few, found)
    except Exception:
        return None


def at_far_latents(few: Any, found: Probe) -> Probe:
    """Look at a pair where latents are far away: a way of running particles must agree there, too, and rows be their own."""
    modes: dict[str, Mode] = {"model": found.vectorizing.model, "guide": found.vectorizing.guide}
    refusal = None
    for role, program in {"model": few.model, "guide": few.guide}.items():
        if role == "guide" and (drawing(few) is few.model or found.vectorizing.random_guide):
            continue
        far = far_latents(few, found.draws, PARTICLES, program)
        refusal = refusal or why_latents_are_coupled(far, program, role)
        if far is not None:
            modes[role] = next(
                (m for m in MODES[MODES.index(modes[role]) :] if agrees_far_away(far, program, m)), "loop"
            )
    vectorizing = Vectorizing(modes["model"], modes["guide"], found.vectorizing.random_guide)
    return replace(found, vectorizing=vectorizing, refusal=refusal)


def agrees_far_away(far: FarLatents, program: Program, mode: Mode) -> bool:
    """Return whether a way of running particles gives the log-probabilities of single runs at far latents."""
    try:
        return mode == "loop" or same_terms(far.scores(program), far.scores(program, mode))
    except Exception:  # it does not run in this way
        return False


def first_rows(problem: Any, rows: int = ROWS) -> Any | None:
    """Return the problem of the first rows, the first one again where there is one only; None where x is no tensor of rows."""
    x, *_ = problem.args
    if not isinstance(x, Tensor | LazyRows) or not x.dim() or not len(x) or problem.own_rows:
        return None
    index = torch.arange(rows, device=x.device).clamp(max=len(x) - 1)
    return problem.over(*(a[index.to(a.device)] if has_rows(a, len(x)) else a for a in problem.args))


def drawing(problem: Any) -> Program:
    """Return the program that draws latents: the guide, or the model for a guide that has no weight, which is not run."""
    refused = any(isinstance(layer, RefusedGuide) for layer in unwrapped(problem.guide))
    program: Program = problem.model if refused else problem.guide
    return program


def probe(problem: Any) -> Probe:
    """Choose for each program the fastest way that agrees with single runs.

    A guide that has no weight is not run: the model is scored at draws of its own.
    """
    alone = replace(problem, vectorizing=LOOP)
    refused = drawing(problem) is problem.model
    drawn = alone.trace(drawing(problem), PARTICLES)
    draws = with_indices(drawn, alone.trace(problem.model, 1, particle_of(drawn, 0, PARTICLES)))
    for name, site in in_rows(problem, drawn).items():
        sum_rows(name, torch.empty(site["fn"].batch_shape), problem.plates)  # refuses dimensions that no plate declares
    programs = {"model": problem.model} | ({} if refused else {"guide": problem.guide})
    truth = {role: scores(alone, program, draws) for role, program in programs.items()}
    modes: dict[str, Mode] = {"guide": "loop"}
    modes |= {role: fastest(problem, program, draws, truth[role]) for role, program in programs.items()}
    refusal, random_guide = None, False
    for role in [role for role in programs if modes[role] == "loop"]:
        if role == "guide" and agrees_on_one_stream(problem, draws):
            modes["guide"], random_guide = "plate", True
        elif site := next(differing(truth[role], scores(alone, programs[role], draws)), None):
            refusal = random_density(role, site)
    return Probe(Vectorizing(modes["model"], modes["guide"], random_guide), draws, truth["model"], refusal)


def refuse_random_guide(problem: Any) -> None:
    """Refuse a guide that draws numbers outside of its sites where its density is asked for at draws of another run.

    Weights that are taken in the run that drew are right: the mean of p(x, z) / q(z | x, e) over e and z is p(x).
    """
    if problem.vectorizing.random_guide:
        site = next(iter(latent_sites(problem.sites(problem.guide))))
        raise ProgramError(random_density("guide", site))


def scores(problem: Any, program: Program, draws: poutine.Trace) -> Scores:
    """log-probabilities of a program's sites at the draws, ``(K, N)`` by site."""
    return of_rows(problem, program, problem.trace(program, PARTICLES, draws))


def fastest(problem: Any, program: Program, draws: poutine.Trace, truth: Scores) -> Mode:
    """Return the first mode that gives the true log-probabilities."""
    for mode in MODES[:-1]:
        try:
            tried = scores(replace(problem, vectorizing=Vectorizing(mode, mode)), program, draws)
        except Exception:  # whatever a network raises where a dimension is another than it takes it for
            continue
        if same_terms(truth, tried):
            return mode
    return "loop"


def agrees_on_one_stream(problem: Any, draws: poutine.Trace) -> bool:
    """Return whether a guide that draws noise on the way to its parameters, the same for all particles, runs under a plate.

    Given that noise, log q is a density, and weights that are taken with it are unbiased.
    """
    try:
        at_once = scores_on_one_stream(problem, draws, PARTICLES)
    except Exception:  # it does not run under a plate
        return False
    alone = [scores_on_one_stream(problem, particle_of(draws, k, PARTICLES), 1) for k in range(PARTICLES)]
    return same_terms({name: torch.cat([terms[name] for terms in alone]) for name in alone[0]}, at_once)


def scores_on_one_stream(problem: Any, draws: poutine.Trace, particles: int) -> Scores:
    """Score a guide at given draws, its own noise from a fixed stream."""
    with seeded(0, device=problem.device):
        return of_rows(problem, problem.guide, problem.trace(problem.guide, particles, draws))
