"""What evaluators look for when they begin, as findings of a check: what they would refuse, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from pyro_vae.errors import (
    DataError,
    NoWeightError,
    OtherMaskError,
    ProgramError,
    PyroVAEError,
    ShapeError,
    SupportError,
)

from .enumerated import enumerated, prior_of, unmarked
from .findings import Finding, ProgramTrace, finding_of
from .parameter_checks import check_pair_parameters
from .parameters import store_restored
from .problem import Problem, rows_of
from .proposal_guide import RefusedGuide
from .reach import check_reach
from .sites import Program
from .support import takes_missing

ROWS, DRAWS = 16, 8  # that are scored beside the run on all rows
PAIR = "model and guide"
KINDS: tuple[tuple[type[Exception], str], ...] = (
    (SupportError, "support"),
    (ShapeError, "shape"),
    (DataError, "data"),
    (NoWeightError, "weight"),
    (ProgramError, "rows"),
)
TRAINS = " (it trains as it is; log p(x) needs weights)"


Probed = tuple[list[Finding], list[str]]  # and notes on what is right


def probed(model: Program, guide: Program, batch: tuple[Any, ...], *runs: ProgramTrace, seed: int) -> Probed:
    """Probe a pair that runs on its rows; one marked for enumeration as a model and its prior, as what sums does."""
    if not batch or not isinstance(batch[0], Tensor):
        return [], []
    if any(enumerated(run.sites) for run in runs):
        model = unmarked(model)
        guide = prior_of(model)
    with store_restored():
        return probe(model, guide, batch, seed)


def probe(model: Program, guide: Program, batch: tuple[Any, ...], seed: int) -> Probed:
    """Set up the pair as every evaluator does: supports, rows, masks, particles, weights, the guide's reach."""
    try:
        problem = Problem.of(model, guide, *batch, seed=seed, missing=True)
    except Exception as error:
        return [refused(error)], []
    if isinstance(problem.guide, RefusedGuide):
        return [unweighed(problem.guide.error)], note_vectorizing(problem.vectorizing.model)
    notes = note_vectorizing(str(problem.vectorizing))
    try:
        found = [*reads_rows(problem), *undefined(problem, seed)]
    except Exception as error:
        return [refused(error, "parameters")], notes
    try:
        with problem.quiet(seed, 2):
            check_reach(problem)
    except PyroVAEError as error:
        found.append(finding_of("reach", PAIR, error, "warning"))
    except Exception as error:
        found.append(refused(error))
    return found, notes


def reads_rows(problem: Problem) -> Iterator[Finding]:
    """Say where the guide reads other rows: log p(x) is right, its ELBO is of a row among others."""
    if said := problem.vectorizing.guide_reads:
        what = f"{said.partition(' of the guide ')[2]}: the ELBO of a row depends on its batch (log p(x) does not)"
        fix = "compute row by row (constants for x.mean(0), no attention or norm over rows), if that is not meant"
        yield Finding("rows", f"{said.partition(' of the guide ')[0]} of the guide", what, fix, "warning")


def invalid(model: Program, guide: Program, batch: tuple[Any, ...]) -> list[Finding]:
    """Look for invalid parameters of either program on the batch."""
    if not batch or not isinstance(batch[0], Tensor):
        return []
    try:
        check_pair_parameters(model, guide, *batch)
    except PyroVAEError as error:
        return [finding_of("parameters", PAIR, error)]
    except Exception as error:
        return [refused(error)]
    return []


def undefined(problem: Problem, seed: int) -> Iterator[Finding]:
    """Score a few draws of a few rows: parameters may be invalid at some, and densities no number."""
    some = problem.few(ROWS)
    with problem.quiet(seed, 1):
        terms = some.log_probs(DRAWS)
    wrong = terms.log_w.isnan() | (terms.log_w == math.inf)
    for program, by_site in (("model", terms.observed | terms.prior), ("guide", terms.posterior)):
        for name, term in by_site.items():
            if not (good := term[wrong].isfinite()).all():
                what = (
                    f"its log-probability is {term[wrong][~good][0]:g} at some draws, rows {some.numbers(wrong.any(0))}"
                )
                fix = "bound what the networks put into scales and logits (softplus, clamp), or rescale the data"
                yield Finding("undefined", f"site {name!r} of the {program}", what, fix)


def note_vectorizing(modes: str) -> list[str]:
    """Say how K particles are run, where it is not the fastest way."""
    return [] if modes == "plate" else [f"K particles of a row are run in a way that means the same as one ({modes})"]


def refused(error: Exception, kind: str = "") -> Finding:
    """Say why a pair is refused, that ran on the batch as a whole before."""
    if isinstance(error, NoWeightError):
        return unweighed(error)
    own = isinstance(
        error.__cause__, NotImplementedError | AttributeError | None
    )  # not an error of the program's, explained
    if isinstance(error, PyroVAEError) and own:
        return finding_of(kind or kind_of(error), PAIR, error)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400].rstrip(".")
    what = f"it ran on this batch once, and not again, or on a part of it: {said}"
    return Finding("run", PAIR, what, "read the number of rows off x, as len(x), wherever it stands, and keep no state")


def unweighed(error: ProgramError) -> Finding:
    """Say that a pair can be trained and has no importance weight: points, rounded draws, two measures or masks."""
    if isinstance(error, OtherMaskError):
        return finding_of("mask", PAIR, error)
    found = finding_of("weight", PAIR, error, "warning")
    return Finding(found.kind, found.where, found.what, f"{found.fix}{TRAINS}", found.level)


def summed(p: ProgramTrace, q: ProgramTrace) -> list[Finding]:
    """Say which latents are summed over, and by what."""
    found = []
    for name in dict.fromkeys([*enumerated(p.latents), *enumerated(q.latents)]):
        where = "model" if name in p.latents and name not in q.latents else "pair"
        what = (
            f"it is marked for enumeration in the {where}: it is summed over, not drawn, and has no importance weight"
        )
        fix = (
            "train with TraceEnum_ELBO; for log p(x), enumerate_latents sums over it, or have the guide draw it, without "
            "the mark; beside continuous latents nothing is to be done: Bound sums over it, and evaluations sum it out"
        )
        found.append(Finding(f"enumerated {where}", f"site {name!r}", what, fix, "warning"))
    return found


def as_evaluated(model: Program, guide: Program, batch: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Finding]]:
    """Convert x and contexts as evaluators and training do; say what they would refuse.

    Missing values are refused unless they are asked for, ``missing=True``: a warning.
    """
    if not batch:
        return batch, []
    try:
        rows: tuple[Any, ...] = rows_of(model, guide, *batch, missing=True)
    except PyroVAEError as error:
        return batch, [finding_of(kind_of(error), "x", error)]
    if takes_missing(model, guide) or not any(bool(a.isnan().any()) for a in rows):
        return rows, []
    try:
        rows_of(model, guide, *batch)
    except PyroVAEError as error:
        return rows, [finding_of("missing", "x", error, "warning")]
    return rows, []


def kind_of(error: Exception) -> str:
    """Return the kind of finding that an error is."""
    return next((kind for cls, kind in KINDS if isinstance(error, cls)), "rows")
