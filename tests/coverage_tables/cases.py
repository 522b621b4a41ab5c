"""One repetition of each case: how many errors lie between an estimate and what it is an estimate of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from pyro_vae import compare, decompose, log_likelihood
from pyro_vae.diagnostics.inference_gaps import gaps
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bdmc
from pyro_vae.evidence.importance.proposals import defensive

from .gaussian import Gaussian

ROWS = 20  # of most cases
WIDE, MISSED = Gaussian(2, 1.3), Gaussian(2, 1.0, 0.5)
score = partial(log_likelihood, verbose=False)


@dataclass(frozen=True)
class Errors:
    """(estimate − truth) / standard error, one or one a row, and which of them are called reliable."""

    z: Tensor
    reliable: Tensor

    @classmethod
    def of(cls, z: Tensor | float, reliable: Tensor | bool = True) -> Errors:
        z = torch.as_tensor(z, dtype=torch.float64).reshape(-1)
        return cls(z, torch.as_tensor(reliable).expand_as(z))


@dataclass(frozen=True)
class Case:
    """What is printed, of what it is an error, and one repetition."""

    error: str
    what: str
    run: Callable[[int], Errors]


def by_row(pair: Gaussian, seed: int, **options) -> Errors:
    """Each row's log p̂ ± mc_se against log p(x)."""
    x = pair.rows(ROWS, 0)
    evidence = score(pair.model, pair.guide, x, seed=seed, **options)
    return Errors.of((evidence.log_px - pair.log_px(x)) / evidence.mc_se, evidence.reliable)


def in_the_mean(pair: Gaussian, seed: int, rows: int = ROWS, **options) -> Errors:
    """The printed mean ± Monte Carlo against the mean of log p(x); reliable where no row is flagged, and bias leaves it be."""
    x = pair.rows(rows, 0)
    s = (evidence := score(pair.model, pair.guide, x, seed=seed, **options)).summary()
    trusted = s["rows_flagged"] == 0 and not s["bias_matters"]
    return Errors.of((evidence.log_px.mean() - pair.log_px(x).mean()).item() / s["log_px_mc_se"], trusted)


def data(pair: Gaussian, seed: int) -> Errors:
    """The printed mean ± data of fresh rows against E log p(x) over all rows that the model draws."""
    x = pair.rows(60, seed)
    s = score(pair.model, pair.guide, x, seed=seed, num_samples=500).summary()
    return Errors.of((s["log_px"] - pair.mean_log_px) / s["log_px_data_se"])


class Other(Gaussian):
    """The same rows under a worse model: x ~ N(z, 2 I)."""

    def model(self, x):
        import pyro
        import pyro.distributions as dist

        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 2**0.5).to_event(1), obs=x)

    def guide(self, x):
        import pyro
        import pyro.distributions as dist

        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, 1.2 * (2 / 3) ** 0.5).to_event(1))

    def log_px(self, x):
        import pyro.distributions as dist

        return dist.Normal(x.new_zeros(()), 3**0.5).log_prob(x).sum(-1)


def paired(seed: int, monte_carlo: bool) -> Errors:
    """The difference of two models ± paired, on fresh rows; or ± Monte Carlo alone, on the same rows."""
    a, b, rows = WIDE, Other(2), 60
    x = a.rows(rows, 0 if monte_carlo else seed)
    runs = {
        name: score(pair.model, pair.guide, x, num_samples=500, seed=seed + 10_000 * (name == "b"))
        for name, pair in (("a", a), ("b", b))
    }
    last = compare(runs).models[-1]
    difference = (b.log_px(x) - a.log_px(x)).mean().item()
    if monte_carlo:
        return Errors.of((last.difference - difference) / last.difference_mc_se)
    # E (log N(x; 0, 3) − log N(x; 0, 2)) for x ~ N(0, 2), in two dimensions
    expected = 2 * (-0.5 * torch.tensor(1.5).log().item() - 0.5 * (2 / 3 - 1))
    return Errors.of((last.difference - expected) / last.difference_se)


