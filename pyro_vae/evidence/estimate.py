"""Protocol of every estimate of log p(x), whatever computed it; what results share; and numbers in print."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from torch import Tensor

from pyro_vae.common.flagged import format_gap, format_log_px, is_loose
from pyro_vae.common.flagged import format_nats as format_nats  # beside the means and errors of rows
from pyro_vae.common.given import whole
from pyro_vae.common.result_table import ResultTable
from pyro_vae.data.arrays import read_once
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import DataError, UsageError

LOG_PX = "log p(x)"  # of which an estimate is that does not say otherwise, as its `quantity`
P = ParamSpec("P")
R = TypeVar("R")
OF_A_ROW = (  # of results that have them
    "log_px", "mc_se", "error", "ess", "elbo", "elbo_se", "khat", "max_share", "jackknife", "samples", "spread", "acceptance"
)  # fmt: skip


class LogPx(Protocol):
    """An estimate of log p(x), row by row, in nats: by importance sampling, annealing or an oracle; higher is better.

    Functions that take log p(x) from elsewhere (:func:`~pyro_vae.compare`, :func:`~pyro_vae.gaps`) need no more than this.
    """

    @property
    def log_px(self) -> Tensor:
        """log p(x_n), ``(N,)`` in float64."""

    @property
    def mc_se(self) -> Tensor:
        """Errors of log_px, ``(N,)``: Monte Carlo, or an oracle's own (0 in closed form)."""

    @property
    def method(self) -> str:
        """Name of the method that computed it."""

    @property
    def measure(self) -> str | None:
        """Measure that p(x) is a density of (:func:`~pyro_vae.programs.measure.measure_of`); None if not known."""

    def __len__(self) -> int: ...

    def summary(self) -> dict[str, Any]:
        """Average over rows, with errors; at least log_px, log_px_mc_se, log_px_data_se, rows, method, measure."""


class RowEstimates(ResultTable):
    """Base of results that hold ``log_px``, ``(N,)``, and print as a summary."""

    log_px: Tensor

    def __len__(self) -> int:
        return len(self.log_px)

    def summary(self) -> dict[str, Any]:
        """Average over rows."""
        raise NotImplementedError

    def columns(self) -> dict[str, Any]:
        """Return numbers of each row: row, log_px, its error and health, flagged, and what is known of the row."""
        found: dict[str, Any] = {"row": list(range(len(self)))}
        known_here = {name: getattr(self, name, None) for name in OF_A_ROW}
        found |= {name: value for name, value in known_here.items() if isinstance(value, Tensor) and value.ndim == 1}
        if (flagged := getattr(self, "flagged", None)) is not None:
            rows = set(flagged.tolist())
            found["flagged"] = [row in rows for row in range(len(self))]
        return dict(beside(getattr(self, "row_ids", None), found))

    def headline(self) -> list[list[str]]:
        """Return the mean with its errors, or as a bound where too many rows are flagged, and how well it was computed."""
        s = self.summary()
        loose = is_loose(s)
        lines = [["nats per row, higher is better", ""], ["log p(x)", format_log_px(s)]]
        if not loose:
            lines[1][0] = "log p(x) ± Monte Carlo" if "how" not in s else "log p(x) ± numerical"
            lines.append(["± data", format_nats(s.get("log_px_data_se"))])
        if s.get("elbo") is not None:
            spread = f"{'s.e.' if loose else '±'} {format_nats(s.get('elbo_mc_se'))}"
            lines += [["ELBO", f"{format_nats(s['elbo'])} {spread}"], ["gap", format_gap(s)]]
        if s.get("ess_median") is not None:
            lines.append(["ESS, median (least)", f"{s['ess_median']:.0f} ({s['ess_min']:.1f})"])
        if "rows_flagged" in s:
            lines.append(["rows flagged", f"{s['rows_flagged']} of {s['rows']}"])
        told = {"rows": s["rows"], "method": s.get("method"), "measure": s.get("measure")}
        return lines + [[name, str(value)] for name, value in told.items() if value is not None]

    def __repr__(self) -> str:
        return str(self)

    def bits_per_dim(self, event_size: int) -> Tensor:
        """−log p(x) / (D log 2) for each row: bits for each of the D elements of x; here lower is better.

        A code length where x is discrete. Where `measure` is "continuous" it moves with the scale of x: for pixels scaled from
        0..255 to 0..1, log p(x) of the unscaled ones is lower by D log 255.

        Example:
            >>> import torch
            >>> from pyro_vae import Evidence
            >>> rows = torch.tensor([[-8 * 0.6931471805599453]], dtype=torch.float64)
            >>> Evidence(rows[0], *rows.expand(4, 1), num_samples=1, seed=0).bits_per_dim(4).item()
            2.0
        """
        whole("event_size", event_size)
        if event_size < 1:
            raise UsageError(f"event_size is the number of elements of one row of x, at least 1; got {event_size}")
        return -self.log_px / (event_size * math.log(2))


