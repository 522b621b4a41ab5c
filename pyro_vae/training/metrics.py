"""Metrics of each epoch: the true ELBO and latent usage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor

from pyro_vae.common.flagged import format_nats
from pyro_vae.common.memory import fitting
from pyro_vae.common.parts_of_rows import IN_TURN, PartsOfRows
from pyro_vae.common.random import seeded, stream
from pyro_vae.data.lazy_rows import chunk_of
from pyro_vae.diagnostics.closed_units import without_noise
from pyro_vae.diagnostics.drawn_sites import SITES, Drawn, drawn_of, tensors_of
from pyro_vae.diagnostics.latent_usage import ACTIVE, Units, joined, spread, usage
from pyro_vae.diagnostics.mutual_information import contrasts_of_rows
from pyro_vae.errors import MarkedError, NoWeightError, ProgramError, UsageError
from pyro_vae.objectives.count_once import CountOnce
from pyro_vae.objectives.joint_elbo import elbo_per_datum
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.parameter_checks import ValidParameters
from pyro_vae.programs.parameters import ParametersRegistered
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.proposal_guide import refuse_unweighed, without_observed
from pyro_vae.programs.shared_sites import SharedSites, shared_sites
from pyro_vae.programs.sites import latent_sites
from pyro_vae.programs.sum_over_codes import codes_of
from pyro_vae.programs.units import univariate
from pyro_vae.programs.vectorize_probe import ProbedOnce

from .batch_source import Batch, TrainingData
from .global_sites import DataSetMetrics
from .shuffle import ELBO_NOISE, FIXED, LATENTS
from .step import Step

Record = dict[str, Any]
SUMS = "sums"  # of a part of the rows
CHUNK = 2000  # rows that the ELBO is logged of at a time


@dataclass(frozen=True)
class Pass:
    """What one pass over rows showed: their ELBO, and the usage of the latents where the same draws tell it."""

    record: Record
    units: dict[str, Units] | None = None


def true_elbo(
    step: Step, batch: tuple[Tensor, ...], chunk_size: int | None = CHUNK, inside: frozenset[str] = frozenset()
) -> Record:
    """Estimate ELBO, reconstruction E_q[log p(x | z)] and KL in nats per datum, one particle a row, whatever the objective.

    Pairs that have no log weight for each row (enumerated or shared sites, points under TraceEnum_ELBO) get the ELBO of
    Pyro's own estimator, without terms; those that have none at all (a guide of points, of rounded draws, of rows of its own
    that are not these) get None, and the reason. Weights of handlers (β, ``poutine.scale``) are in none of them. Where rows
    share sites they go in one piece: `chunk_size` None. `inside`: observed sites whose data was found in the support.
    """
    with quiet(step.model, step.guide):
        return pass_over(step, batch, chunk_size, lambda: replace(problem_of(step, batch), inside=inside)).record


def problem_of(step: Step, batch: tuple[Tensor, ...]) -> Problem:
    """Find the pair's plates by a run on the first row, on a random stream of its own: later draws do not depend on it."""
    with quiet(step.model, step.guide, seed=0, device=batch[0].device):
        return as_trained(step, Problem.on_first_row(step.model, step.guide, *batch))


def as_trained(step: Step, problem: Problem) -> Problem:
    """Refuse a pair with sites summed out under TraceEnum_ELBO, whose own ELBO, of the joint with these sites, is logged."""
    if isinstance(step.objective, TraceEnum_ELBO) and codes_of(problem.model) > 1:
        raise MarkedError("sites are marked for enumeration: the ELBO is that of TraceEnum_ELBO")
    return problem


def pass_over(
    step: Step,
    batch: tuple[Tensor, ...],
    chunk_size: int | None,
    problem_of_rows: Callable[[], Problem],
    over: PartsOfRows = IN_TURN,
    latents: bool = False,
) -> Pass:
    """Estimate as :func:`true_elbo` does; with `latents`, measure them on the way, if their figures do not depend on the draw.

    The rows go `over` parts, which processes may share; in one piece where `chunk_size` is None. In
    :func:`~pyro_vae.programs.pair.quiet`, which the caller has entered.
    """
    rows = len(batch[0])
    size = over.size(rows, chunk_size) if chunk_size else rows
    try:
        problem = problem_of_rows()
        refuse_unweighed(problem.guide)
    except ProgramError as error:
        if isinstance(error, NoWeightError) and not isinstance(step.objective, TraceEnum_ELBO):
            return Pass(without_elbo(error))
        return Pass(joint_elbo(step, batch, size, over))
    some = problem.split(size)
    try:
        parts = over(len(some), lambda i: part_of_pass(some[i], latents), problem.device)
    except NoWeightError as error:  # a plate that subsamples within rows shows in a run
        return Pass(without_elbo(error))
    reconstruction, kl = torch.stack([part[SUMS] for part in parts]).sum(0).tolist()
    record = {"elbo": (reconstruction - kl) / rows, "reconstruction": reconstruction / rows, "kl": kl / rows}
    units = [drawn_of(part) for part in parts if SITES in part]
    return Pass(record, joined(units) if len(units) == len(parts) else None)


