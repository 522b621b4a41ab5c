"""Adam, fused: one step of a torch optimizer, without what its ``step()`` does around the arithmetic where that is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.common import torch_private

OFF = ("amsgrad", "maximize", "capturable", "differentiable", "decoupled_weight_decay")


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``; of a plain fused Adam its one kernel alone, on the optimizer's own state.

    A tenth of a millisecond a step goes to hooks, profiling and grouping otherwise, which at small batches is as much as
    the arithmetic. State dictionaries are what they would be.

    Example:
        >>> w = torch.ones(3, requires_grad=True)
        >>> optimizer = torch.optim.Adam([w], lr=0.1, fused=True)
        >>> for _ in range(3):
        ...     w.grad = torch.ones(3)
        ...     take_step(optimizer)
        >>> w.detach(), optimizer.state_dict()["state"][0]["step"]
        (tensor([0.7000, 0.7000, 0.7000]), tensor(3.))
    """
    if begun(optimizer) and all(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
        for group in optimizer.param_groups:
            fused_adam(optimizer, group)
    else:
        optimizer.step()


def begun(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether it is torch's own Adam, fused, with states and without hooks; asked at each step, as hooks come and go."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    return (
        type(optimizer) is torch.optim.Adam
        and torch_private.kernel_works()
        and all(g.get("fused") and type(g["lr"]) is float and not any(g.get(k) for k in OFF) for g in groups)
        and not torch_private.has_listeners(optimizer)
        and "step" not in vars(optimizer)  # learning-rate schedulers and scalers of torch wrap it
        and all(optimizer.state.get(p) for g in groups for p in g["params"])
    )


def fused_adam(optimizer: Any, group: dict[str, Any], rate: Tensor | None = None) -> None:
    """Call the kernel on one group; `rate` is read on the device in place of the group's own learning rate."""
    parameters: list[Tensor] = group["params"]
    states = [optimizer.state[p] for p in parameters]
    skip = getattr(optimizer, "found_inf", None)
    torch_private.fused_adam(parameters, states, group, group["lr"] if rate is None else rate, skip)
