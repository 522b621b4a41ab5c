"""Trackers: what a training is told to, as it goes on, by three calls."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pyro_vae.common.plain_text import plain
from pyro_vae.errors import UsageError


@runtime_checkable
class Tracker(Protocol):
    """Follow a training by three calls: `begin`, `epoch` after each, `end`.

    ``train_run(config, path, trackers=[mine])`` makes them. With :func:`~pyro_vae.fit` they are yours to make, and `epoch` goes
    to its ``on_epoch``. An error that a tracker raises ends the training, and is shown as it is; the run's state is saved
    first, as at any error, and ``pyro-vae train --resume RUN`` goes on from there. :class:`~pyro_vae.StopTraining`, raised by
    `epoch`, ends a training as after its last epoch.

    Example:
        >>> import torch
        >>> class Printed:
        ...     def begin(self, config):
        ...         print("begin", config)
        ...     def epoch(self, record):
        ...         print("epoch", record["epoch"])
        ...     def end(self, evidence, figures):
        ...         print("end", evidence)
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, normal, fit
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 2 * 3), normal), Conditional(MLP(3, 2 * 1), normal))
        >>> tracker = Printed()
        >>> tracker.begin({"latent_dim": 1})
        begin {'latent_dim': 1}
        >>> run = fit(vae, torch.randn(64, 3), epochs=2, on_epoch=tracker.epoch, verbose=False)
        epoch 1
        epoch 2
        >>> tracker.end({}, [])
        end {}
    """

    def begin(self, config: Mapping[str, Any]) -> None:
        """Before the first step, with the options of the run: texts, numbers, and tables of these."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """After an epoch, with its record, as metrics.jsonl has it: a copy, numbers in nats a row.

        `evidence` in it, after some epochs, is log p(x) of validation rows with its errors and how many are flagged.
        """

    def end(self, evidence: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """After the run is saved, with what evidence.json holds, and its pictures; with nothing, if it did not come so far."""


@dataclass(eq=False)
class Tracking:
    """The trackers of one training.

    Attributes:
        trackers: all of them.
        open: those that have begun, and have not ended.
    """

    trackers: Sequence[Tracker] = ()
    open: list[Tracker] = field(default_factory=list)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Begin each, in turn."""
        for tracker in self.trackers:
            with named(tracker, "begin"):
                tracker.begin(deepcopy(dict(config)))
            self.open.append(tracker)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Tell each of an epoch."""
        for tracker in self.trackers:
            with named(tracker, "epoch"):
                tracker.epoch(deepcopy(dict(record)))

    def end(self, evidence: Mapping[str, Any], figures: Sequence[Path]) -> None:
        """End each; where several raise, all are called all the same, and the first error is raised."""
        first: BaseException | None = None
        while self.open:
            tracker = self.open.pop(0)
            try:
                with named(tracker, "end"):
                    tracker.end(deepcopy(dict(evidence)), tuple(figures))
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first

    def abandon(self) -> None:
        """End each with nothing, as an error is on its way; what they raise is printed."""
        while self.open:
            tracker = self.open.pop(0)
            try:
                tracker.end({}, ())
            except Exception as error:
                print(
                    f"note: {name_of(tracker)}.end raised {plain(f'{type(error).__name__}: {error}')}", file=sys.stderr
                )


@contextmanager
def tracked(trackers: Sequence[Tracker], config: Mapping[str, Any]) -> Iterator[Tracking]:
    """Begin trackers, and yield them; those that have not ended when an error leaves are ended with nothing."""
    tracking = Tracking(trackers)
    try:
        tracking.begin(config)
        yield tracking
    except BaseException:
        tracking.abandon()
        raise


@contextmanager
def named(tracker: Tracker, call: str) -> Iterator[None]:
    """Add to an error from inside which tracker raised it; the error stays as it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by the tracker {name_of(tracker)}, in {call}")
        raise


def name_of(tracker: object) -> str:
    """Return the name of a tracker's class."""
    return type(tracker).__name__


def check_trackers(trackers: Any) -> None:
    """Refuse anything but a list of trackers.

    Raises:
        UsageError: it is none; names the first that is no tracker, and what it lacks.
    """
    if not isinstance(trackers, list | tuple):
        raise UsageError(f"trackers must be a list, such as trackers=[tracker]; got a {type(trackers).__name__}")
    for i, tracker in enumerate(trackers):
        missing = [call for call in ("begin", "epoch", "end") if not callable(getattr(tracker, call, None))]
        if isinstance(tracker, type):
            raise UsageError(f"trackers[{i}] is the class {tracker.__name__}: make one, {tracker.__name__}(...)")
        if missing:
            lacks = " and ".join(missing)
            raise UsageError(f"trackers[{i}] is {str(tracker)[:80]}, which has no {lacks}: see pyro_vae.Tracker")