def annealed(start: str, seed: int, mean: bool, temperatures: int = 8) -> Errors:
    """AIS of 16 chains: rows, and their mean. The bound's own expectation is what the mean is an error of (printed "≥")."""
    pair = Gaussian(4, 1.3)
    x = pair.rows(ROWS, 0)
    options = {"num_temperatures": temperatures, "leapfrog_steps": 3, "step_size": 0.5, "verbose": False}
    found = ais(pair.model, pair.guide, x, start=start, seed=seed, **options)
    off = found.log_px - pair.log_px(x)
    if not mean:
        return Errors.of(off / found.mc_se, found.reliable)
    s = found.summary()
    return Errors.of(
        (off.mean().item() - expected_bound(start, temperatures)) / s["log_px_mc_se"], not s["rows_flagged"]
    )


@cache
def expected_bound(start: str, temperatures: int) -> float:
    """E log p̂ − log p(x) of AIS with 16 chains, by 100 other runs."""
    pair = Gaussian(4, 1.3)
    x = pair.rows(ROWS, 0)
    options = {"num_temperatures": temperatures, "leapfrog_steps": 3, "step_size": 0.5, "verbose": False}
    runs = [ais(pair.model, pair.guide, x, start=start, seed=10**6 + s, **options).log_px for s in range(100)]
    return (torch.stack(runs) - pair.log_px(x)).mean().item()


def bracketed(seed: int) -> Errors:
    """bdmc: gap ± over rows covers what the mean gap of many rows is; each repetition draws its own."""
    found = bdmc(
        WIDE.model, Gaussian(2, 0.8).guide, WIDE.rows(30, 0), num_samples=100, num_temperatures=4, num_chains=8,
        leapfrog_steps=2, refresh=1, step_size=0.5, seed=seed, verbose=False,
    )  # fmt: skip
    s = found.summary()
    return Errors.of((s["gap"] - expected_gap()) / s["gap_se"])


@cache
def expected_gap() -> float:
    runs = [
        bdmc(
            WIDE.model, Gaussian(2, 0.8).guide, WIDE.rows(30, 0), num_samples=100, num_temperatures=4, num_chains=8,
            leapfrog_steps=2, refresh=1, step_size=0.5, seed=10**6 + s, verbose=False,
        ).summary()["gap"]
        for s in range(100)
    ]  # fmt: skip
    return sum(runs) / len(runs)


def gap(name: str, seed: int) -> Errors:
    """gaps ± Monte Carlo, the family holding the posterior: approximation 0, amortisation and gap KL(q ‖ p(z | x))."""
    x = MISSED.rows(ROWS, 0)
    found = gaps(
        MISSED.model, MISSED.guide, x, log_px=MISSED.log_px(x) if name == "gap" else None, steps=40, lr=0.1,
        num_samples=200, seed=seed, verbose=False,
    )  # fmt: skip
    number = found.summary()[name]
    return Errors.of((number["value"] - MISSED.kl.item()) / number["mc_se"])


def elbo(seed: int) -> Errors:
    """The printed ELBO ± Monte Carlo."""
    x = WIDE.rows(ROWS, 0)
    s = score(WIDE.model, WIDE.guide, x, seed=seed, num_samples=100).summary()
    return Errors.of((s["elbo"] - (WIDE.log_px(x).mean() - WIDE.kl).item()) / s["elbo_mc_se"])


def decomposed(name: str, seed: int, fresh: bool = False) -> Errors:
    """A term of `decompose` ± Monte Carlo on the same rows, or ± data on fresh ones."""
    found = decompose(
        WIDE.model, WIDE.guide, WIDE.rows(ROWS if not fresh else 60, seed + 1 if fresh else 0), seed=seed, verbose=False
    )
    quantity = getattr(found, name)
    return Errors.of((quantity.value - true_term(name, fresh)) / (quantity.data_se if fresh else quantity.mc_se))


