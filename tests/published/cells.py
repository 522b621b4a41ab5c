"""One cell of the table: a public function on a program, held against the oracle.

A cell is "right"; "by a way", where the function refuses, and the way that it names gives what is right; "no answer", where it
refuses a program for which there is none (applies.py); "refused" (by name) otherwise; "unnamed" (refused in words that name no
site or no way on), "WRONG" or "raw" (an exception outside the tree of pyro_vae.errors).
"""

from __future__ import annotations

import math
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae import (
    Bound,
    adam,
    ais,
    bdmc,
    bracket,
    check,
    compare,
    convergence,
    data_set_calibration,
    decompose,
    defensive,
    elbo,
    enumerate_latents,
    fit,
    gaps,
    gradient_report,
    impute,
    impute_mean,
    iwae,
    latents,
    linear_gaussian,
    log_likelihood,
    log_weights,
    overfitting,
    posterior_predictive_check,
    prior_predictive_check,
    quadrature,
    simulate,
    simulation_based_calibration,
    vimco,
    widened,
)
from pyro_vae.errors import PyroVAEError

from . import counts, images, oracle, sequences, structured
from .applies import reason
from .oracle import Figure, OracleError, Typical
from .recipe import Pair
from .ways import ARROW, WAYS, made

FAMILIES: tuple[ModuleType, ...] = (images, sequences, counts, structured)  # imported for what they enter in RECIPES
SEED = 3
RANKS = 19  # draws a row of simulation-based calibration
MASKED = pyro.distributions.MaskedDistribution
SE = 5.0  # standard errors that a figure may be off
ROUNDING = 2e-4  # of single precision, relative
QUICK: dict[str, Any] = {
    "num_temperatures": 3,
    "num_chains": 24,
    "leapfrog_steps": 1,
    "step_size": 0.3,
    "verbose": False,
    "seed": SEED,
}
SAMPLED: dict[str, Any] = {"num_samples": 400, "verbose": False, "seed": SEED}


class WrongError(AssertionError):
    """A number that the programs do not mean."""


@dataclass(frozen=True)
class Cell:
    """The verdict on a program under a function, and a word on it."""

    verdict: str
    detail: str


# comparisons


def same(got: Any, wanted: Any, what: str) -> str:
    """Equal to rounding, entry by entry."""
    got, wanted = (torch.as_tensor(v).detach().double() for v in (got, wanted))
    if got.shape != wanted.shape:
        raise WrongError(f"{what}: shape {tuple(got.shape)}, wanted {tuple(wanted.shape)}")
    off = (got - wanted).abs() / (1 + wanted.abs())
    if not (off < ROUNDING).all():
        raise WrongError(f"{what}: {numbers(got)}, and by a plain trace {numbers(wanted)}")
    return f"{what} equal to rounding"


def near(got: Any, wanted: Any, se: Any, what: str, least: float = 2e-3) -> str:
    """Within 5 standard errors, entry by entry."""
    got, wanted, se = (torch.as_tensor(v).detach().double() for v in (got, wanted, se))
    off = (got - wanted).abs() / se.clamp_min(least)
    if got.shape != wanted.shape or not (off < SE).all():
        raise WrongError(f"{what}: {numbers(got)} where {numbers(wanted)} is right (± {numbers(se)})")
    return f"{what} within {off.max():.1f} standard errors"


def between(lower: Any, got: Any, upper: Any, what: str) -> str:
    """Between two bounds."""
    if not (torch.as_tensor(lower) <= got).all() or not (torch.as_tensor(got) <= upper).all():
        raise WrongError(f"{what}: {numbers(got)} is not between {numbers(lower)} and {numbers(upper)}")
    return f"{what} between its bounds"


def numbers(value: Any) -> str:
    """A few numbers."""
    flat = torch.as_tensor(value).double().flatten().tolist()
    return ", ".join(f"{v:.3f}" for v in flat[:4])


def root(*errors: Any) -> Tensor:
    """Standard error of a difference."""
    return sum(torch.as_tensor(e).double().square() for e in errors).sqrt()


# what is right for a pair, by name; the same for all functions


def fresh(name: str) -> Pair:
    """A pair with a store of parameters of its own (the caller's scope), by the ways that its name says."""
    return made(name)


@cache
def truth(name: str) -> Figure:
    """log p(x_n)."""
    with pyro.get_param_store().scope():
        return oracle.log_px(pair := fresh(name), pair.args)


