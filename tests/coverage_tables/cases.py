"""Repetitions of each case: how many errors lie between an estimate and what it is an estimate of.

Rows are independent, and so is the noise of each: 200 repetitions of 20 rows are one run on 4,000, taken 20 at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import compare, decompose, log_likelihood
from pyro_vae.diagnostics.inference_gaps import Gaps, gaps
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bdmc
from pyro_vae.evidence.annealing.result import Annealed
from pyro_vae.evidence.importance.proposals import defensive
from pyro_vae.evidence.importance.result import Evidence

from .gaussian import Gaussian

ROWS = 20  # of a repetition
WIDE, MISSED = Gaussian(2, 1.3), Gaussian(2, 1.0, 0.5)


@dataclass(frozen=True)
class Errors:
    """(estimate − truth) / standard error ``(repetitions, numbers)``, and which of them are called reliable."""

    z: Tensor
    reliable: Tensor

    @classmethod
    def of(cls, z: Tensor | list[float], reliable: Tensor | list[bool] | bool = True) -> Errors:
        z = torch.as_tensor(z, dtype=torch.float64)
        z = z[:, None] if z.dim() == 1 else z
        reliable = torch.as_tensor(reliable)
        return cls(z, (reliable[:, None] if reliable.dim() == 1 else reliable).expand_as(z))


@dataclass(frozen=True)
class Case:
    """What is printed, of what it is an error, and so many repetitions, from a seed; `times` as many as of other cases."""

    error: str
    what: str
    run: Callable[[int, int], Errors]
    times: int = 1


class Other(Gaussian):
    """The same rows under a worse model: x ~ N(z, 2 I)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 2**0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, 1.2 * (2 / 3) ** 0.5).to_event(1))

    def log_px(self, x):
        return dist.Normal(x.new_zeros(()), 3**0.5).log_prob(x).sum(-1)


def score(pair: Gaussian, x: Tensor, seed: int, **options) -> Evidence:
    return log_likelihood(pair.model, pair.guide, x, seed=seed, verbose=False, **options)


def parts(result, size: int) -> Iterator:
    """The result of each `size` rows: whatever holds one number a row is cut."""
    names = [f.name for f in dataclasses.fields(result)]
    columns = {n: v for n in names if isinstance(v := getattr(result, n), Tensor) and v.shape[-1:] == (len(result),)}
    extra = {"row_blocks": ()} if isinstance(result, Evidence) else {}
    for start in range(0, len(result), size):
        rows = {name: value[..., start : start + size] for name, value in columns.items()}
        yield dataclasses.replace(result, **rows, **extra)


def same_rows(pair: Gaussian, repetitions: int, rows: int = ROWS) -> Tensor:
    return pair.rows(rows, 0).repeat(repetitions, 1)


def by_row(pair: Gaussian, repetitions: int, seed: int, **options) -> Errors:
    """Each row's log p̂ ± mc_se against log p(x)."""
    x = same_rows(pair, repetitions)
    evidence = score(pair, x, seed, **options)
    z = (evidence.log_px - pair.log_px(x)) / evidence.mc_se
    return Errors.of(z.view(-1, ROWS), evidence.reliable.view(-1, ROWS))


def in_the_mean(pair: Gaussian, repetitions: int, seed: int, rows: int = ROWS, **options) -> Errors:
    """The printed mean ± Monte Carlo against that of log p(x); reliable where no row is flagged, and the bias is small."""
    evidence = score(pair, same_rows(pair, repetitions, rows), seed, **options)
    truth = pair.log_px(pair.rows(rows, 0)).mean().item()
    said = [part.summary() for part in parts(evidence, rows)]
    z = [(s["log_px"] - truth) / s["log_px_mc_se"] for s in said]
    return Errors.of(z, [s["rows_flagged"] == 0 and not s["bias_matters"] for s in said])


def data(repetitions: int, seed: int, rows: int = 60) -> Errors:
    """The printed mean ± data of fresh rows against E log p(x) over all rows that the model draws."""
    evidence = score(WIDE, WIDE.rows(rows * repetitions, seed + 1), seed, num_samples=500)
    said = [part.summary() for part in parts(evidence, rows)]
    return Errors.of([(s["log_px"] - WIDE.mean_log_px) / s["log_px_data_se"] for s in said])


