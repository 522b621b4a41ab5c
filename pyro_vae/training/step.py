"""One step of stochastic variational inference: loss, gradients, and an update of one torch optimizer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pyro.infer import ELBO
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vae.common.processes import Processes
from pyro_vae.errors import DivergedError, ProgramError, UsageError
from pyro_vae.objectives.pyro_elbos import tensor_loss
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.parameters import ModulesOwnParameters, ParametersRegistered
from pyro_vae.programs.sites import Program

from .finite_checks import ImmediateFiniteCheck, choose_finite_check
from .fused_adam import take_step
from .micro_batches import MicroBatches
from .optimizers import MakeOptimizer, make_checked
from .precision import Context, whole_step
from .sharded_networks import InStep
from .shards import Shards
from .trainable import check_trained, no_gradient_lost


class DeclaredParameters(ModulesOwnParameters):
    """Collects the (unconstrained) parameters that programs declare and that are not frozen; drops gradients left on them."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: dict[Tensor, None] = {}

    def _pyro_post_param(self, msg: Message) -> None:
        value: Any = msg["value"]
        parameter = value.unconstrained()
        if parameter.requires_grad and parameter not in self.parameters:
            parameter.grad = None
            self.parameters[parameter] = None


class Engine(Protocol):
    """Computes a step: returns the loss, and leaves gradients on the parameters, whose own are None before."""

    name: str

    @property
    def notes(self) -> list[str]:
        """What was met on the way, a line each."""
        return []

    def __call__(self, *batch: Tensor) -> Tensor: ...

    def start_epoch(self) -> None:
        """Expect that anything may have been changed since the last epoch."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what the choice of how to compute the next step depends on, in plain values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Make the choices from here on that the engine of that state would have made."""
        return None


class EagerEngine(Engine):
    """The step as the programs run: one tensor for the loss, parameters not declared again, nothing validated or read back.

    Objectives without such a form (:func:`~pyro_vae.objectives.pyro_elbos.tensor_loss`) run by their own ``loss_and_grads``.
    """

    name = "eager"

    def __init__(self, step: Step) -> None:
        self.step, self.loss = step, tensor_loss(step.objective)

    def __call__(self, *batch: Tensor) -> Tensor:
        with without_validation():
            if self.loss is None:
                return stock_loss(self.step, *batch)
            loss = self.value(*batch)
            if loss.requires_grad:
                loss.backward()
        return loss.detach()

    def value(self, *batch: Tensor) -> Tensor:
        """Return the loss as one tensor, with its graph."""
        assert self.loss is not None
        with ParametersRegistered(), self.step.precision():
            return self.loss(self.step.model, self.step.guide, *batch)


def stock_loss(step: Step, *batch: Tensor) -> Tensor:
    """Call the objective's own ``loss_and_grads``; return its loss as a tensor where the data is.

    Of a tuple, as ReweightedWakeSleep has (wake-theta, wake-phi), the first; NaN where any of them is not finite.
    """
    objective: Any = step.objective
    with step.precision():
        loss = objective.loss_and_grads(step.model, step.guide, *batch)
    if isinstance(loss, tuple | list):
        loss = loss[0] if all(math.isfinite(part) for part in loss) else math.nan
    if isinstance(loss, Tensor):
        return loss.detach()
    dtype = batch[0].dtype if batch[0].is_floating_point() else None
    return torch.as_tensor(loss, dtype=dtype, device=batch[0].device)


