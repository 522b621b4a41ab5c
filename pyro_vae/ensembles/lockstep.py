"""The training of all members at once: epochs of common steps, each member's own records, best weights and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.memory import fitting
from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import DivergedError, ProgramError
from pyro_vae.training.batch_source import Resident, TrainingData
from pyro_vae.training.divergence import suspect_rows
from pyro_vae.training.engines.flat_graph import Unfinished, Untraceable
from pyro_vae.training.finite_checks import GRADIENT, LOSS
from pyro_vae.training.shuffle import NOISE, SHUFFLE
from pyro_vae.training.time_budget import StopTraining
from pyro_vae.training.training_state import EpochPosition, TrainingOptions

from .logged_together import Logged, LoggedTogether, apart, is_worth_it
from .members import Member
from .recorded_step import STEPS, RecordedSteps, batch_of_members, record_step, record_steps
from .report import EnsembleReporter
from .together import Batch, Together

AWAY = "members trained together cannot follow that: give engine='eager', which trains one after the other"


@dataclass(eq=False)
class Lockstep:
    """One run of all members; whoever stops or diverges is frozen, and the others go on."""

    members: Sequence[Member]
    data: TrainingData
    options: TrainingOptions  # those that all have in common
    together: Together
    compile_after: int | None = None  # steps; None never
    diverged: dict[int, str] = field(default_factory=dict)  # seed to message
    steps: int = 0
    settled: bool = False  # how the graph is run from here on
    several: RecordedSteps | None = None  # many steps to a replay, on a GPU
    logs: LoggedTogether | None = None  # what is logged of all, at once

    def run(self, report: EnsembleReporter) -> None:
        """Train all epochs, or until nobody is left."""
        self.alive = list(self.members)
        for member in self.members:
            member.training.warn_of_noticed()
        for epoch in range(1, self.options.epochs + 1):
            self.epoch(epoch, report)
            if not self.alive:
                break
        for member in self.alive:
            member.training.result.stopped = f"{counted(self.options.epochs, 'epoch')} done"

    def epoch(self, epoch: int, report: EnsembleReporter) -> None:
        """Make one pass of all members, each in its own order; then measure those that are alive."""
        start, first_step = time.perf_counter(), self.steps
        for member in self.members:
            for module in member.modules.values():
                module.train()
        self.together.tally.start_epoch()
        seeds = [member.seed for member in self.members]
        with seeded(
            seeds[0], NOISE, epoch, *seeds[1:], device=self.data.device
        ):  # of noise that is drawn for all at once
            self.run_steps(epoch)
        self.count(epoch, first_step)
        seconds = (time.perf_counter() - start) / len(self.members)
        logs = self.log_together(epoch, report)
        for member in list(self.alive):
            member.training.metrics.given = logs.get(member.seed)
            try:
                self.record(member, epoch, round(seconds, 4), report)
            finally:
                member.training.metrics.given = None
        report.epoch_done(epoch)

    def log_together(self, epoch: int, report: EnsembleReporter) -> dict[int, Logged]:
        """Measure members after an epoch at once, by seed; others, all where that cannot be done, are measured one by one.

        The first time, and in the last epoch, each member's own log is compared with that among all; in turn in between.
        """
        if epoch == 1:
            self.trace_logs()
        if self.logs is None or not self.alive:
            return {}
        everyone = epoch in (1, self.options.epochs)
        checked = self.alive if everyone else [self.alive[epoch % len(self.alive)]]
        try:
            logged = self.logs()
        except RuntimeError as error:  # memory, mostly, which members one by one take less of
            self.give_up_logs(1, str(error).strip().split("\n")[0], report)
            return {}
        among_all = {m.seed: one for m, one in zip(self.members, logged, strict=True) if one is not None}
        for member in checked:
            if member.seed not in among_all:  # it is measured by itself
                continue
            metrics = member.training.metrics
            own = metrics.elbo(f"step {member.training.state.step + 1}"), metrics.latents()
            if (what := apart(own, among_all[member.seed])) is not None:
                self.give_up_logs(epoch, f"seed {member.seed}: {what}", report)
                return {member.seed: own}
            among_all[member.seed] = own
        return among_all

    def trace_logs(self) -> None:
        """Have all members logged at once, where that is worth the traces."""
        if not is_worth_it(self.options.epochs, len(self.members), self.data.device):
            return
        try:
            self.logs = LoggedTogether.of(self.members, self.together.stack)
        except Untraceable as why:
            self.together.notes.append(f"members are logged one by one: {why}")

    def give_up_logs(self, epoch: int, why: str, report: EnsembleReporter) -> None:
        """Measure members one by one from here on; warn where records may be of programs as they were before."""
        self.logs = None
        if epoch == 1:
            self.together.notes.append(f"members are logged one by one: {why}")
            return
        first = max(2, epoch - len(self.members) + 1)
        what = (
            f"the log after epoch {epoch} of {why}: the programs have changed since the first epoch, and members are measured "
            f"one by one from here on. ELBOs and latents that were logged before, from epoch {first} on, may be those of the "
            "programs as they were: give engine='eager', which measures each member by itself"
        )
        for member in self.members:
            member.training.result.warnings.append(what)
        report.note(f"warning: {what}")

    def run_steps(self, epoch: int) -> None:
        """Make the steps of an epoch."""
        orders = [self.data.shuffle(stream(m.seed, SHUFFLE, epoch)) for m in self.members]
        noise = [torch.Generator(self.data.device).manual_seed(stream(m.seed, NOISE, epoch)) for m in self.members]
        whole, like = self.data.batch_size, self.together.row_like()
        per_epoch = self.data.steps_per_epoch
        steps = range(self.steps, self.steps + per_epoch)
        table = self.together.adam.table(steps, self.options.epochs * per_epoch, self.options.schedule)
        what = f"step {self.steps + 1}: batches of {whole} rows for {len(self.members)} members on {self.data.device}"
        with fitting(what, f"Take smaller ones: batch_size={max(1, whole // 2)}."):
            passes = [list(order.one_pass()) for order in orders]
            rates, number = like.new_tensor(table), 0
            while number < per_epoch:
                self.data.check_files()
                if several := self.next_several(number, passes):
                    several_steps, rows = several
                    generators = [*(order.generator for order in orders), *noise]
                    several_steps(rows, rates[number : number + STEPS], generators)
                    self.steps, number = self.steps + STEPS, number + STEPS
                    continue
                rows = torch.stack([chunks[number] for chunks in passes])
                batch = batch_of_members(self.data, rows, [order.generator for order in orders])
                self.step(
                    rates[number], batch, noise, checked=self.to_check(epoch) if number == 0 and self.steps else []
                )
                number += 1

    def next_several(self, number: int, passes: list[list[Tensor]]) -> tuple[RecordedSteps, Tensor] | None:
        """Return what makes the steps from that number on by one replay, and their rows; None where they go one by one."""
        chunks = [of_member[number : number + STEPS] for of_member in passes]
        if self.several is None or number == 0 or self.together.scheduled or len(chunks[0]) < STEPS:
            return None
        if len(chunks[0][-1]) < self.data.batch_size:
            return None
        return self.several, torch.stack([torch.stack(of_member) for of_member in chunks], 1)

    def to_check(self, epoch: int) -> Sequence[int]:
        """Return the numbers of members whose own step is looked at in an epoch: in turn, and all in the last."""
        everyone = range(len(self.members))
        return everyone if epoch == self.options.epochs else [epoch % len(everyone)]

    def step(self, row: Tensor, batch: list[Tensor], noise: list[torch.Generator], checked: Sequence[int] = ()) -> None:
        """Make one step of all members: by the common graph, or member by member on a shorter last batch."""
        together, planned = self.together, self.options.epochs * self.data.steps_per_epoch
        for member in self.members if together.scheduled else ():
            member.training.options.tell_progress(self.steps / planned)
        try:
            together.refresh()
            if batch[0].shape[1] == self.data.batch_size:
                if checked:
                    together.check(split(batch), checked)
                together.draw(noise)
                self.accelerate(
                    batch
                )  # on that noise: on what an empty tensor holds, no step may be finite and all alike
                together(batch, row, self.steps + 1)
            else:
                together.one_by_one(split(batch), row, noise)
        except Untraceable as why:
            raise ProgramError(f"step {self.steps + 1}: {why}; {AWAY}") from why
        self.steps += 1

    def accelerate(self, batch: list[Tensor]) -> None:
        """Compile the graph once it is time; on a GPU record what is run from then on."""
        if self.settled or (self.compile_after is not None and self.steps < self.compile_after):
            return
        self.settled = True
        ways: list[Callable[[Sequence[Tensor]], None]] = []
        ways += [self.together.compile] if self.compile_after is not None else []
        recorded = is_recorded_on(self.data.device)
        ways += [partial(record_step, self.together)] if recorded else []
        for way in ways:
            try:
                way(batch)
            except (Unfinished, Untraceable) as why:
                self.together.notes.append(f"the trace goes on as it is: {why}")
        if recorded and self.together.recorded is not None and isinstance(self.data.source, Resident):
            try:
                self.several = record_steps(self.together, self.data)
            except Untraceable as why:
                self.together.notes.append(f"steps are replayed one by one: {why}")

    def count(self, epoch: int, first_step: int) -> None:
        """Note each member's steps and loss; freeze those that met a loss or gradient that is not finite."""
        tally = torch.stack([t.double() for t in self.together.tally.tensors]).tolist()
        for member, alive, good_steps, loss, bad_loss in zip(self.members, *tally, strict=True):
            if member not in self.alive:
                continue
            state = member.training.state
            state.step = state.updates = first_step + int(good_steps)
            state.position = EpochPosition(epoch, loss)
            self.note_rate(member)
            if not alive:
                what = GRADIENT if bad_loss == 0 else LOSS.format(bad_loss)
                self.freeze(
                    member, member.training.diverged(f"{what} on rows {self.suspects(member, epoch, int(good_steps))}")
                )

    def note_rate(self, member: Member) -> None:
        """Have the member's records tell the learning rate of the last step."""
        optimizer = member.training.step.optimizer
        assert optimizer is not None
        base = self.together.adam.rates[list(self.members).index(member)]
        planned = self.options.epochs * self.data.steps_per_epoch
        optimizer.param_groups[0]["lr"] = base * self.options.schedule(self.steps / planned)

    def suspects(self, member: Member, epoch: int, good_steps: int) -> str:
        """Name the rows of a step that diverged, the member still as it was before it."""
        order = self.data.shuffle(stream(member.seed, SHUFFLE, epoch))
        rows, batch = next(islice(self.data.one_pass(order), good_steps, None))
        return suspect_rows(member.training.step, rows, batch, member.seed)

    def freeze(self, member: Member, error: DivergedError) -> None:
        """Let the others go on without a member that diverged."""
        self.diverged[member.seed] = f"seed {member.seed}: {error}"
        member.training.result.warnings.append(self.diverged[member.seed])
        self.retire(member)

    def retire(self, member: Member) -> None:
        self.alive.remove(member)
        self.together.tally.alive[list(self.members).index(member)] = False

    def record(self, member: Member, epoch: int, seconds: float, report: EnsembleReporter) -> None:
        """Measure a member after an epoch; keep its weights if they are the best; stop it if it has lost patience."""
        training = member.training
        try:
            record = training.record(epoch) | {"seconds": seconds}
        except DivergedError as error:
            self.freeze(member, error)
            return
        try:
            report.member(member.seed, record)
        except StopTraining as enough:
            training.result.stopped = enough.reason
            self.retire(member)
        training.add_record(record, report.notes_of(member.seed))
        if not training.result.stopped and training.lost_patience(epoch):
            self.retire(member)


def is_recorded_on(device: torch.device) -> bool:
    """Return whether a step is worth a recording: where a launch takes longer than what it launches."""
    return device.type == "cuda"


def split(batch: Sequence[Tensor]) -> list[Batch]:
    """Return each member's own batch."""
    return list(zip(*batch, strict=True))