@cache
def true_term(name: str, fresh: bool) -> float:
    """A term by many draws: of the same rows, or of 4,000 others (reconstruction and KL do not depend on how many)."""
    x, draws = (WIDE.rows(4000, 10**6), 4) if fresh else (WIDE.rows(ROWS, 0), 20_000)
    if fresh:  # in closed form: E KL = ½ Σ (w²/2 + E x²/4 − 1 − log(w²/2)), E x² = 2
        w2 = WIDE.widths.square() / 2
        kl = 0.5 * (w2 + 0.5 - 1 - w2.log()).sum().item()
        return kl if name == "kl" else WIDE.mean_log_px - WIDE.kl.item() + kl
    return getattr(decompose(WIDE.model, WIDE.guide, x, num_samples=draws, seed=10**6, verbose=False), name).value


MC, DATA = "Monte Carlo", "data"
CASES = {
    "row-1000": Case(MC, "a row, K = 1000, guide 1.3 times as wide", partial(by_row, WIDE, num_samples=1000)),
    "row-100": Case(MC, "a row, K = 100", partial(by_row, WIDE, num_samples=100)),
    "row-25": Case(MC, "a row, K = 25", partial(by_row, WIDE, num_samples=25)),
    "row-missed": Case(MC, "a row, K = 1000, guide 0.5 sd off", partial(by_row, MISSED, num_samples=1000)),
    "row-slightly-narrow": Case(
        MC, "a row, K = 1000, guide 0.85 times as wide", partial(by_row, Gaussian(2, 0.85), num_samples=1000)
    ),
    "row-defensive": Case(
        MC, "a row, K = 500, defensive(0.1)", partial(by_row, WIDE, num_samples=500, proposal=defensive(0.1))
    ),
    "row-defensive-exact": Case(
        MC, "a row, K = 250, defensive(0.15), exact guide",
        partial(by_row, Gaussian(2, 1.0), num_samples=250, proposal=defensive(0.15)),
    ),
    "row-target": Case(
        MC, "a row, target_se = 0.05", partial(by_row, MISSED, num_samples=30, target_se=0.05)
    ),
    "mean-1000": Case(MC, "the mean of 20 rows, K = 1000", partial(in_the_mean, WIDE, num_samples=1000)),
    "mean-defensive": Case(
        MC, "the mean of 20 rows, K = 500, defensive(0.1)",
        partial(in_the_mean, WIDE, num_samples=500, proposal=defensive(0.1)),
    ),
    "mean-biased": Case(
        MC, "the mean of 300 rows, K = 50: bias flagged", partial(in_the_mean, MISSED, rows=300, num_samples=50)
    ),
    "elbo": Case(MC, "the ELBO of 20 rows, K = 100", elbo),
    "data": Case(DATA, "the mean of 60 fresh rows", partial(data, WIDE)),
    "paired": Case("paired", "the difference of two models, 60 fresh rows", partial(paired, monte_carlo=False)),
    "paired-mc": Case("paired", "its Monte Carlo part, the same 60 rows", partial(paired, monte_carlo=True)),
    "ais-guide-row": Case("AIS", "a row, 16 chains from the guide", partial(annealed, "guide", mean=False)),
    "ais-prior-row": Case("AIS", "a row, 16 chains from the prior", partial(annealed, "prior", mean=False)),
    "ais-prior-short-row": Case(
        "AIS", "a row, 16 chains from the prior, 2 temperatures", partial(annealed, "prior", mean=False, temperatures=2)
    ),
    "ais-guide-mean": Case("AIS", "the bound in the mean of 20 rows, from the guide", partial(annealed, "guide", mean=True)),
    "bdmc": Case("AIS", "the gap of bdmc, 30 fresh rows", bracketed),
    "gap": Case("gap", "log p(x) − ELBO", partial(gap, "gap")),
    "amortisation": Case("gap", "amortisation", partial(gap, "amortisation")),
    **{
        f"decompose-{name}": Case("decomposition", f"{name.replace('_', ' ')}, Monte Carlo", partial(decomposed, name))
        for name in ("reconstruction", "kl", "mutual_information", "total_correlation", "dimension_wise_kl")
    },
    **{
        f"decompose-{name}-data": Case(
            "decomposition", f"{name}, data, 60 fresh rows", partial(decomposed, name, fresh=True)
        )
        for name in ("reconstruction", "kl")
    },
}  # fmt: skip
