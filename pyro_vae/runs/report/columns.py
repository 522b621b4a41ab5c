"""Which columns of a table a model gets wrong: their values beside draws of the model, column by column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_vae.data import Data
from pyro_vae.plots.marginals import marginal_panels
from pyro_vae.runs.load import Run
from pyro_vae.runs.run_figures import samples

DRAWS, ELEMENTS = 4000, 4_000_000  # of the model, at most; numbers drawn in all
LEVEL = 0.01  # of all columns together
SHOWN = 9  # in the picture


@dataclass(frozen=True)
class ColumnFit:
    """A column of the data beside the same column of draws of the model.

    Attributes:
        name: of the column.
        observed, missing: values in the data.
        mean, sd: of the data; of categories the share of the most frequent one, and nothing.
        drawn_mean, drawn_sd: of the draws, likewise.
        distance: largest difference between the two cumulative distributions, 0 to 1.
        limit: what chance explains, at one per cent for all columns together.
        place: of the column, from 0.
        label: the most frequent category, which the means are shares of.
    """

    name: str
    observed: int
    missing: int
    mean: float
    sd: float
    drawn_mean: float
    drawn_sd: float
    distance: float
    limit: float
    place: int = 0
    label: str = ""

    @property
    def wrong(self) -> bool:
        """Whether chance does not explain the distance."""
        return self.distance > self.limit

    def cells(self) -> list[str]:
        """Format mean of the data and of the draws, and both standard deviations."""
        if self.label:
            return [f"{self.label} {self.mean:.0%}", f"{self.drawn_mean:.0%}", "", ""]
        return [f"{value:.4g}" for value in (self.mean, self.drawn_mean, self.sd, self.drawn_sd)]


def is_table(run: Run) -> bool:
    """Return whether a row is a line of columns: no image, and no sequence, which may end early."""
    return len(run.shape) == 1 and not run.kind.ragged


def values_of(data: Data) -> np.ndarray:
    """Return the values that the model is to draw: all rows; of grey ones, which are no data of it, the test rows alone."""
    parts = [data.test] if data.transform is not None else [data.sample, data.validation, data.test]
    return np.concatenate([part.x.numpy() for part in parts]).astype(np.float64)


def draws_of(run: Run) -> np.ndarray:
    """x ~ p(x), ``(M, D)``."""
    count = max(100, min(DRAWS, ELEMENTS // max(1, run.shape[0])))
    return samples(run, count, seed=0).cpu().numpy().astype(np.float64)


@dataclass(frozen=True)
class ColumnName:
    """What a column is called, and the labels of its codes 0, 1, … where it holds categories."""

    name: str
    codes: tuple[str, ...] = ()


def column_names(data: Any, width: int) -> list[ColumnName]:
    """Name the columns, as the data does (its `columns`, of a table with a header), or by their place."""
    known = getattr(data, "columns", None) or ()
    if len(known) != width:
        return [ColumnName(f"column {i}") for i in range(width)]
    return [ColumnName(str(getattr(c, "name", c)), tuple(getattr(c, "codes", ()))) for c in known]


def column_fits(values: np.ndarray, draws: np.ndarray, names: Sequence[ColumnName]) -> list[ColumnFit]:
    r"""Measure each column by the Kolmogorov–Smirnov distance D = max_t |F_data(t) − F_model(t)|; the worst first.

    The limit is √(−½ log(α/2) · (n + m) / (n m)) with α = 0.01 / columns, conservative for columns with ties, such as counts
    and categories (in the order of their codes). Missing values are left out.

    References:
        On the estimation of the discrepancy between empirical curves of distribution for two independent samples (Smirnov,
        1939)

    Example:
        >>> rng = np.random.default_rng(0)
        >>> data = rng.normal(size=(2000, 2))
        >>> fits = column_fits(data, rng.normal(size=(2000, 2)) * [1.0, 1.5], [ColumnName("a"), ColumnName("b")])
        >>> [(fit.name, fit.wrong) for fit in fits]
        [('b', True), ('a', False)]
    """
    fits = [fit_of(name, i, values[:, i], draws[:, i], len(names)) for i, name in enumerate(names)]
    return sorted(fits, key=lambda fit: fit.limit - fit.distance if fit.observed else math.inf)


def fit_of(column: ColumnName, place: int, values: np.ndarray, drawn: np.ndarray, columns: int) -> ColumnFit:
    """Compare one column."""
    x, y = values[np.isfinite(values)], drawn[np.isfinite(drawn)]
    missing = len(values) - len(x)
    if not len(x) or not len(y):
        nothing = math.nan
        return ColumnFit(column.name, len(x), missing, nothing, nothing, nothing, nothing, nothing, 1.0, place)
    at = np.concatenate([x, y])
    ecdf = [np.searchsorted(np.sort(part), at, side="right") / len(part) for part in (x, y)]
    limit = math.sqrt(-0.5 * math.log(LEVEL / columns / 2) * (len(x) + len(y)) / (len(x) * len(y)))
    mean, sd, drawn_mean, drawn_sd = (float(moment) for part in (x, y) for moment in (part.mean(), part.std()))
    label = ""
    if column.codes:
        codes, counts = np.unique(x, return_counts=True)
        most = codes[counts.argmax()]
        label = column.codes[int(most)] if 0 <= most < len(column.codes) else f"{most:g}"
        mean, sd, drawn_mean, drawn_sd = float((x == most).mean()), math.nan, float((y == most).mean()), math.nan
    distance = float(np.abs(ecdf[0] - ecdf[1]).max())
    return ColumnFit(
        column.name, len(x), missing, mean, sd, drawn_mean, drawn_sd, distance, limit, place, label
    )  # fmt: skip


def picture(fits: Sequence[ColumnFit], values: np.ndarray, draws: np.ndarray, names: Sequence[ColumnName]) -> Any:
    """Plot the columns that differ most."""
    shown = [fit for fit in fits if fit.observed][:SHOWN]
    words = [f"{fit.distance:.2f} apart, chance {fit.limit:.2f}" for fit in shown]
    finite = [[part[:, f.place][np.isfinite(part[:, f.place])] for f in shown] for part in (values, draws)]
    return marginal_panels(
        [fit.name for fit in shown], finite[0], finite[1], words, [names[fit.place].codes for fit in shown]
    )
