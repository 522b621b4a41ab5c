"""One whole training step as a flat graph: rows, transform, loss, gradients, whether they are finite, and Adam's update.

A function of row numbers, of what the transform draws, and of the numbers of the update; parameters, moments and buffers are
changed in place. One that is guarded moves none of them where the loss or a gradient is not finite. One that is not leaves
that to be found later: moments stay not finite from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.doubts import any_of, put_off
from pyro_vae.common.identical import identical
from pyro_vae.programs.pair import without_validation
from pyro_vae.training.batch_source import TrainingData

from .adam_update import AdamGroup, adam_groups, by_formula, by_kernel, by_lists
from .flat_graph import FlatGraph, Untraceable, check_traces, flatten, gradients_of, lift
from .gradient_norms import by_factors
from .scheduled_values import Answers
from .traced import TracedEngine
from .transform_draws import TransformDraws
from .verify import replayed

RATES = {"cpu": torch.float64}  # what torch's kernel reads a learning rate in; elsewhere float32


@dataclass(eq=False)
class WholeStep:
    """A traced whole step: ``whole(inputs, numbers)`` makes it, and returns its loss.

    `inputs` are the row numbers and the transform's draws, or the batch itself where the transform cannot be traced.
    """

    flat: FlatGraph
    groups: list[AdamGroup]  # of parameters that it moves
    draws: TransformDraws | None  # None: of the batch itself
    key: Any  # that it was traced under
    numbers: Tensor  # like those that it takes, a row for each group
    guarded: bool = True
    compiled: bool = False

    def __call__(self, inputs: Sequence[Tensor], numbers: Tensor) -> Tensor:
        loss: Tensor = (self.flat.run or self.flat.module.forward)(*inputs, numbers, *self.flat.state)[0]
        return loss

    @property
    def moved(self) -> list[Tensor]:
        """Parameters and moments."""
        return [tensor for group in self.groups for tensor in group.tensors]

    def count(self) -> float:
        """Read how many steps Adam has made.

        Raises:
            Untraceable: not the same for all parameters.
        """
        counts = {count for group in self.groups if group.steps for count in torch.stack(group.steps).tolist()}
        if len(counts) != 1:
            raise Untraceable("Adam has made more steps of some parameters than of others")
        return float(counts.pop())

    def holds_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Return whether these are still the optimizer's tensors and options."""
        now = adam_groups(optimizer, [p for group in self.groups for p in group.parameters])
        return now is not None and all(map(alike, self.groups, now))

    def rows_of_numbers(self, rates: Sequence[float], step: float) -> list[list[float]]:
        """List the numbers of the update that is the `step`-th, a row for each group."""
        return [list(group.numbers(rate, step)) for group, rate in zip(self.groups, rates, strict=True)]


def alike(a: AdamGroup, b: AdamGroup) -> bool:
    return a.options == b.options and all(x is y for x, y in zip(a.tensors, b.tensors, strict=True))


