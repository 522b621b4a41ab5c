"""log p(x) / T: nats per step of sequences of several lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.flagged import format_bound, is_loose, share_flagged, why_loose
from pyro_vae.errors import ShapeError
from pyro_vae.evidence.estimate import LogPx, apart_se, format_nats, known


@dataclass(frozen=True)
class PerStep:
    """Σ_n log p(x_n) / Σ_n T_n in nats per step, with both errors; None where one is not known.

    Where more than a tenth of the sequences is flagged it prints as a bound, without errors (of an oracle as "≈").
    """

    log_px: float
    mc_se: float | None
    data_se: float | None
    steps: int
    rows: int
    rows_flagged: int = 0
    oracle: bool = False

    def __str__(self) -> str:
        of = f"{self.steps} steps of {self.rows} sequences"
        health: dict[str, Any] = {"rows": self.rows, "rows_flagged": self.rows_flagged, "log_px": self.log_px}
        health |= {"how": "an oracle"} if self.oracle else {}
        if is_loose(health):
            return f"log p(x) / T {format_bound(health)} nats per step ({why_loose(health)}; {of})"
        errors = f"± {format_nats(self.mc_se)} (Monte Carlo) ± {format_nats(self.data_se)} (data)"
        return f"log p(x) / T {self.log_px:.4f} {errors} nats per step ({of})"


def per_step(estimate: LogPx, lengths: Any) -> PerStep:
    r"""Σ_n log p(x_n) / Σ_n T_n: nats per step, whatever the sequences' lengths.

    The data error is that of a ratio, to first order: the standard deviation of log p(x_n) − T_n · ratio.

    Args:
        estimate: of log p(x_n): importance sampling, a bracket's end, an oracle, a particle filter.
        lengths: T_n, ``(N,)``.

    Raises:
        ShapeError: other than one length for each row.

    Example:
        >>> from pyro_vae import Exact
        >>> from pyro_vae.evidence.sequential.per_step import PerStep, per_step
        >>> known = Exact.without_error(torch.tensor([-4.0, -2.0]).double(), "Kalman", "continuous", "")
        >>> per_step(known, [2, 1])
        PerStep(log_px=-2.0, mc_se=0.0, data_se=0.0, steps=3, rows=2, rows_flagged=0, oracle=True)
        >>> print(PerStep(-2.0, 0.01, 0.5, steps=3, rows=2, rows_flagged=1))
        log p(x) / T ≥ -2.00 nats per step (loose: 50 % of rows flagged; 3 steps of 2 sequences)
    """
    lengths = torch.as_tensor(lengths).to(estimate.log_px)
    if lengths.shape != estimate.log_px.shape:
        raise ShapeError(f"wanted {len(estimate)} lengths, one for each row, got shape {tuple(lengths.shape)}")
    steps, rows = lengths.sum(), len(estimate)
    ratio = estimate.log_px.sum() / steps
    residual = estimate.log_px - lengths * ratio
    mc_se, data_se = apart_se(estimate).square().sum().sqrt() / steps, residual_error(residual, steps)
    summary = estimate.summary()
    flagged = round(share_flagged(summary) * rows)
    return PerStep(ratio.item(), known(mc_se), data_se, int(steps), rows, flagged, "how" in summary)


def residual_error(residual: Tensor, steps: Tensor) -> float | None:
    """√N sd / Σ T, the data error of a ratio of sums; None for one row."""
    return known(residual.std() * len(residual) ** 0.5 / steps) if len(residual) > 1 else None
