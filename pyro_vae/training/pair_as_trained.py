"""The pair and the objective as they are trained: marked latents summed out, what all rows share counted once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyro_vae.common.random import stream
from pyro_vae.data.lazy_rows import any_lazy
from pyro_vae.objectives.bound_objective import Bound
from pyro_vae.objectives.bounds import elbo
from pyro_vae.programs.sites import Program
from pyro_vae.programs.summed_out import as_enumerated, refuse_marks_beside_shared

from .arguments import objective_of
from .batch_source import TrainingData
from .global_sites import counted_once
from .shuffle import FIXED

SOME = 500  # rows that are looked at, where the rest stays where it is


def pair_as_trained(
    model: Program, guide: Program, given: Any, data: TrainingData, seed: int
) -> tuple[Program, Program, Any]:
    """Return the programs that are trained, and their objective; Trace_ELBO, or a Bound that sums, where none was `given`.

    Raises:
        UsageError: what was given is no objective.
    """
    objective = objective_of(given)
    seen = rows_as_seen(data, seed)
    model, guide, objective = summed_over(model, guide, objective, seen, by_default=given is None)
    return *counted_once(model, guide, objective, data, seed), objective


def summed_over(
    model: Program, guide: Program, objective: Any, train: tuple[Tensor, ...], by_default: bool
) -> tuple[Program, Program, Any]:
    """Return the pair as a Bound trains it, which sums over latents marked for enumeration beside others; and the objective."""
    if not (by_default or isinstance(objective, Bound)):
        return model, guide, objective
    refuse_marks_beside_shared(model, guide, train)
    pair = as_enumerated(model, guide, train)
    if by_default and pair != (model, guide):
        return *pair, Bound(elbo)
    return *pair, objective


def rows_as_seen(data: TrainingData, seed: int) -> tuple[Tensor, ...]:
    """Return the training rows; transformed, where that gives them another shape, which is the shape that the programs take."""
    first = data.fixed_batch(tuple(a[:1].clone() for a in data.train), stream(seed, FIXED))
    if first[0].shape[1:] == data.train[0].shape[1:]:
        return data.train
    some = tuple(a[:SOME] for a in data.train) if any_lazy(*data.train) else data.train
    return data.fixed_batch(some, stream(seed, FIXED))