@dataclass(eq=False)
class WholeStepTracer:
    """Traces a whole step of a run; `failed` is 1 from the first step on that was not finite."""

    engine: TracedEngine
    data: TrainingData
    failed: Tensor  # 1 from the first step on that was not finite, or, unguarded, whose rows the transform would refuse
    generator: torch.Generator  # of the transform; as it was, once the step is traced
    key: Any
    guarded: bool
    compiled: bool
    changed: list[Tensor] = field(default_factory=list, init=False)  # buffers, by the last step that was traced

    def trace(self) -> WholeStep:
        """Trace a whole step twice, on other rows and noise, and compare; nothing is left of it but the graph.

        Raises:
            Untraceable: what no graph can hold, or two traces that differ.
        """
        state = self.generator.get_state()
        try:
            with replayed([], self.data.device):
                return self.traced()
        finally:
            self.generator.set_state(state)

    def traced(self) -> WholeStep:
        draws, buffers = self.draws(), self.engine.buffers
        whole = self.once(draws)
        if changed := self.changed:
            whole = self.once(draws, changed)
        again = self.once(draws, changed, backwards=True)
        check_traces(whole.flat, again.flat, [*buffers, *whole.moved, self.failed])
        return whole

    def draws(self) -> TransformDraws | None:
        """Look at what the transform draws; None where it cannot be traced, and stays outside."""
        draws, rows = TransformDraws(self.data.transform), self.some_rows(False)
        x, *_ = self.data.source.fetch(rows)
        try:
            with put_off():  # what it would refuse is for the step to say
                draws.look(x, self.generator)
            flatten(
                lambda *given: list(batch_of(self.data, draws, given)[0]),
                inputs_of(self.data, draws, rows, self.generator),
            )
        except Untraceable:
            return None
        return draws

    def example(self, draws: TransformDraws | None) -> list[Tensor]:
        """Make inputs that a compiler can go by."""
        return inputs_of(self.data, draws, self.some_rows(True), torch.Generator(self.data.device))

    def some_rows(self, backwards: bool) -> Tensor:
        rows = torch.arange(self.data.batch_size, device=self.data.source.rows_device)
        return len(self.data.train[0]) - 1 - rows if backwards else rows

    def once(self, draws: TransformDraws | None, changed: Sequence[Tensor] = (), backwards: bool = False) -> WholeStep:
        """Trace it once; `changed` are the buffers that a step changes, and that stay where the step is not finite."""
        engine, device = self.engine, self.data.device
        inputs = inputs_of(self.data, draws, self.some_rows(backwards), self.generator)
        parameters, optimizer = engine.step.parameters, engine.step.optimizer
        kind = parameters[0].dtype if self.compiled else RATES.get(device.type, torch.float32)
        numbers = torch.ones(len(optimizer.param_groups), 4, dtype=kind, device=device)  # type: ignore[union-attr]
        answers: Answers = []
        groups: list[AdamGroup] = []

        def whole(*given: Tensor) -> list[Tensor]:
            before = [b.clone() for b in changed] if self.guarded else []
            batch, doubtful = batch_of(self.data, draws, given[:-1])
            loss = engine.eager.value(*batch)
            gradients = {p: g for p, g in zip(parameters, gradients_of(loss, parameters), strict=True) if g is not None}
            groups[:] = self.groups(list(gradients))
            with torch.no_grad():
                if not self.guarded:
                    self.move(groups, gradients, given[-1], doubtful)
                    return [loss.detach()]
                skip, norms = self.update(groups, loss, gradients, given[-1], doubtful)
                for buffer, old in zip(changed, before, strict=True):
                    buffer.copy_(torch.where(skip > 0, old, buffer))
            return [loss.detach(), skip, *norms]  # as a result it is computed once, and not anew for every few elements

        restored = replayed([*engine.buffers, *parameters, *moments_of(optimizer), self.failed], device)
        with restored, without_validation(), engine.scheduled_values.traced(parameters[0], answers):
            old_buffers = [b.clone() for b in engine.buffers]
            module = flatten(whole, [*inputs, numbers])
            state = lift(module)
            if self.guarded:
                by_factors(module, [*inputs, numbers, *state], kept=2)
            # by their values: torch's batch norm does not tell that it writes
            self.changed = [b for b, old in zip(engine.buffers, old_buffers, strict=True) if not identical(b, old)]
        flat = FlatGraph(module, state, answers=answers)
        return WholeStep(flat, groups, draws, self.key, numbers, self.guarded, self.compiled)

    def groups(self, reached: list[Tensor]) -> list[AdamGroup]:
        optimizer = self.engine.step.optimizer
        groups = None if optimizer is None else adam_groups(optimizer, reached)
        if groups is None or sum(len(group.parameters) for group in groups) != len(reached):
            raise Untraceable("Adam has no moments yet of a parameter that a gradient reaches")
        return groups

    def update(
        self,
        groups: Sequence[AdamGroup],
        loss: Tensor,
        gradients: dict[Tensor, Tensor],
        numbers: Tensor,
        doubtful: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Move what the groups hold, unless this step or one before it is not finite, or doubtful.

        Return 1 then, else 0; and the gradients' norms, where each is an operation of its own.
        """
        of_all = list(gradients.values())
        norms = [torch.linalg.vector_norm(g) for g in of_all] if self.compiled else []
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.nn.utils.get_total_norm(of_all)
        finite = loss.detach().isfinite() & norm.isfinite()
        finite = finite if doubtful is None else finite & ~doubtful
        skip = torch.maximum(self.failed, (~finite).to(self.failed))
        self.failed.copy_(skip)
        make = by_formula if self.compiled else by_kernel
        for group, row in zip(groups, numbers.unbind(), strict=True):
            make(group, [gradients[p] for p in group.parameters], row, skip)
        return skip, norms

    def move(
        self, groups: Sequence[AdamGroup], gradients: dict[Tensor, Tensor], numbers: Tensor, doubtful: Tensor | None
    ) -> None:
        """Move what the groups hold, whatever this step is; remember whether it is doubtful."""
        if doubtful is not None:
            self.failed.copy_(torch.maximum(self.failed, doubtful.to(self.failed)))
        for group, row in zip(groups, numbers.unbind(), strict=True):
            of_group = [gradients[p] for p in group.parameters]
            if self.compiled:
                by_lists(group, of_group, row)
            else:
                by_kernel(group, of_group, row, None)


def moments_of(optimizer: Any) -> list[Tensor]:
    """List the tensors of an optimizer's state."""
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]


def inputs_of(
    data: TrainingData, draws: TransformDraws | None, rows: Tensor, generator: torch.Generator
) -> list[Tensor]:
    """Make a whole step's inputs but for its numbers; the generator moves on as far as the transform draws."""
    if draws is None:
        return list(data.transformed(data.source.fetch(rows), generator))
    return [rows, *draws.draw(generator)]


def batch_of(
    data: TrainingData, draws: TransformDraws | None, inputs: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Make the batch of a whole step's inputs, within its graph; and whether the transform asks to be looked at.

    It would refuse some rows, as :func:`~pyro_vae.data.dequantize` does: the step is then made singly, which says why.
    """
    if draws is None:
        return inputs, None
    x, *context = data.source.fetch(inputs[0])
    with put_off() as flags:
        x = draws.transformed(x, inputs[1:])
    return (x, *context), any_of(flags, x) if flags else None
