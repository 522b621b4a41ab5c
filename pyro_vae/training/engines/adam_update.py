"""Adam's update as part of a graph: torch's own kernel where the graph runs as it is, a formula where it is compiled.

m ← m + (1 − β₁)(g − m), v ← β₂v + (1 − β₂)g², θ ← θ − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ).
What depends on the learning rate η and the step t alone is computed beforehand, in float64, and is an input of the graph. The
moments are those of the torch optimizer, in place: its state dictionary is what its own steps would leave.

References:
    Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015), https://arxiv.org/abs/1412.6980
    Decoupled Weight Decay Regularization (Loshchilov & Hutter, 2019), https://arxiv.org/abs/1711.05101
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common import torch_private

Numbers = tuple[
    float, float, float, float
]  # η, the step's length, ε and what weight decay leaves, of one step and group
KINDS = (torch.optim.Adam, torch.optim.AdamW)
OFF = ("amsgrad", "maximize", "capturable", "differentiable")


@dataclass(frozen=True, eq=False)
class AdamGroup:
    """The parameters of a group that gradients reach, their moments, and the group's options."""

    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool  # weight decay, as AdamW has it

    @property
    def options(self) -> tuple[Any, ...]:
        return (*self.betas, self.eps, self.weight_decay, self.decoupled)

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.parameters, *self.means, *self.squares, *self.steps]

    def numbers(self, rate: float, step: float) -> Numbers:
        """Return the numbers of the update that is the `step`-th, counted from 1."""
        corrected = 1 - self.betas[0] ** step, (1 - self.betas[1] ** step) ** 0.5
        kept = 1 - rate * self.weight_decay if self.decoupled else 1.0
        return rate, rate * corrected[1] / corrected[0], self.eps * corrected[1], kept


Update = Callable[[AdamGroup, Sequence[Tensor], Tensor, Tensor | None], None]  # gradients, numbers (4,), 1 to skip it


def plain_adam(optimizer: Any) -> bool:
    """Return whether it is torch's own Adam or AdamW: with a plain learning rate, without further options, hooks, wrappers."""
    groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", [])
    return (
        type(optimizer) in KINDS
        and torch_private.kernel_works()
        and (type(optimizer) is torch.optim.Adam or torch_private.adamw_works())
        and all(type(group["lr"]) is float and not any(group.get(name) for name in OFF) for group in groups)
        and not torch_private.has_listeners(optimizer)
        and "step" not in vars(optimizer)  # learning-rate schedulers and scalers of torch wrap it
    )


def adam_groups(optimizer: torch.optim.Optimizer, reached: Sequence[Tensor]) -> list[AdamGroup] | None:
    """List the groups as far as gradients reach them; None where a state is not begun yet, or steps of a group differ."""
    wanted, groups = set(reached), []
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p in wanted]
        states: list[Any] = [optimizer.state.get(p) for p in parameters]
        if not all(state and {"step", "exp_avg", "exp_avg_sq"} <= state.keys() for state in states):
            return None
        means, squares, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        decoupled = bool(group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)))
        of = group["betas"], group["eps"], group["weight_decay"], decoupled
        groups.append(AdamGroup(parameters, means, squares, steps, *of))
    if any(isinstance(number, Tensor) for group in groups for number in group.options):
        return None
    return groups


def by_kernel(group: AdamGroup, gradients: Sequence[Tensor], numbers: Tensor, skip: Tensor | None) -> None:
    """Update by torch's fused kernel: to the bit what a fused optimizer does."""
    if not group.parameters:  # no gradient reaches the group, and the kernel takes no empty lists
        return
    options = {"lr": numbers[0], "betas": group.betas, "eps": group.eps, "weight_decay": group.weight_decay}
    torch_private.adam_kernel(
        group.parameters, gradients, (group.means, group.squares, group.steps), options, group.decoupled, skip
    )


def by_formula(group: AdamGroup, gradients: Sequence[Tensor], numbers: Tensor, skip: Tensor) -> None:
    """Update by operations that a compiler puts into one pass over the memory."""
    (beta1, beta2), go_on = group.betas, skip == 0
    _, length, eps, kept = numbers.unbind()
    for step in group.steps:
        step.add_(1 - skip.to(step))
    for p, g, m, v in zip(group.parameters, gradients, group.means, group.squares, strict=True):
        whole = g + group.weight_decay * p if group.weight_decay and not group.decoupled else g
        mean, square = m + (1 - beta1) * (whole - m), beta2 * v + (1 - beta2) * whole * whole
        left = kept * p if group.weight_decay and group.decoupled else p
        moved = left - length * (mean / (square.sqrt() + eps))
        for tensor, value in ((p, moved), (m, mean), (v, square)):
            tensor.copy_(torch.where(go_on, value, tensor))


def by_lists(group: AdamGroup, gradients: Sequence[Tensor], numbers: Tensor) -> None:
    """Update by operations on all of a group at once, which a compiler for GPUs puts into one kernel; none is skipped."""
    if not group.parameters:
        return
    beta1, beta2 = group.betas
    _, length, eps, kept = ([number] * len(group.parameters) for number in numbers.unbind())
    add, subtract, times, over, root = map(torch_private.on_lists, ("add", "sub", "mul", "div", "sqrt"))
    parameters, means, squares, whole = group.parameters, group.means, group.squares, gradients
    if group.weight_decay and not group.decoupled:
        whole = add(whole, times(parameters, group.weight_decay))
    new_means = add(means, times(subtract(whole, means), 1 - beta1))
    new_squares = add(times(squares, beta2), times(times(whole, 1 - beta2), whole))
    left = times(parameters, kept) if group.weight_decay and group.decoupled else parameters
    moved = subtract(left, times(over(new_means, add(root(new_squares), eps)), length))
    counts = add(group.steps, 1.0)
    for tensor, value in zip(group.tensors, (*moved, *new_means, *new_squares, *counts), strict=True):
        tensor.copy_(value)
