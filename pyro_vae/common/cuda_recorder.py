"""Work on a GPU recorded as one CUDA graph: a launch for all of its kernels, on memory that stays where it is.

Written against torch's documentation; what is recorded runs on the CPU in tests, by a recorder that runs it again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
