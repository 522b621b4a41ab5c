r"""log p(x) between two ends: the better of two lower bounds, and reverse annealing from above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.flagged import format_log_px, format_nats, is_loose, why_loose
from pyro_vae.common.given import check_whole, whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.evidence.estimate import data_se, mean_se
from pyro_vae.evidence.importance.estimator import importance
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.proposal_guide import as_written
from pyro_vae.programs.same_on_ranks import check_same_on_ranks
from pyro_vae.programs.simulate import simulate
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors

from .ais import Annealer
from .result import Annealed
from .reverse import Latents, reverse
from .schedule import AISSettings


@dataclass(frozen=True, eq=False)
class Bracket:
    r"""log p(x_n) between `lower` and `upper`, in nats.

    Attributes:
        lower, lower_se: lower bound in expectation of each row, ``(N,)``, and its Monte Carlo standard error.
        upper: of each row: −log 1/C Σ_c exp(−log w) of reverse annealing.
        upper_se: its Monte Carlo standard error over chains, too small as chains of a row share their start; the error of the
            mean gap, which is taken over rows, is not.
        strict: True: an upper bound in expectation (rows drawn from the model, chains started at their latents).
            False: APPROXIMATE (chains started where forward annealing ended); it may lie below log p(x).
        annealed: whether a row's lower end is annealing's, ``(N,)``.
        importance, annealing: the evidence by importance sampling, and by the forward run.
        acceptance: mean acceptance of the reverse run, ``(N,)``.
        x: the rows that it is of.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.9))
        >>> from pyro_vae import bracket
        >>> ends = bracket(
        ...     model, guide, torch.zeros(2), num_samples=100, num_temperatures=4, num_chains=12, step_size=0.5, verbose=False
        ... )
        >>> len(ends), ends.summary()["upper_is"], torch.equal(ends.gap, ends.upper - ends.lower)
        (2, 'approximate', True)
    """

    lower: Tensor
    lower_se: Tensor
    upper: Tensor
    upper_se: Tensor
    strict: bool
    annealed: Tensor
    importance: Evidence
    annealing: Annealed
    acceptance: Tensor
    x: Tensor

    def __len__(self) -> int:
        return len(self.lower)

    @property
    def gap(self) -> Tensor:
        """Upper − lower of each row; in expectation ≥ 0 if strict, but not in each row."""
        return self.upper - self.lower

    @property
    def doubted(self) -> Tensor:
        """Rows whose lower end is flagged by the method that it is of, ``(N,)``."""
        sampled, annealed = torch.zeros(2, len(self), dtype=torch.bool)
        sampled[self.importance.flagged] = True
        annealed[getattr(self.annealing, "flagged", [])] = True
        return torch.where(self.annealed, annealed, sampled)

    def summary(self) -> dict[str, Any]:
        """Average over rows. `gap_se` is over rows, and so holds Monte Carlo and data error both."""
        return {
            "lower": self.lower.mean().item(),
            "lower_mc_se": mean_se(self.lower_se),
            "upper": self.upper.mean().item(),
            "upper_mc_se": mean_se(self.upper_se),
            "upper_is": "strict in expectation" if self.strict else "approximate",
            "gap": self.gap.mean().item(),
            "gap_se": data_se(self.gap),
            "importance": self.importance.log_px.mean().item(),
            "importance_mc_se": mean_se(self.importance.mc_se),
            "annealing": self.annealing.log_px.mean().item(),
            "annealing_mc_se": self.annealing.summary()["log_px_mc_se"],
            "rows_by_annealing": int(self.annealed.sum()),
            "acceptance": self.acceptance.mean().item(),
            "rows": len(self),
            "rows_flagged": int(self.doubted.sum()),
            "importance_flagged": len(self.importance.flagged),
            "annealing_flagged": len(getattr(self.annealing, "flagged", ())),
            "measure": self.annealing.measure,
            "unit": "nats per row",
        }

    def plot(self) -> Any:
        """Plot log p(x) between its ends, a mark a method (a matplotlib figure)."""
        from pyro_vae.plots.evidence import bracket_ends

        return bracket_ends({"rows": self.summary()})

    def __str__(self) -> str:
        s, end = self.summary(), "upper end strict in expectation: rows simulated from the model"
        if not self.strict:
            end = "upper end APPROXIMATE: chains started where forward annealing ended, it may lie below log p(x)"
        lower, upper, gap, *lowers = (
            format_end(s, key) for key in ("lower", "upper", "gap", "importance", "annealing")
        )
        ends = f"{lower} and {upper} nats (Monte Carlo) | gap {gap} (over rows)"
        if is_loose(s):
            ends = f"{s['lower']:.2f} ({why_loose(s)}) and {upper} nats | gap {gap}"
        return (
            f"log p(x) between {ends} | {end} | lower end: importance sampling {lowers[0]}, annealing {lowers[1]}, "
            f"{s['rows_by_annealing']} of {counted(s['rows'], 'row')} by annealing"
        )

    __repr__ = __str__


def format_end(summary: Mapping[str, Any], key: str) -> str:
    """Format a number of :meth:`Bracket.summary` with its error; without one where too many of its rows are flagged.

    Example:
        >>> s = {"upper": -1.0, "upper_mc_se": 0.1, "importance": -1.2, "importance_mc_se": 0.01, "rows": 9}
        >>> format_end(s, "upper"), format_end(s | {"importance_flagged": 3}, "importance")
        ('-1.000 ± 0.100', '≥ -1.20 (loose: 33 % of rows flagged)')
    """
    if key in ("upper", "gap"):
        error = summary.get("gap_se" if key == "gap" else "upper_mc_se")
        return f"{summary[key]:.2f}" if is_loose(summary) else f"{summary[key]:.3f} ± {format_nats(error)}"
    flagged = summary.get("rows_flagged" if key == "lower" else f"{key}_flagged", 0)
    about = {"log_px": summary[key], "log_px_mc_se": summary.get(f"{key}_mc_se")}
    return format_log_px(about | {"rows": summary["rows"], "rows_flagged": flagged})


@suggest_keywords
def bracket(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    latents: Latents | None = None,
    num_samples: int = 1000,
    refresh: int = 20,
    start: str = "guide",
    num_temperatures: int = 100,
    num_chains: int = 16,
    leapfrog_steps: int = 10,
    schedule: str = "sigmoid",
    step_size: float | None = None,
    target_acceptance: float = 0.65,
    seed: int = 0,
    chunk_size: int = 16384,
    verbose: bool = True,
) -> Bracket:
    r"""lower_n ≤ log p(x_n) ≤ upper_n, by importance sampling and annealing from below, reverse annealing from above.

    *Lower.* Both log p̂ are lower bounds in expectation; their maximum, row by row, would be none, as it picks the luckier
    noise. So row n takes annealing, unless on all *other* rows, whose noise is independent of its own, importance sampling
    is higher by more than 2 standard errors of the paired difference: a bound still.

    *Upper.* Chains start at draws of p(z | x) and walk from β = 1 down to 0: E[1/p̂_rev] = 1/p(x), so −log of the mean of
    1/p̂_rev is an upper bound in expectation. It is strict for rows that the model drew along with their latents
    (:func:`bdmc`, or `latents` here), which are exact draws of the posterior. On real rows the chains start where the forward
    run ended (resampled by weight, then `refresh` further transitions at β = 1), which is the posterior only as far as the
    chains have mixed: that upper end is *approximate*, and printed as such.

    1/p̂_rev has a finite variance where the start has lighter tails than the posterior. From a wider start (the prior) its
    mean may rest on chains that hardly ever come: the upper end is then loose, on the safe side; more temperatures help.

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`.
        latents: by site, of rows that the model drew (from :func:`~pyro_vae.programs.simulate.simulate`).
        num_samples, refresh: K of importance sampling; transitions at β = 1 before the reverse run.
        start, num_temperatures, num_chains, leapfrog_steps, schedule, step_size, target_acceptance, verbose: of the annealing,
            as for :func:`~pyro_vae.evidence.annealing.ais.ais`.
        seed, chunk_size: of everything; (row, particle) or (row, chain) pairs run at a time.

    Raises:
        ProgramError, SupportError, ShapeError, DataError, UsageError: as :func:`~pyro_vae.evidence.annealing.ais.ais`.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse, Ghahramani & Adams, 2015),
        https://arxiv.org/abs/1511.02543

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import bracket
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):   # too wide
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.9))
        >>> x = torch.tensor([0.0, 1.0])
        >>> ends = bracket(model, guide, x, num_temperatures=10, step_size=0.5)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x)
        >>> low, high = ends.lower - 4 * ends.lower_se, ends.upper + 4 * ends.upper_se
        >>> bool((low < exact).all()), bool((exact < high).all()), ends.strict
        (True, True, False)
    """
    whole("refresh", refresh, 0)
    check_whole(num_samples=num_samples)
    settings = AISSettings(
        start=start, num_temperatures=num_temperatures, num_chains=num_chains, leapfrog_steps=leapfrog_steps, schedule=schedule,
        step_size=step_size, target_acceptance=target_acceptance, seed=seed, chunk_size=chunk_size, verbose=verbose,
    )  # fmt: skip
    annealer = Annealer(problem := Problem.continuous(model, guide, x, *context, seed=seed), settings)
    check_same_on_ranks(
        problem, {"refresh": refresh, "latents": tensor_digest(latents or {}), "num_samples": num_samples}
    )
    ahead = annealer.forward()
    sampled = importance(
        problem.model,
        as_written(problem.guide),
        *problem.args,
        num_samples=num_samples,
        seed=seed,
        chunk_size=chunk_size,
        verbose=verbose,
    )
    annealing = replace(ahead.result(settings, problem.measure), row_ids=sampled.row_ids)
    back = reverse(annealer, refresh, latents, ahead)
    chosen = by_annealing(annealing.log_px, sampled.log_px)
    return Bracket(
        torch.where(chosen, annealing.log_px, sampled.log_px),
        torch.where(chosen, annealing.mc_se, sampled.mc_se),
        -back.sums.log_px,  # of the mean of 1 / p(x)
        back.mc_se,
        latents is not None,
        chosen,
        sampled,
        annealing,
        torch.stack(back.acceptance).mean(0),
        problem.args[0],
    )


@suggest_keywords
def bdmc(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    num_rows: int | None = None,
    num_samples: int = 1000,
    refresh: int = 20,
    start: str = "guide",
    num_temperatures: int = 100,
    num_chains: int = 16,
    leapfrog_steps: int = 10,
    schedule: str = "sigmoid",
    step_size: float | None = None,
    target_acceptance: float = 0.65,
    seed: int = 0,
    chunk_size: int = 16384,
    verbose: bool = True,
) -> Bracket:
    r"""Bracket log p(x) of rows that the model draws itself: both ends are strict in expectation (bidirectional Monte Carlo).

    The model runs with its observations undone (``poutine.uncondition``), which draws z and x together, whole or in parts. A
    model that reads x beside observing it cannot be run so: simulate in a program of your own, and pass its latents to
    :func:`bracket`.

    How tight the ends are there says how far to trust annealing with the same settings on real rows, as long as the model
    draws rows that are like them.

    Args:
        x: a template: its shape and type are taken, its values are not, but for entries that a mask leaves out.
        *context: with as many rows; these are used.
        num_rows: how many to draw; the template and contexts are cut or repeated. As many as x has by default.
        seed: of the rows, and of everything else.
        model, guide, and all other options: as for :func:`bracket`, which names the paper.

    Raises:
        ProgramError: rows that cannot be drawn, as :func:`~pyro_vae.programs.simulate.simulate`; and as :func:`bracket`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.evidence.annealing.bracket import bdmc
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def exact_posterior(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> result = bdmc(model, exact_posterior, torch.zeros(2), num_rows=5, num_temperatures=10, step_size=0.5)
        >>> bool(result.gap.abs().max() < 1e-5)    # with the exact posterior there is no gap
        True
    """
    model, guide, args = on_tensors(model, guide, x, *context)
    args = rows_of(model, guide, *args)
    if num_rows is not None:
        whole("num_rows", num_rows, 1)
        chosen = torch.arange(num_rows, device=args[0].device) % len(args[0])
        args = tuple(a[chosen] for a in args)
    drawn = simulate(model, *args, seed=seed)
    return bracket(
        model, guide, *drawn.args, latents=drawn.latents, num_samples=num_samples, refresh=refresh,
        start=start, num_temperatures=num_temperatures, num_chains=num_chains, leapfrog_steps=leapfrog_steps,
        schedule=schedule, step_size=step_size, target_acceptance=target_acceptance,
        seed=seed, chunk_size=chunk_size, verbose=verbose,
    )  # fmt: skip


def by_annealing(annealed: Tensor, sampled: Tensor) -> Tensor:
    """Choose annealing for each row, unless the *other* rows' paired differences put sampling above by 2 standard errors."""
    d, others = (sampled - annealed).nan_to_num(0), len(sampled) - 1
    mean = (d.sum() - d) / max(others, 1)
    variance = (d.square().sum() - d.square() - others * mean.square()).clamp_min(0) / max(others - 1, 1)
    return (mean <= 2 * (variance / max(others, 1)).sqrt()) | (others < 2)