def paired(repetitions: int, seed: int, monte_carlo: bool, rows: int = 60) -> Errors:
    """The difference of two models ± paired, on fresh rows; or ± Monte Carlo alone, on the same rows."""
    other = Other(2)
    x = same_rows(WIDE, repetitions, rows) if monte_carlo else WIDE.rows(rows * repetitions, seed + 1)
    runs = [parts(score(p, x, seed + i, num_samples=500), rows) for i, p in enumerate((WIDE, other))]
    here = (other.log_px(x) - WIDE.log_px(x))[:rows].mean().item()
    # E (log N(x; 0, 3) − log N(x; 0, 2)) for x ~ N(0, 2), in two dimensions
    expected = here if monte_carlo else 1 / 3 - torch.tensor(1.5, dtype=torch.float64).log().item()
    z = []
    for a, b in zip(*runs, strict=True):
        last = next(m for m in compare({"a": a, "b": b}).models if m.difference_se)
        difference = last.difference if last.name == "b" else -last.difference
        z.append((difference - expected) / (last.difference_mc_se if monte_carlo else last.difference_se))
    return Errors.of(z)


@cache
def annealed(start: str, temperatures: int, repetitions: int, seed: int) -> tuple[Annealed, Tensor]:
    """AIS of 16 chains, and how far off it is, ``(repetitions · rows,)``."""
    pair = Gaussian(4, 1.3)
    x = same_rows(pair, repetitions)
    options = {"num_temperatures": temperatures, "leapfrog_steps": 3, "step_size": 0.5, "verbose": False}
    found = ais(pair.model, pair.guide, x, start=start, seed=seed, **options)
    return found, found.log_px - pair.log_px(x)


def annealed_rows(start: str, repetitions: int, seed: int, temperatures: int = 8) -> Errors:
    found, off = annealed(start, temperatures, repetitions, seed)
    return Errors.of((off / found.mc_se).view(-1, ROWS), found.reliable.view(-1, ROWS))


def annealed_mean(start: str, repetitions: int, seed: int, temperatures: int = 8) -> Errors:
    """The mean is printed with a "≥": what it is an error of is the bound's own expectation, taken from five times as many."""
    found, off = annealed(start, temperatures, repetitions, seed)
    bound = annealed(start, temperatures, 5 * repetitions, seed + 1)[1].mean()
    said = [part.summary() for part in parts(found, ROWS)]
    errors = torch.tensor([s["log_px_mc_se"] for s in said], dtype=torch.float64)
    return Errors.of((off.view(-1, ROWS).mean(1) - bound) / errors, [s["rows_flagged"] == 0 for s in said])


def bracketed(repetitions: int, seed: int, rows: int = 30) -> Errors:
    """bdmc's gap ± over rows, against the mean gap of five times as many rows."""

    def gap_of(count: int, seed: int) -> Tensor:
        return bdmc(
            WIDE.model, Gaussian(2, 0.8).guide, WIDE.rows(30, 0), num_rows=count, num_samples=100, num_temperatures=4,
            num_chains=8, leapfrog_steps=2, refresh=1, step_size=0.5, seed=seed, verbose=False,
        ).gap.view(-1, rows)  # fmt: skip

    found, expected = gap_of(rows * repetitions, seed), gap_of(5 * rows * repetitions, seed + 1).mean()
    return Errors.of((found.mean(1) - expected) / (found.std(1) / rows**0.5))


@cache
def all_gaps(repetitions: int, seed: int, given: bool) -> Gaps:
    x = same_rows(MISSED, repetitions)
    return gaps(
        MISSED.model, MISSED.guide, x, log_px=MISSED.log_px(x) if given else None, steps=60, lr=0.1, num_samples=200,
        seed=seed, verbose=False,
    )  # fmt: skip


def gap(name: str, repetitions: int, seed: int, given: bool = False) -> Errors:
    """gaps ± Monte Carlo, the family holding the posterior: amortisation and gap are KL(q ‖ p(z | x))."""
    said = [part.summary()[name] for part in parts(all_gaps(repetitions, seed, given), ROWS)]
    return Errors.of([(s["value"] - MISSED.kl.item()) / s["mc_se"] for s in said])


def elbo(repetitions: int, seed: int) -> Errors:
    """The printed ELBO ± Monte Carlo."""
    truth = (WIDE.log_px(WIDE.rows(ROWS, 0)).mean() - WIDE.kl).item()
    said = [p.summary() for p in parts(score(WIDE, same_rows(WIDE, repetitions), seed, num_samples=100), ROWS)]
    return Errors.of([(s["elbo"] - truth) / s["elbo_mc_se"] for s in said])


@cache
def decomposed(x_seed: int, rows: int, seed: int, draws: int = 4):
    """One decomposition: it is of all its rows together, so each repetition is a run."""
    return decompose(WIDE.model, WIDE.guide, WIDE.rows(rows, x_seed), num_samples=draws, seed=seed, verbose=False)


