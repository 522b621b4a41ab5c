"""Training for a given time, and training that its caller ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from numbers import Real
from typing import Any

from pyro_vae.errors import UsageError


class StopTraining(Exception):
    """Raised by a function given as ``on_epoch=``: `fit` ends after this epoch as after its last, with the best weights.

    The message becomes ``result.stopped``. Of members that are trained together, the one whose record it was ends.

    Example:
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal, fit, StopTraining
        >>> import torch
        >>> def enough(record):
        ...     if record["epoch"] == 2:
        ...         raise StopTraining("seen enough")
        >>> vae = VAE(StandardNormal(1), Conditional(MLP(1, 4), bernoulli), Conditional(MLP(4, 2), normal))
        >>> result = fit(vae, torch.ones(8, 4), epochs=50, on_epoch=enough, verbose=False)
        >>> len(result.history), result.stopped
        (2, 'seen enough')
    """

    @property
    def reason(self) -> str:
        """Say what ended the training, for ``result.stopped``."""
        return str(self) or "stopped by on_epoch"


class TimeBudget:
    """So many seconds from now: ends a training, and moves its learning rate by what is spent of them.

    ``fit(..., epochs=100_000, on_epoch=budget, schedule=budget.schedule(warmup(cosine)))`` ends with the first epoch that the
    time is used up after, its learning rate having followed the time in the place of the steps. Runs that follow a clock are
    not the same twice; count epochs where that matters.

    Args:
        seconds: above 0.
        clock: a function of nothing that tells seconds. By default CPU time of this process, which other work on the machine
            does not use up (with several threads it counts each); ``time.perf_counter`` is the clock on the wall.

    Raises:
        UsageError: seconds that are no number above 0.

    Example:
        >>> from pyro_vae import TimeBudget, cosine
        >>> budget = TimeBudget(10, clock=iter([0.0, 5.0, 11.0]).__next__)
        >>> budget.schedule(cosine)(0.0)  # whatever share of the steps is done: half of the time is
        0.5...
        >>> budget({"epoch": 3})
        Traceback (most recent call last):
        pyro_vae.training.time_budget.StopTraining: 10 s are used up
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.process_time) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, Real) or not 0 < seconds < math.inf:
            raise UsageError(f"seconds must be a finite number above 0, got {seconds!r}")
        self.seconds: float = float(seconds)
        self.clock: Callable[[], float] = clock
        self.start: float = clock()

    def spent(self) -> float:
        """Return which part of the time is used up, up to 1."""
        return min(1.0, (self.clock() - self.start) / self.seconds)

    def schedule(self, rate: Callable[[float], float]) -> Callable[[float], float]:
        """Return a schedule that asks `rate` for the part of the time that is used up, in the place of the steps'."""
        return lambda done: rate(self.spent())

    def __call__(self, record: dict[str, Any]) -> None:
        """Raise StopTraining once the time is used up."""
        if self.spent() >= 1:
            raise StopTraining(f"{self.seconds:g} s are used up")
