"""A step of all members recorded as one CUDA graph, or several steps as one; each is compared with the steps as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.cuda_recorder import CudaRecorder
from pyro_vae.training.batch_source import TrainingData
from pyro_vae.training.engines.flat_graph import Untraceable
from pyro_vae.training.engines.verify import replayed

from .together import Together

STEPS = 16  # to a replay


@dataclass(eq=False)
class RecordedStep:
    """A step of all members on a GPU, from buffers of its own for batch and learning rates."""

    batch: list[Tensor]
    row: Tensor
    recorder: CudaRecorder

    def __call__(self, batch: Sequence[Tensor], row: Tensor) -> None:
        for own, given in zip((*self.batch, self.row), (*batch, row), strict=True):
            own.copy_(given, non_blocking=True)
        self.recorder.replay()


@dataclass(eq=False)
class RecordedSteps:
    """:data:`STEPS` steps of all members on a GPU: rows, transforms, draws and updates, without Python between them.

    Each member draws from generators of its own, which are set to the states of those that single steps would draw from, and
    hand theirs back.
    """

    rows: Tensor  # (STEPS, M, B)
    table: Tensor  # (STEPS, 2, M)
    generators: list[torch.Generator]  # of each member's transform, then of its noise
    recorder: CudaRecorder

    def __call__(self, rows: Tensor, table: Tensor, generators: Sequence[torch.Generator]) -> None:
        self.rows.copy_(rows, non_blocking=True)
        self.table.copy_(table, non_blocking=True)
        for own, given in zip(self.generators, generators, strict=True):
            own.set_state(given.get_state())
        self.recorder.replay()
        for own, given in zip(self.generators, generators, strict=True):
            given.set_state(own.get_state())


def record_step(together: Together, batch: Sequence[Tensor]) -> None:
    """Record the step of all members as one CUDA graph, by which it is made from then on.

    Raises:
        Untraceable: the step cannot be recorded, or a replay is another.
    """
    own, row = [a.clone() for a in batch], together.row_like() * 1e-3
    inputs, recorder = together.inputs(own, row), CudaRecorder(batch[0].device)
    module, constants = together.with_adam(inputs)
    function = together.run or module.forward
    try:
        with replayed(inputs, batch[0].device), torch.no_grad():  # recording runs it
            recorder.record(lambda: list(function(*inputs, *constants)))
    except RuntimeError as error:
        raise Untraceable(f"the CUDA graph could not be captured: {str(error).splitlines()[0]}") from error
    together.compare(recorder.replay, lambda: module.forward(*inputs, *constants), inputs, "recorded")
    together.recorded = RecordedStep(own, row, recorder)
    together.notes.append("one replay a step")


def record_steps(together: Together, data: TrainingData) -> RecordedSteps:
    """Record several steps as one CUDA graph, and compare a replay with the same steps as they are.

    Raises:
        Untraceable: they cannot be recorded, or a replay is another.
    """
    device, row = data.device, together.row_like() * 1e-3
    several = steps_to_record(len(together.members), data, row)
    generators = several.generators
    of_transforms, of_noise = generators[: len(together.members)], generators[len(together.members) :]
    states = [generator.get_state() for generator in generators]
    inputs = together.inputs(batch_of_members(data, several.rows[0], of_transforms), row)
    module, constants = together.with_adam(inputs)
    function, changing = together.run or module.forward, inputs[len(together.batch_like) :]

    def all_steps() -> list[Tensor]:
        for rows, numbers in zip(several.rows, several.table, strict=True):
            batch = batch_of_members(data, rows, of_transforms)
            together.draw(of_noise)
            function(*together.inputs(batch, numbers), *constants)
        return []

    def from_start(steps: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            return steps()

        return run

    try:
        with replayed(changing, device), torch.no_grad():  # recording runs it
            several.recorder.record(all_steps)
    except RuntimeError as error:
        raise Untraceable(f"several steps could not be captured: {str(error).splitlines()[0]}") from error
    together.compare(from_start(several.recorder.replay), from_start(all_steps), changing, "recorded")
    together.notes.append(f"{STEPS} steps of all members to a replay")
    return several


def steps_to_record(members: int, data: TrainingData, row: Tensor) -> RecordedSteps:
    """Return the buffers and generators of several steps, before they are recorded: the first rows, at the rates of `row`."""
    generators = [torch.Generator(data.device).manual_seed(i) for i in range(2 * members)]
    rows = torch.zeros(STEPS, members, data.batch_size, dtype=torch.long, device=data.source.rows_device)
    rows += torch.arange(data.batch_size, device=rows.device)
    table = row.expand(STEPS, *row.shape).clone()
    return RecordedSteps(rows, table, generators, CudaRecorder(data.device, *generators))


def batch_of_members(data: TrainingData, rows: Tensor, generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Fetch each member's rows, ``(M, B)``, and transform them by its own generator: ``(M, B, ...)`` each."""
    x, *context = data.source.fetch(rows.flatten())
    shaped = [a.view(*rows.shape, *a.shape[1:]) for a in (x, *context)]
    if data.transform is not None:
        transform = data.transform
        shaped[0] = torch.stack([transform(x, own) for x, own in zip(shaped[0], generators, strict=True)])
    return shaped
