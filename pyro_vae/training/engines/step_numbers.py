"""What steps take beside their rows: learning rates, Adam's count of steps, and the numbers that are scheduled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_vae.training.training_state import TrainingOptions, TrainingState

from .recorded_steps import NextStep
from .scheduled_values import answers_hold
from .traced import TracedEngine
from .whole_step import WholeStep


@dataclass(eq=False)
class StepNumbers:
    """The numbers of any step of a run, by the count of steps before it."""

    engine: TracedEngine
    options: TrainingOptions
    planned: int  # steps of the run
    ahead: float = field(default=0.0, init=False)  # Adam's count of steps, less the run's count of updates

    def tell_progress(self, step: int) -> None:
        """Move what is scheduled to where it is in the step after so many."""
        self.options.tell_progress(step / self.planned)

    def rates(self, step: int) -> list[float]:
        """Return the groups' learning rates in the step after so many."""
        multiple = self.options.schedule((step + 1) / self.planned)
        return [base * multiple for base in self.engine.step.base_rates]

    def set_rates(self, rates: Sequence[float]) -> None:
        """Leave the learning rates where the optimizer has them."""
        for group, rate in zip(self.engine.step.optimizer.param_groups, rates, strict=True):  # type: ignore[union-attr]
            group["lr"] = rate

    def of_update(self, whole: WholeStep, rates: Sequence[float], updates: int) -> list[list[float]]:
        """Return the numbers of the update after so many, by group."""
        return whole.rows_of_numbers(rates, updates + 1 + self.ahead)

    def look_ahead(self, whole: WholeStep, state: TrainingState, count: int) -> list[NextStep] | None:
        """List what each of the next steps takes; None unless one graph is good for all of them."""
        following = []
        for i in range(count):
            self.tell_progress(state.step + i)
            if not answers_hold(whole.flat.answers):
                return None
            rates = self.rates(state.step + i)
            scheduled = [float(getattr(owner, name)) for owner, name in self.engine.scheduled_values.numbers]
            following.append(NextStep(self.of_update(whole, rates, state.updates + i), scheduled, rates))
        return following
