"""What an exact method says of log p(x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .evidence import known, say


@dataclass(frozen=True, eq=False)
class Exact:
    """log p(x) of each row without sampling error, in nats; higher is better.

    Attributes:
        log_px: log p(x_n), ``(N,)`` in float64.
        error: of each; 0 in closed form, otherwise estimated (:func:`~pyro_vae.evaluate.oracles.quadrature` says how).
        flagged: rows whose error is above what was asked for, ``(N,)``.
        method: that computed it.
        measure: what log p(x) is a density with respect to (:func:`~pyro_vae.evaluate.measure.measure_of`).
        how: grid, codes or sizes, in words.
    """

    log_px: Tensor
    error: Tensor
    flagged: Tensor
    method: str
    measure: str
    how: str

    def __len__(self) -> int:
        return len(self.log_px)

    def summary(self) -> dict[str, Any]:
        """Mean over rows, its error (of the rows, as if all had one sign) and its data error (more rows shrink it)."""
        rows = len(self)
        return {
            "log_px": self.log_px.mean().item(),
            "log_px_error": self.error.mean().item(),
            "log_px_data_se": known(self.log_px.std() / rows**0.5) if rows > 1 else None,
            "largest_error": self.error.max().item(),
            "rows_flagged": int(self.flagged.sum()),
            "rows": rows,
            "method": self.method,
            "measure": self.measure,
            "unit": "nats per row, higher is better",
        }

    def __str__(self) -> str:
        s = self.summary()
        return (
            f"log p(x) {s['log_px']:.3f} ± {s['log_px_error']:.1e} ({self.method}) ± {say(s['log_px_data_se'])} (data) nats | "
            f"{self.how} | {self.measure} | {s['rows']} rows, {s['rows_flagged']} flagged, "
            f"largest error {s['largest_error']:.1e}"
        )

    __repr__ = __str__