@cache
def draws(name: str) -> oracle.Draws:
    """2,000 draws of the guide, by copies of the rows."""
    with pyro.get_param_store().scope():
        return judged(lambda: oracle.drawn(pair := fresh(name), pair.args, 2000, 13))


def judged(thunk: Callable[[], Any]) -> Any:
    """Run a part of the oracle; its exceptions are not those of what is judged."""
    try:
        return thunk()
    except Exception as error:
        raise OracleError("".join(traceback.format_exception(error))) from error


def mean_of(values: Tensor) -> Figure:
    """Mean over draws of each row."""
    return Figure(values.mean(0), values.std(0) / len(values) ** 0.5)


def no_number(pair: Pair) -> None:
    """Refuse any number of a pair that has no log p(x_n), or no importance weight."""
    if pair.shared:
        raise WrongError(f"a number for each row, though rows share the latent {pair.shared!r}")


def no_weight(pair: Pair) -> None:
    no_number(pair)
    if pair.no_weight:
        raise WrongError(
            f"a weight, though site {pair.no_weight!r} of the guide has no density against the prior's measure"
        )


@cache
def weight(name: str) -> Tensor:
    """The plain traces' log w at typical latents, of a pair as it is made."""
    with pyro.get_param_store().scope():
        return weight_of(fresh(name))


def weight_of(pair: Pair) -> Tensor:
    """The plain traces' log w at typical latents."""
    no_weight(pair)
    if pair.whole or pair.proposal is not None:
        return judged(lambda: whole_weight(pair))
    return judged(lambda: oracle.row_weights(pair))


def whole_weight(pair: Pair) -> Tensor:
    with oracle.evaluating(pair), Typical():
        q, p = oracle.run(pair, pair.args, pair.guide)
        latent = oracle.proposed(q, p)
        return oracle.terms(pair, p, p) - oracle.terms(pair, latent, p)


# the functions


def run_check(name: str, pair: Pair) -> str:
    report = check(pair.model, pair.guide, *pair.args)
    bad = pair.shared or pair.no_weight
    if bad and not any(bad in f.where or bad in f.what for f in report.findings):
        raise WrongError(f"check says nothing of site {bad!r}: {report}")
    if not bad and not report.ok:
        raise WrongError(f"check calls a right program wrong: {report}")
    return str(report).splitlines()[0]


def run_fit(name: str, pair: Pair) -> str:
    with Typical():
        result = fit(
            (pair.model, pair.guide), *pair.args, epochs=1, optimizer=adam(1e-3), objective=pair.objective(), verbose=False,
            seed=SEED,
        )  # fmt: skip
    logged = result.history[-1]["elbo"]
    if pair.net is not None:
        pair.net.eval()
    if logged is None and (pair.shared or pair.no_weight):
        return "no ELBO is logged"
    if pair.elbo is not None:
        return same(logged, judged(lambda: pair.elbo(*pair.args).mean()), "the logged ELBO")
    if pair.shared and pair.objective() is not None:
        with oracle.evaluating(pair), Typical():
            wanted = judged(lambda: -pair.objective().loss(pair.model, pair.guide, *pair.args))
        return same(logged, wanted / len(pair.x), "the logged ELBO")
    if pair.shared:
        return same(logged, judged(lambda: oracle.joint_weight(pair)) / len(pair.x), "the logged ELBO")
    if pair.no_weight:
        raise WrongError(
            f"logs an ELBO of {logged:.3f}, though site {pair.no_weight!r} has no density against the prior's measure"
        )
    if pair.proposal is not None:
        return enumerated_fit(pair, logged)
    return same(logged, weight_of(pair).mean(), "the logged ELBO")


def enumerated_fit(pair: Pair, logged: float) -> str:
    """Pyro's own estimator, on this pair without plates' or handlers' scales, row by row."""

    def wanted() -> float:
        objective = pair.objective()
        with oracle.evaluating(pair), Typical():
            return -sum(float(objective.loss(pair.model, pair.guide, *oracle.row(pair, n))) for n in range(len(pair.x)))

    return same(logged, judged(wanted) / len(pair.x), "the logged ELBO")


def run_log_weights(name: str, pair: Pair) -> str:
    if pair.summed:
        many = 400 if pair.together else 4000
        found, right = (
            oracle.log_mean(log_weights(pair.model, pair.guide, *pair.args, num_particles=many).double()),
            truth(name),
        )
        return near(found.value, right.value, root(found.se, right.se), "log of the mean weight", least=0.01)
    with Typical(), oracle.evaluating(pair):
        found = log_weights(pair.model, pair.guide, *pair.args, num_particles=3)
    return same(found, weight(name).expand(3, -1), "log w")


