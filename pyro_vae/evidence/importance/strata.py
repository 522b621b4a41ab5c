"""Strata of a mixture: which particles come from the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Strata:
    """Which particles of a block of rows come from the prior: steps of ⌊weight · k + offset⌋ in k, none by default."""

    weight: float = 0.0
    offset: float = 0.0

    def from_prior(self, start: int, stop: int) -> int:
        """Count those of the particles from `start` to `stop` − 1 that come from the prior.

        With an offset that is uniform on [0, 1) their expected number is weight · (stop − start), and E[p̂] = p(x).
        """
        return math.floor(self.weight * stop + self.offset) - math.floor(self.weight * start + self.offset)

    def mask(self, start: int, stop: int) -> list[bool]:
        """Say of each of the particles whether it comes from the prior."""
        if not self.weight:
            return [False] * (stop - start)
        return [bool(self.from_prior(k, k + 1)) for k in range(start, stop)]


ONE = Strata()
