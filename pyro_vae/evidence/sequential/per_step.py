"""log p(x) / T: nats per step of sequences of several lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import ShapeError
from pyro_vae.evidence.estimate import LogPx, apart_se, format_nats, known


@dataclass(frozen=True)
class PerStep:
    """Σ_n log p(x_n) / Σ_n T_n in nats per step, with both errors; None where one is not known."""

    log_px: float
    mc_se: float | None
    data_se: float | None
    steps: int
    rows: int

    def __str__(self) -> str:
        errors = f"± {format_nats(self.mc_se)} (Monte Carlo) ± {format_nats(self.data_se)} (data)"
        return f"log p(x) / T {self.log_px:.4f} {errors} nats per step ({self.steps} steps of {self.rows} sequences)"


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
        >>> from pyro_vae.evidence.sequential.per_step import per_step
        >>> known = Exact.without_error(torch.tensor([-4.0, -2.0]).double(), "Kalman", "continuous", "")
        >>> per_step(known, [2, 1])
        PerStep(log_px=-2.0, mc_se=0.0, data_se=0.0, steps=3, rows=2)
    """
    lengths = torch.as_tensor(lengths).to(estimate.log_px)
    if lengths.shape != estimate.log_px.shape:
        raise ShapeError(f"wanted {len(estimate)} lengths, one for each row, got shape {tuple(lengths.shape)}")
    steps, rows = lengths.sum(), len(estimate)
    ratio = estimate.log_px.sum() / steps
    residual = estimate.log_px - lengths * ratio
    mc_se, data_se = apart_se(estimate).square().sum().sqrt() / steps, residual_error(residual, steps)
    return PerStep(ratio.item(), known(mc_se), data_se, int(steps), rows)


def residual_error(residual: Tensor, steps: Tensor) -> float | None:
    """√N sd / Σ T, the data error of a ratio of sums; None for one row."""
    return known(residual.std() * len(residual) ** 0.5 / steps) if len(residual) > 1 else None
