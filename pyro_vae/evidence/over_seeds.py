"""log p(x) of an architecture: the mean over members of several seeds, with the error over seeds beside the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.flagged import format_bound, format_share, is_loose, share_flagged
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.programs.measure import dominating

from .estimate import (
    LogPx,
    RowEstimates,
    apart_se,
    data_se,
    format_nats,
    known,
    mean_se,
    quantity_of,
    refuse_two_noises,
    refuse_two_quantities,
    row_difference,
)

NEEDED = 2  # seeds, from which there is a spread


@dataclass(frozen=True, eq=False, repr=False)
class SeedEvidence(RowEstimates):
    r"""log p(x) of M members on the same N rows, ``L_i`` = 1/N Σ_n log p_i(x_n) each, and what they say of their architecture.

    The mean over members is printed with three errors, in nats a row:

    - **± seed**, √(V / M) with V = 1/(M−1) Σ_i (L_i − L̄)²: the standard error of L̄ as an estimate of the mean over all seeds
      that could have been, *on these rows*. The members' own Monte Carlo errors are in it.
    - **± Monte Carlo**, √(Σ_i s_i²) / M, of the particles alone; s_i is that of L_i.
    - **± data**, sd_n(1/M Σ_i log p_i(x_n)) / √N: of these rows for all that could have been.

    `seed_sd`, √max(0, V − 1/M Σ_i s_i²), is the standard deviation from seed to seed, the Monte Carlo part taken off (members
    are scored by particles of their own): how far a single run is from the mean.

    Attributes:
        members: log p(x) of each, an :class:`~pyro_vae.Evidence`, an oracle's or annealing's.
        seeds: of the members.
        left_out: seeds of members that diverged, and what happened: they are in no number here.

    Raises:
        UsageError: no members, or not one seed for each.
        ShapeError, DataError: members scored on different rows, or with respect to different measures.

    Example:
        >>> from pyro_vae import Evidence
        >>> def scored(mean):
        ...     rows, one = torch.tensor([mean - 1.0, mean + 1.0]), torch.ones(2)
        ...     return Evidence(rows, 0.1 * one, 99 * one, rows - 1, one, num_samples=100, seed=0, khat=0 * one,
        ...                     max_share=0 * one, jackknife=rows)
        >>> evidence = SeedEvidence((scored(-10.0), scored(-12.0)), (0, 1))
        >>> {k: round(v, 3) for k, v in evidence.summary().items() if k.startswith("log_px")}
        {'log_px': -11.0, 'log_px_seed_se': 1.0, 'log_px_seed_sd': 1.412, 'log_px_mc_se': 0.05, 'log_px_data_se': 1.0}
    """

    members: tuple[LogPx, ...]
    seeds: tuple[int, ...]
    left_out: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.seeds):
            raise UsageError(
                f"{len(self.members)} members and {len(self.seeds)} seeds: give one or more, and a seed each"
            )
        for seed, other in zip(self.seeds[1:], self.members[1:], strict=True):
            check_same(self.members[0], other, f"seed {self.seeds[0]} and seed {seed}")

    @property
    def rows_of_members(self) -> Tensor:
        """log p_i(x_n), ``(M, N)``."""
        return torch.stack([e.log_px for e in self.members])

    @property
    def log_px(self) -> Tensor:  # type: ignore[override]
        """Mean over members of log p_i(x_n), ``(N,)``: of no single model."""
        return self.rows_of_members.mean(0)

    @property
    def mc_se(self) -> Tensor:
        """Monte Carlo errors of `log_px`, ``(N,)``."""
        return torch.stack([e.mc_se for e in self.members]).square().sum(0).sqrt() / len(self.members)

    @property
    def repeats(self) -> Tensor | None:
        """How many rows share their particles with each, in each member; None where none do."""
        return getattr(self.members[0], "repeats", None)

    @property
    def quantity(self) -> str:
        """What it is of, which no single model has."""
        return f"the mean of {quantity_of(self.members[0])} over seeds"

    @property
    def method(self) -> str:
        return ", ".join(sorted({e.method for e in self.members}))

    @property
    def measure(self) -> str | None:
        return self.members[0].measure

    @property
    def means(self) -> Tensor:
        """L_i of each member, ``(M,)``."""
        return self.rows_of_members.mean(1)

    @property
    def variance(self) -> float | None:
        """V, between the members; None for one."""
        return float(self.means.var()) if len(self.members) >= NEEDED else None

    @property
    def seed_se(self) -> float | None:
        """√(V / M), the error of the mean over seeds; None for one member."""
        return None if self.variance is None else math.sqrt(self.variance / len(self.members))

    @property
    def seed_sd(self) -> float | None:
        """Standard deviation from seed to seed, less the Monte Carlo part; None for one member, or an unknown part."""
        errors = [mean_se(apart_se(e)) for e in self.members]
        if self.variance is None or None in errors:
            return None
        return math.sqrt(max(0.0, self.variance - sum(s**2 for s in errors if s is not None) / len(errors)))

    def summary(self) -> dict[str, Any]:
        """Average over members and rows, with errors; `rows_flagged` are those of the member that has most."""
        summaries = [e.summary() for e in self.members]
        worst = max(summaries, key=share_flagged)
        loose = {} if "rows_flagged" not in worst else {"rows_flagged": worst["rows_flagged"]}
        loose |= {key: worst[key] for key in ("how", "rows_of_low_ess") if key in worst}
        return {
            "log_px": self.means.mean().item(),
            "log_px_seed_se": self.seed_se,
            "log_px_seed_sd": self.seed_sd,
            "log_px_mc_se": mean_se(apart_se(self)),
            "log_px_data_se": data_se(self.log_px),
            "seeds": list(self.seeds),
            "left_out": dict(self.left_out),
            "rows": len(self),
            **loose,
            "method": self.method,
            "measure": self.measure,
            "unit": "nats per row, higher is better",
            "members": [{"member_seed": seed, **s} for seed, s in zip(self.seeds, summaries, strict=True)],
        }

    def __str__(self) -> str:
        return format_summary(self.summary())


def check_same(a: LogPx, b: LogPx, who: str) -> None:
    """Refuse estimates of other rows, or of densities that have no difference."""
    if len(a) != len(b):
        raise ShapeError(f"{who} have {len(a)} and {len(b)} rows: score all on the same")
    if how := row_difference(b, getattr(a, "row_ids", None)):
        raise DataError(f"{who} are not of the same rows: {how}. Score all on the same rows in the same order.")
    refuse_two_noises(both := {f"one of {who}": a, f"another of {who}": b})
    refuse_two_quantities(both)
    if a.measure and b.measure and dominating(a.measure) != dominating(b.measure):
        raise DataError(f"log p(x) of {who} is of measures {a.measure!r} and {b.measure!r}, which have no difference")


def format_mean(summary: Mapping[str, Any]) -> str:
    """Format the mean over seeds with its errors, or as a bound where a member's rows are not believed.

    Example:
        >>> about = {"log_px": -90.0, "log_px_seed_se": 0.2, "log_px_mc_se": 0.01, "log_px_data_se": 0.7, "rows": 100}
        >>> format_mean(about), format_mean(about | {"rows_flagged": 30})
        ('-90.000 ± 0.200 seed ± 0.010 Monte Carlo ± 0.700 data', '≥ -90.00 (loose: 30 % of rows flagged in a member)')
    """
    if is_loose(summary):
        why = f"{format_share(share_flagged(summary))} of rows flagged in a member"
        return f"{format_bound(summary)} ({'not to be believed' if 'how' in summary else 'loose'}: {why})"
    errors = [(summary[f"log_px_{name}_se"], word) for name, word in ERRORS]
    return f"{summary['log_px']:.3f} " + " ".join(f"± {format_nats(error)} {word}" for error, word in errors)


ERRORS = (("seed", "seed"), ("mc", "Monte Carlo"), ("data", "data"))


def format_summary(summary: Mapping[str, Any]) -> str:
    """Write the mean, the spread and each member, a line each."""
    count, loose = len(summary["seeds"]), is_loose(summary)
    lines = [f"log p(x) {format_mean(summary)}, nats per row, of {count} seeds on {summary['rows']} rows"]
    if not loose and summary["log_px_seed_sd"] is not None:
        lines.append(f"from seed to seed: sd {format_nats(summary['log_px_seed_sd'])} (Monte Carlo taken off)")
    for member in summary["members"]:
        name = f"  seed {member['member_seed']}:"
        if is_loose(member):
            lines.append(f"{name} {format_bound(member)} ({format_share(share_flagged(member))} of rows flagged)")
        else:
            lines.append(f"{name} {member['log_px']:.3f} ± {format_nats(member['log_px_mc_se'])} Monte Carlo")
    lines += [f"  left out: {why}" for why in summary["left_out"].values()]
    return "\n".join(lines)


@dataclass(frozen=True)
class SeedComparison:
    """The difference of two architectures on the same rows, each over its seeds; in nats a row, None where not known."""

    names: tuple[str, str]
    means: tuple[str, str]  # of each, with errors, as text
    difference: float  # of the first less the second
    seed_se: float | None
    mc_se: float | None
    data_se: float | None  # paired, row by row
    se: float | None  # of seeds and rows together
    decisive: float  # standard errors that decide
    verdict: str
    rows: int
    loose: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{name}: {mean}" for name, mean in zip(self.names, self.means, strict=True)]
        about = f"{self.names[0]} - {self.names[1]}: {self.difference:+.3f}"
        errors = ((self.seed_se, "seed"), (self.mc_se, "Monte Carlo"), (self.data_se, "data, paired"))
        told = "(loose)" if self.loose else " ".join(f"± {format_nats(error)} {word}" for error, word in errors)
        together = "" if self.loose or self.se is None else f"; ± {format_nats(self.se)} together"
        return "\n".join(
            [*lines, f"{about} {told}{together}, nats per row on {self.rows} rows: {self.verdict}", *self.notes]
        )


def compare_seeds(a: SeedEvidence, b: SeedEvidence, names: Sequence[str] = ("first", "second")) -> SeedComparison:
    r"""Δ = L̄_a − L̄_b, with ± seed, ± Monte Carlo and ± data (paired, row by row), and a verdict by seeds and rows together.

    SE² = V_a / M_a + V_b / M_b + Var_n(d_n) / N − (its Monte Carlo part, which is in both), with d_n the difference of the
    members' means of row n: seeds and rows are crossed. What seeds and rows share (a row that is hard for one seed) is in both
    terms, so SE errs to the larger side. The verdict is *decided* where |Δ| exceeds SE by the 97.5 % quantile of Student's t,
    its degrees of freedom after Welch and Satterthwaite; *tie* where it does not; *not to be believed* where a member is loose;
    and *one seed* where an architecture has one member, so that nobody knows what another seed would give.

    Raises:
        ShapeError, DataError: evidence of other rows or measures.

    References:
        The Generalization of "Student's" Problem when Several Different Population Variances are Involved (Welch, 1947),
        https://doi.org/10.2307/2332510
    """
    check_same(a.members[0], b.members[0], f"{names[0]} and {names[1]}")
    d = a.log_px - b.log_px
    mc = known(torch.cat([apart_se(a), apart_se(b)]).square().sum().sqrt() / len(d))
    data = data_se(d)
    seed = None if a.seed_se is None or b.seed_se is None else math.hypot(a.seed_se, b.seed_se)
    se, freedom = together(a, b, seed, data, mc)
    summaries = a.summary(), b.summary()
    loose = any(map(is_loose, summaries))
    difference = d.mean().item()
    decisive = quantile(freedom)
    if loose:
        verdict = "not to be believed"
    elif se is None:
        verdict = "one seed: what another would give is not known"
    else:
        verdict = "decided" if abs(difference) > decisive * se else "tie"
    left = [f"left out: {name}, {why}" for name, e in zip(names, (a, b), strict=True) for why in e.left_out.values()]
    means = format_mean(summaries[0]), format_mean(summaries[1])
    return SeedComparison(
        (names[0], names[1]), means, difference, seed, mc, data, se, decisive, verdict, len(d), loose, tuple(left)
    )


def together(
    a: SeedEvidence, b: SeedEvidence, seed: float | None, data: float | None, mc: float | None
) -> tuple[float | None, float]:
    """Return the standard error by seeds and rows, and its degrees of freedom."""
    if seed is None or data is None:
        return None, math.inf
    parts = [(e.seed_se or 0.0) ** 2 for e in (a, b)]
    variances = [*parts, data**2]
    freedoms = [len(a.members) - 1, len(b.members) - 1, len(a) - 1]
    below = sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    freedom = sum(variances) ** 2 / below if below else math.inf
    variance = max(seed**2, data**2, sum(variances) - (mc or 0.0) ** 2)
    return math.sqrt(variance), freedom


def quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t."""
    from scipy.special import ndtri, stdtrit  # scikit-learn brings scipy; few who import this compare

    return float(ndtri(0.975) if math.isinf(freedom) else stdtrit(freedom, 0.975))
