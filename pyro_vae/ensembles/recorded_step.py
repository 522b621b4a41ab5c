"""A step of all members replayed from one CUDA graph, or several steps from one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.cuda_recorder import CudaRecorder

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
