r"""Pairs with global parameters in `fit`: θ outside the data plate is counted once in the data set, and logged so."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import ProgramError
from pyro_vae.objectives.count_once import CountOnce, WeighShared
from pyro_vae.objectives.joint_elbo import AsWritten
from pyro_vae.programs.data_set import PartOfDataSet
from pyro_vae.programs.determinism import identical
from pyro_vae.programs.findings import run
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.parameter_checks import check_pair_parameters
from pyro_vae.programs.parameters import store_restored
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.proposal_guide import RefusedGuide, set_up_undone, without_observed
from pyro_vae.programs.sampled_weights import weights_inside, weights_of
from pyro_vae.programs.shared_sites import FEW, shared_sites
from pyro_vae.programs.site_rows import frames_of
from pyro_vae.programs.sites import Program, latent_sites, observed_sites, sum_terms, trace_pair
from pyro_vae.programs.support import check_support

from .batch_source import Batch, TrainingData
from .preflight import check_training
from .shuffle import ELBO_NOISE, FIXED
from .step import Step

SUMS = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO)  # of their sites' terms; a subclass may be anything
DRAWS = 16  # of θ, that the ELBO is logged by
Pair = tuple[Program, Program]
Record = dict[str, Any]


def counted_once(model: Program, guide: Program, objective: Any, data: TrainingData, seed: int) -> Pair:
    """Return the pair under :class:`~pyro_vae.objectives.count_once.CountOnce`, or as it is where rows share no site.

    Raises:
        ProgramError: weights of a layer that are drawn inside the plate; shared sites under an objective that weighs rows one
            by one, or batches as wholes; shared sites whose density, or value, is another for other rows, in batches of some
            of the rows; a plate of another number of rows.
    """
    if isinstance(objective, TraceEnum_ELBO) or isinstance(model, CountOnce):
        return model, guide
    rows = len(data.train[0])

    def first(count: int, last: bool = False) -> Batch:
        some = tuple((a[-count:] if last else a[:count]).clone() for a in data.train)
        return data.fixed_batch(some, stream(seed, FIXED))

    with set_up_undone(guide), store_restored(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refuse_weights_inside(model, first(min(rows, FEW)))
        shared = shared_sites(model, guide, first, rows, data.batch_size)
        known = model_sites(model, guide, first(min(rows, FEW))) if shared else {}
        names = [name for name in shared.names if name in known and shared.plate not in frames_of(known[name])]
        if not any(shared.plate in frames_of(site) for site in known.values()):  # no plate over rows: the checks say so
            names = []
        if not names:
            return model, guide
        refuse_objective(names[0], shared.plate, objective)
        if data.batch_size < rows:
            batches = first(data.batch_size), first(data.batch_size, last=True)
            with quiet(model, guide, seed=0, device=data.device):
                refuse_of_batch(model, guide, names, *batches)
    return CountOnce(model, rows, shared.plate), CountOnce(guide, rows, shared.plate)


def model_sites(model: Program, guide: Program, batch: Batch) -> Sites:
    """Return the model's sites; none where the pair does not run on a few rows."""
    try:
        with quiet(model, guide, seed=0, device=batch[0].device):
            return trace_pair(model, guide, *batch)[1]
    except Exception:  # whatever the programs raise: training meets it, and shows it as it is
        return {}


def refuse_weights_inside(model: Program, batch: Batch) -> None:
    """Refuse weights of a layer that are drawn inside the plate, of which the model may stop before it comes to more."""
    if any(weights_of(model)):
        with quiet(model, seed=0, device=batch[0].device):
            ran = run("model", model, batch)
        for finding in weights_inside(ran.sites, model):
            raise ProgramError(finding.line)


def refuse_objective(name: str, plate: str, objective: Any) -> None:
    """Refuse objectives that are no sum of their sites' terms."""
    if type(objective) in SUMS:
        return
    raise ProgramError(
        f"site {name!r} lies outside the plate {plate!r}: it is shared by all rows, and {type(objective).__name__} weighs rows "
        "one by one, or a batch as a whole, so that it would not be counted once in the data set. Train with Pyro's "
        "Trace_ELBO(num_particles=K) or TraceMeanField_ELBO, whose loss is a sum of the sites' terms."
    )


def refuse_of_batch(model: Program, guide: Program, names: list[str], one: Batch, other: Batch) -> None:
    """Refuse shared sites that see which rows are passed: of the data set they would be something else than of a batch."""
    q_trace = poutine.trace(guide).get_trace(*one)
    runs = [trace_pair(model, poutine.replay(guide, trace=q_trace), *rows) for rows in (one, other)]
    for role, k in (("guide", 0), ("model", 1)):
        first, second = runs[0][k], runs[1][k]
        for name in [name for name in names if name in first and name in second]:
            site, again = first[name], second[name]
            log_p, log_p_again = (s["fn"].log_prob(s["value"]) for s in (site, again))
            if not identical(site["value"], again["value"]):
                what = "observes other values"
            elif not torch.allclose(log_p, log_p_again, rtol=1e-4, atol=1e-6):
                what = "has another density"
            else:
                continue
            raise ProgramError(
                f"site {name!r} of the {role} is shared by all rows, and {what} when other rows are passed: a batch is not the "
                "data set, so its term would be of the batch. Train on all rows at once (batch_size=N), or let it depend on "
                "parameters alone."
            )


