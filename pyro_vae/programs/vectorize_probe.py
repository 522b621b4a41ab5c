r"""Probe how a pair is to be run for K particles: what its densities are must not depend on it.

The truth is a program run for one particle at a time. A plate of particles on the left, the fastest way, is taken where it
gives the same log-probabilities at the same latents, site by site; else K · N rows, where these do; else one run a particle.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError

from .pair import quiet, unwrapped
from .plates import frames_of, sum_rows
from .proposal_guide import RefusedGuide
from .sites import Program, latent_sites, sample_sites, with_values
from .vectorize import MODES, Mode, Vectorizing, particle_of, without_rows

ROWS, PARTICLES = 2, 3  # of the probe: different numbers, so that a dimension taken for the other shows
Scores = dict[str, Tensor]
LOOP = Vectorizing("loop", "loop")


def choose_vectorizing(problem: Any) -> Vectorizing:
    """Choose how the programs of a :class:`~pyro_vae.programs.problem.Problem` are run for particles, by a run on two rows.

    Programs that run on all their rows only (a plate of fixed size, local parameters) are probed on all of them. Nothing is
    drawn from the random stream around, no buffer or entry of Pyro's store is changed.

    Raises:
        ProgramError: a model whose log-probabilities of a row depend on the other rows that it is passed with, or a program
            that has other log-probabilities in a second run at the same latents; names the site.
    """
    with undisturbed(problem):
        few = first_rows(problem)
        if few is not None:
            try:
                modes, draws, truth = compare(few)
                check_rows_apart(few, draws, truth["model"])
                return modes
            except ProgramError:
                raise
            except Exception:  # it does not run on two rows: all rows say what is wrong, if anything is
                pass
        try:
            return compare(problem)[0]
        except NotImplementedError:  # a prior that cannot be drawn from, for a guide that is never run
            return LOOP


@contextmanager
def undisturbed(problem: Any) -> Iterator[None]:
    """Run programs out of reach of the handlers around, in eval mode, on a random stream and in a parameter store of their own."""
    store = pyro.get_param_store()
    with (
        quiet(problem.model, problem.guide, seed=0, device=problem.device),
        poutine.block(),
        store.scope(store.get_state()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def first_rows(problem: Any, rows: int = ROWS) -> Any | None:
    """The problem of the first rows, the first one again where there is one only; None where x is no tensor of rows."""
    x, *_ = problem.args
    if not isinstance(x, Tensor) or not x.dim() or not len(x) or getattr(problem.guide, "own_rows", None):
        return None
    index = torch.arange(rows, device=x.device).clamp(max=len(x) - 1)
    return problem.over(*(a[index.to(a.device)] if has_rows(a, len(x)) else a for a in problem.args))


def has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows


def compare(problem: Any) -> tuple[Vectorizing, poutine.Trace, dict[str, Scores]]:
    """Choose for each program the fastest way that agrees with single runs; return the draws that they were scored at, too.

    A guide that has no weight is not run: the model is scored at draws of its own.
    """
    alone = replace(problem, vectorizing=LOOP)
    refused = any(isinstance(layer, RefusedGuide) for layer in unwrapped(problem.guide))  # never run
    drawn = alone.trace(problem.model if refused else problem.guide, PARTICLES)
    draws = with_indices(drawn, alone.trace(problem.model, 1, particle_of(drawn, 0, PARTICLES)))
    for name, site in sample_sites(drawn).items():
        sum_rows(name, torch.empty(site["fn"].batch_shape), problem.plates)  # refuses dimensions that no plate declares
    programs = {"model": problem.model} | ({} if refused else {"guide": problem.guide})
    truth = {role: scores(alone, program, draws) for role, program in programs.items()}
    modes: dict[str, Mode] = {"guide": "loop"}
    modes |= {role: fastest(problem, program, draws, truth[role]) for role, program in programs.items()}
    for role in programs:
        if modes[role] == "loop" and (site := differing(truth[role], scores(alone, programs[role], draws))):
            if role == "guide" and agrees_on_one_stream(problem, draws):
                modes["guide"] = "plate"
                continue
            raise ProgramError(
                f"site {site!r} of the {role} has another log-probability in a second run at the same latents: the program "
                "draws noise outside of pyro.sample, or keeps a state. Make the noise a latent site, or switch it off "
                "(model.eval() does so for dropout)."
            )
    return Vectorizing(modes["model"], modes["guide"]), draws, truth


def with_indices(draws: poutine.Trace, run: poutine.Trace) -> poutine.Trace:
    """Add the numbers that plates of the model chose at random, so that they choose the same in each run."""
    trace = draws.copy()
    for name, site in run.nodes.items():
        if site["type"] == "sample" and site_is_subsample(site) and name not in trace.nodes:
            trace.add_node(name, **site)
    return trace


def scores(problem: Any, program: Program, draws: poutine.Trace) -> Scores:
    """log-probabilities of a program's sites at the draws, ``(K, N)`` by site."""
    return of_rows(problem, program, problem.trace(program, PARTICLES, draws))


