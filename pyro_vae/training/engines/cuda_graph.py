"""A flat graph as one CUDA graph: a launch for all of its kernels, from buffers that stay where they are.

Exercised on the CPU with a recorder that runs the function again, and run on an H200. Each graph
is checked against eager before it is used, as every captured step is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.cuda_recorder import CudaRecorder

from .flat_graph import FlatGraph, Untraceable


class Recorded:
    """``run(*batch, *state)`` of a flat graph: copies the batch into its own buffers, replays, returns the results.

    The programs' tensors are read where they are: one that has moved (``p.data = ...``, ``module.to(...)``) is refused, as
    the recording would go on reading its old memory. The loss is copied out; gradients are overwritten by the next replay.

    Raises:
        Untraceable: constants or programs' tensors on another device, which a recording cannot read.
    """

    def __init__(self, flat: FlatGraph, batch: Sequence[Tensor], recorder: CudaRecorder) -> None:
        device = batch[0].device
        if away := [t for t in flat.state if t.device != device]:
            raise Untraceable(
                f"the programs hold a tensor of shape {tuple(away[0].shape)} on {away[0].device}, not on {device}: make it "
                "there (x.new_zeros, a buffer), so that nothing is copied at each step"
            )
        self.batch, self.recorder = [a.clone() for a in batch], recorder
        self.module = flat.module  # a recording holds addresses and no tensors: the module's constants live as long
        self.addresses = [t.data_ptr() for t in flat.state]
        with torch.no_grad():
            self.results = recorder.record(lambda: list(self.module.forward(*self.batch, *flat.state)))

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        batch, state = inputs[: len(self.batch)], inputs[len(self.batch) :]
        if [t.data_ptr() for t in state] != self.addresses:
            raise Untraceable("a parameter or buffer has moved to other memory since its step was recorded")
        for own, given in zip(self.batch, batch, strict=True):
            own.copy_(given, non_blocking=True)
        self.recorder.replay()
        return [self.results[0].clone(), *self.results[1:]]


def record(flat: FlatGraph, batch: Sequence[Tensor]) -> Callable[..., Any]:
    """Record a flat step on its device; raise Untraceable where torch cannot capture it."""
    try:
        return Recorded(flat, batch, CudaRecorder(batch[0].device))
    except RuntimeError as error:
        raise Untraceable(f"the CUDA graph could not be captured: {str(error).splitlines()[0]}") from error
