"""Protocol of every estimate of log p(x), whatever computed it; and numbers in print."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor

from pyro_vae.errors import UsageError


class LogPx(Protocol):
    """An estimate of log p(x), row by row, in nats: by importance sampling, annealing or an oracle; higher is better.

    Functions that take log p(x) from elsewhere (:func:`~pyro_vae.compare`, :func:`~pyro_vae.gaps`) need no more than this.
    """

    @property
    def log_px(self) -> Tensor:
        """log p(x_n), ``(N,)`` in float64."""
        ...

    @property
    def mc_se(self) -> Tensor:
        """Errors of log_px, ``(N,)``: Monte Carlo, or an oracle's own (0 in closed form)."""
        ...

    @property
    def method(self) -> str:
        """The method that computed it."""
        ...

    @property
    def measure(self) -> str | None:
        """The measure that p(x) is a density of (:func:`~pyro_vae.programs.measure.measure_of`); None if not known."""
        ...

    def __len__(self) -> int: ...

    def summary(self) -> dict[str, Any]:
        """Average over rows, with errors; at least log_px, log_px_mc_se, log_px_data_se, rows, method, measure."""
        ...


def bits_per_dim(log_px: Tensor, event_size: int) -> Tensor:
    """−log p(x) / (D log 2) for each row."""
    if event_size < 1:
        raise UsageError(f"event_size is the number of elements of one row of x, at least 1; got {event_size}")
    return -log_px / (event_size * math.log(2))


def known(value: Tensor) -> float | None:
    """Return a number, or None where it is not defined (one particle, one row)."""
    return None if value.isnan() else value.item()


def finite(value: Tensor) -> float | None:
    """Return a number, or None where JSON has none."""
    return value.item() if value.isfinite() else None


def say(error: float | None) -> str:
    """Format a number in nats."""
    return "unknown" if error is None else f"{error:.3f}"
