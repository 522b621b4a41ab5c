"""What is known of log p(x) after an evaluation, with its two errors apart."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError

LOW_ESS = 10  # below it a row's estimate rests on a handful of particles, and its own error bar is not to be believed
ROW_FIELDS = ("log_px", "mc_se", "ess", "elbo", "elbo_se")


@dataclass(frozen=True, eq=False)
class Evidence:
    r"""Per row and in the mean: log p̂(x), its Monte Carlo error, effective sample size and ELBO, in nats; higher is better.

    Attributes:
        log_px: importance-sampled log p(x_n), ``(N,)`` in float64: a lower bound in expectation.
        mc_se: Monte Carlo standard error of each `log_px` (delta method; believe it where ess is large).
        ess: effective sample size (Σ w)² / Σ w² of each row, between 1 and `num_samples`.
        elbo: the evidence lower bound of each row.
        elbo_se: Monte Carlo standard error of each `elbo`.
        num_samples: K, particles a row.
        seed: of the particles.
    """

    log_px: Tensor
    mc_se: Tensor
    ess: Tensor
    elbo: Tensor
    elbo_se: Tensor
    num_samples: int
    seed: int

    def __len__(self) -> int:
        return len(self.log_px)

    @property
    def gap(self) -> Tensor:
        """log p(x) − ELBO for each row: an estimate of KL(q(z | x) ‖ p(z | x)) from below (log_px being a lower bound)."""
        return self.log_px - self.elbo

    def summary(self) -> dict[str, Any]:
        """Means over rows, errors apart: Monte Carlo (more particles shrink it) and data (more rows shrink it).

        Also ELBO, gap, and the health of the weights. None stands for an error that one row or particle leaves unknown.
        """
        rows = len(self)
        return {
            "log_px": self.log_px.mean().item(),
            "log_px_mc_se": known(self.mc_se.square().sum().sqrt() / rows),
            "log_px_data_se": known(self.log_px.std() / rows**0.5) if rows > 1 else None,
            "elbo": self.elbo.mean().item(),
            "elbo_mc_se": known(self.elbo_se.square().sum().sqrt() / rows),
            "gap": self.gap.mean().item(),
            "ess_median": self.ess.median().item(),
            "ess_min": self.ess.min().item(),
            "rows_of_low_ess": int((self.ess < LOW_ESS).sum()),
            "rows": rows,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "unit": "nats per row, higher is better",
        }

    def rows_csv(self) -> str:
        """One line a row: row, log_px, mc_se, ess, elbo, elbo_se; floats to the last bit."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["row", *ROW_FIELDS])
        columns = [getattr(self, field).tolist() for field in ROW_FIELDS]
        writer.writerows([i, *map(repr, values)] for i, values in enumerate(zip(*columns, strict=True)))
        return out.getvalue()

    @classmethod
    def from_csv(cls, text: str, *, num_samples: int, seed: int) -> Evidence:
        """What `rows_csv` wrote, to the last bit.

        Args:
            text: of the file; further columns are left alone.
            num_samples: K, which the rows do not say.
            seed: of the particles.

        Raises:
            DataError: a column is missing, a row is out of order, or a cell is no number.

        Example:
            >>> from pyro_vae import Evidence
            >>> rows = torch.tensor([[-1.5, -0.1]], dtype=torch.float64).expand(5, 2)
            >>> evidence = Evidence(*rows, num_samples=7, seed=0)
            >>> Evidence.from_csv(evidence.rows_csv(), num_samples=7, seed=0).log_px.tolist()
            [-1.5, -0.1]
        """
        lines = list(csv.DictReader(io.StringIO(text)))
        if not lines or (missing := [field for field in ("row", *ROW_FIELDS) if field not in lines[0]]):
            raise DataError(f"no evidence: {f'the column {missing[0]!r} is missing' if lines else 'there are no rows'}")
        if [line["row"] for line in lines] != [str(i) for i in range(len(lines))]:
            raise DataError(f"no evidence: its {len(lines)} rows are not numbered 0 to {len(lines) - 1} in order")
        try:
            table = torch.tensor([[float(line[field]) for field in ROW_FIELDS] for line in lines], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"no evidence: a cell is no number ({error})") from error
        return cls(**dict(zip(ROW_FIELDS, table.unbind(1), strict=True)), num_samples=num_samples, seed=seed)

    def __str__(self) -> str:
        s = self.summary()
        return (
            f"log p(x) {s['log_px']:.3f} ± {say(s['log_px_mc_se'])} (Monte Carlo) ± {say(s['log_px_data_se'])} (data) nats | "
            f"ELBO {s['elbo']:.3f} ± {say(s['elbo_mc_se'])} | gap {s['gap']:.3f} | "
            f"ESS median {s['ess_median']:.0f}, least {s['ess_min']:.1f} of {s['num_samples']} | "
            f"{s['rows']} rows, {s['rows_of_low_ess']} with ESS below {LOW_ESS}"
        )

    __repr__ = __str__


def known(value: Tensor) -> float | None:
    """A number, or None where it is not defined (one particle, one row)."""
    return None if value.isnan() else value.item()


def say(error: float | None) -> str:
    """An error bar in print."""
    return "unknown" if error is None else f"{error:.3f}"
