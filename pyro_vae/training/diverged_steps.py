"""Steps that are not finite: skipped, some in a row, or the end of training, with all that is known of the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from pyro_vae.common.random import stream
from pyro_vae.common.sharded import gathered
from pyro_vae.errors import DivergedError

from .batch_source import Batch, TrainingData
from .callbacks import TrainingCallback
from .divergence import FailedStep, first_bad_site, suspect_rows
from .shuffle import SHUFFLE
from .step import Step
from .training_state import PreStepSnapshot, TrainingOptions, TrainingState, named_tensors


@dataclass(eq=False)
class DivergedSteps:
    """What is done with the steps of a run that diverge, and the errors that end it."""

    step: Step
    modules: list[nn.Module]
    data: TrainingData
    options: TrainingOptions
    state: TrainingState
    callbacks: Sequence[TrainingCallback]
    skipped: tuple[PreStepSnapshot, Tensor, Batch] | None = field(default=None, init=False)  # the last step, if it was

    def end_row(self) -> None:
        """Count from 0 again, after a step that was finite."""
        self.state.bad_steps, self.skipped = 0, None

    def skip_or_stop(self, error: DivergedError, rows: Tensor, batch: Batch, before: PreStepSnapshot | None) -> Tensor:
        """Skip a step that diverged; raise its error at the last of `bad_steps` in a row."""
        self.state.bad_steps += 1
        if before is not None:
            before.restore_buffers()
        if before is None or self.state.bad_steps >= self.options.bad_steps or self.step.optimizer is None:
            stopped = self.error(f"{error} on rows {suspect_rows(self.step, rows, batch, self.options.seed)}")
            raise stopped if before is None else self.reported(stopped, before, rows, batch) from None
        self.state.position.skipped_rows += len(rows)
        self.skipped = before, rows, batch
        return torch.zeros((), device=self.data.device)

    def check_deferred(self, first_step: int) -> None:
        """Raise the error of the epoch's first step that was not finite, where the check of each was deferred."""
        if failure := self.step.finite_check.first_failure():
            good_steps, what = failure
            self.state.step = first_step + good_steps
            # checks are deferred without callbacks only, so the epoch began with its first batch: draw the batches again
            order = self.data.shuffle(stream(self.options.seed, SHUFFLE, self.state.position.epoch))
            rows, batch = next(islice(self.data.one_pass(order), good_steps, None))
            raise self.error(f"{what} on rows {suspect_rows(self.step, rows, batch, self.options.seed)}")

    def error(self, what: str) -> DivergedError:
        """Return the error that ends training at the next step, and note in the result that it has."""
        self.state.result.stopped = "diverged"
        return DivergedError(
            f"step {self.state.step + 1}: {what}. Training stopped; the model holds {self.state.best_weights}. Try a smaller "
            "learning rate or a warm-up (schedule=warmup(cosine)), and look at those rows.",
            self.state.result,
        )

    def reported(self, error: DivergedError, before: PreStepSnapshot, rows: Tensor, batch: Batch) -> DivergedError:
        """Give the step to the callbacks; add its first bad site to the error, and the callbacks' words."""
        site = first_bad_site(self.step, before, batch)
        failed = FailedStep(
            number=self.state.step + 1,
            epoch=self.state.position.epoch,
            done=self.state.step / (self.options.epochs * self.data.steps_per_epoch),
            seed=self.options.seed,
            batch_size=self.data.batch_size,
            rows=rows,
            batch=batch,
            weights=gathered(
                named_tensors(self.modules, self.step.parameters),
                keep=self.step.in_step is None or self.step.here.leads,
            ),
            noise=before.noise,
            message=str(error),
            site=site,
            shards=1 if self.step.shards is None else self.step.shards.count,
        )
        saved = "".join([callback.on_failed_step(failed) for callback in self.callbacks])
        return DivergedError(f"{error}{f' First bad site: {site}.' if site else ''}{saved}", error.result)

    def error_after_epoch(self, what: str) -> DivergedError:
        """Return the error that ends training after an epoch, reported with the step that was skipped last, if one was."""
        stopped = self.error(what)
        return self.reported(stopped, *self.skipped) if self.skipped else stopped
