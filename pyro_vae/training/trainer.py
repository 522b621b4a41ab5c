"""Training loop: epochs of steps, the true ELBO after each, the best weights, early stopping."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pyro_vae.common.counted import counted
from pyro_vae.common.lost_device import is_lost, lost
from pyro_vae.common.memory import fitting
from pyro_vae.common.random import seeded
from pyro_vae.common.sharded import reshard
from pyro_vae.common.torch_private import version
from pyro_vae.errors import DeviceLostError, DivergedError, Interrupted
from pyro_vae.programs.pair import modes_restored
from pyro_vae.training.engines.whole_steps import WholeSteps

from .aggressive_inference import AggressiveInference, Numbered
from .batch_source import Batch, EpochBatches, TrainingData
from .callbacks import CallbackTurns
from .callbacks import TrainingCallback as TrainingCallback
from .diverged_steps import DivergedSteps
from .metrics import EpochMetrics, Record, collapsed, no_elbo
from .patience import settled_epoch
from .reporter import Reporter, note_stop
from .shard_checks import share_epoch
from .sharded_networks import heard_by
from .shuffle import NOISE
from .step import Step
from .time_budget import StopTraining
from .training_state import (
    EpochPosition,
    FitResult,
    PreStepSnapshot,
    TrainingOptions,
    TrainingState,
    buffers_of,
    named_tensors,
)


@dataclass(eq=False)
class Trainer:
    """One run of `fit`."""

    step: Step
    modules: list[nn.Module]  # of the programs
    data: TrainingData
    options: TrainingOptions
    callbacks: Sequence[TrainingCallback] = ()
    aggressive: AggressiveInference | None = None  # the guide's own updates before each update of the model
    whole_steps: WholeSteps | None = None  # makes steps by graphs that hold the update, too, wherever it can
    state: TrainingState = field(default_factory=TrainingState)
    batches: EpochBatches | None = None  # of this epoch; None between epochs
    noticed: Sequence[str] = ()  # before training, and to be among its warnings
    turns: CallbackTurns = field(default_factory=CallbackTurns)
    report: Reporter = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.diverging = DivergedSteps(self.step, self.modules, self.data, self.options, self.state, self.callbacks)

    def run(self, report: Reporter) -> FitResult:
        """Train all epochs; load the best weights and restore the modules' modes, however it ends."""
        if not self.state.best_tensors:
            self.state.copy_best(self.tensors)
        with modes_restored(self.modules):
            self.run_to_end(report)
        return self.result

    def run_to_end(self, report: Reporter) -> None:
        """Train all epochs, tell callbacks how it ends if that is an error, and load the best weights."""
        try:
            self.run_epochs(report)
        except KeyboardInterrupt as signal:
            saved = self.report_error(signal)
            self.result.stopped = "interrupted"
            what = f"interrupted at step {self.state.step}; the model holds {self.state.best_weights}{saved}"
            raise Interrupted.kind(signal)(what, self.result) from None
        except Exception as error:
            raised = lost(error, f"step {self.state.step + 1} on {self.device}") if is_lost(error) else error
            if isinstance(raised, DeviceLostError):
                raised.result = self.result
            if not isinstance(raised, DivergedError):
                note_stop(raised, self.step.here, self.state.step, self.report_error(raised))
            if raised is error:
                raise
            raise raised from error
        finally:
            self.result.engine = self.step.explain()
            self.data.source.close()
            self.step.restore_rates()
            self.state.load_best(self.tensors)
            for module in self.modules:
                reshard(module)  # else a sharded network would still compute with the last weights

    def run_epochs(self, report: Reporter) -> None:
        """Make what is left of the epochs, and add the record of each; stop early where that was asked for."""
        result = self.result
        self.warn_of_noticed()
        for callback in self.callbacks:
            callback.before_training(self)
        self.report = report
        report.expect(self.state.step, self.planned_steps)
        for epoch in range(self.state.position.epoch, self.options.epochs + 1 if not result.stopped else 0):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Encountered NaN")  # Pyro's; the DivergedError says more
                record = self.epoch(epoch)
            try:
                report(record)  # before the weights are copied: an epoch interrupted here is not the best
            except StopTraining as enough:
                result.stopped = enough.reason
            record, result.stopped = share_epoch(self.step.here, record, result.stopped, self.named_tensors)
            self.add_record(record, report)
            if result.stopped or self.lost_patience(epoch):
                break
            for callback in self.callbacks:
                callback.after_epoch(self)
        result.stopped = result.stopped or f"{counted(self.options.epochs, 'epoch')} done"
        for callback in self.callbacks:
            callback.after_training(self)

    def warn_of_noticed(self) -> None:
        """Put what was noticed before training first among the warnings."""
        warned = self.result.warnings
        warned[:0] = [said for said in self.noticed if said not in warned]

    def lost_patience(self, epoch: int) -> bool:
        """Return whether `patience` epochs up to this one were no better, and note that training stops for it."""
        patience = self.options.patience
        if patience is None or epoch - max(self.result.best_epoch, self.settled_epoch) < patience:
            return False
        self.result.stopped = f"no better ELBO for {counted(patience, 'epoch')}"
        return True

    def add_record(self, record: Record, report: Reporter) -> None:
        """Close an epoch: add its record to the history, copy its weights if they are the best, warn of a collapse."""
        state = self.state
        state.result.history.append(record)
        elbo = record["elbo"]
        if (
            self.data.validation is None or elbo is None or elbo > state.best_elbo
        ):  # without validation rows: the newest
            state.best_elbo, state.result.best_epoch = state.best_elbo if elbo is None else elbo, record["epoch"]
            state.copy_best(self.tensors)
        if set(state.result.warnings) <= set(self.noticed) and (message := no_elbo(record) or collapsed(record)):
            state.result.warnings.append(message)
            report.note(f"warning: {message}")
        state.position, self.batches = EpochPosition(record["epoch"] + 1), None

    def epoch(self, epoch: int) -> Record:
        """Make what is left of one pass over the training rows; return the epoch's record."""
        position, first_step = self.state.position, self.state.step
        start = time.perf_counter() - position.seconds
        for module in self.modules:
            module.train()
        if not position.generator_states:  # else what an engine counts in an epoch was loaded with the position
            self.step.engine.start_epoch()
        if self.whole_steps is not None:
            self.whole_steps.start_epoch()
        with seeded(self.options.seed, NOISE, epoch, device=self.device):
            self.batches = EpochBatches(self.data, self.options.seed, position, self.aggressive is not None)
            position.versions = self.versions
            self.run_steps(self.batches, start)
            self.diverging.check_deferred(first_step)
        seconds = time.perf_counter() - start  # of training alone
        return self.record(epoch) | {"seconds": round(seconds, 4)}

    def run_steps(self, batches: EpochBatches, start: float) -> None:
        """Make the steps that are left of the epoch; between them, as often as they ask for it, call the callbacks."""
        position, further, singly = self.state.position, batches.further(), iter(batches)
        size = self.data.batch_size
        while True:
            self.data.check_files()
            what = f"step {self.state.step + 1}: a batch of {counted(size, 'row')} on {self.device}"
            with fitting(what, f"Take a smaller one: batch_size={max(1, size // 2)}."):
                loss = self.make_steps(batches, singly, further)
            if loss is None:
                return
            position.loss_sum = position.loss_sum + loss
            self.report.steps_done(self.state.step)
            if self.callbacks:
                self.call_between_steps(batches, start)

    def make_steps(
        self, batches: EpochBatches, singly: Iterator[Numbered], further: Iterator[Numbered]
    ) -> Tensor | float | None:
        """Make some steps by graphs, which add their losses, or one as the engine does; return its loss, None at the end."""
        if self.whole_steps is not None and self.whole_steps.run(
            batches.orders["order"], self.state, bool(self.callbacks)
        ):
            self.diverging.end_row()
            return 0.0  # theirs are added
        following = next(singly, None)
        return None if following is None else self.train_batch(*following, further).double()

    def call_between_steps(self, batches: EpochBatches, start: float) -> None:
        """Note the position, as whoever is interrupted now can go on from it, and call the callbacks whose time it is."""
        now = time.perf_counter()
        due = self.turns.due(self.callbacks, now)
        if self.step.shards is not None and self.step.shards.heard:  # by all processes after this step
            due = list(self.callbacks)
        if self.step.in_step is not None:
            due = self.step.in_step.due(self.callbacks, due)
        if due:
            self.settle()
        self.state.position.seconds = now - start
        batches.note(self.versions)
        for callback in due:
            self.turns.taken(callback, now)
            callback.after_step(self)

    def settle(self) -> None:
        """Know that all steps so far are finite, or return to the first that is not; others may change the programs now."""
        if self.whole_steps is not None and self.batches is not None:
            self.whole_steps.settle(self.batches.orders["order"], self.state)
            self.whole_steps.current = None

    def train_batch(self, rows: Tensor, batch: Batch, further: Iterator[Numbered]) -> Tensor:
        """Make one step, after the schedules have moved and an aggressive encoder has caught up; return its loss."""
        self.options.tell_progress(self.state.step / self.planned_steps)
        aggressive = self.aggressive
        loss = aggressive.update(self.update, (rows, batch), further) if aggressive else self.update(rows, batch)
        self.state.step += 1
        return loss

    def update(self, rows: Tensor, batch: Batch, frozen: Callable[[Batch], list[Tensor]] | None = None) -> Tensor:
        """Make one update of all parameters that are not `frozen`; return its loss, 0 where it diverged and was skipped."""
        first = self.step.optimizer is None
        guarded = bool(self.callbacks) or self.options.bad_steps > 1
        before = PreStepSnapshot(buffers_of(self.modules), self.device) if guarded else None
        rate = self.tell_shards()
        try:
            loss = self.step.loss_and_grads(*batch)
            if first:  # the first loss found the parameters
                self.state.best_tensors += [p.detach().clone() for p in self.step.parameters]
            for parameter in frozen(batch) if frozen else ():
                parameter.grad = None
            self.step.update(rate())
        except DivergedError as error:
            return self.diverging.skip_or_stop(error, rows, batch, before)
        self.state.updates += 1
        self.diverging.end_row()
        return loss

    def tell_shards(self) -> Callable[[], float]:
        """Tell shards where training is, and what this process has heard; return what asks for the rate of the update."""
        schedule, shards = partial(self.options.schedule, (self.state.step + 1) / self.planned_steps), self.step.shards
        if shards is None:
            return schedule
        shards.position, shards.rate = (self.state.position.epoch, self.state.step), schedule()
        shards.signal = heard_by(self.callbacks)
        return lambda: shards.rate  # rank 0's: one that follows a clock is another on each

    def heard(self, signal: int | None) -> int | None:
        """Return the signal to stop for now: what this process has heard, or what all know since the last step."""
        together = self.step.together
        return signal if together is None or together.here.world == 1 else together.heard or None

    def by_rank_0(self, answer: bool) -> bool:
        """Return rank 0's answer to what all processes must do, or leave, together (sharded networks); else this one's."""
        return answer if self.step.in_step is None else self.step.in_step.by_rank_0(answer)

    @property
    def versions(self) -> tuple[int, ...]:
        """Count the changes to the weights and to each buffer, as a forward pass in training mode updates batch statistics."""
        return self.state.updates, *map(version, buffers_of(self.modules))

    @property
    def between_steps(self) -> bool:
        """True where weights and buffers are still those of the last step that was noted."""
        return self.batches is None or self.state.position.versions == self.versions

    @cached_property
    def planned_steps(self) -> int:
        """Steps of all epochs, if it is not stopped early."""
        return self.options.epochs * self.data.steps_per_epoch

    @cached_property
    def settled_epoch(self) -> int:
        """The last epoch that does not count towards `patience`, as a scheduled number still moves in it."""
        return settled_epoch(self.options, self.step, self.data.steps_per_epoch)

    @cached_property
    def metrics(self) -> EpochMetrics:
        """What measures the programs after each epoch."""
        return EpochMetrics(self.step, self.data, self.options.seed)

    @property
    def result(self) -> FitResult:
        """The training so far."""
        return self.state.result

    @property
    def device(self) -> torch.device:
        """Where the rows go."""
        return self.data.device

    @property
    def named_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, by names that another process gives them, too."""
        return named_tensors(self.modules, self.step.parameters)

    @property
    def tensors(self) -> list[Tensor]:
        """Buffers and parameters."""
        return [*buffers_of(self.modules), *self.step.parameters]

    def diverged(self, what: str) -> DivergedError:
        """Return the error that ends a training whose step is not finite."""
        return self.diverging.error(what)

    def report_error(self, error: BaseException) -> str:
        """Settle what is under way, if the device answers, and have the callbacks save; return what they say of going on."""
        if not isinstance(error, DeviceLostError):
            self.settle()
        return "".join([callback.on_error(self, error) for callback in self.callbacks])

    def record(self, epoch: int) -> Record:
        """Measure the programs after an epoch."""
        self.data.check_files()
        position = self.state.position
        seen = self.data.rows_per_epoch - position.skipped_rows
        loss = float(position.loss_sum) / seen if seen else None
        record: Record = {"epoch": epoch, "step": self.state.step, "lr": self.step.rate, "loss": loss}
        record |= {"rows_skipped": position.skipped_rows} if position.skipped_rows else {}
        record |= self.metrics.elbo(f"step {self.state.step + 1}")
        if record["elbo"] is not None and not math.isfinite(record["elbo"]):
            raise self.diverging.error_after_epoch(f"the ELBO after epoch {epoch} is {record['elbo']}")
        if (
            loss is None and epoch == self.options.epochs and self.diverging.skipped
        ):  # fewer than bad_steps steps an epoch
            what = f"no step of the last epoch, {epoch}, had a finite loss and finite gradients"
            raise self.diverging.error_after_epoch(what)
        record |= self.metrics.latents()
        if self.aggressive is not None:
            record |= self.aggressive.end_epoch(record["mutual_information"])
        return record
