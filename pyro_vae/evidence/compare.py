"""Compare models on the same rows: differences of log p(x), paired row by row, with standard errors."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyro_vae.common.flagged import MOST, format_bound, format_share, share_flagged
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.evidence.importance.result import LOW_ESS
from pyro_vae.programs.measure import dominating

from .estimate import LogPx, data_se, format_nats, known, row_difference

LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {"≥": r"$\geq$", "≈": r"$\approx$"}
)


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

    @property
    def loose(self) -> bool:
        """Whether more than a tenth of its rows is flagged, so that its errors are not those of the number."""
        return (self.flagged or 0.0) > MOST

    @property
    def log_px_is_no_bound(self) -> bool:
        """Whether it is an oracle's, which errs to either side where it errs."""
        return self.num_samples is None and not self.method.startswith("annealed")


@dataclass(frozen=True)
class Comparison:
    """Models on the same N rows, the best first; printed as a table, and notes on how far to trust it."""

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
        for heading, values, form in (
            ("gap", [m.gap for m in self.models], ".3f"),
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
        title = f"{self.rows} rows; nats per row, higher is better; differences paired, row by row, with the best"
        table = Table(title=title, title_justify="left")
        head, *lines = self.cells()
        for heading in head:
            table.add_column(heading, justify="right" if heading else "left", no_wrap=bool(heading))
        for name, *rest in lines:
            table.add_row(Text(name), *rest)  # a Text, as brackets in a name are no markup
        return table

    def csv(self) -> str:
        """Format one line a model, in the fields of :class:`Compared`; floats to the last bit, nothing where not known."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([field.name for field in fields(Compared)])
        writer.writerows(astuple(model) for model in self.models)
        return out.getvalue()

    def latex(self) -> str:
        """Format a plain tabular, which needs no package."""
        head, *lines = ([cell.translate(LATEX) for cell in line] for line in self.cells())
        body = [[name, *(cell.replace("-", "$-$") for cell in cells)] for name, *cells in lines]
        rows = [" & ".join(line) + r" \\" for line in (head, *body)]
        rule = r"\hline"
        begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
        return "\n".join([begin, rule, rows[0], rule, *rows[1:], rule, r"\end{tabular}", ""])

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


@suggest_keywords
def compare(
    evidence: Mapping[str, LogPx] | Iterable[tuple[str, LogPx]],
    *,
    seconds: Mapping[str, float | None] | None = None,
    active_units: Mapping[str, int | None] | None = None,
) -> Comparison:
    r"""Δ_m = 1/N Σ_n d_n with d_n = log p̂_m(x_n) − log p̂_best(x_n), and SE(Δ_m) = sd_n(d) / √N: paired, row by row.

    What makes a row hard is hard for both models and leaves d_n, so the paired error is far below that of the two means
    apart. The sd is over rows of *estimates*: each d_n holds the Monte Carlo noise of both, fresh in each row, so

        E[sd_n(d)²] = Var_n(log p_m − log p_best) + mean_n Var(noise of d_n),

    and SE(Δ_m) holds the Monte Carlo errors; their part of it, √Σ_n (mc_m[n]² + mc_best[n]²) / N, is `difference_mc_se`.

    Two things the errors leave out. Each log p̂ is a lower bound in expectation: a model with a worse guide, a lower ESS or a
    smaller K is put below its true log p(x). And the best of M models was chosen on these rows: with many of them it leads
    partly by luck, and some of M − 1 differences exceed 2 SE by chance. So each has a verdict:

    - *decided*: its difference is beyond Bonferroni's 5 per cent for M − 1 comparisons (2.0 SE for one, 2.6 for 5, 2.8 for
      10; more where rows are few, by Student's t), and its own rows are believed. A best model whose bound is loose may be
      better still, which decides nothing against it.
    - *tie*: within that, and both models are believed.
    - *not to be believed*: more than a tenth of its rows is flagged (or of the best model's, where it is within that): its
      bound is loose by an amount that nobody knows. No ± is printed.

    Args:
        evidence: by name, of :func:`~pyro_vae.log_likelihood`, :func:`~pyro_vae.ais` or an oracle on the same rows in the same
            order: their digests are compared (numbers without any, as of an older version, are let pass). Densities of
            rescaled data are not comparable with each other, which no one can see from the numbers.
        seconds, active_units: what each took (training, say), and latents that each uses, to be shown beside.

    Returns:
        A :class:`Comparison`: the best first, with ``table()``, ``csv()``, ``latex()`` and ``to_dict()``.

    Raises:
        UsageError: fewer than two, a name twice, seconds or active units of a name that is not there.
        ShapeError: not as many rows in one as in another.
        DataError: other rows in one than in another, by their digest, or another order of them; a row whose log p̂ is not
            finite, which would decide the comparison alone; or log probabilities beside log densities.

    References:
        Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations (Miller, 2024),
        https://arxiv.org/abs/2411.00640 (paired differences)

    Example:
        >>> from pyro_vae import Evidence
        >>> def without_error(log_px):
        ...     rows, none = torch.tensor(log_px), torch.zeros(len(log_px))
        ...     return Evidence(rows, none, none + 50, rows - 1, none, num_samples=50, seed=0)
        >>> result = compare({"a": without_error([-10.0, -20.0, -30.0]), "b": without_error([-11.0, -20.5, -31.5])})
        >>> [(m.name, m.difference, round(m.difference_se, 3)) for m in result.models]
        [('a', 0.0, 0.0), ('b', -1.0, 0.289)]
        >>> print(f"unpaired, it would be ± {sum(m.data_se**2 for m in result.models) ** 0.5:.1f}")
        unpaired, it would be ± 8.3
    """
    pairs = list(evidence.items() if isinstance(evidence, Mapping) else evidence)
    beside: dict[str, Any] = {"seconds": seconds or {}, "active_units": active_units or {}}
    check(pairs, beside)
    ranked = sorted(pairs, key=lambda pair: -pair[1].log_px.mean().item())
    best = ranked[0][1]
    measured = [
        Compared(name, **means(e), **paired(e, best), **{what: values.get(name) for what, values in beside.items()})
        for name, e in ranked
    ]
    decisive = quantile(len(ranked) - 1, len(best))
    models = (measured[0], *(replace(m, verdict=verdict(m, measured[0], decisive)) for m in measured[1:]))
    return Comparison(models, len(best), (*cautions(models), *repeats(best)))


def check(pairs: list[tuple[str, LogPx]], beside: dict[str, Mapping[str, Any]]) -> None:
    """Refuse evidence that cannot be compared."""
    names = [name for name, _ in pairs]
    if len(names) < 2:
        raise UsageError(f"a comparison takes two models or more, got {len(names)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"the name {twice[0]!r} stands for {names.count(twice[0])} models: give each one of its own")
    for what, values in beside.items():
        if unknown := [name for name in values if name not in names]:
            raise UsageError(f"{what} of {unknown[0]!r}, which is not compared; the names are {', '.join(names)}")
    (first, e), *others = pairs
    for name, other in others:
        if len(other) != len(e):
            raise ShapeError(
                f"{first!r} has {len(e)} rows and {name!r} has {len(other)}: differences are taken row by row. Score both "
                "on the same rows."
            )
        if how := row_difference(other, getattr(e, "row_ids", None)):
            raise DataError(
                f"{first!r} and {name!r} are not of the same rows: {how}. Differences are taken row by row: score both on the "
                "same rows in the same order."
            )
    measures = {name: e.measure for name, e in pairs if e.measure}  # evidence without a measure is let pass
    for name, measure in measures.items():
        first, measure_of_first = next(iter(measures.items()))
        if dominating(measure) != dominating(measure_of_first):
            raise DataError(
                f"log p(x) of {first!r} is of measure {measure_of_first!r} and that of {name!r} is {measure!r}: a log "
                "probability, a log density and a score have no difference. Give both a likelihood of one kind."
            )
    for name, e in pairs:
        if bad := (~e.log_px.isfinite()).nonzero().flatten().tolist():
            raise DataError(
                f"log p(x) of {name!r} is not finite in {len(bad)} of {len(e)} rows, the first {bad[:5]}: no mean, and no "
                "difference, survives it. Look at those rows: a guide that misses the posterior, or a model that excludes "
                "them."
            )


def repeats(e: LogPx) -> list[str]:
    """Say that rows of a density stand there more than once: as many values alike are no chance, and no rows of their own."""
    ids = getattr(e, "row_ids", None)
    if ids is None or dominating(e.measure or "counts") == "counting" or not ids.repeated:
        return []
    return [
        f"{ids.repeated} of {len(e)} rows stand there again: ± data and ± paired take each for a row of its own: too small."
    ]


def means(e: LogPx) -> dict[str, Any]:
    """Summarise one model alone."""
    s = e.summary()
    low_ess = s.get("rows_of_low_ess")
    has_flags = low_ess is not None or "rows_flagged" in s
    return {
        "log_px": s["log_px"],
        "mc_se": s["log_px_mc_se"],
        "data_se": s["log_px_data_se"],
        "gap": s.get("gap"),
        "low_ess": None if low_ess is None else low_ess / len(e),
        "num_samples": s.get("num_samples"),
        "flagged": share_flagged(s) if has_flags else None,
        "method": e.method,
    }


def paired(e: LogPx, best: LogPx) -> dict[str, Any]:
    """Average the differences to the best over rows, with standard errors; all 0 for the best itself."""
    if e is best:
        return {"difference": 0.0, "difference_se": 0.0, "difference_mc_se": 0.0}
    d = e.log_px - best.log_px
    noise = torch.cat([e.mc_se, best.mc_se]).square().sum().sqrt()
    return {"difference": d.mean().item(), "difference_se": data_se(d), "difference_mc_se": known(noise / len(d))}


def quantile(comparisons: int, rows: int) -> float:
    """Return how many standard errors a difference takes to be none by chance: 5 per cent, two-sided, for all together."""
    from scipy.special import stdtrit  # scikit-learn brings scipy; few who import this compare

    return float(-stdtrit(rows - 1, 0.025 / comparisons)) if rows > 1 else math.inf


def verdict(m: Compared, best: Compared, decisive: float) -> str:
    """Judge a difference to the best by its errors and by who is flagged.

    A bound that is loose lies too low, so a loose best only leads by more; an oracle that flags its rows is no bound.
    """
    known, beyond = m.difference_se is not None, m.difference < -decisive * (m.difference_se or 0.0)
    upside_down = best.loose and best.log_px_is_no_bound
    if not known or m.loose or (best.loose and not beyond) or upside_down:
        return "not to be believed"
    return "decided" if beyond else "tie"


def format_mean(m: Compared) -> str:
    """Format the mean log p(x): with three decimals, or as a bound where too many rows are flagged."""
    if not m.loose:
        return format_nats(m.log_px)
    return format_bound({"log_px": m.log_px} | ({"how": m.method} if m.log_px_is_no_bound else {}))


def format_paired(m: Compared, best: Compared) -> str:
    """Format the error of a difference, where both models have one."""
    return "" if m is best else "loose" if m.loose or best.loose else format_nats(m.difference_se)


def cautions(models: tuple[Compared, ...]) -> list[str]:
    """Format why some of the bounds are looser than others."""
    notes = []
    if len(methods := {m.method for m in models}) > 1:
        notes.append(
            f"scored by {', '.join(sorted(methods))}: each falls short of log p(x) by an amount of its own, an oracle by "
            "none. Score all by the same method."
        )
    if len(counts := {m.num_samples for m in models if m.num_samples}) > 1:
        notes.append(
            f"scored with {', '.join(map(str, sorted(counts)))} samples a row: fewer samples put a model lower. Score all "
            "with the same number."
        )
    if flagged := [m.name for m in models if m.low_ess]:
        notes.append(
            f"{', '.join(flagged)}: rows with an ESS below {LOW_ESS} have a loose lower bound, and a Monte Carlo error that is "
            "too small; more samples would raise them."
        )
    if loose := [f"{m.name} ({format_share(m.flagged or 0.0)})" for m in models if m.loose]:
        notes.append(
            f"more than a tenth of the rows is flagged in {', '.join(loose)}: these numbers are loose by an amount that nobody "
            "knows, and have no ±. Anneal them, or give them more samples or another proposal."
        )
    return notes
