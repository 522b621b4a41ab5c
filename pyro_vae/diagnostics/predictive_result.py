"""Predictive check results: statistics of the data beside those of data that the model draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EXTREME = 0.025


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """One statistic T on the data and on S replications of them, in float64 on the CPU.

    Attributes:
        observed: T(x), ``(1, N)``; or T(x, z) of each draw, ``(S, N)``. N is 1 for a statistic of all rows together.
        replicated: T(x_rep), ``(S, N)``.
    """

    observed: Tensor
    replicated: Tensor

    @property
    def p_rows(self) -> Tensor:
        """P(T(x_rep) ≥ T(x)) for each row, ``(N,)``."""
        return (self.replicated >= self.observed).double().mean(0)

    @property
    def p(self) -> float:
        """P(T(x_rep) ≥ T(x)) for the mean of T over all rows."""
        return (self.replicated.mean(1) >= self.observed.mean(1)).double().mean().item()

    @property
    def mc_se(self) -> float:
        """The Monte Carlo standard error of `p`: √(p (1 − p) / S)."""
        return (self.p * (1 - self.p) / len(self.replicated)) ** 0.5

    @property
    def extreme_rows(self) -> float:
        """The share of rows with P(T(x_rep) ≥ T(x)) or P(T(x_rep) ≤ T(x)) below 0.025."""
        below = (self.replicated <= self.observed).double().mean(0)
        return torch.minimum(self.p_rows, below).lt(EXTREME).double().mean().item()

    @property
    def extreme(self) -> bool:
        """True where the mean of T over all rows is as far out as that."""
        means, observed_mean = self.replicated.mean(1), self.observed.mean(1)
        return min(self.p, (means <= observed_mean).double().mean().item()) < EXTREME


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Statistics of the data beside those of data that the model draws.

    Attributes:
        statistics: a :class:`Discrepancy` each, by name.
        kind: "posterior" or "prior".
        rows: N.
        num_draws: S, replications of the data.
        seed: of the draws.
    """

    statistics: dict[str, Discrepancy]
    kind: str
    rows: int
    num_draws: int
    seed: int

    @property
    def extreme(self) -> tuple[str, ...]:
        """Names of statistics whose mean over rows is beyond all but 2.5 per cent of the replications, on either side."""
        return tuple(name for name, d in self.statistics.items() if d.extreme)

    def to_dict(self) -> dict[str, Any]:
        """Return plain names and numbers, for JSON and for :func:`~pyro_vae.plots.calibration.predictive_panels`."""
        statistics = {
            name: {
                "observed": d.observed.mean(1).tolist(),
                "replicated": d.replicated.mean(1).tolist(),
                "p": d.p,
                "mc_se": d.mc_se,
                "extreme_rows": d.extreme_rows,
            }
            for name, d in self.statistics.items()
        }
        known = {"rows": self.rows, "num_draws": self.num_draws, "seed": self.seed}
        return {"kind": self.kind, "statistics": statistics} | known

    def __str__(self) -> str:
        def line(name: str, d: Discrepancy) -> str:
            whole = d.replicated.mean(1)
            return (
                f"  {name}: data {d.observed.mean().item():.4g}, model {whole.mean().item():.4g} ± "
                f"{whole.std(correction=0).item():.2g}, p {d.p:.3f} ± {d.mc_se:.3f}, {d.extreme_rows:.0%} of rows extreme"
            )

        head = f"{self.kind} predictive check, {self.rows} rows, {self.num_draws} replications"
        return "\n".join([head, *(line(name, d) for name, d in self.statistics.items())])

    __repr__ = __str__
