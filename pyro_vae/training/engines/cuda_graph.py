"""A flat graph as one CUDA graph: a launch for all of its kernels, from buffers that stay where they are.

Written against torch's documentation and exercised on the CPU with a recorder that runs the function again; on a device it
has not been run yet. Each graph is checked against eager before it is used, as every captured step is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .flat_graph import FlatGraph, Untraceable

WARM = 3  # runs before a capture, in which kernels are chosen and libraries make their workspaces


class CudaRecorder:
    """Records a function of no arguments as a ``torch.cuda.CUDAGraph``, after a warm-up on a stream of its own.

    ``replay()`` does the same work on the same memory once more. Noise comes from the device's default generator and from
    `generators`, whose states the graph reads and advances at each replay.
    """

    def __init__(self, device: torch.device, *generators: torch.Generator) -> None:
        self.device, self.graph = device, torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def record(self, function: Callable[[], list[Tensor]]) -> list[Tensor]:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM):
                function()
        torch.cuda.current_stream(self.device).wait_stream(side)
        with torch.cuda.graph(self.graph):
            return function()

    def replay(self) -> None:
        self.graph.replay()


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
        self.addresses = [t.data_ptr() for t in flat.state]
        with torch.no_grad():
            self.results = recorder.record(lambda: list(flat.module.forward(*self.batch, *flat.state)))

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
