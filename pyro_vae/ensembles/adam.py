"""Adam on stacked tensors, with a learning rate, moments' rates and decay for each member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.training.engines.flat_graph import Untraceable

OFF = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")
Number = float | Tensor


@dataclass(frozen=True, eq=False)
class StackedAdam:
    """Settings of M members: plain numbers where all have the same, else tensors ``(M,)``; `rates` are of each."""

    rates: list[float]
    betas: list[tuple[float, float]]
    beta1: Number
    beta2: Number
    eps: Number
    weight_decay: Number

    @classmethod
    def of(cls, optimizers: Sequence[torch.optim.Optimizer], like: Tensor) -> StackedAdam:
        """Read them off the members' optimizers.

        Raises:
            Untraceable: one of them is not torch's plain Adam, in one group.
        """
        for optimizer in optimizers:
            group = optimizer.param_groups[0]
            if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) > 1:
                what = f"{type(optimizer).__name__} in {len(optimizer.param_groups)} group(s) of parameters"
                raise Untraceable(f"the optimizer is {what}, and members are trained together by Adam in one")
            if on := [name for name in OFF if group.get(name)]:
                raise Untraceable(f"Adam has {on[0]}=True, which members trained together have not")
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        betas = [(float(g["betas"][0]), float(g["betas"][1])) for g in groups]
        numbers = [
            [b[0] for b in betas],
            [b[1] for b in betas],
            *([float(g[k]) for g in groups] for k in ("eps", "weight_decay")),
        ]
        return cls([float(g["lr"]) for g in groups], betas, *(one_or_all(n, like) for n in numbers))

    def table(self, steps: range, planned: int, schedule: Callable[[float], float]) -> list[list[list[float]]]:
        """Return, for each step, every member's lr / (1 − β₁ᵗ) and 1 / √(1 − β₂ᵗ); t counts from 1."""
        rows = []
        for t in range(steps.start + 1, steps.stop + 1):
            rate = schedule(t / planned)
            sizes = [lr * rate / (1 - b1**t) for lr, (b1, _) in zip(self.rates, self.betas, strict=True)]
            rows.append([sizes, [(1 - b2**t) ** -0.5 for _, b2 in self.betas]])
        return rows

    def update(self, tensors: tuple[Tensor, Tensor, Tensor], gradient: Tensor, row: Tensor, moves: Tensor) -> None:
        """Move one stacked parameter in place, of the members that `moves` says; the moments of others are of no use."""
        parameter, mean, square = tensors
        gradient = gradient + setting(self.weight_decay, gradient) * parameter if self.decays else gradient
        gradient = torch.where(along(moves, mean), gradient, 0.0)  # not finite where a member stops
        beta1, beta2 = setting(self.beta1, mean), setting(self.beta2, mean)
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).add_(gradient.square().mul_(1 - beta2))
        below = square.sqrt().mul_(along(row[1], mean)).add_(setting(self.eps, mean))
        parameter.addcdiv_(mean * along(-row[0] * moves, mean), below)

    @property
    def decays(self) -> bool:
        return isinstance(self.weight_decay, Tensor) or self.weight_decay != 0


def one_or_all(numbers: list[float], like: Tensor) -> Number:
    """Return the number that all members have, or the numbers of each as a tensor."""
    return numbers[0] if len(set(numbers)) == 1 else like.new_tensor(numbers)


def along(number: Tensor, like: Tensor) -> Tensor:
    """Give numbers of members, ``(M,)``, the dimensions of a stacked tensor."""
    return number.view(-1, *[1] * (like.dim() - 1))


def setting(number: Number, like: Tensor) -> Number:
    """Give a setting the dimensions of a stacked tensor, if members have it of their own."""
    return along(number, like) if isinstance(number, Tensor) else number
