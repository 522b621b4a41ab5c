"""One step of stochastic variational inference: loss, gradients, and an update of one torch optimizer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.errors import DivergedError, ProgramError, UsageError
from pyro_vae.infer.programs import without_validation
from pyro_vae.infer.weights import Program

MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def adam(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999)) -> MakeOptimizer:
    """Adam over all parameters at once, in one fused kernel where torch has one for the device.

    References:
        Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015), https://arxiv.org/abs/1412.6980

    Example:
        >>> adam(lr=1e-2)([torch.zeros(1, requires_grad=True)]).defaults["lr"]
        0.01
    """

    def make(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)

    return make


class Declared(Messenger):
    """Collects the (unconstrained) parameters that programs declare; drops gradients that earlier work left on them."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[Tensor, None] = {}

    def _pyro_post_param(self, msg: Message) -> None:
        value: Any = msg["value"]
        parameter = value.unconstrained()
        if parameter not in self.parameters:
            parameter.grad = None
            self.parameters[parameter] = None


class Step:
    """Stock SVI on one optimizer: the loss and gradients of ``objective.loss_and_grads``, summed over the batch.

    The first call runs under Pyro's full validation and finds the parameters, as :class:`pyro.infer.SVI` does at each
    step; later calls run without validation, which they leave as they found it.

    Args:
        model: a Pyro program.
        guide: its guide.
        objective: any :class:`pyro.infer.ELBO`.
        make_optimizer: makes the optimizer of the (unconstrained) parameters that the first call declares; what is
            declared only later is not trained.
    """

    def __init__(self, model: Program, guide: Program, objective: ELBO, make_optimizer: MakeOptimizer) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.make_optimizer = make_optimizer
        self.parameters: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, *batch: Tensor, rate: float = 1.0) -> float:
        """One update; returns the loss. `rate` multiplies the optimizer's own learning rates.

        Raises:
            DivergedError: the loss or a gradient is not finite; nothing was updated.
        """
        loss = self.loss_and_grads(*batch)
        self.update(rate)
        return loss

    def loss_and_grads(self, *batch: Tensor) -> float:
        """The objective's loss, with gradients left on the parameters and nothing updated.

        Raises:
            DivergedError: the loss is not finite.
        """
        if self.optimizer is None:
            loss = self._first(*batch)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            with without_validation():
                loss = float(self.objective.loss_and_grads(self.model, self.guide, *batch))  # type: ignore[attr-defined]
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is {loss}")
        return loss

    def update(self, rate: float = 1.0) -> None:
        """Moves the parameters along their gradients, if these are finite."""
        assert self.optimizer is not None
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if not torch.nn.utils.get_total_norm(grads).isfinite():
            raise DivergedError("a gradient is not finite")
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        self.optimizer.step()

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer else 0.0

    def _first(self, *batch: Tensor) -> float:
        try:
            with Declared() as declared:
                loss = float(self.objective.loss_and_grads(self.model, self.guide, *batch))  # type: ignore[attr-defined]
        except ValueError as error:
            if not re.search(r"\b(nan|inf)\b", str(error), re.IGNORECASE):
                raise  # not about numbers: Pyro says what is wrong with the programs
            what = "" if isinstance(error, ProgramError) else "a distribution has parameters that are not finite: "
            raise DivergedError(
                what + str(error).splitlines()[0].partition(": model or guide")[0].rstrip(":")
            ) from error
        self.parameters = list(declared.parameters)
        if not self.parameters:
            raise UsageError(
                "the programs declare no parameters, so there is nothing to train: use pyro.param, pyro.module or a VAE."
            )
        self.optimizer = self.make_optimizer(self.parameters)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        return loss
