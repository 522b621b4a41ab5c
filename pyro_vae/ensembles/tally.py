"""What steps of all members count of each, on the device; who is still trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Tally:
    """What the steps count of each member, on the device: ``(M,)`` each."""

    alive: Tensor  # still trained
    good_steps: Tensor
    loss_sum: Tensor
    bad_loss: Tensor  # of the step that was not finite

    @classmethod
    def of(cls, members: int, like: Tensor) -> Tally:
        zeros = torch.zeros(members, dtype=torch.float64, device=like.device)
        return cls(torch.ones_like(zeros, dtype=torch.bool), zeros, zeros.clone(), zeros.clone())

    def start_epoch(self) -> None:
        for tensor in self.tensors[1:]:
            tensor.zero_()

    @property
    def tensors(self) -> list[Tensor]:
        return [self.alive, self.good_steps, self.loss_sum, self.bad_loss]


def count(tally: Tally, losses: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Count a step of each member; return which of them it moves: those alive, whose loss and gradients are finite."""
    finite = losses.isfinite()
    for gradient in gradients:
        finite = finite & gradient.flatten(1).sum(1).isfinite()  # one pass; ∞ − ∞ is NaN
    moves = tally.alive & finite
    stops = tally.alive & ~finite
    tally.bad_loss.copy_(torch.where(stops, losses.to(tally.bad_loss.dtype), tally.bad_loss))
    tally.good_steps.add_(moves.to(tally.good_steps.dtype))
    tally.loss_sum.add_(torch.where(moves, losses.to(tally.loss_sum.dtype), 0.0))
    tally.alive.copy_(moves)
    return moves
