"""Result of an exact method: log p(x) of each row, and its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.csv_columns import read_columns, write_columns
from pyro_vae.common.flagged import format_bound, is_loose, why_loose
from pyro_vae.data.row_ids import RowIds
from pyro_vae.evidence.estimate import RowEstimates, beside, data_se, digest_of_rows, format_nats

FIELDS = ("log_px", "error", "reliable")


@dataclass(frozen=True, eq=False, repr=False)
class Exact(RowEstimates):
    """log p(x) of each row without sampling error, in nats; higher is better.

    Read like :class:`~pyro_vae.Evidence`: what takes the one takes the other (:func:`~pyro_vae.compare`,
    :func:`~pyro_vae.gaps`). There is no ELBO here, and no particles.

    Attributes:
        log_px: log p(x_n), ``(N,)`` in float64.
        error: of each; 0 in closed form, otherwise estimated (:func:`~pyro_vae.evidence.exact.quadrature.quadrature` says how).
        reliable: rows whose error is no larger than what was asked for, ``(N,)``.
        measure: what log p(x) is a density with respect to (:func:`~pyro_vae.programs.measure.measure_of`).
        method, how: that computed it; grid, codes or sizes, in words.
        row_ids: which rows it is of, as for :class:`~pyro_vae.Evidence`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import log_likelihood
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> found = log_likelihood(model, model, torch.zeros(3, 2), method="exact")       # no guide is asked
        >>> found.method, found.log_px, len(found.flagged)
        ('linear-Gaussian closed form', tensor([-2.5310, -2.5310, -2.5310], dtype=torch.float64), 0)
    """

    log_px: Tensor
    error: Tensor
    reliable: Tensor
    method: str
    measure: str | None
    how: str
    row_ids: RowIds | None = None

    @classmethod
    def without_error(cls, log_px: Tensor, method: str, measure: str | None, how: str) -> Exact:
        """Build a result that is exact up to rounding."""
        log_px = log_px.cpu()
        return cls(log_px, torch.zeros_like(log_px), torch.ones_like(log_px, dtype=torch.bool), method, measure, how)

    @property
    def mc_se(self) -> Tensor:
        """`error`, under the name that errors of log p(x) go by elsewhere; nothing was drawn."""
        return self.error

    @property
    def flagged(self) -> Tensor:
        """Numbers of the rows not to believe."""
        return (~self.reliable).nonzero().flatten()

    def summary(self) -> dict[str, Any]:
        """Average over rows, with the error (of the rows, as if all had one sign) and the data error (more rows shrink it)."""
        return {
            "log_px": self.log_px.mean().item(),
            "log_px_error": self.error.mean().item(),
            "log_px_mc_se": self.error.mean().item(),  # the same, where others have theirs
            "log_px_data_se": data_se(self.log_px),
            "largest_error": self.error.max().item(),
            "rows_flagged": len(self.flagged),
            "rows": len(self),
            **{name: getattr(self, name) for name in ("method", "how", "measure")},
            **digest_of_rows(self.row_ids),
            "unit": "nats per row, higher is better",
        }

    def rows_csv(self) -> str:
        """Format one line a row: row, log_px, error, reliable (1 or 0), and what is known of it; to the last bit."""
        return write_columns(beside(self.row_ids, {name: getattr(self, name).double() for name in FIELDS}))

    @classmethod
    def from_csv(cls, text: str, *, method: str, measure: str | None, how: str) -> Exact:
        """Read what `rows_csv` wrote, to the last bit; with `method`, `measure` and `how`, which the rows do not hold.

        Raises:
            DataError: a column is missing, a row is out of order, or a cell is no number.

        Example:
            >>> import torch
            >>> exact = Exact(torch.tensor([-1.5]), torch.tensor([0.0]), torch.tensor([True]), "by hand", "counts", "")
            >>> Exact.from_csv(exact.rows_csv(), method="by hand", measure="counts", how="")
            log p(x) -1.500 ± 0.0e+00 (by hand) ± unknown (data) nats | counts | 1 row, 0 flagged, largest error 0.0e+00
        """
        columns = read_columns(text, FIELDS)
        ids = RowIds.from_csv(text)
        return cls(columns["log_px"], columns["error"], columns["reliable"] > 0, method, measure, how, ids)

    def __str__(self) -> str:
        s = self.summary()
        mean = f"{s['log_px']:.3f} ± {s['log_px_mc_se']:.1e} ({self.method}) ± {format_nats(s['log_px_data_se'])} (data) nats"
        if is_loose(s):
            mean = f"{format_bound(s)} nats ({why_loose(s)}; {self.method})"
        return (
            f"log p(x) {mean} | {' | '.join(filter(None, (self.how, self.measure)))} | "
            f"{counted(s['rows'], 'row')}, {s['rows_flagged']} flagged, largest error {s['largest_error']:.1e}"
        )