def run_bound(name: str, pair: Pair, bound: Any) -> str:
    with Typical(), oracle.evaluating(pair):
        found = Bound(bound, num_particles=3).per_row(pair.model, pair.guide, *pair.args)
    if pair.summed:  # an ELBO: below log p(x), but for the noise of three draws
        return between(truth(name).value - 3, found, truth(name).value + 2, "the bound of each row")
    weighed = judged(lambda: oracle.row_weights(pair, weighed=True)) if pair.weighed else weight(name)
    return same(found, weighed, "the bound of each row")


def run_importance(name: str, pair: Pair) -> str:
    if pair.summed:
        return evidence(name, pair, log_likelihood(pair.model, pair.guide, *pair.args, **SAMPLED))
    with Typical():
        pinned = log_likelihood(pair.model, pair.guide, *pair.args, num_samples=6, verbose=False)
    exactly = same(pinned.log_px, weight(name), "log w")
    return f"{exactly}; {evidence(name, pair, log_likelihood(pair.model, pair.guide, *pair.args, **SAMPLED))}"


def evidence(name: str, pair: Pair, found: Any) -> str:
    """log p(x) and the ELBO within their errors."""
    no_weight(pair)
    right = truth(name)
    line = near(found.log_px, right.value, root(found.mc_se, right.se), "log p(x)", least=0.01)
    if hasattr(found, "elbo") and found.proposal == "guide" and not pair.whole and pair.proposal is None:
        wanted = mean_of(draws(name).log_w)
        line += "; " + near(found.elbo, wanted.value, root(found.elbo_se, wanted.se), "the ELBO", least=0.01)
    return line


def run_proposal(name: str, pair: Pair, proposal: Any) -> str:
    return evidence(name, pair, log_likelihood(pair.model, pair.guide, *pair.args, proposal=proposal, **SAMPLED))


def run_method(name: str, pair: Pair, method: str) -> str:
    options = {} if method == "exact" else SAMPLED
    return oracles(name, pair, log_likelihood(pair.model, pair.guide, *few(pair, 1), method=method, **options))


def few(pair: Pair, rows: int) -> tuple[Tensor, ...]:
    """The first rows, of a guide that takes any: grids are slow."""
    return pair.args if pair.whole else tuple(a[:rows] for a in pair.args)


def oracles(name: str, pair: Pair, found: Any) -> str:
    """An exact method's log p(x), or importance sampling's, of a few rows."""
    no_number(pair)
    right, rows = truth(name), slice(len(found.log_px))
    se = root(found.mc_se, right.se[rows])
    return near(found.log_px, right.value[rows], se, f"log p(x) by {found.method}")


def run_convergence(name: str, pair: Pair) -> str:
    found = convergence(pair.model, pair.guide, *pair.args, samples=(5, 400), verbose=False, seed=SEED)
    return evidence(name, pair, found[-1])


def run_oracle(name: str, pair: Pair, function: Any) -> str:
    return oracles(name, pair, function(pair.model, pair.guide, *few(pair, 2)))


def steps(pair: Pair, num_chains: int = 24) -> dict[str, Any]:
    """Settings of annealing: a data set has more latents than a row."""
    quick = QUICK | {"num_chains": num_chains}
    return quick | {"num_temperatures": 25, "num_chains": 50, "leapfrog_steps": 2} if pair.together else quick


def run_ais(name: str, pair: Pair, start: str) -> str:
    found = ais(pair.model, pair.guide, *pair.args, start=start, **steps(pair, 100))
    no_number(pair)
    right = truth(name)
    unsure = 0.1 + 0.4 * (found.ess < 12)  # of few chains, a standard error is too small
    return near(found.log_px, right.value, root(found.mc_se, right.se, unsure), "log p(x)")


def enclosed(found: Any, right: Figure, shared_start: float = 0.02) -> str:
    """Between both ends, which are not far apart; `shared_start`: of chains from one draw, which upper_se leaves out."""
    low, high = SE * root(found.lower_se, right.se, 0.02), SE * root(found.upper_se, right.se, shared_start)
    between(right.value - 3, found.lower, right.value + low, "the lower end")
    return between(right.value - high, found.upper, right.value + 5, "the upper end")


def run_bracket(name: str, pair: Pair) -> str:
    found = bracket(pair.model, pair.guide, *pair.args, num_samples=200, refresh=3, **steps(pair))
    no_weight(pair)
    return enclosed(found, truth(name))