@dataclass(eq=False)
class Step:
    """Stock SVI on one optimizer: the loss and gradients of ``objective.loss_and_grads``, summed over the batch.

    The first call runs under Pyro's full validation and finds the parameters, as :class:`pyro.infer.SVI` does at each
    step; later calls run without validation. Losses are tensors that nothing has waited for: whether they are finite is
    checked at once on the CPU, at logging points on a GPU (:mod:`~pyro_vae.training.finite_checks`).
    """

    model: Program
    guide: Program
    objective: ELBO
    make_optimizer: (
        MakeOptimizer  # of the (unconstrained) parameters that the first call declares; later ones stay as they are
    )
    immediate: bool = False  # check at each step on a GPU, too
    precision: Context = nullcontext  # that networks run in

    def __post_init__(self) -> None:
        self.parameters: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.finite_check = ImmediateFiniteCheck()
        self.engine: Engine = EagerEngine(self)
        self.engine_reason = ""
        # whether an optimizer's update is part of a graph (:mod:`~pyro_vae.training.engines.whole_steps`)
        self.in_graph: Callable[[torch.optim.Optimizer], bool] = lambda optimizer: False
        self.micro_batches = MicroBatches()
        self.shards: Shards | None = None  # that batches are computed in, by all processes
        self.in_step: InStep | None = None  # of sharded networks, whose steps all processes make

    def __call__(self, *batch: Tensor, rate: float = 1.0) -> Tensor:
        """Make one update at `rate` times the learning rates; return the loss, or update nothing and raise a DivergedError."""
        loss = self.loss_and_grads(*batch)
        self.update(rate)
        return loss

    def loss_and_grads(self, *batch: Tensor) -> Tensor:
        """Return the loss, gradients left on the parameters, nothing updated; raise a DivergedError if it is not finite."""
        with whole_step(self.precision):
            for p in self.parameters:
                p.grad = None
            loss = (self.shards or self.micro_batches)(self, self.compute, *batch)
        self.finite_check.check_loss(loss)
        return loss

    def compute(self, *batch: Tensor) -> Tensor:
        """Return the loss, gradients left on the parameters; the first call declares these, and makes the optimizer."""
        return self._first(*batch) if self.optimizer is None else self.engine(*batch)

    def update(self, rate: float = 1.0) -> None:
        """Move the parameters along their gradients, if these are finite."""
        assert self.optimizer is not None
        self.finite_check.check_gradients([p.grad for p in self.parameters if p.grad is not None], self.optimizer)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * rate
        take_step(self.optimizer)

    @property
    def together(self) -> Shards | InStep | None:
        """What this process shares with others that train with it; None where it trains alone."""
        return self.shards or self.in_step

    @property
    def here(self) -> Processes:
        """This process among those that train together."""
        return Processes() if self.together is None else self.together.here

    def explain(self) -> str:
        """Name the engine, why it was chosen, and what it has met on the way, a line each."""
        return "\n".join(
            [
                f"engine {self.engine.name} ({self.engine_reason or 'the default'})",
                *self.engine.notes,
                *(self.shards or self.micro_batches).notes,
            ]
        )

    def restore_rates(self) -> None:
        """Put the optimizer's learning rates back to those that the schedule multiplied: another run may begin with it."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True) if self.optimizer else ():
            group["lr"] = base

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer else 0.0

    def _first(self, *batch: Tensor) -> Tensor:
        try:
            with DeclaredParameters() as declared, no_gradient_lost(self.model, self.guide):
                loss = stock_loss(self, *batch)
        except ValueError as error:
            if not re.search(r"\b(nan|inf)\b", str(error), re.IGNORECASE):
                raise  # not about numbers: Pyro says what is wrong with the programs
            what = "" if isinstance(error, ProgramError) else "a distribution has parameters that are not finite: "
            first_line = str(error).splitlines()[0].partition(": model or guide")[0].rstrip(":")
            raise DivergedError(what + first_line) from error
        self.parameters = list(declared.parameters)
        if not self.parameters:
            raise UsageError(
                "the programs declare no parameters, so there is nothing to train: use pyro.param, pyro.module or a VAE."
            )
        check_trained(self.parameters)
        self.optimizer = make_checked(self.make_optimizer, self.parameters)
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        immediate = self.immediate or self.in_graph(self.optimizer)  # steps beside the graph are few
        self.finite_check = choose_finite_check(self.parameters[0].device, self.optimizer, immediate)
        return loss