def of_rows(problem: Any, program: Program, trace: poutine.Trace) -> Scores:
    """Score the sites that belong to rows; one that all rows share (a factor in a loss) has nothing to do with particles."""
    sites = {name: site for name, site in sample_sites(trace).items() if problem.plates.data in frames_of(site)}
    by_site: Scores = problem.score(sites, "model" if program is problem.model else "guide")
    return by_site


def fastest(problem: Any, program: Program, draws: poutine.Trace, truth: Scores) -> Mode:
    """Return the first mode that gives the true log-probabilities."""
    for mode in MODES[:-1]:
        try:
            tried = scores(replace(problem, vectorizing=Vectorizing(mode, mode)), program, draws)
        except Exception:  # whatever a network raises where a dimension is another than it takes it for
            continue
        if differing(truth, tried) is None:
            return mode
    return "loop"


def agrees_on_one_stream(problem: Any, draws: poutine.Trace) -> bool:
    """Return whether a guide that draws noise on the way to its parameters, the same for all particles, runs under a plate.

    Given that noise, log q is a density, and weights that are taken with it are unbiased.
    """
    at_once = scores_on_one_stream(problem, draws, PARTICLES)
    alone = [scores_on_one_stream(problem, particle_of(draws, k, PARTICLES), 1) for k in range(PARTICLES)]
    return differing({name: torch.cat([terms[name] for terms in alone]) for name in alone[0]}, at_once) is None


def scores_on_one_stream(problem: Any, draws: poutine.Trace, particles: int) -> Scores:
    with seeded(0, device=problem.device):
        return of_rows(problem, problem.guide, problem.trace(problem.guide, particles, draws))


def differing(truth: Scores, tried: Scores) -> str | None:
    """Name the first site whose log-probabilities differ, by more than rounding; None if all are the same."""
    if truth.keys() != tried.keys():
        return min(truth.keys() ^ tried.keys())
    return next((name for name, term in truth.items() if not same(term, tried[name])), None)


def same(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors of log-probabilities, but for rounding: half of the digits of their dtype."""
    near = math.sqrt(torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=near, atol=near, equal_nan=True)


def check_rows_apart(problem: Any, draws: poutine.Trace, truth: Scores) -> None:
    """Refuse a model whose densities of the first row are others without the second row."""
    one, plates = replace(first_rows(problem, 1), vectorizing=LOOP), problem.plates
    values = {
        name: site["value"][:1].narrow(plates.dim - site["fn"].event_dim, 0, 1)
        for name, site in latent_sites(sample_sites(draws)).items()
    }
    try:
        at = without_rows(with_values(draws, values), plates)
        alone = of_rows(one, problem.model, one.trace(problem.model, 1, at))
    except Exception:  # it does not run on one row: that it says itself, where it is asked to
        return
    first = {name: term[:1, :1] for name, term in truth.items()}
    if site := differing(first, alone):
        raise ProgramError(
            f"site {site!r} of the model has another log-probability for a row when other rows are passed along "
            f"({first[site].sum().item():.4g} beside a second row, {alone[site].sum().item():.4g} alone): log p(x) does not split "
            "into rows. Look for a softmax, norm or mean over the rows (dim=0), for a squeeze() that drops a single row, or for "
            "a number that is read off the whole batch."
        )
