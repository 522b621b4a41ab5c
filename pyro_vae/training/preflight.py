"""Checks before training: raise what is certainly wrong, and return notes on what may be meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor

from pyro_vae.objectives.bound_objective import Bound
from pyro_vae.programs.check import check
from pyro_vae.programs.findings import CheckReport, Finding
from pyro_vae.programs.sites import Program

ROWS = 64
WHOLE_BATCH = (
    "Pyro's ReweightedWakeSleep weighs each particle of a batch as a whole, not row by row: most weights are 0 then. "
    "Bound(iwae, num_particles=K, estimator=rws) weighs each row by itself"
)
STOPS_ENUMERATED = {
    *("site", "event", "obs", "width", "support", "shape", "data", "ghost", "undeclared", "rows", "parameters", "mask"),
    "undefined",
}
STOPS = STOPS_ENUMERATED | {"plate"}  # TraceEnum_ELBO knows latents that all rows share
SUMMED = "enumerated model"  # a latent of the model alone: what does not sum it out draws it from the prior, q or no q


def check_training(
    model: Program, guide: Program, objective: ELBO, first: Callable[[int], tuple[Tensor, ...]], batch_size: int
) -> list[str]:
    """Run :func:`~pyro_vae.check` on a first small batch; return notes on what may be intended.

    Findings that make the ELBO another number are errors: sites, plates and event dimensions, widths, supports, invalid
    parameters, rows that are coupled, random densities, masked values that are read, ghost training, networks that Pyro was
    not told of, latents that the model alone has summed over under an objective that draws them. Those that may be intended
    (a parameter without a gradient, whole numbers that look like pixels, draws that have no importance weight), or that the
    first step meets itself (numbers that are not finite), are notes, unless they matter to other objectives only.

    Args:
        first: ``first(n)`` is a batch of the first n rows, as training would see it.
        batch_size: rows a step. A finding on fewer rows that is none on a whole batch (a plate of fixed size) is none.

    Raises:
        ProgramError, ShapeError, SupportError: with all such findings in the message.
    """
    report = check(model, guide, *first(min(batch_size, ROWS)))
    if batch_size > ROWS and not certain(report, objective).ok:
        report = check(model, guide, *first(batch_size))
    certain(report, objective).raise_if_bad()
    joint = [WHOLE_BATCH] if isinstance(objective, ReweightedWakeSleep) and batch_size > 1 else []
    return [*joint, *(f.line for f in report.findings if worth_saying(f, objective))]


def certain(report: CheckReport, objective: ELBO) -> CheckReport:
    """Select what stops training, as errors."""
    if isinstance(objective, TraceEnum_ELBO):
        return CheckReport(tuple(f for f in report.errors if f.kind in STOPS_ENUMERATED))
    found = tuple(f for f in report.errors if f.kind in STOPS)
    return CheckReport((*found, *(replace(f, level="error") for f in report.findings if f.kind == SUMMED)))


def worth_saying(finding: Finding, objective: Any) -> bool:
    """Return whether a finding that stops nothing matters to this objective."""
    if finding.kind in ("missing", "scale"):  # `fit` was asked to take missing values; it judges scale by more rows
        return False
    if finding.kind == "discrete":
        return isinstance(objective, TraceMeanField_ELBO | RenyiELBO)
    plain = isinstance(objective, Trace_ELBO | TraceGraph_ELBO | RenyiELBO | Bound)
    plain = plain and not isinstance(objective, TraceEnum_ELBO)
    return finding.kind == "pixels" or (plain and (finding.kind == "gradient" or finding.level == "warning"))