@dataclass(eq=False)
class DataSetMetrics:
    """Checks and ELBOs of a step whose pair is counted once."""

    step: Step
    seed: int
    inside: frozenset[str] = frozenset()  # observed sites whose data was found in the support
    probed: Problem | None = None  # the pair, once it is known how its particles run

    @property
    def counted(self) -> CountOnce:
        model: Any = self.step.model
        return model

    @cached_property
    def pair(self) -> PartOfDataSet:
        """The programs as written, of data sets."""
        guide: Any = self.step.guide
        return PartOfDataSet(self.counted.program, guide.program)

    def examine(self, data: TrainingData, first: Any) -> tuple[frozenset[str], list[str]]:
        """Raise if the data has no likelihood or the programs are at odds; return observed sites inside, and advice."""
        model, guide = self.pair.programs
        with quiet(model, guide, seed=0, device=data.device):
            q, p = trace_pair(model, guide, *first(1))
        frames = {name: f for site in (p | q).values() for name, f in frames_of(site).items() if f.dim is not None}
        plates = Plates(self.counted.plate, frames[self.counted.plate].dim, max(-f.dim for f in frames.values()))  # type: ignore
        prepare = lambda batch: data.fixed_batch(batch, stream(self.seed, FIXED))  # noqa: E731
        with seeded(self.seed, FIXED, device=data.device):
            inside = check_support(model, guide, *data.train, prepare=prepare, plates=plates)
            if data.validation is not None:
                inside &= check_support(model, guide, *data.validation, plates=plates)
            check_pair_parameters(model, guide, *first(data.batch_size))
        self.inside = inside
        notes = check_training(
            self.pair.model, self.pair.guide, self.step.objective, lambda n: as_data_set(first(n)), data.batch_size
        )
        return inside, notes

    def record(self, batch: Batch, held_out: bool = False) -> Record:
        """Estimate the ELBO of the data set, in nats a row and in all; of rows that are `held_out`, E_q(θ) of theirs alone."""
        device = batch[0].device
        with seeded(self.seed, ELBO_NOISE, device=device), quiet(*self.pair.programs):
            problem = self.problem(as_data_set(batch))
            if isinstance(problem.guide, RefusedGuide):
                return self.stock_record(batch, held_out)
            q, p = problem.draw(DRAWS)
            return self.record_of(p, q, problem, len(batch[0]), held_out)

    def problem(self, args: Batch) -> Problem:
        """Return the pair on a data set; how its particles run is found once."""
        if self.probed is None:
            self.probed = Problem.on(self.pair.model, self.pair.guide, *args)
        return self.probed.over(*args)

    def record_of(self, p: Sites, q: Sites, problem: Problem, rows: int, held_out: bool) -> Record:
        """Add up the terms of a draw."""
        prior, posterior = (problem.score(latent_sites(sites)) for sites in (p, q))
        observed = problem.score(observed_sites(p))
        of_rows = {name for name, site in p.items() if self.counted.plate in frames_of(site)}
        reconstruction = total({n: t for n, t in observed.items() if n in of_rows or not held_out})
        local, shared = (
            total({n: posterior[n] - prior[n] for n in prior if (n in of_rows) == inside}) for inside in (True, False)
        )
        kl = local if held_out else local + shared
        elbo = reconstruction - kl
        record = {name: value.mean().item() / rows for name, value in
                  (("elbo", elbo), ("reconstruction", reconstruction), ("kl", kl))}  # fmt: skip
        return record if held_out else record | {
            "elbo_data_set": record["elbo"] * rows,
            "elbo_data_set_se": elbo.std().item() / DRAWS**0.5,
            "kl_global": shared.mean().item(),
        }  # fmt: skip

    def stock_record(self, batch: Batch, held_out: bool) -> Record:
        """Take the ELBO of Pyro's own estimator, for a guide whose draws have no weight: it has no terms."""
        weigh = lambda program: WeighShared(self.counted.plate, float(not held_out))(AsWritten()(program))  # noqa: E731
        model, guide = self.pair.programs
        elbo = -Trace_ELBO(num_particles=DRAWS).loss(weigh(model), weigh(without_observed(guide)), *batch)
        record = {"elbo": elbo / len(batch[0]), "reconstruction": None, "kl": None}
        return record if held_out else record | {"elbo_data_set": elbo}


def as_data_set(batch: Batch) -> Batch:
    """Return rows as one data set."""
    return tuple(a.unsqueeze(0) for a in batch)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """Sum terms ``(K, 1)`` in float64 over sites; zeros where there are none."""
    return sum_terms(terms).double() if terms else torch.zeros(DRAWS, 1, dtype=torch.float64)
