"""The gradient that an optimisation asks for at each step, from a flat graph: the programs' Python takes most of the time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyro_vae.common import torch_private
from pyro_vae.common.flat_program import FlatProgram, Untraceable
from pyro_vae.common.random import random_states, restore_states
from pyro_vae.programs.determinism import same_draws
from pyro_vae.programs.flat_evaluation import flat_evaluation

WORTH_TRACE, WORTH_FIRST = 200, 400  # steps that take as long as two traces; as these and importing torch's tracer
Gradient = Callable[..., list[Tensor]]


class FlatGradient:
    """``gradient(*leaves)`` of a random loss, from its trace once that gave the programs' numbers, to rounding, on their noise.

    Args:
        gradient: of the programs; draws from the global random state.
        steps: how often it will be asked for; of few no trace is made.
    """

    def __init__(self, gradient: Gradient, steps: int) -> None:
        self.gradient, self.checked = gradient, False
        known = torch_private.MAKE_FX.rpartition(".")[0] in sys.modules
        self.eager_reason: str | None = None
        self.flat: FlatProgram | None = None
        if steps < (WORTH_TRACE if known else WORTH_FIRST):
            self.eager_reason = f"{steps} steps are over before a trace pays"

    def __call__(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient at the leaves, on the noise that the programs would draw."""
        if self.eager_reason is not None:
            return self.gradient(*leaves)
        try:
            return self.from_trace([leaf.detach() for leaf in leaves])
        except Untraceable as why:
            self.eager_reason = str(why)
            return self.gradient(*leaves)

    def from_trace(self, leaves: list[Tensor]) -> list[Tensor]:
        """Run the graph; the programs where its flag is set, and the first time."""
        if self.flat is None:
            self.flat = flat_evaluation(self.gradient, leaves, [1.01 * leaf + 0.01 for leaf in leaves])
        noise = random_states(leaves[0].device)
        try:
            *gradients, doubtful = self.flat(*leaves)
        except RuntimeError:  # a factor that does not exist, or memory: as the programs have it
            doubtful = torch.ones(())
        if self.checked and not doubtful:
            return gradients
        restore_states(leaves[0].device, noise)
        expected = self.gradient(*leaves)
        if not doubtful:
            self.checked = all(map(same_draws, gradients, expected))
            self.eager_reason = None if self.checked else "its gradient is not that of the programs"
        return expected