def without_elbo(error: NoWeightError) -> Record:
    """Make the record of a pair that has no ELBO to log."""
    return dict.fromkeys(("elbo", "reconstruction", "kl")) | {"no_elbo": str(error)}


def part_of_pass(problem: Problem, latents: bool) -> dict[str, Tensor]:
    """:func:`drawn_once`, as tensors that a process gives others."""
    sums, drawn = drawn_once(problem, latents)
    return {SUMS: sums.cpu()} | ({} if drawn is None else tensors_of(drawn))


def drawn_once(problem: Problem, latents: bool) -> tuple[Tensor, dict[str, Drawn] | None]:
    """Draw some rows once: summed reconstruction and KL, ``(2,)``, and what the draw tells of the `latents`, if it does."""
    q, p = problem.draw(1)
    terms = problem.terms(p, problem.score(q, "guide", fresh=True))
    try:
        drawn = without_noise(q, p, problem) if latents else None
    except (ValueError, RuntimeError, IndexError):  # a measure of its own says why it has none
        drawn = None
    return torch.stack([terms.reconstruction.double().sum(), terms.kl.double().sum()]), drawn


def joint_elbo(step: Step, batch: tuple[Tensor, ...], size: int, over: PartsOfRows = IN_TURN) -> Record:
    """Take the ELBO of Pyro's own estimator, which has no terms, of parts of so many rows."""
    guide, rows = without_observed(step.guide), len(batch[0])

    def part(i: int) -> dict[str, Tensor]:
        some = tuple(a[i * size : (i + 1) * size] for a in batch)
        elbo = elbo_per_datum(step.objective, step.model, guide, *some)
        return {SUMS: torch.tensor(len(some[0]) * elbo, dtype=torch.float64)}

    with ValidParameters():
        parts = over(len(range(0, rows, size)), part, batch[0].device)
    return {"elbo": sum(part[SUMS].item() for part in parts) / rows, "reconstruction": None, "kl": None}


def row_elbo(step: Step, batch: tuple[Tensor, ...]) -> Tensor | None:
    """Draw each row's ELBO once; None where the pair has no log weight for each row."""
    try:
        with quiet(step.model, step.guide):
            return as_trained(step, Problem.on(step.model, step.guide, *batch)).log_probs().log_w.mean(0)
    except (ProgramError, ValueError, RuntimeError, ArithmeticError):  # torch's own, on a covariance or classes of NaN
        return None


LOGGED_ROWS = 2000  # training rows that the ELBO is logged on, at most
ROWS, PAIRED, DEAR = 500, 200, 32  # for KL and activity, for I(x; z), and for that where a pair of rows costs a network
LESS_ACTIVE = 0.001
JUDGED_FROM = 5  # epochs: before, an encoder has hardly learnt anything
LEAST_INFORMATION, LEAST_KL = 0.05, 0.1  # nats
NO_FIGURES = (ValueError, RuntimeError, IndexError)
IN_PARTS = 3  # of the seed of the latents: streams apart from those of I(x; z), which are 1 and 2
ERRORS = 2  # standard errors that what is drawn must lie below them by
LATENT_KEYS = (
    "active_units", f"active_units_{LESS_ACTIVE}", "mutual_information", "mutual_information_se", "kl_per_unit"
)  # fmt: skip


def latent_use(
    problem: Callable[[], Problem], seed: int, units: dict[str, Units] | None = None, over: PartsOfRows = IN_TURN
) -> Record:
    """Estimate active units, I(x; z) and each unit's KL, in nats; None where not defined.

    The units' are of all rows where a pass over them has shown them (`units`), else of draws on at most 500 of them.
    """
    try:
        whole = problem()
        with quiet(whole.model, whole.guide, seed=seed, device=whole.device):
            some = of_spread_rows(whole, ROWS)
            pairs = PAIRED if units or elementwise(some) else DEAR
            found = usage(some, of_spread_rows(some, pairs), 2, seed, sites=units, over=over)
    except NO_FIGURES:  # no density a row, or programs that do not broadcast over draws
        return dict.fromkeys(LATENT_KEYS)
    kl = None if found.kl_per_unit is None else found.kl_per_unit.tolist()
    return record_of_latents(found.activity.tolist(), kl, (found.mutual_information, found.mutual_information_se))


