"""NaN loss: which rows and which site a diverged step owes it to, and all that is needed to run the step again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.programs.masks import present
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.sites import Program, sample_sites

from .metrics import row_elbo
from .shuffle import FIXED
from .step import Step
from .training_state import PreStepSnapshot

LISTED = 20  # rows that a message names


@dataclass(frozen=True, eq=False)
class FailedStep:
    """A step that diverged, to be saved as data and run again.

    `done` is the fraction of training before it; `weights` (parameters and buffers by name) and `noise` (states of the
    global generators) are those before it; `site` is the first that is not finite, "" where all are. With `shards` the noise is
    of streams of the seed, epoch and step.
    """

    number: int
    epoch: int
    done: float
    seed: int
    batch_size: int
    rows: Tensor
    batch: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    noise: dict[str, Tensor]
    message: str
    site: str
    shards: int = 1


def suspect_rows(step: Step, rows: Tensor, batch: tuple[Tensor, ...], seed: int) -> str:
    """List the batch's rows whose own ELBO is not finite, or all of them if none stands out."""
    with seeded(seed, FIXED, device=batch[0].device):
        elbo = row_elbo(step, batch)
    suspects = rows if elbo is None or elbo.isfinite().all() else rows[~elbo.isfinite().to(rows.device)]
    numbers = sorted(suspects.tolist())
    return ", ".join(map(str, numbers[:LISTED])) + (f", … ({len(numbers)} in all)" if len(numbers) > LISTED else "")


def first_bad_site(step: Step, before: PreStepSnapshot, batch: tuple[Tensor, ...]) -> str:
    """Name the first site, guide before model, whose value or log-probability is not finite under the step's own noise."""
    with seeded(0, device=batch[0].device):
        before.restore()
        try:
            return bad_site_of_step(step, batch)
        finally:
            before.restore_buffers()


def bad_site_of_step(step: Step, batch: tuple[Tensor, ...]) -> str:
    """Name the first bad site of a step with the generators as they are, or under the noise of each of its shards."""
    if step.shards is None:
        return bad_site(step.model, step.guide, batch)
    for number, part in enumerate(step.shards.of(batch)):
        with step.shards.noise(number, part):
            if len(part[0]) and (site := bad_site(step.model, step.guide, part)):
                return site
    return ""


def bad_site(model: Program, guide: Program, batch: tuple[Tensor, ...]) -> str:
    """Name the first bad site with the generators as they are; "" where all are finite."""
    with torch.no_grad(), without_validation():
        try:
            q = poutine.trace(guide).get_trace(*batch)
            p = poutine.trace(poutine.replay(model, q)).get_trace(*batch)
            return describe_bad_site(q, "guide") or describe_bad_site(p, "model")
        except (ValueError, RuntimeError, ArithmeticError) as error:
            return f"none, the programs stop ({' '.join(str(error).split())[:120]})"


def describe_bad_site(trace: poutine.Trace, program: str) -> str:
    """Name the first site of a trace that is not finite, and what it looks like; "" where there is none."""
    for name, site in sample_sites(trace).items():
        where, log_prob = present(site), scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        value = (
            site["value"] if where is None else site["value"].masked_fill(~where, 0)
        )  # what is masked enters no loss
        for what, tensor in (("value", value), ("log-probability", log_prob)):
            bad = ~tensor.isfinite()
            if bad.any():
                first = tensor[bad].flatten()[0].item()
                return f"{name!r} of the {program}: {what} {first} ({int(bad.sum())} of {bad.numel()})"
    return ""
