"""An ensemble's training from data to results: together where the members' steps can be mapped, else one after the other."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import DivergedError, Interrupted
from pyro_vae.programs.pair import modes_restored, move, programs
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.support import takes_missing
from pyro_vae.training.before_training import examine, print_notes
from pyro_vae.training.engines.choose import resolve
from pyro_vae.training.engines.flat_graph import Untraceable
from pyro_vae.training.engines.verify import replayed
from pyro_vae.training.fit import fit
from pyro_vae.training.optimizers import MakeOptimizer, name_parameters
from pyro_vae.training.pair_as_trained import pair_as_trained
from pyro_vae.training.shuffle import NOISE, SHUFFLE
from pyro_vae.training.standardize import standardize_model
from pyro_vae.training.step import Step
from pyro_vae.training.trainer import Trainer
from pyro_vae.training.training_rows import RowOptions, training_data
from pyro_vae.training.training_state import TrainingOptions

from .ensemble import Ensemble
from .lockstep import Lockstep
from .members import Member, check_own
from .report import EnsembleReporter
from .together import Batch, Together

PATIENCE = 1000  # steps of one member, before a run on "auto" waits for a compiler


@dataclass(eq=False)
class EnsembleJob:
    """The members of a training, before it and while it runs."""

    members: list[Member]
    makers: list[MakeOptimizer]
    objective: ELBO | None  # None is the default
    options: TrainingOptions  # the same for all; each has its own seed and scheduled objects beside
    engine: str
    device: torch.device | str | None
    standardize: bool
    diverged: dict[int, str] = field(default_factory=dict)  # seed to message
    told: str = ""  # how steps were computed

    def load(self, args: tuple[Any, ...], rows: RowOptions) -> None:
        """Convert x and contexts once, for all; set up each member's training on them, unchecked."""
        places = [move(list(member.modules.values()), self.device) for member in self.members]
        pairs = [on_tensors(*programs(member.trained), *args) for member in self.members]
        model, guide, tensors = pairs[0]
        rows = replace(rows, missing=rows.missing or takes_missing(self.members[0].pair, model, guide))
        self.data = training_data(model, guide, tensors, rows, places[0])
        for member in self.members if self.standardize else ():
            standardize_model(list(member.modules.values()), self.data.train)
        for member, make, (model, guide, _) in zip(self.members, self.makers, pairs, strict=True):
            options = replace(self.options, seed=member.seed, scheduled=member.scheduled)
            model, guide, objective = pair_as_trained(model, guide, self.objective, self.data, member.seed)
            step = Step(model, guide, copy(objective), make)  # a Bound remembers one pair
            member.trainer = Trainer(step, list(member.modules.values()), self.data, options)

    def run(self, report: EnsembleReporter) -> Ensemble:
        """Check the members, train them, and leave each with its best weights and its modules as they were set."""
        modules = [module for member in self.members for module in member.modules.values()]
        with modes_restored(modules):
            self.check_and_train(report)
        if len(self.diverged) == len(self.members):
            raise DivergedError(f"all members diverged. {next(iter(self.diverged.values()))}", self.ensemble())
        return self.ensemble()

    def check_and_train(self, report: EnsembleReporter) -> None:
        """Look at data and programs, and train, with what is to be done however that ends."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Encountered NaN")  # Pyro's; the message of the member says more
                self.check(report)
                self.train(report)
        except KeyboardInterrupt as signal:
            raise self.interrupted(signal) from None
        finally:
            self.data.source.close()

    def check(self, report: EnsembleReporter) -> None:
        """Look at data and programs before training, as `fit` does for each; print the first member's notes."""
        for i, member in enumerate(self.members):
            notes = examine(member.training)
            print_notes(notes if report.verbose and i == 0 else ())

    def train(self, report: EnsembleReporter) -> None:
        """Train together, or say why not and train one after the other."""
        batches = [self.first_batch(member) for member in self.members]
        begun = [m for m, batch in zip(self.members, batches, strict=True) if self.begin(m, batch, report)]
        self.check_shared(begun)
        if not begun:
            return
        name, why, after = self.choose()
        together = None
        if name != "eager":
            try:
                together = Together.of(begun, [b for m, b in zip(self.members, batches, strict=True) if m in begun])
            except Untraceable as reason:
                why = str(reason)
                report.note(f"note: the members are trained one after the other: {why}")
        if together is None:
            self.told = f"one member after the other: {why}"
            self.in_turn(begun, name, report)
        else:
            self.in_lockstep(together, name, why, after, report)

    def choose(self) -> tuple[str, str, int | None]:
        """Return the engine for all members together, the reason, and the step from which it is compiled."""
        if self.engine == "eager":
            return "eager", "asked for", None
        planned, count = self.options.epochs * self.data.steps_per_epoch, len(self.members)
        name, why = resolve(self.engine, planned * count, self.data.device)
        if name == "eager":
            why = f"auto: {planned} steps"
        if name not in ("compile", "graph"):
            return "trace", why, None
        return "compile", why, PATIENCE // count if self.engine == "auto" else 0

    def first_batch(self, member: Member) -> Batch:
        """Return the batch of a member's first step."""
        order = self.data.shuffle(stream(member.seed, SHUFFLE, 1))
        return next(self.data.one_pass(order))[1]

    def begin(self, member: Member, batch: Batch, report: EnsembleReporter) -> bool:
        """Find a member's parameters by its first loss, under full validation; return whether that is finite."""
        training, device = member.training, self.data.device
        for module in training.modules:
            module.train()
        training.options.tell_progress(0.0)
        try:
            with replayed(member.buffers, device), seeded(member.seed, NOISE, 1, device=device):
                training.step.loss_and_grads(*batch)
        except DivergedError as error:
            self.diverged[member.seed] = f"seed {member.seed}: {training.diverged(str(error))}"
            training.result.warnings.append(self.diverged[member.seed])
            report.note(f"warning: {self.diverged[member.seed]}")
            return False
        finally:
            for p in training.step.parameters:
                p.grad = None
        training.state.copy_best(training.tensors)
        return True

    def check_shared(self, begun: list[Member]) -> None:
        """Refuse parameters that the programs of two members declare, of Pyro's store or a module that both hold."""
        for i, member in enumerate(begun):
            tensors = {name_parameters([p]).strip("'"): p for p in member.parameters}
            check_own(member, tensors, begun[:i])

    def in_lockstep(self, together: Together, name: str, why: str, after: int | None, report: EnsembleReporter) -> None:
        """Train together; leave each member with its best weights, in tensors of its own."""
        lockstep = Lockstep(together.members, self.data, self.options, together, after, self.diverged)
        try:
            lockstep.run(report)
        finally:
            for member in together.members:
                member.training.state.load_best(member.training.tensors)
            together.stack.detach()
            head = f"{len(together.members)} members as one graph ({name}; {why})"
            self.told = "\n".join([head, *together.notes])

    def in_turn(self, begun: list[Member], name: str, report: EnsembleReporter) -> None:
        """Train one member after the other by `fit`."""
        report.expect_in_turn(len(begun))
        for member in begun:
            training = member.training
            try:
                result = fit(
                    (training.step.model, training.step.guide),
                    *self.data.train,
                    validation=self.data.validation,
                    objective=training.step.objective,
                    optimizer=training.step.make_optimizer,
                    epochs=self.options.epochs,
                    batch_size=self.data.batch_size,
                    drop_last=self.data.drop_last,
                    schedule=self.options.schedule,
                    patience=self.options.patience,
                    transform=self.data.transform,
                    seed=member.seed,
                    missing=True,
                    engine=self.engine if name == "eager" else name,
                    scheduled=member.scheduled,
                    on_epoch=partial(report.alone, member.seed),
                    verbose=False,
                )
            except DivergedError as error:
                result = error.result
                self.diverged[member.seed] = f"seed {member.seed}: {error}"
                result.warnings.append(self.diverged[member.seed])
            except Interrupted as signal:
                training.state.result = signal.result  # its epochs so far are the ensemble's, too
                raise
            training.state.result = result
            report.member_done(member.seed, result)

    def interrupted(self, signal: KeyboardInterrupt) -> Interrupted:
        """Make the error of an interruption, with the ensemble so far."""
        for member in self.members:
            if not member.training.result.stopped:
                member.training.result.stopped = "interrupted"
        return Interrupted.kind(signal)("interrupted; each member holds its best weights so far", self.ensemble())

    def ensemble(self) -> Ensemble:
        """Return the members with their results."""
        for member in self.members:
            result = member.training.result
            result.engine = "\n".join(filter(None, [self.told, result.engine]))
        results = [member.training.result for member in self.members]
        seeds = tuple(member.seed for member in self.members)
        return Ensemble([member.pair for member in self.members], seeds, results, dict(self.diverged))