def digest_of_rows(ids: RowIds | None) -> dict[str, str]:
    """Return the digest of all rows, for a summary; nothing where it is not known."""
    return {"rows_digest": ids.digest} if ids is not None and ids.digest else {}


def row_difference(estimate: Any, ids: RowIds | None) -> str | None:
    """Say how the rows of an estimate differ from others; None where they do not, or where either's are not known."""
    own = getattr(estimate, "row_ids", None)
    return None if own is None or ids is None else own.difference(ids)


def beside(ids: RowIds | None, columns: Mapping[str, Tensor | Sequence[str]]) -> dict[str, Tensor | Sequence[str]]:
    """Put what is known of the rows beside columns of numbers."""
    return {**columns, **({} if ids is None else ids.columns())}


def marked(flagged: Tensor, rows: int) -> list[str]:
    """Mark the rows not to believe, whose numbers are `flagged`, by "1" and others by "0": a column of a CSV.

    Example:
        >>> import torch
        >>> marked(torch.tensor([2]), 4)
        ['0', '0', '1', '0']
    """
    bad = set(flagged.tolist())
    return ["1" if row in bad else "0" for row in range(rows)]


def identified(function: Callable[Concatenate[Any, Any, Any, P], R]) -> Callable[Concatenate[Any, Any, Any, P], R]:
    """Have the result of ``function(model, guide, x, *context, ...)`` know its rows, as `row_ids`."""

    @functools.wraps(function)
    def knowing(model: Any, guide: Any, x: Any, *context: Any, **options: Any) -> R:
        x, *rest = [read_once(a) for a in (x, *context)]
        result: Any = function(model, guide, x, *rest, **options)
        known: R = dataclasses.replace(result, row_ids=RowIds.of(x, *rest))
        return known

    return knowing


def apart_se(estimate: Any, se: Tensor | None = None) -> Tensor:
    """Return errors of rows, ``(N,)``, by default `mc_se`, that add up by squares to the error of a sum over rows.

    √m times the errors of m rows that share their particles (:class:`~pyro_vae.Evidence` of noise="row"): they err together.
    """
    errors: Tensor = estimate.mc_se if se is None else se
    repeats = getattr(estimate, "repeats", None)
    return errors if repeats is None else errors * repeats.sqrt()


def refuse_two_noises(named: Mapping[str, Any]) -> None:
    """Refuse estimates of which some have noise of their rows' own, and others of blocks of rows."""
    noises = {name: estimate.noise for name, estimate in named.items() if hasattr(estimate, "noise")}
    for name, noise in noises.items():
        first, other = next(iter(noises.items()))
        if noise != other:
            raise UsageError(
                f"{first!r} is of noise={other!r} and {name!r} of noise={noise!r}: rows of equal values have the same noise in "
                "one of them alone. Score both with the same."
            )


def quantity_of(estimate: Any) -> str:
    """Name what an estimate is of: log p(x), or what its class says (log p(b | others), a mean over seeds)."""
    return str(getattr(estimate, "quantity", LOG_PX))


def refuse_two_quantities(named: Mapping[str, Any]) -> None:
    """Refuse estimates of unlike quantities, whose difference says nothing about which model is better."""
    of = {name: quantity_of(estimate) for name, estimate in named.items()}
    for name, quantity in of.items():
        first, other = next(iter(of.items()))
        if quantity != other:
            raise DataError(
                f"{first!r} is {other} and {name!r} is {quantity}: they are numbers of two things, and no model is better "
                "by their difference. Give the same of each: log_likelihood, or conditional_log_likelihood with one site=."
            )


def mean_se(se: Tensor) -> float | None:
    """√(Σ_n se_n²) / N, the Monte Carlo error of a mean over rows; None where it is not known."""
    return known(se.square().sum().sqrt() / len(se))


def data_se(values: Tensor) -> float | None:
    """sd / √N, the data error of a mean over rows; None for one row."""
    return known(values.std() / len(values) ** 0.5) if len(values) > 1 else None


def known(value: Tensor) -> float | None:
    """Return a number, or None where it is not defined (one particle, one row)."""
    return None if value.isnan() else value.item()


def finite(value: Tensor) -> float | None:
    """Return a number, or None where JSON has none."""
    return value.item() if value.isfinite() else None