def run_bdmc(name: str, pair: Pair) -> str:
    found = bdmc(pair.model, pair.guide, *pair.args, num_samples=200, refresh=3, **steps(pair))
    no_weight(pair)
    refuse_reading(pair)
    if pair.draws_context:  # which is not in the result
        return between(-SE * root(found.lower_se, found.upper_se, 0.05), found.gap, math.inf, "the gap")
    wide = 0.4 if pair.summed else 0.2  # a guide far from the posterior: one start is worth e^1.4
    return enclosed(found, oracle.log_px(pair, (found.x, *pair.context)), shared_start=wide)


def refuse_reading(pair: Pair) -> None:
    if pair.reads_x:
        raise WrongError("a model that reads x was simulated from")


def run_gaps(name: str, pair: Pair) -> str:
    found = gaps(pair.model, pair.guide, *pair.args, steps=6, num_particles=4, **SAMPLED)
    no_weight(pair)
    right, mean = truth(name), mean_of(draws(name).log_w)
    se = root(mean.se, draws(name).log_w.std(0) / 20)
    if pair.summed:  # an ELBO of fewer latents, and no lower than that of all
        line = between(mean.value - SE * se, found.elbo, right.value + SE * se, "the ELBO")
    else:
        line = near(found.elbo, mean.value, se, "the ELBO")
    between(
        found.elbo - 0.5,
        found.best_elbo,
        right.value + SE * root(found.approximation_se, right.se, 0.02),
        "the best ELBO",
    )
    return line + "; " + near(found.log_px, right.value, root(found.log_px_se, right.se), "log p(x)", least=0.03)


def run_overfitting(name: str, pair: Pair) -> str:
    some, others = (tuple(a[part] for a in pair.args) for part in (slice(2), slice(2, None)))
    found = overfitting(pair.model, pair.guide, some, others, steps=4, num_particles=4, **SAMPLED)
    no_weight(pair)
    right = truth(name)
    wanted, se = right.value[:2].mean() - right.value[2:].mean(), right.se.square().sum().sqrt() / 2
    return near(found.decoder["value"], wanted, root(se, found.decoder["mc_se"]), "the decoder's part", least=0.03)


@cache
def information(name: str) -> Figure:
    """I_q(n; z), in nats."""
    with pyro.get_param_store().scope():
        pair = fresh(name)
        return judged(lambda: code_information(pair))


def code_information(pair: Pair, num: int = 300) -> Figure:
    """I_q(n; z) = E log q(z | x_n) − log 1/N Σ_m q(z | x_m), each q by copies of rows."""
    rows = len(pair.x)
    if rows == 1:
        return Figure(torch.zeros(()).double(), torch.zeros(()).double())

    def scored(shift: int) -> Tensor:
        """log q(z_n | x_{n + shift}) of draws of row n."""
        others = tuple(a.roll(-shift, 0) for a in pair.args)
        q, _ = oracle.run(pair, oracle.copies(pair.args, num))
        again, p = oracle.run(pair, oracle.copies(others, num), at=oracle.as_trace(q))
        latent = oracle.proposed(again, p)
        return oracle.by_row(latent, oracle.data_dim(latent, p)).reshape(num, rows)

    log_q = []
    for shift in range(rows):
        with oracle.evaluating(pair), torch.random.fork_rng():
            torch.manual_seed(5)
            log_q.append(scored(shift))
    terms = log_q[0] - torch.stack(log_q).logsumexp(0) + math.log(rows)
    return Figure(terms.mean(), terms.std(0).square().sum().sqrt() / rows / num**0.5)


@cache
def masked_latents(name: str) -> bool:
    """Whether masks lie on latents, which another row's q does not share."""
    with pyro.get_param_store().scope(), oracle.evaluating(pair := fresh(name)):
        _, p = judged(lambda: oracle.run(pair, pair.args))
        return any(is_masked(s) for s in p.values() if not s["is_observed"])


def run_decompose(name: str, pair: Pair) -> str:
    found = decompose(pair.model, pair.guide, *pair.args, num_samples=200, verbose=False, seed=SEED)
    no_weight(pair)
    by = draws(name)
    for got, wanted, what in (
        (found.reconstruction, by.log_lik, "the reconstruction"),
        (found.kl, by.log_q - by.log_prior, "the KL"),
    ):
        mean = mean_of(wanted)
        near(
            got.value,
            mean.value.mean(),
            root(got.mc_se, mean.se.square().sum().sqrt() / len(mean.se)),
            what,
            least=0.005,
        )
    if (
        pair.whole or pair.together or masked_latents(name)
    ):  # q of row numbers, or of one; rows that differ in their latents
        return "the KL"
    mi = information(name)
    return near(
        found.mutual_information.value, mi.value, root(found.mutual_information.mc_se, mi.se), "I(x; z)", least=0.005
    )


