"""Learning-rate schedules: functions from the fraction of training done, 0 to 1, to a multiple of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(done: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(done: float) -> float:
    """(1 + cos π t) / 2: from 1 down to 0. SGDR (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1608.03983"""
    return 0.5 * (1 + math.cos(math.pi * done))


def warmup(schedule: Schedule, fraction: float = 0.02) -> Schedule:
    """`schedule`, after a linear rise over the first `fraction` of training: min(1, t / fraction) × schedule(t).

    Example:
        >>> from pyro_vae.train.schedules import cosine, warmup
        >>> [round(warmup(cosine, 0.1)(t), 3) for t in (0.05, 0.1, 1.0)]
        [0.497, 0.976, 0.0]
    """

    def risen(done: float) -> float:
        return min(1.0, done / fraction) * schedule(done) if fraction > 0 else schedule(done)

    return risen
