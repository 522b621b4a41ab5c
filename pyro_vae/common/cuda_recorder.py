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
        self.device, self.generators = device, generators
        self.graph = self.new_graph()

    def new_graph(self) -> torch.cuda.CUDAGraph:
        """Make an empty graph that reads the generators."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        return graph

    def record(self, function: Callable[[], list[Tensor]]) -> list[Tensor]:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARM):
                function()
        torch.cuda.current_stream(self.device).wait_stream(side)
        try:
            with torch.cuda.graph(self.graph):
                return function()
        except BaseException:
            self.end_capture()
            raise

    def end_capture(self) -> None:
        """Have the generators count their draws as usual again.

        A capture that breaks leaves them counting within it, the process's own one too, and every later draw of the process
        fails ("Offset increment outside graph capture"); the end of one that succeeds puts them right.
        """
        torch.cuda.synchronize(self.device)
        with torch.cuda.graph(self.new_graph()):
            torch.zeros(1, device=self.device)

    def replay(self) -> None:
        self.graph.replay()