def run_latents(name: str, pair: Pair) -> str:
    found = latents(pair.model, pair.guide, *pair.args, num_samples=200, seed=SEED)
    no_weight(pair)
    by = draws(name)
    mean = mean_of(by.log_q - by.log_prior)
    se = [units.kl_mc_se.sum() for units in found.sites.values()]
    near(found.kl, mean.value.mean(), root(*se, mean.se.square().sum().sqrt() / len(mean.se)), "the KL", least=0.005)
    if (
        pair.whole or pair.together or masked_latents(name)
    ):  # q of row numbers, or of one; rows that differ in their latents
        return "the KL"
    mi = information(name)
    return near(found.mutual_information, mi.value, root(found.mutual_information_se, mi.se), "I(x; z)", least=0.005)


def run_sbc(name: str, pair: Pair) -> str:
    found = simulation_based_calibration(
        pair.model, pair.guide, *pair.args, num_rows=120, num_draws=RANKS, seed=SEED
    )  # fmt: skip
    no_number(pair)
    refuse_reading(pair)
    joint, units = judged(lambda: ranks(pair))
    line = ranked(found.ranks[:, -1], joint, "log p(x, z)")
    return line if units is None else f"{line}; {ranked(found.ranks[:, :-1], units, 'the latents')}"


def run_data_sets(name: str, pair: Pair) -> str:
    """Calibration over data sets of a guide that is the same for each: its ranks, of what rows share, against plain runs'."""
    found = data_set_calibration(
        pair.model, lambda *args: pair.guide, *pair.args, num_sets=40, num_draws=RANKS, seed=SEED
    )
    joint, units = judged(lambda: ranks(fresh(f"{name}{ARROW}WholeDataSet")))
    line, shared = ranked(found.ranks[:, -1], joint, "log p(X, z)"), len(found.names) - 1
    if units is None or not shared:  # what has an entry for each row is not ranked
        return line
    return f"{line}; {ranked(found.ranks[:, :-1], units[:, :shared], 'what rows share')}"


def ranked(got: Tensor, wanted: Tensor, what: str) -> str:
    """Mean and spread of ranks, of rows (and of all coordinates in one)."""
    for moment in (1, 2):
        one, other = (((r.double() / RANKS) - 0.5).pow(moment).reshape(len(r), -1).mean(1) for r in (got, wanted))
        se = root(one.std() / len(one) ** 0.5, other.std() / len(other) ** 0.5)
        line = near(one.mean(), other.mean(), se, f"moment {moment} of the ranks of {what}", least=0.004)
    return line


def ranks(pair: Pair, copies: int = 60) -> tuple[Tensor, Tensor | None]:
    """Ranks of log p(x, z) and of each coordinate of z (None under masks) on rows drawn from the model, by copies of rows."""
    if pair.together:
        sets = [ranks_of(pair, 1, seed) for seed in range(copies)]
        return torch.cat([joint for joint, _ in sets]), torch.cat([units for _, units in sets])
    return ranks_of(pair, copies)


def ranks_of(pair: Pair, copies: int, seed: int = 2) -> tuple[Tensor, Tensor | None]:
    """:func:`ranks`, of so many copies at once."""
    x, latent = oracle.simulated(pair, copies, 9 + seed)
    args = (x, *oracle.copies(pair.args, copies)[1:])
    with oracle.evaluating(pair), torch.random.fork_rng():
        torch.manual_seed(seed)
        q, p = oracle.run(pair, args)
        at = oracle.as_trace({n: {**s, "value": latent[n]} for n, s in p.items() if not s["is_observed"]})
        truth = oracle.sample_sites(pyro.poutine.trace(pyro.poutine.replay(pair.written[0], trace=at)).get_trace(*args))
        runs = [truth, *(oracle.run(pair, args)[1] for _ in range(RANKS))]
        joint = torch.stack([oracle.terms(pair, p, oracle.proposed(q, p), p) for p in runs])
        units = torch.stack([coordinates(pair, p, q) for p in runs])
        masked = any(is_masked(s) for s in truth.values())
        return rank(joint, 1e-5 * joint.abs().amax()), None if masked else rank(units, 0.0)


