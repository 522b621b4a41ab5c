"""Annealed evidence as a file holds it: rows without their chains, read like any other estimate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.csv_columns import read_columns, write_columns
from pyro_vae.common.flagged import format_log_px
from pyro_vae.data.row_ids import RowIds
from pyro_vae.evidence.estimate import RowEstimates, beside, marked

from .result import Annealed

FIELDS = ("log_px", "mc_se", "ess")


@dataclass(frozen=True, eq=False, repr=False)
class AnnealedRows(RowEstimates):
    """log p̂(x) of each row by annealing, without the chains: a lower bound in expectation; nats.

    Attributes:
        log_px, mc_se, ess: as of :class:`~pyro_vae.evidence.annealing.result.Annealed`, ``(N,)`` in float64.
        facts: what ``Annealed.summary()`` gave.
        row_ids: which rows it is of, as for :class:`~pyro_vae.Evidence`.
    """

    log_px: Tensor
    mc_se: Tensor
    ess: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)
    row_ids: RowIds | None = None

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.facts["method"])

    @property
    def measure(self) -> str | None:
        """Measure that p(x) is a density of."""
        return self.facts["measure"]

    def summary(self) -> dict[str, Any]:
        """Return averages over rows, as they were written."""
        return dict(self.facts)

    def __str__(self) -> str:
        return (
            f"log p(x) {format_log_px(self.facts)} nats | {self.method}, {self.measure} | {counted(len(self), 'row')}"
        )


def rows_csv(annealed: Annealed) -> str:
    """Format one line a row: row, what is known of it, log_px, mc_se, ess, acceptance, flagged (1 or 0); to the last bit."""
    columns: dict[str, Tensor | Sequence[str]] = {name: getattr(annealed, name) for name in FIELDS}
    columns |= {"acceptance": annealed.acceptance.double(), "flagged": marked(annealed.flagged, len(annealed))}
    return write_columns(beside(annealed.row_ids, columns))


def from_csv(text: str, facts: Mapping[str, Any]) -> AnnealedRows:
    """Read what :func:`rows_csv` wrote, with the summary beside it.

    Raises:
        DataError: a column is missing, a row is out of order, or a cell is no number.

    Example:
        >>> text = "row,log_px,mc_se,ess\\n0,-1.5,0.1,8.0\\n"
        >>> about = {"log_px": -1.5, "log_px_mc_se": 0.1, "rows": 1, "method": "annealing", "measure": "counts"}
        >>> from_csv(text, about)
        log p(x) -1.500 ± 0.100 nats | annealing, counts | 1 row
    """
    return AnnealedRows(**read_columns(text, FIELDS), facts=facts, row_ids=RowIds.from_csv(text))
