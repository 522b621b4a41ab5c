"""When early stopping begins to count: once what `scheduled` objects move stands still."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from pyro.poutine.messenger import Messenger

from pyro_vae.objectives.scheduled import Scheduled, scheduled_numbers
from pyro_vae.programs.pair import unwrapped

from .step import Step
from .training_state import TrainingOptions

LOOKS = 10_000  # at the schedules, at most


def moved_by(options: TrainingOptions, step: Step) -> list[Scheduled]:
    """List the objects whose numbers training moves: `scheduled`, and what a function `on_step` may speak for.

    That is the object whose method it is (``on_step=beta.at``), or else the handlers around the programs and the terms of the
    objective: a function of the user's own does not say which it moves.
    """
    found: list[Any] = list(options.scheduled)
    if options.on_step is not None:
        owner = getattr(options.on_step, "__self__", None)
        found += [owner] if is_scheduled(owner) else [*handlers(step.model), *getattr(step.objective, "terms", ())]
    return list({id(thing): thing for thing in found if is_scheduled(thing)}.values())


def handlers(program: Any) -> Iterable[Any]:
    """Yield the effect handlers that a program was wrapped in."""
    for layer in unwrapped(program):
        yield from (a for a in getattr(layer, "args", ()) if isinstance(a, Messenger))


def is_scheduled(thing: Any) -> bool:
    """Return whether a thing says when its numbers change (:class:`~pyro_vae.objectives.scheduled.Scheduled`)."""
    return callable(getattr(thing, "at", None)) and isinstance(getattr(thing, "scheduled_names", None), tuple)


def moving_steps(scheduled: Sequence[Scheduled], planned: int) -> int:
    """Count the steps, of those planned, until no number changes any more; 0 where none does.

    Asks the objects what they will do; their numbers are put back after.

    Example:
        >>> from pyro_vae import Beta, warmup, constant
        >>> moving_steps([Beta(4.0, warmup(constant, 0.5))], planned=100)
        50
        >>> moving_steps([Beta(4.0)], planned=100)
        0
    """
    numbers = scheduled_numbers(scheduled)
    before = [getattr(owner, name) for owner, name in numbers]

    def at(step: int) -> list[float]:
        for owner in scheduled:
            owner.at(step / planned)
        return [float(getattr(owner, name)) for owner, name in numbers]

    try:
        final, stride = at(planned - 1), max(1, planned // LOOKS)
        moving = (step for step in range(planned - 1, -1, -stride) if not all(map(math.isclose, at(step), final)))
        return min(next((step + stride for step in moving), 0), planned)
    finally:
        for (owner, name), value in zip(numbers, before, strict=True):
            setattr(owner, name, value)


def patience_note(patience: int | None, validated: bool) -> list[str]:
    """Say that there are no validation rows to lose patience on, where some was asked for."""
    if patience is None or validated:
        return []
    what = f"patience={patience} counts epochs without a better validation ELBO, and there are no validation rows"
    return [f"{what}: training does not stop early. Pass validation=x_validation."]


def settled_epoch(options: TrainingOptions, step: Step, steps_per_epoch: int) -> int:
    """Return the last epoch in which a scheduled number moves: those up to it do not count towards `patience`; 0 if none."""
    if options.patience is None or not (scheduled := moved_by(options, step)):
        return 0
    return -(-moving_steps(scheduled, options.epochs * steps_per_epoch) // steps_per_epoch)
