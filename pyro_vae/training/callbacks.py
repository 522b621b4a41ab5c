"""What `fit` calls as training goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from pyro_vae.errors import UsageError

from .divergence import FailedStep


@runtime_checkable
class TrainingCallback(Protocol):
    """Called by `fit` as training goes on; a class that derives from this one defines the methods that it has a use for."""

    def before_training(self, trainer: Any) -> None:
        """Before the first step."""

    def after_step(self, trainer: Any) -> None:
        """Between two steps of an epoch; a class attribute `interval` (seconds) has it called no more often than that."""

    def after_epoch(self, trainer: Any) -> None:
        """Between two epochs."""

    def after_training(self, trainer: Any) -> None:
        """After the last epoch, the model still holding the last weights."""

    def on_error(self, trainer: Any, error: BaseException) -> str:
        """After an error or an interruption; return what joins its message."""
        return ""

    def on_failed_step(self, failed: FailedStep) -> str:
        """Before training stops at steps that diverged, the last of which this is; return what joins the message."""
        return ""


@dataclass(eq=False)
class CallbackTurns:
    """When `after_step` of each callback was called last, by its id."""

    last: dict[int, float] = field(default_factory=dict)

    def due(self, callbacks: Sequence[TrainingCallback], now: float) -> list[TrainingCallback]:
        """List the callbacks whose `interval` (seconds) is over, and those that were never called."""
        return [c for c in callbacks if now - self.last.get(id(c), -math.inf) >= getattr(c, "interval", 0.0)]

    def taken(self, callback: TrainingCallback, now: float) -> None:
        """Note that a callback is called now."""
        self.last[id(callback)] = now


def check_callbacks(callbacks: Sequence[TrainingCallback]) -> None:
    """Refuse anything but a list of callbacks."""
    if not isinstance(callbacks, list | tuple):
        raise UsageError(
            f"callbacks must be a list, such as callbacks=[checkpointer]; got a {type(callbacks).__name__}"
        )
    for i, callback in enumerate(callbacks):
        if isinstance(callback, type) or not isinstance(callback, TrainingCallback):
            raise UsageError(
                f"callbacks[{i}] is {callback!r}, which lacks some of a TrainingCallback's methods: derive its class from "
                "pyro_vae.training.trainer.TrainingCallback (a function of each epoch's record goes to on_epoch=)"
            )
