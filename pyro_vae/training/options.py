"""How to train, beside what and on what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pyro_vae.errors import UsageError
from pyro_vae.objectives.scheduled import Scheduled

from .schedules import Schedule, constant


@dataclass(frozen=True)
class TrainingOptions:
    """How to train: the arguments of :func:`~pyro_vae.fit` of the same names.

    Raises:
        UsageError: no epochs, or no steps that may be bad.
    """

    epochs: int = 100
    schedule: Schedule = constant
    patience: int | None = None
    seed: int = 0
    bad_steps: int = 1
    scheduled: Sequence[Scheduled] = ()
    on_step: Callable[[float], Any] | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "bad_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")

    def tell_progress(self, done: float) -> None:
        """Tell scheduled objects, and then a function of the user's own, how far training is: `done`, from 0 to 1."""
        for moved in self.scheduled:
            moved.at(done)
        if self.on_step is not None:
            self.on_step(done)
