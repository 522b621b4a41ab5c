"""Whether losses and gradients are finite: asked at each step where asking is free, at logging points on a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyro_vae.common.torch_private import takes_found_inf
from pyro_vae.errors import DivergedError

LOSS, GRADIENT = "the loss is {}", "a gradient is not finite"


class Watch(Protocol):
    """What a step tells of its loss and gradients, and what a logging point asks."""

    def loss(self, loss: Tensor) -> None:
        """Raises DivergedError, or remembers, where the loss is not finite."""

    def gradients(self, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """The same of the gradients, before the update that they are for."""

    def ask(self) -> tuple[int, str] | None:
        """Steps that were fine since the last time, and what was wrong with the one after them; None if all were fine."""


class Prompt:
    """Asks at each step. On a GPU that waits for the device."""

    def loss(self, loss: Tensor) -> None:
        if not math.isfinite(loss):
            raise DivergedError(LOSS.format(loss.item()))

    def gradients(self, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        if not math.isfinite(torch.nn.utils.get_total_norm(gradients)):
            raise DivergedError(GRADIENT)

    def ask(self) -> None:
        return None


class Late:
    """Asks at logging points. From the first step that is not finite on, the optimizer skips its updates on the device.

    That is how mixed precision skips steps (``found_inf``, which fused optimizers take), so the weights stay those before
    the bad step, and nothing waits. For optimizers that :func:`can_skip`.
    """

    def __init__(self, device: torch.device) -> None:
        self.bad = torch.zeros((), device=device)  # 0 or 1, as found_inf is
        self.fine, self.reason = torch.zeros((), device=device), torch.zeros((), device=device)

    def loss(self, loss: Tensor) -> None:
        self.now = (~loss.isfinite()).to(self.bad.dtype)
        self.value = loss

    def gradients(self, gradients: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        steep = (~torch.nn.utils.get_total_norm(gradients).isfinite()).to(self.bad.dtype)
        was = self.bad.clone()
        torch.maximum(self.bad, torch.maximum(self.now, steep), out=self.bad)
        self.fine += 1 - self.bad
        self.reason.copy_(
            torch.where(was == 0, torch.where(self.now > 0, self.value.to(self.reason), 0.0), self.reason)
        )
        optimizer.found_inf = self.bad  # type: ignore[attr-defined]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What it remembers."""
        return self.bad, self.fine, self.reason

    def ask(self) -> tuple[int, str] | None:
        bad, fine, reason = torch.stack(self.tensors).tolist()
        for tensor in self.tensors:
            tensor.zero_()
        return (int(fine), GRADIENT if math.isfinite(reason) else LOSS.format(reason)) if bad else None


def watch_of(device: torch.device, optimizer: torch.optim.Optimizer, prompt: bool) -> Watch:
    """On a GPU, late, where the optimizer can skip a step and nobody wants to know at once."""
    return Late(device) if device.type == "cuda" and not prompt and can_skip(optimizer) else Prompt()


def can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it takes ``found_inf``: torch's fused Adam, AdamW, SGD and Adagrad do."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and takes_found_inf(optimizer)
