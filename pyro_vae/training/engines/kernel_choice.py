"""Kernels for matrix products, chosen by timing as a step is compiled: torch's compiler makes several and takes the fastest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common import torch_private

from .flat_graph import FlatGraph, Untraceable

BACKENDS = "ATEN,TRITON"  # the library's kernels (cuBLAS), and those that torch's compiler writes


@dataclass(eq=False)
class KernelChoice:
    """Compiles with kernels chosen by timing, or, where that fails, with the library's; `log` is the engine's."""

    log: list[str]
    used: bool = False

    def compile(
        self, plain: Callable[[FlatGraph, Sequence[Tensor]], Any], flat: FlatGraph, inputs: Sequence[Tensor]
    ) -> Any:
        """Return what ``plain(flat, inputs)`` makes of a graph while kernels are timed, or else, if that fails, without.

        Timing takes memory for the operands of a product once more, and writes kernels that a GPU may not run: neither is a
        reason to stop a training.

        Raises:
            Untraceable, Unfinished: the compiler gives up without timing, too.
        """
        self.used, before = True, torch_private.products_timed()
        try:
            with torch_private.choosing_kernels(BACKENDS) or nullcontext():
                run = plain(flat, inputs)
        except Untraceable as why:
            self.log.append(f"kernels of matrix products stay the library's, as timing others failed: {why}")
            if inputs[0].device.type == "cuda":
                torch.cuda.empty_cache()  # what was allocated for timing
            return plain(flat, inputs)
        after = torch_private.products_timed()
        timed = "" if before is None or after is None else f": timed for {after - before} of them now, else before"
        self.log.append(f"kernels of matrix products chosen by timing{timed}")
        return run

    @property
    def notes(self) -> list[str]:
        """Say that nothing was chosen, as nothing was compiled."""
        return [] if self.used else ["autotune=True changed nothing: no step was compiled"]
