"""A step of all members replayed from one CUDA graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.common.cuda_recorder import CudaRecorder


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