def record_of_latents(activity: list[float], kl: list[float] | None, information: tuple[float, float]) -> Record:
    """Make the record of what latents carry: of coordinates' activity, units' KL, I(x; z) and its error."""
    counts = [sum(a > threshold for a in activity) if activity else None for threshold in (ACTIVE, LESS_ACTIVE)]
    kl_per_unit = None if kl is None else [finite(v) for v in kl]
    return dict(zip(LATENT_KEYS, [*counts, *map(finite, information), kl_per_unit], strict=True))


def paired_rows(problem: Problem) -> Problem:
    """Return the problem of the rows that I(x; z) is logged among, where q(z | x) is cheap for many pairs of them."""
    return of_spread_rows(of_spread_rows(problem, ROWS), PAIRED)


def information_terms(problem: Problem) -> Tensor:
    """Return the terms whose mean I(x; z) is logged as, ``(B,)``, of draws from the random stream around."""
    return contrasts_of_rows(problem)


def of_spread_rows(problem: Problem, count: int) -> Problem:
    """Return the problem of at most so many of the rows, evenly spaced."""
    return problem.over(*(spread(a, count) for a in problem.args))


def elementwise(problem: Problem) -> bool:
    """Return whether log q(z_i | x_j) is cheap for many pairs: one latent site of independent units."""
    with problem.quiet(0):
        sites = latent_sites(problem.few(1).sites(problem.guide))
    return len(sites) == 1 and all(univariate(site["fn"]) is not None for site in sites.values())


def finite(value: float) -> float | None:
    """Round a number; None where it is not finite."""
    return round(value, 4) if math.isfinite(value) else None


def no_elbo(record: Record) -> str | None:
    """Say that a pair has no ELBO to log, and why; None where it has one."""
    reason = record.get("no_elbo")
    return reason and f"no ELBO is logged, and the newest weights count as the best: {reason}"


def collapsed(record: Record) -> str | None:
    """Describe a posterior collapse, from the fifth epoch on; None if the latents carry something of x, or may by their error.

    I(x; z) is estimated from draws, below 0 at times: it is a sign where two standard errors more are too little, too. The KL
    is the sum of the units', in closed form as a rule, where they are told apart.
    """
    if "elbo_data_set" in record:  # the KL of global parameters is one for all rows, and little for each
        return None
    active, information, kl = record.get("active_units"), record.get("mutual_information"), kl_of_units(record)
    error = record.get("mutual_information_se") or 0.0
    known = information is not None and information + ERRORS * error < LEAST_INFORMATION
    signs = [
        active == 0 and f"no unit is active (Var_x E[z|x] <= {ACTIVE})",
        known and f"I(x; z) is {information:.3f} ± {format_nats(record.get('mutual_information_se'))} nats",
        kl is not None and kl < LEAST_KL and f"the KL is {format_nats(kl)} nats",
    ]
    if record["epoch"] < JUDGED_FROM or not any(signs):
        return None
    return (
        f"posterior collapse at epoch {record['epoch']}: {', '.join(sign for sign in signs if sign)}, so z says (almost) "
        "nothing of x. If x has structure for z to carry, try a KL warm-up (Beta), free bits (free_bits), "
        "fit(..., aggressive=Aggressive()), the sticking-the-landing gradient (stl) or the IWAE bound (iwae), or a smaller "
        "decoder."
    )


def kl_of_units(record: Record) -> float | None:
    """Return the KL of all units, which has no noise of draws where they have closed forms; else that of the ELBO's draw."""
    units = record.get("kl_per_unit")
    return sum(units) if units and None not in units else record.get("kl")