def is_masked(site: Mapping[str, Any]) -> bool:
    """Whether a mask, of a handler or of the distribution, lies on a site."""
    fn = site["fn"]
    while isinstance(fn, oracle.WRAPPERS) and not isinstance(fn, MASKED):
        fn = fn.base_dist
    return isinstance(fn, MASKED) or site["mask"] is not None


def coordinates(pair: Pair, sites: Mapping[str, Any], q: Mapping[str, Any]) -> Tensor:
    """Values of latents, ``(rows, coordinates)``."""
    latent = [s for s in sites.values() if not s["is_observed"]]
    if pair.together:
        return torch.cat([s["value"].double().reshape(1, -1) for s in latent], 1)
    dim = oracle.data_dim(oracle.proposed(dict(q), dict(sites)), dict(sites))
    moved = [s["value"].double().movedim(dim - s["fn"].event_dim, 0) for s in latent]
    return torch.cat([v.reshape(len(v), -1) for v in moved], 1)


def rank(values: Tensor, near: Any) -> Tensor:
    """Rank the first among the others, ties at random."""
    ties = (values[1:] - values[0]).abs() <= near
    below = ((values[1:] < values[0]) & ~ties).sum(0)
    return below + (torch.rand(below.shape) * (ties.sum(0) + 1)).long()


def run_posterior_check(name: str, pair: Pair) -> str:
    found = posterior_predictive_check(pair.model, pair.guide, *pair.args, num_draws=200, seed=SEED)
    no_number(pair)
    refuse_reading(pair)
    observed = mean_of(found.statistics["log p(x | z)"].observed)
    wanted = mean_of(draws(name).log_lik)
    near(observed.value, wanted.value, root(observed.se, wanted.se), "log p(x | z) of the data", least=0.01)
    again = judged(lambda: replicated(pair))
    return statistic(found, again, "the mean of replications")


def statistic(found: Any, again: Tensor, what: str) -> str:
    """The statistic "mean" of replications, row by row."""
    got, wanted = mean_of(found.statistics["mean"].replicated), mean_of(again)
    return near(got.value, wanted.value, root(got.se, wanted.se), what, least=0.01)


def replicated(pair: Pair, num: int = 300) -> Tensor:
    """Mean over elements of x_rep ~ p(x | z), z ~ q(z | x): ``(num, N)``."""
    if (pair.whole or pair.together) and num > 1:
        return torch.cat([replicated(pair, 1) for _ in range(num)])
    args = oracle.copies(pair.args, num)
    with oracle.evaluating(pair), torch.random.fork_rng(enabled=num > 1):
        if num > 1:
            torch.manual_seed(4)
        q, p = oracle.run(pair, args)
        at = oracle.as_trace(oracle.proposed(q, p))
        model = pyro.poutine.replay(pyro.poutine.uncondition(pair.written[0]), trace=at)
        sites = oracle.sample_sites(pyro.poutine.trace(model).get_trace(*args))
    x = pair.simulated(oracle.redrawn(sites))
    return x.double().reshape(num, len(pair.x), -1).mean(-1)


def run_prior_check(name: str, pair: Pair) -> str:
    found = prior_predictive_check(pair.model, *pair.args, num_draws=300, seed=SEED)
    no_number(pair)
    refuse_reading(pair)
    x, _ = judged(lambda: oracle.simulated(pair, 300))
    return statistic(found, x.double().reshape(300, len(pair.x), -1).mean(-1), "the mean of replications")


def simulations(pair: Pair, copies: int = 150) -> tuple[Tensor, Mapping[str, Tensor]]:
    """x and latents of copies of the rows; of a data set, one after the other."""
    if pair.together:
        sets = [simulate(pair.model, *pair.args, seed=SEED + i) for i in range(copies)]
        return torch.cat([one.x for one in sets]), sets[0].latents
    found = simulate(pair.model, *(a.repeat(copies, *[1] * (a.dim() - 1)) for a in pair.args), seed=SEED)
    return found.x, found.latents


def run_simulate(name: str, pair: Pair) -> str:
    found, names = simulations(pair)
    no_number(pair)
    refuse_reading(pair)
    x, latent = judged(lambda: oracle.simulated(pair, 300 if pair.together else 600))
    if found.shape[1:] != pair.x.shape[1:] or not set(latent) <= set(names):
        raise WrongError(f"simulated x {tuple(found.shape)} and latents {sorted(names)}")
    got, wanted = (mean_of(v.double().reshape(len(v), -1)) for v in (found, x))
    near(got.value, wanted.value, root(got.se, wanted.se), "the mean of each element", least=0.01)
    got, wanted = (mean_of(v.double().reshape(len(v), -1).square()) for v in (found, x))
    return near(got.value, wanted.value, root(got.se, wanted.se), "the mean square of each element", least=0.01)


