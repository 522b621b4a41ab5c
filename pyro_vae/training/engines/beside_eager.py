"""A whole step's graph beside the eager step, from the same state: whether they differ, and whether by a kink alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.identical import identical
from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.training_state import PreStepSnapshot

from .eager_reference import NextRows, OtherRows, eager_step
from .traced import TracedEngine
from .verify import GRADIENT, Comparison, kink_alone
from .whole_step import WholeStep, inputs_of

MOVES = "it moves parameters though the step is not finite"


@dataclass(frozen=True, eq=False)
class BesideEager:
    """Steps of a run by a graph, and the same by eager."""

    engine: TracedEngine
    data: TrainingData

    def compute(self, whole: WholeStep, order: NextRows, numbers: Sequence[Sequence[float]]) -> Tensor:
        """Run a graph on the next rows."""
        rows, like = order.next_rows, whole.numbers
        assert rows is not None
        of_update = torch.tensor(numbers, dtype=like.dtype).to(
            like.device, non_blocking=True
        )  # a GPU is not waited for
        return whole(inputs_of(self.data, whole.draws, rows, order.generator), of_update)

    def make_both(
        self, whole: WholeStep, order: NextRows, numbers: Sequence[Sequence[float]], before: PreStepSnapshot
    ) -> tuple[Tensor | None, float, str | None]:
        """Make a step by eager, undo it, and make it by the graph; return the graph's loss, and how the two differ.

        No loss, and all as it was, where eager's is not finite, and the graph would move all the same.
        """
        engine, generator = self.engine, order.generator.get_state()
        moved = [copy for _, copy in before.buffers[: len(whole.moved)]]
        eager = eager_step(engine, self.data, whole, order)
        before.restore()
        order.generator.set_state(generator)
        if not eager.finite and not whole.guarded:
            return None, 0.0, None
        loss = self.compute(whole, order, numbers)
        if not eager.finite:
            return loss, 0.0, None if all(map(identical, moved, whole.moved)) else MOVES
        made = loss, whole.moved, engine.buffers
        return loss, *Comparison.of(whole.groups, numbers, moved, eager, made, engine.rounded).verdict()

    def kink_alone(
        self, whole: WholeStep, order: NextRows, numbers: Sequence[Sequence[float]], before: PreStepSnapshot
    ) -> bool:
        """Return whether gradients differ by kinks of some rows alone: of other rows they do not; what moves is put back."""
        rows, state = order.next_rows, order.generator.get_state()
        assert rows is not None
        before.restore()

        def look(part: Tensor) -> str | None:
            generator = torch.Generator(order.generator.device)
            generator.set_state(state)
            loss, _, what = self.make_both(whole, OtherRows(rows[part.to(rows.device)], generator), numbers, before)
            before.restore()
            return GRADIENT if loss is None else what  # not finite, these rows say nothing

        return kink_alone(len(rows), look)
