r"""How many particles a target error takes, by a pilot run whose draws are thrown away.

Particles that are added until *their own* error is small enough stop where it happens to look small, which is where the
largest weights have not come: such a log p̂ is too low, and exp(log p̂) no longer unbiased. K from other draws is a fixed number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pyro_vae.common.given import positive
from pyro_vae.common.random import stream
from pyro_vae.errors import UsageError
from pyro_vae.programs.problem import Problem

from .accumulator import RowBlock
from .sampler import Sampler

PILOT = 7  # of the seed: the pilot's draws are apart from all others
FEWEST = 100  # particles in a pilot
AHEAD = 4  # K is foretold from a pilot of K / 4 at least
MARGIN = 1.1  # of the foretold error, which is an estimate


@dataclass(frozen=True)
class TargetError:
    """A Monte Carlo error of each row to aim at (nats), the K to start from, and the most that is allowed."""

    se: float
    start: int
    most: int

    def __post_init__(self) -> None:
        positive("target_se", self.se)
        if self.most < self.start:
            raise UsageError(f"max_samples={self.most} is below num_samples={self.start}, where target_se starts")

    def particles(self, rows: range, sampler: Sampler, problem: Problem) -> int:
        """Choose K for a block of rows: `start`, doubled as often as its worst row needs, `most` at most."""
        apart = replace(sampler, seed=stream(sampler.seed, PILOT))
        pilot = apart.open(rows, min(max(self.start, FEWEST), self.most))
        while True:
            apart.fill(pilot, problem, range(pilot.planned))
            chosen = self.rounded(self.foretold(pilot))
            if chosen <= AHEAD * pilot.planned or pilot.planned == self.most:
                return chosen
            pilot.plan(min(2 * pilot.planned, self.most))

    def foretold(self, pilot: RowBlock) -> float:
        """Return the K at which the error of the worst row, which falls as 1 / √K, is the target; ∞ where nothing is known."""
        worst = pilot.total().mc_se.nan_to_num(math.inf).max().item()
        return pilot.planned * (MARGIN * worst / self.se) ** 2

    def rounded(self, particles: float) -> int:
        """`start` times the least power of 2 that reaches so many particles, `most` at most."""
        if particles >= self.most:
            return self.most
        doublings = max(0, math.ceil(math.log2(max(particles, 1) / self.start)))
        return min(self.start << doublings, self.most)