def with_gaps(pair: Pair) -> tuple[Tensor, ...]:
    """The arguments, with something missing in x where it can say so."""
    if (given := pair.gaps if pair.missing is None else pair.missing) is not None:
        return (given, *pair.context)
    if not pair.x.is_floating_point():
        return pair.args
    x = pair.x.clone()
    x.reshape(len(x), -1)[1, -1] = torch.nan
    return (x, *pair.context)


def run_impute(name: str, pair: Pair, mean: bool) -> str:
    args = with_gaps(pair)
    if mean:
        found = impute_mean((pair.model, pair.guide), *args, num_samples=400, seed=SEED)[None]
    else:
        found = impute((pair.model, pair.guide), *args, num_samples=400, draws=300, seed=SEED)
    no_weight(pair)
    gone = args[0].isnan()
    same(found[:, ~gone], args[0][~gone].expand(len(found), -1), "what was observed")
    if not gone.any():
        return "nothing missing, x as it was"
    wanted = judged(lambda: imputed(pair, args))
    got = found.double().mean(0)[gone]
    se = root(wanted.se, found.double().std(0)[gone] / 300**0.5 if not mean else 0.0, wanted.se * 3)
    return near(got, wanted.value, se, "E[x_mis | x_obs]", least=0.01)


def imputed(pair: Pair, args: tuple[Tensor, ...], num: int = 4000) -> Figure:
    """E[x_mis | x_obs] by importance sampling over copies of rows."""
    with oracle.evaluating(pair), torch.random.fork_rng():
        torch.manual_seed(6)
        q, p = oracle.run(pair, oracle.copies(args, num))
        latent = oracle.proposed(q, p)
        dim = oracle.data_dim(latent, p)
        w = (oracle.by_row(p, dim) - oracle.by_row(latent, dim)).reshape(num, -1).softmax(0)
        means = pair.simulated({n: s["fn"].mean.double() for n, s in p.items() if s["is_observed"]})
        means = means.reshape(num, *args[0].shape)
    w = w.reshape(*w.shape, *[1] * (means.dim() - 2))
    value = (w * means).sum(0)
    se = (w.square() * (means - value).square()).sum(0).sqrt()
    gone = args[0].isnan()
    return Figure(value[gone], se[gone])


def run_compare(name: str, pair: Pair) -> str:
    one = log_likelihood(pair.model, pair.guide, *pair.args, num_samples=100, verbose=False, seed=SEED)
    no_weight(pair)
    found = compare({"one": one, "again": one})
    got = {m.name: m for m in found.models}
    return same(got["one"].log_px, one.log_px.mean(), "log p(x) in the table")


PATHWISE = {"one": Bound(elbo), "two": Bound(elbo, num_particles=2)}
BY_SCORE = {"one": Bound(elbo, num_particles=2, estimator=vimco), "two": Bound(iwae, num_particles=4, estimator=vimco)}


def run_gradients(name: str, pair: Pair, objectives: dict[str, Any]) -> str:
    found = gradient_report(
        (pair.model, pair.guide), *pair.args, objectives=objectives, draws=4, reference_draws=4, seed=SEED
    )
    no_number(pair)
    finite = all(s.mean.isfinite().all() for parts in found.stats.values() for s in parts.values())
    if not finite:
        raise WrongError("gradients that are not finite")
    return "finite gradients"


def of(function: Callable[..., str], *fixed: Any) -> Callable[[str, Pair], str]:
    """A function of the table with an argument of its own."""
    return lambda name, pair: function(name, pair, *fixed)


FUNCTIONS: dict[str, Callable[[str, Pair], str]] = {
    "check": run_check,
    "fit": run_fit,
    "log_weights": run_log_weights,
    "bound-elbo": of(run_bound, elbo),
    "bound-iwae": of(run_bound, iwae),
    "gradient_report": of(run_gradients, PATHWISE),
    "importance": run_importance,
    "defensive": of(run_proposal, defensive(0.3)),
    "widened": of(run_proposal, widened(1.2)),
    "auto": of(run_method, "auto"),
    "exact": of(run_method, "exact"),
    "convergence": run_convergence,
    "compare": run_compare,
    "linear_gaussian": of(run_oracle, linear_gaussian),
    "enumerate_latents": of(run_oracle, enumerate_latents),
    "quadrature": of(run_oracle, quadrature),
    "ais": of(run_ais, "prior"),
    "ais-guide": of(run_ais, "guide"),
    "bracket": run_bracket,
    "bdmc": run_bdmc,
    "gaps": run_gaps,
    "overfitting": run_overfitting,
    "decompose": run_decompose,
    "latents": run_latents,
    "sbc": run_sbc,
    "posterior_predictive": run_posterior_check,
    "prior_predictive": run_prior_check,
    "impute": of(run_impute, False),
    "impute_mean": of(run_impute, True),
    "simulate": run_simulate,
}