@dataclass(eq=False)
class EpochMetrics:
    """Measures ELBOs on validation (else training) rows, with the same noise each epoch: they differ by the weights alone."""

    step: Step
    data: TrainingData
    seed: int
    inside: frozenset[str] = frozenset()  # observed sites whose data was found in the support
    times: int = 0  # that the ELBO was measured
    probed: ProbedOnce = field(default_factory=ProbedOnce)
    pair: Problem | None = None  # its plates, and how it runs
    units: dict[str, Units] | None = None  # of the latents, where the ELBO's own pass showed them
    given: tuple[Record, Record] | None = None  # of ELBO and latents, measured elsewhere, of the weights as they are

    def elbo(self, when: str) -> Record:
        """Estimate the true ELBO and its terms, in nats per datum; `when` is for the message of a DeviceMemoryError."""
        if self.given is not None:
            return self.given[0]
        self.times += 1
        if (
            self.times & (self.times - 1) == 0
        ):  # weights may hide at first what a program does: look again, ever more seldom
            self.probed, self.pair = ProbedOnce(), None
        if self.of_data_set is not None:
            return self.data_set_elbo(self.of_data_set, when)
        # parameters were registered by the steps before
        with self.probed, ParametersRegistered(), quiet(self.step.model, self.step.guide):
            held_out = self.data.validation
            train = terms = self.true_elbo(self.train_sample, when, latents=held_out is None)
            if held_out is not None:
                terms = self.true_elbo(held_out, when, latents=True)
        self.units = terms.units
        return terms.record | {"train_elbo": train.record["elbo"]}

    def latents(self) -> Record:
        """Estimate active units, I(x; z) and KL per unit; right after :meth:`elbo`, whose pass over the rows it takes up."""
        if self.given is not None:
            return self.given[1]
        if self.of_data_set is not None:  # no row has a posterior of its own, given no global parameters
            return dict.fromkeys(LATENT_KEYS)
        rows = self.train_sample if self.data.validation is None else self.data.validation
        units, self.units = self.units, None  # of these weights alone
        with self.probed, ParametersRegistered():
            seed = stream(self.seed, LATENTS)
            over = PartsOfRows(self.shards, (seed, IN_PARTS), "the latents after an epoch", NO_FIGURES)
            return latent_use(lambda: self.problem(rows), seed, units, over)

    def data_set_elbo(self, metrics: DataSetMetrics, when: str) -> Record:
        """Estimate the ELBO of all training rows, and of validation rows given the global parameters."""
        what = f"{when}: the ELBO of the data set on {self.data.device}"
        with fitting(what, "Validate on fewer rows."), self.probed:
            train = metrics.record(self.train_sample)
            held_out = {} if self.data.validation is None else metrics.record(self.data.validation, held_out=True)
        return train | held_out | {"train_elbo": train["elbo"]}

    def problem(self, batch: Batch) -> Problem:
        """Return the pair on some rows; its plates are looked for when they are first asked for, and now and then again."""
        if self.pair is None:
            self.pair = problem_of(self.step, batch)
        return replace(self.pair, args=batch, inside=self.inside)

    def true_elbo(self, batch: Batch, when: str, latents: bool = False) -> Pass:
        what = f"{when}: the ELBO of {len(batch[0])} rows on {self.data.device}"
        with seeded(self.seed, ELBO_NOISE, device=self.data.device), fitting(what, "Validate on fewer rows."):
            chunk = None if self.shared else chunk_of(self.data.train, CHUNK)
            shared = f"{when}: the ELBO of {len(batch[0])} rows"  # the same on each process, whatever its device
            over = PartsOfRows(self.shards, (self.seed, ELBO_NOISE), shared, (NoWeightError,))
            return pass_over(self.step, batch, chunk, lambda: self.problem(batch), over, latents)

    @property
    def shards(self) -> int | None:
        """Into how many parts rows are cut at least, which processes share; None where batches have no shards."""
        return None if self.step.shards is None else self.step.shards.count

    @cached_property
    def train_sample(self) -> Batch:
        """The training rows that the ELBO is logged on, the same throughout, binarized once."""
        if (
            self.shared or self.of_data_set is not None
        ):  # of some rows, what all share would count for more than it does in training
            return self.fixed_batch(self.data.train)
        every = max(1, len(self.data.train[0]) // LOGGED_ROWS)
        return self.fixed_batch(tuple(a[::every][:LOGGED_ROWS] for a in self.data.train))

    def refuse_of_all_rows(self) -> None:
        """Refuse rows on disk for a pair whose ELBO is one of all rows together."""
        if self.of_data_set is not None or self.shared:
            raise UsageError(
                "the programs have sites that all rows share (global parameters), so that the ELBO is one of all rows at once, "
                "which are on disk, or sparse: take as many as fit into memory (x[:100_000]; of a matrix, .toarray()), or "
                "leave those out."
            )

    @cached_property
    def of_data_set(self) -> DataSetMetrics | None:
        """What measures a pair whose shared sites are counted once in the data set; None for any other pair."""
        return DataSetMetrics(self.step, self.seed) if isinstance(self.step.model, CountOnce) else None

    @cached_property
    def shared(self) -> SharedSites:
        """The sites that all rows share; none but with objectives that treat them."""
        if not isinstance(self.step.objective, TraceEnum_ELBO):
            return SharedSites()
        data, step = self.data, self.step
        return shared_sites(step.model, step.guide, self.first, len(data.train[0]), data.batch_size)

    def first(self, rows: int) -> Batch:
        """Return the first rows, as training would see them."""
        return self.fixed_batch(tuple(a[:rows] for a in self.data.train))

    def fixed_batch(self, batch: Batch) -> Batch:
        """Transform some rows as training does, the same each time."""
        return self.data.fixed_batch(batch, stream(self.seed, FIXED))
