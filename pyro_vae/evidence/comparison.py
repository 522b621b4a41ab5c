"""A comparison of models on the same rows, as a table: printed, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyro_vae.common.counted import counted
from pyro_vae.common.csv_columns import no_formula
from pyro_vae.common.flagged import MOST, format_bound, format_share
from pyro_vae.common.plain_text import plain
from pyro_vae.common.result_table import ResultTable
from pyro_vae.evidence.importance.pareto import LOW_ESS

from .estimate import format_nats


@dataclass(frozen=True)
class Compared:
    """One model of a comparison; in nats per row, None where a number is not known."""

    name: str
    log_px: float  # mean over rows
    mc_se: float | None
    data_se: float | None  # not the error of a difference
    difference: float  # mean over rows of log_px − the best model's; 0 or less
    difference_se: float | None  # paired: rows and particles, both models
    difference_mc_se: float | None  # the part that particles alone would leave, taking both models' to be independent
    gap: float | None  # log p(x) − ELBO; an oracle and annealing have no ELBO
    low_ess: float | None  # share of rows with an ESS below 10, whose log_px is loose and whose mc_se is too small
    num_samples: int | None  # K, particles a row
    seconds: float | None = None
    active_units: int | None = None  # latents that the model uses
    flagged: float | None = None  # share of rows that are not to be believed (k̂, or an oracle's error)
    method: str = "importance sampling"
    verdict: str = "best"  # of its difference to the best: decided, tie, not to be believed
    gap_mc_se: float | None = None  # of the gap, at most

    @property
    def loose(self) -> bool:
        """Whether more than a tenth of its rows is flagged, so that its errors are not those of the number."""
        return (self.flagged or 0.0) > MOST

    @property
    def log_px_is_no_bound(self) -> bool:
        """Whether it is an oracle's, which errs to either side where it errs."""
        return self.num_samples is None and not self.method.startswith("annealed")


@dataclass(frozen=True)
class Comparison(ResultTable):
    """Models on the same N rows, the best first, in nats per row: made by :func:`compare`, printed as a table with its notes.

    ``comparison.models[0]`` is the best, and ``len(comparison)`` counts them.

    Attributes:
        models: each with its name, mean log p(x), errors, gap, health, difference to the best and verdict on it ("decided",
            "tie" or "not to be believed"); the best has the verdict "best".
        rows: N.
        notes: on how far to trust the table, in sentences; empty where nothing speaks against it.

    Example:
        >>> import torch
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, compare, log_likelihood, normal
        >>> def score(units):
        ...     vae = VAE(StandardNormal(units), Conditional(MLP(units, 3), bernoulli), Conditional(MLP(3, 2 * units), normal))
        ...     return log_likelihood(vae.model, vae.guide, torch.eye(3), num_samples=100, verbose=False)
        >>> comparison = compare({"one unit": score(1), "two units": score(2)})
        >>> comparison.rows, len(comparison), comparison.models[0].verdict
        (3, 2, 'best')
    """

    models: tuple[Compared, ...]
    rows: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.models)

    def cells(self) -> list[list[str]]:
        """Return the table as text: headings, then one line a model; from the gap on, columns that any model knows."""
        best = self.models[0]
        table = [
            ["", *(m.name for m in self.models)],
            ["log p(x)", *(format_mean(m) for m in self.models)],
            ["± Monte Carlo", *("loose" if m.loose else format_nats(m.mc_se) for m in self.models)],
            ["± data", *("loose" if m.loose else format_nats(m.data_se) for m in self.models)],
            ["difference", *("best" if m is best else format_nats(m.difference) for m in self.models)],
            ["± paired", *(format_paired(m, best) for m in self.models)],
            ["verdict", *(m.verdict for m in self.models)],
        ]
        if any(m.gap is not None for m in self.models):
            table.append(["gap", *map(format_gap_of, self.models)])
        for heading, values, form in (
            (f"ESS < {LOW_ESS}", [m.low_ess for m in self.models], ".1%"),
            ("flagged", [m.flagged for m in self.models], ".1%"),
            ("K", [m.num_samples for m in self.models], "d"),
            ("active units", [m.active_units for m in self.models], "d"),
            ("seconds", [m.seconds for m in self.models], ".1f"),
        ):
            if any(v is not None for v in values):
                table.append([heading, *("" if v is None else format(v, form) for v in values)])
        return [list(row) for row in zip(*table, strict=True)]

    def table(self) -> Table:
        """Return a table for a rich console."""
        title = f"{counted(self.rows, 'row')}; nats per row, higher is better; differences paired, row by row, with the best"
        table = Table(title=title, title_justify="left")
        head, *lines = self.cells()
        for heading in head:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
        for line in lines:
            table.add_row(*(Text(plain(cell)) for cell in line))  # a Text, as brackets in a name are no markup
        return table

    def csv(self) -> str:
        """Format one line a model, in the fields of :class:`Compared`; floats to the last bit, nothing where not known."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([field.name for field in fields(Compared)])
        writer.writerows(map(no_formula, astuple(model)) for model in self.models)
        return out.getvalue()

    def latex(self) -> str:
        """Format a plain tabular, which needs no package."""
        return self.to_latex()

    def headline(self) -> list[list[str]]:
        """Return :meth:`cells`."""
        return self.cells()

    def columns(self) -> dict[str, Any]:
        """Return the fields of :class:`Compared`, a value a model, the best first."""
        return {field.name: [getattr(model, field.name) for model in self.models] for field in fields(Compared)}

    def plot(self) -> Any:
        """Plot the differences to the best with their paired errors (a matplotlib figure)."""
        from pyro_vae.plots.bars import forest

        rows = [(m.name, m.difference, m.difference_se, m.verdict) for m in self.models]
        names, differences, errors, verdicts = zip(*rows, strict=True)
        samples = ", ".join(map(str, sorted({m.num_samples for m in self.models if m.num_samples})))
        methods = ", ".join(sorted({m.method for m in self.models}))
        flagged = max((m.flagged or 0.0 for m in self.models), default=0.0)
        how = f"{methods}{f', K = {samples}' if samples else ''}, on {counted(self.rows, 'row')}"
        worst = f"; up to {format_share(flagged)} of rows flagged" if flagged else ""
        return forest(names, differences, errors, f"{how}{worst}", verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain names and numbers, for JSON."""
        models, notes = [asdict(model) for model in self.models], list(self.notes)
        return {"models": models, "rows": self.rows, "notes": notes, "unit": "nats per row, higher is better"}

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=160, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get() + "".join(f"note: {note}\n" for note in self.notes)

    __repr__ = __str__


def format_mean(m: Compared) -> str:
    """Format the mean log p(x): with three decimals, or as a bound where too many rows are flagged."""
    if not m.loose:
        return format_nats(m.log_px)
    return format_bound({"log_px": m.log_px} | ({"how": m.method} if m.log_px_is_no_bound else {}))


def format_gap_of(m: Compared) -> str:
    """Format the gap with its Monte Carlo error, or as a bound where too many rows are flagged."""
    if m.gap is None or m.loose:
        return "" if m.gap is None else f"≥ {format_nats(m.gap)}"
    return format_nats(m.gap) + ("" if m.gap_mc_se is None else f" ± {format_nats(m.gap_mc_se)}")


def format_paired(m: Compared, best: Compared) -> str:
    """Format the error of a difference, where both models have one."""
    return "" if m is best else "loose" if m.loose or best.loose else format_nats(m.difference_se)