def run_simulated(name: str, pair: Pair, function: Callable[..., Any]) -> str:
    """What bdmc is for, without it: log p(x) of simulated rows."""
    x = simulate(pair.model, *pair.args, seed=SEED).x
    found = function(pair.model, pair.guide, x, *pair.context)
    no_weight(pair)
    right = judged(lambda: oracle.log_px(pair, (x, *pair.context)))
    return near(found.log_px, right.value, root(found.mc_se, right.se), "log p(x) of simulated rows")


NAMED: dict[str, Callable[[str, Pair], str]] = {  # by refusals, and no column of their own
    "simulate, then enumerate_latents": of(run_simulated, enumerate_latents),
    "simulate, then importance": of(run_simulated, partial(log_likelihood, **SAMPLED)),
    "gradient_report-vimco": of(run_gradients, BY_SCORE),
    "data_set_calibration": run_data_sets,
}

NAME = re.compile(r"""'[^']+'|"[^"]+"|\b\w+=|\bpyro\.\w+|\bx\b""")
WAY_ON = re.compile(
    r"\b(use|give|pass|put|declare|fix|take|mark|name|train|observe|rename|score|move|draw|simulate|sample|run|look|set|drop|"
    r"wanted|average|call|leave|repair|keep|write|add|make|mask|share|build|instead|try|reduce|register|open|decompose|see|"
    r"quadrature|gaps are taken)\b",
    re.I,
)


def named(error: PyroVAEError) -> bool:
    """Whether a refusal names something and says how to go on."""
    text = str(error)
    return bool(NAME.search(text) and WAY_ON.search(text))


class EndlessError(Exception):
    """A cell that takes no end."""


@contextmanager
def bounded(seconds: float = 40.0) -> Iterator[None]:
    """Raise an EndlessError after so many seconds of this process's own time (in the main thread, where there are signals)."""

    def stop(*_: Any) -> None:
        raise EndlessError(f"no end after {seconds:.0f} seconds")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_cell(program: str, function: str) -> Cell:
    """Run one cell, and follow what its refusal names; an OracleError passes."""
    cell = run_once(program, function)
    if cell.verdict != "refused":
        return cell
    if why := reason(program, function):
        return Cell("no answer", f"{why}; {cell.detail}")
    return follow(program, function, cell)


def follow(program: str, function: str, cell: Cell, taken: tuple[str, ...] = ()) -> Cell:
    """Take the ways that a refusal names until one leads to a number; the refusal, where all that it names refuse, too."""
    for name, way in WAYS.items():
        if name in taken or (step := way.then(program, function, name, cell.detail)) is None:
            continue
        found = run_once(*step)
        if found.verdict == "refused":
            found = follow(*step, found, (*taken, name))
        if found.verdict == "raw" and found.detail.startswith(EndlessError.__name__):  # the refusal stands
            found = Cell("refused", found.detail)
        if found.verdict == "right":
            return Cell("by a way", f"{' × '.join(step)}: {found.detail}")
        if found.verdict != "refused":
            return found
        cell = Cell("refused", f"{cell.detail} ⟶ {' × '.join(step)}: {found.detail}")
    return cell


def run_once(program: str, function: str) -> Cell:
    """Run a function on a program, or on what a way makes of it; an OracleError passes."""
    with bounded(), pyro.get_param_store().scope(), torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(SEED)
        pair = fresh(program)
        try:
            return Cell("right", (FUNCTIONS | NAMED)[function](program, pair))
        except OracleError:
            raise
        except WrongError as error:
            return Cell("WRONG", str(error))
        except PyroVAEError as error:
            return Cell("refused" if named(error) else "unnamed", f"{type(error).__name__}: {error}")
        except Exception as error:
            return Cell("raw", last_lines(error))


def last_lines(error: Exception) -> str:
    """The exception, and where it was raised."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "pyro_vae" in f.filename or "published" in f.filename
    ]
    where = f"{frames[-1].filename.rsplit('/', 2)[-1]}:{frames[-1].lineno} {frames[-1].name}" if frames else "?"
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__} at {where}: {lines[0][:160]}"
