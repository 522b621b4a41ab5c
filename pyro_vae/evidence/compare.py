"""Compare models on the same rows: differences of log p(x), paired row by row, with standard errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from pyro_vae.common.flagged import format_share, share_flagged
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import DataError, ShapeError, UsageError
from pyro_vae.evidence.importance.pareto import LOW_ESS
from pyro_vae.programs.measure import dominating

from .comparison import Compared, Comparison
from .estimate import LogPx, apart_se, data_se, known, refuse_two_noises, refuse_two_quantities, row_difference
from .over_seeds import SeedEvidence

MIXED = (
    "log p(x) is a density of some columns and a probability of others: the numbers compare only where every model has a "
    "density of the same columns, in the same units, which cannot be seen from them."
)


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
        UsageError: fewer than two, a name twice, evidence of noise="row" beside that of blocks, means over seeds, seconds or
            active units of a name that is not there.
        ShapeError: not as many rows in one as in another.
        DataError: other rows in one than in another, by their digest, or another order of them; a row whose log p̂ is not
            finite, which would decide the comparison alone; log probabilities beside log densities; or log p(x) beside
            log p(x_2 | x_1).

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
    mixed = [MIXED] if " x " in dominating(best.measure or "") else []
    return Comparison(models, len(best), (*cautions(models), *mixed, *repeats(best)))


def check(pairs: list[tuple[str, LogPx]], beside: dict[str, Mapping[str, Any]]) -> None:
    """Refuse evidence that cannot be compared."""
    check_names([name for name, _ in pairs], beside)
    refuse_means_over_seeds(pairs)
    refuse_two_noises(dict(pairs))
    refuse_two_quantities(dict(pairs))
    check_same_rows(pairs)
    check_measures(pairs)
    for name, e in pairs:
        if bad := (~e.log_px.isfinite()).nonzero().flatten().tolist():
            raise DataError(
                f"log p(x) of {name!r} is not finite in {len(bad)} of {len(e)} rows, the first {bad[:5]}: no mean, and no "
                "difference, survives it. Look at those rows: a guide that misses the posterior, or a model that excludes "
                "them."
            )


def refuse_means_over_seeds(pairs: list[tuple[str, LogPx]]) -> None:
    """Refuse means over seeds: the paired error leaves out that another seed would give another model."""
    for name, e in pairs:
        if isinstance(e, SeedEvidence):
            raise UsageError(
                f"{name!r} is {e.quantity}, and ± paired leaves out what another seed would give: take "
                "ensemble.compare(other, x), whose verdict is by seeds and rows, or one model of it, evidence.members[0]"
            )


def check_names(names: list[str], beside: dict[str, Mapping[str, Any]]) -> None:
    """Refuse fewer than two names, one that stands for two models, and what is of none of them."""
    if len(names) < 2:
        raise UsageError(f"a comparison takes two models or more, got {len(names)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"the name {twice[0]!r} stands for {names.count(twice[0])} models: give each one of its own")
    for what, values in beside.items():
        if unknown := [name for name in values if name not in names]:
            raise UsageError(f"{what} of {unknown[0]!r}, which is not compared; the names are {', '.join(names)}")


def check_same_rows(pairs: list[tuple[str, LogPx]]) -> None:
    """Refuse evidence of other rows than the first's, or in another order, where their digests are known."""
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


def check_measures(pairs: list[tuple[str, LogPx]]) -> None:
    """Refuse probabilities beside densities, and scores beside either; evidence without a measure is let pass."""
    measures = {name: e.measure for name, e in pairs if e.measure}
    for name, measure in measures.items():
        first, measure_of_first = next(iter(measures.items()))
        if dominating(measure) != dominating(measure_of_first):
            raise DataError(
                f"log p(x) of {first!r} is of measure {measure_of_first!r} and that of {name!r} is {measure!r}: a log "
                "probability, a log density and a score have no difference. Give both a likelihood of one kind."
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
        "gap_mc_se": s.get("gap_mc_se"),
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
    noise = torch.cat([apart_se(e), apart_se(best)]).square().sum().sqrt()
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
