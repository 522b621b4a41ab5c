"""Trackers of a run of several seeds: each member is a training of its own to those that are made for its seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pyro_vae.errors import UsageError
from pyro_vae.training.tracker import Tracker, Tracking, check_trackers, tracked

from .training_job import TrainingJob


def no_trackers(seed: int) -> Sequence[Tracker]:
    """Have none."""
    return ()


def trackers_of(make: Any, seed: int) -> Sequence[Tracker]:
    """Have the trackers of a member made; refuse what are none."""
    if not callable(make):
        raise UsageError(
            "the trackers of several seeds are made for each: trackers=lambda seed: [mine(seed)], a function of the seed that "
            f"returns a list; got a {type(make).__name__}"
        )
    made = make(seed)
    check_trackers(made)
    return list(made)


@contextmanager
def all_tracked(jobs: Sequence[TrainingJob], made: Mapping[int, Sequence[Tracker]]) -> Iterator[dict[int, Tracking]]:
    """Begin the trackers of all members; those that have not ended when an error leaves are ended with nothing."""
    with ExitStack() as stack:
        yield {
            job.config.seed: stack.enter_context(tracked(made[job.config.seed], job.config.to_dict())) for job in jobs
        }


def end_all(tracking: Mapping[int, Tracking], scored: Mapping[int, Mapping[str, Any]]) -> None:
    """End each member's trackers with its evidence; all are called, whoever raises, and the first error is raised."""
    first: BaseException | None = None
    for seed, followed in tracking.items():
        try:
            followed.end(scored[seed], ())
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first
