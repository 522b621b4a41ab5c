"""Learning-rate schedules: functions from the fraction of training done, 0 to 1, to a multiple of the base rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError

Schedule = Callable[[float], float]


def constant(done: float) -> float:
    """1 throughout.

    Example:
        >>> from pyro_vae import constant
        >>> constant(0.3)
        1.0
    """
    return 1.0


def cosine(done: float) -> float:
    """(1 + cos π t) / 2: from 1 down to 0. SGDR (Loshchilov & Hutter, 2017), https://arxiv.org/abs/1608.03983

    Example:
        >>> from pyro_vae import cosine
        >>> [round(cosine(t), 3) for t in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * done))


@suggest_keywords
def warmup(schedule: Schedule, fraction: float = 0.02) -> Schedule:
    """`schedule`, after a linear rise over the first `fraction` of training: min(1, t / fraction) × schedule(t).

    Example:
        >>> from pyro_vae.training.schedules import cosine, warmup
        >>> [round(warmup(cosine, 0.1)(t), 3) for t in (0.05, 0.1, 1.0)]
        [0.497, 0.976, 0.0]
    """

    def risen(done: float) -> float:
        return min(1.0, done / fraction) * schedule(done) if fraction > 0 else schedule(done)

    return risen


@suggest_keywords
def cyclical(cycles: int = 4, rising: float = 0.5) -> Schedule:
    """Rise from 0 to 1 in the first part `rising` of each of the cycles, then stay at 1: for β, not for learning rates.

    References:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing (Fu et al., 2019),
        https://arxiv.org/abs/1903.10145

    Example:
        >>> from pyro_vae.training.schedules import cyclical
        >>> [cyclical(2)(t) for t in (0.0, 0.125, 0.25, 0.4, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """
    if cycles < 1 or not 0 < rising <= 1:
        raise UsageError(f"cyclical takes 1 or more cycles and a rising part in (0, 1], got {cycles} and {rising}")

    def swung(done: float) -> float:
        return 1.0 if done >= 1 else min(1.0, done * cycles % 1 / rising)

    return swung
