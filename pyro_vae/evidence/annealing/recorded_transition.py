"""A transition of chains recorded as one CUDA graph: one launch for a trajectory, however many gradients it takes.

Exercised on the CPU with a recorder that runs the function again, and run on an H200.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from pyro_vae.common.cuda_recorder import CudaRecorder
from pyro_vae.common.flat_program import FlatProgram

from .fixed_operations import AtManyPoints
from .hmc import kinetic, leapfrog
from .point import Point


class Recorder(Protocol):
    """What :class:`~pyro_vae.common.cuda_recorder.CudaRecorder` does."""

    def record(self, function: Callable[[], list[Tensor]]) -> list[Tensor]: ...

    def replay(self) -> None: ...


@dataclass(frozen=True)
class Noise:
    """What a transition draws: momenta ``(chains, N, D)``, and a number of [0, 1) for each chain."""

    momentum: Tensor
    uniform: Tensor

    @classmethod
    def draw(cls, point: Point) -> Noise:
        """Draw in the order of :func:`~pyro_vae.evidence.annealing.hmc.transition`."""
        momentum = torch.randn_like(point.u)
        return cls(momentum, torch.rand_like(point.start, dtype=torch.float64))


class RecordedTransition:
    """A transition on buffers of its own, which are filled before each replay; results are copied out of them."""

    def __init__(
        self, flat: FlatProgram, args: Sequence[Tensor], point: Point, step: Tensor, leapfrogs: int, recorder: Recorder
    ) -> None:
        self.flat, self.leapfrogs, self.recorder = flat, leapfrogs, recorder
        self.point = Point(*(getattr(point, f.name).clone() for f in fields(point)))
        self.noise = Noise(torch.zeros_like(point.u), torch.ones_like(point.start, dtype=torch.float64))
        self.step = step.to(point.u.device, copy=True)
        self.beta = torch.ones_like(self.step[0])
        self.given, self.args = args, [a.clone() for a in args]
        with torch.no_grad():
            self.results = recorder.record(self.run)

    def run(self) -> list[Tensor]:
        """Make the transition: the next point, the acceptance, and whether there is something to look at."""
        flags: list[Tensor] = []
        at = AtManyPoints(self.flat, self.args)

        def density(u: Tensor) -> Point:
            *tensors, flag = at(u)
            flags.append(flag)
            return Point(u, *tensors)

        size, momentum = self.step[:, None].to(self.noise.momentum), self.noise.momentum
        end, final = leapfrog(density, self.beta, self.point, momentum, size, self.leapfrogs)
        change = end.log_density(self.beta) - self.point.log_density(self.beta) + kinetic(momentum) - kinetic(final)
        moved = self.point.replaced(end, self.noise.uniform.log() < change)
        results = [getattr(moved, f.name) for f in fields(moved)]
        return [*results, change.clamp(max=0).exp().nan_to_num(0), torch.stack(flags).any()]

    def __call__(
        self, args: Sequence[Tensor], beta: float, point: Point, noise: Noise, step: Tensor
    ) -> tuple[Point, Tensor, Tensor]:
        """Return the next point, the acceptance, and whether the programs are to make the transition."""
        if args is not self.given:
            copy_all(self.args, args)
            self.given = args
        for own, new in ((self.point, point), (self.noise, noise)):
            copy_all([getattr(own, f.name) for f in fields(own)], [getattr(new, f.name) for f in fields(new)])
        self.beta.fill_(beta)
        self.step.copy_(step, non_blocking=True)
        self.recorder.replay()
        *tensors, acceptance, doubtful = (result.clone() for result in self.results)
        return Point(*tensors), acceptance, doubtful


def copy_all(own: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Fill buffers."""
    for a, b in zip(own, given, strict=True):
        a.copy_(b)


def on_device(device: torch.device) -> Recorder | None:
    """Return what records on a device; None where nothing does."""
    return CudaRecorder(device) if device.type == "cuda" else None
