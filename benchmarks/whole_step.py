"""A whole step by hand, the most that one would write: loss, gradients and Adam as one function, compiled, captured.

``torch.func.grad_and_value`` over the parameters, Adam as tensor operations on moments in place, all in one region of
``torch.compile``. On CUDA several steps are captured as one graph: a launch for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value

from pyro_vae.common.inductor import as_found

from .by_hand import ByHand
from .cases import Case

STEPS = 16  # to a replay
RATE, BETAS, EPSILON = 1e-3, (0.9, 0.999), 1e-8


class WholeStep:
    """Parameters and moments of a model; ``flat(batch)`` changes them in place and returns the loss."""

    def __init__(self, model: ByHand) -> None:
        self.model = model
        self.parameters = {name: p.detach() for name, p in model.named_parameters()}
        self.means = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.squares = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.count = torch.zeros((), device=next(iter(self.parameters.values())).device)

    def flat(self, batch: Tensor) -> Tensor:
        def loss_of(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(self.model, parameters, (batch,))

        gradients, loss = grad_and_value(loss_of)(self.parameters)
        self.count.add_(1)
        correction = [1 - beta**self.count for beta in BETAS]
        for name, parameter in self.parameters.items():
            gradient, mean, square = gradients[name], self.means[name], self.squares[name]
            mean.copy_(BETAS[0] * mean + (1 - BETAS[0]) * gradient)
            square.copy_(BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient)
            scale = (square / correction[1]).sqrt() + EPSILON
            parameter.copy_(parameter - RATE * (mean / correction[0]) / scale)
        return loss


def rows_of(x: Tensor, batch: int) -> Callable[[int], Tensor]:
    """Row numbers of the next steps, ``(steps, batch)``: a random order, again and again."""
    order, at = torch.randperm(len(x), device=x.device), 0

    def following(steps: int) -> Tensor:
        nonlocal order, at
        if at + steps * batch > len(order):
            order, at = torch.randperm(len(x), device=x.device), 0
        at += steps * batch
        return order[at - steps * batch : at].view(steps, batch)

    return following


def whole_step(
    case: Case,
    x: Tensor,
    compiled: bool = True,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[int], Any]:
    """``run(steps)``; on CUDA :data:`STEPS` of them to a replay, so their number is rounded up."""
    whole, rows = WholeStep(ByHand(case).to(x.device)), rows_of(x, case.batch)

    def one(numbers: Tensor) -> Tensor:
        return whole.flat(x.index_select(0, numbers))

    step = torch.compile(one, fullgraph=True) if compiled else one

    def run(steps: int) -> None:
        with torch.no_grad(), as_found():
            for _ in range(steps):
                step(rows(1)[0])

    if x.device.type != "cuda":
        return run
    with torch.no_grad(), as_found(), precision():
        return Captured(step, rows, x.device)


class Captured:
    """Several steps as one CUDA graph, captured after a warm-up beside it; ``captured(steps)`` replays it.

    A graph holds addresses and no tensors. The step, and with it parameters and moments, lives as long as its replays, or
    they would write into memory that somebody else was given.
    """

    def __init__(self, step: Callable[[Tensor], Tensor], rows: Callable[[int], Tensor], device: torch.device) -> None:
        self.step, self.rows = step, rows
        self.numbers, self.graph, side = rows(STEPS).clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(3):
                step(self.numbers[0])
        torch.cuda.current_stream(device).wait_stream(side)
        with torch.cuda.graph(self.graph):
            for row in self.numbers:
                step(row)

    def __call__(self, steps: int) -> int:
        replays = -(-steps // STEPS)
        for _ in range(replays):
            self.numbers.copy_(self.rows(STEPS))
            self.graph.replay()
        return replays * STEPS
