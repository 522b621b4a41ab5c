"""Checks that losses and gradients are finite: at each step where asking is free, at logging points on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.common.sharded import is_sharded, whole
from pyro_vae.common.torch_private import takes_found_inf
from pyro_vae.errors import DivergedError

LOSS, GRADIENT = "the loss is {}", "a gradient is not finite"


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all gradients together; of those that are sharded over processes, the same number in each."""
    if not any(map(is_sharded, gradients)):
        return torch.nn.utils.get_total_norm(gradients)
    sharded = whole(torch.nn.utils.get_total_norm([g for g in gradients if is_sharded(g)]))
    own = torch.nn.utils.get_total_norm([g for g in gradients if not is_sharded(g)])
    return torch.hypot(sharded, own.to(sharded))


class ImmediateFiniteCheck:
    """Checks at each step. On a GPU that waits for the device."""

    tensors: tuple[Tensor, ...] = ()  # what is remembered on the device between logging points

    def check_loss(self, loss: Tensor) -> None:
        """Raise DivergedError, or remember, where the loss is not finite."""
        if not math.isfinite(loss):
            raise DivergedError(LOSS.format(loss.item()))

    def check_gradients(self, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Do the same of the gradients, before the update that they are for."""
        if not math.isfinite(total_norm(gradients)):
            raise DivergedError(GRADIENT)

    def first_failure(self) -> tuple[int, str] | None:
        """Count the good steps since the last time, and name what was wrong with the one after them; None if all were good."""
        return None


class DeferredFiniteCheck(ImmediateFiniteCheck):
    """Checks at logging points. From the first step that is not finite on, the optimizer skips its updates on the device.

    That is how mixed precision skips steps (``found_inf``, which fused optimizers take), so the weights stay those before
    the bad step, and nothing waits. For optimizers that :func:`can_skip`.
    """

    def __init__(self, device: torch.device) -> None:
        self.failed = torch.zeros((), device=device)  # 0 or 1, as found_inf is
        self.good_steps, self.reason = torch.zeros((), device=device), torch.zeros((), device=device)
        self.tensors = self.failed, self.good_steps, self.reason

    def check_loss(self, loss: Tensor) -> None:
        self.bad_loss = (~loss.isfinite()).to(self.failed.dtype)
        self.value = loss

    def check_gradients(self, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        bad_gradients = (~total_norm(gradients).isfinite()).to(self.failed.dtype)
        was = self.failed.clone()
        torch.maximum(self.failed, torch.maximum(self.bad_loss, bad_gradients), out=self.failed)
        self.good_steps += 1 - self.failed
        reason = torch.where(self.bad_loss > 0, self.value.to(self.reason), 0.0)
        self.reason.copy_(torch.where(was == 0, reason, self.reason))
        optimizer.found_inf = self.failed  # type: ignore[attr-defined]

    def first_failure(self) -> tuple[int, str] | None:
        failed, good_steps, reason = torch.stack(self.tensors).tolist()
        for tensor in self.tensors:
            tensor.zero_()
        return (int(good_steps), GRADIENT if math.isfinite(reason) else LOSS.format(reason)) if failed else None


def choose_finite_check(
    device: torch.device, optimizer: torch.optim.Optimizer, immediate: bool
) -> ImmediateFiniteCheck:
    """Defer the check on a GPU, where the optimizer can skip a step and nobody needs to know at once."""
    deferred = device.type == "cuda" and not immediate and can_skip(optimizer)
    return DeferredFiniteCheck(device) if deferred else ImmediateFiniteCheck()


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer takes ``found_inf``: torch's fused Adam, AdamW, SGD and Adagrad do."""
    return all(group.get("fused") for group in optimizer.param_groups) and takes_found_inf(optimizer)