def term(name: str, repetitions: int, seed: int) -> Errors:
    """A term ± Monte Carlo, against 20,000 draws for the same rows."""
    truth = getattr(decomposed(0, ROWS, 10**6, 20_000), name).value
    found = [getattr(decomposed(0, ROWS, seed + r), name) for r in range(repetitions)]
    return Errors.of([(q.value - truth) / q.mc_se for q in found])


def term_of_population(name: str, repetitions: int, seed: int) -> Errors:
    """Reconstruction or KL ± data on fresh rows: E KL = ½ Σ (w²/2 + E x²/4 − 1 − log(w²/2)), E x² = 2."""
    w2 = WIDE.widths.square() / 2
    kl = 0.5 * (w2 + 0.5 - 1 - w2.log()).sum().item()
    truth = kl if name == "kl" else WIDE.mean_log_px - WIDE.kl.item() + kl
    found = [getattr(decomposed(seed + r + 1, 60, seed + r), name) for r in range(repetitions)]
    return Errors.of([(q.value - truth) / q.data_se for q in found])


MC, AIS = "Monte Carlo", "AIS"
NARROWER, EXACT, MIXED = Gaussian(2, 0.85), Gaussian(2, 1.0), {"num_samples": 500, "proposal": defensive(0.1)}
TERMS = ("reconstruction", "kl", "mutual_information", "total_correlation", "dimension_wise_kl")
CASES = {
    "row-1000": Case(MC, "a row, K = 1000, guide 1.3 times as wide", partial(by_row, WIDE, num_samples=1000)),
    "row-100": Case(MC, "a row, K = 100", partial(by_row, WIDE, num_samples=100)),
    "row-25": Case(MC, "a row, K = 25", partial(by_row, WIDE, num_samples=25)),
    "row-24": Case(MC, "a row, K = 24", partial(by_row, WIDE, num_samples=24)),
    "row-missed": Case(MC, "a row, K = 1000, guide 0.5 sd off", partial(by_row, MISSED, num_samples=1000)),
    "row-narrower": Case(MC, "a row, K = 1000, guide 0.85 times as wide", partial(by_row, NARROWER, num_samples=1000)),
    "row-defensive": Case(MC, "a row, K = 500, defensive(0.1)", partial(by_row, WIDE, **MIXED)),
    "row-exact": Case(
        MC, "a row, K = 250, defensive(0.15), exact guide",
        partial(by_row, EXACT, num_samples=250, proposal=defensive(0.15)),
    ),
    "row-target": Case(MC, "a row, target_se = 0.05", partial(by_row, MISSED, num_samples=30, target_se=0.05)),
    "mean-1000": Case(MC, "the mean of 20 rows, K = 1000", partial(in_the_mean, WIDE, num_samples=1000)),
    "mean-defensive": Case(MC, "the mean of 20 rows, K = 500, defensive(0.1)", partial(in_the_mean, WIDE, **MIXED)),
    "mean-biased": Case(MC, "the mean of 300 rows, K = 50", partial(in_the_mean, MISSED, rows=300, num_samples=50)),
    "elbo": Case(MC, "the ELBO of 20 rows, K = 100", elbo),
    "data": Case("data", "the mean of 60 fresh rows", data, 5),
    "paired": Case("paired", "the difference of two models, 60 fresh rows", partial(paired, monte_carlo=False), 5),
    "paired-mc": Case("paired", "its Monte Carlo part, the same 60 rows", partial(paired, monte_carlo=True), 5),
    "ais-guide-row": Case(AIS, "a row, 16 chains from the guide", partial(annealed_rows, "guide")),
    "ais-prior-row": Case(AIS, "a row, 16 chains from the prior", partial(annealed_rows, "prior")),
    "ais-short-row": Case(AIS, "a row, from the prior, 2 temperatures", partial(annealed_rows, "prior", temperatures=2)),
    "ais-guide-mean": Case(AIS, "the mean of 20 rows, a bound, from the guide", partial(annealed_mean, "guide")),
    "ais-prior-mean": Case(AIS, "the mean of 20 rows, a bound, from the prior", partial(annealed_mean, "prior")),
    "bdmc": Case(AIS, "the gap of bdmc, 30 fresh rows", bracketed),
    "gap": Case("gap", "log p(x) − ELBO, log p(x) from the weights", partial(gap, "gap")),
    "gap-given": Case("gap", "log p(x) − ELBO, log p(x) given", partial(gap, "gap", given=True)),
    "amortisation": Case("gap", "amortisation", partial(gap, "amortisation")),
    **{f"term-{name}": Case("decomposition", f"{name}, Monte Carlo", partial(term, name), 5) for name in TERMS},
    **{
        f"data-{name}": Case("decomposition", f"{name}, data", partial(term_of_population, name), 5) for name in TERMS[:2]
    },
}  # fmt: skip
