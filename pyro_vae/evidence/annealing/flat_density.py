"""Log densities and gradients of chains from a flat graph, without the programs' Python: HMC asks for thousands of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pyro_vae.common import torch_private
from pyro_vae.common.flat_program import FlatProgram, Untraceable
from pyro_vae.common.notes import Notes
from pyro_vae.common.random import random_states, restore_states
from pyro_vae.errors import DeviceLostError
from pyro_vae.programs.determinism import identical
from pyro_vae.programs.flat_evaluation import flat_evaluation
from pyro_vae.programs.problem import Problem

from .point import Point
from .recorded_transition import Noise, RecordedTransition, on_device

WORTH_TRACE, WORTH_FIRST = (
    200,
    600,
)  # evaluations that take as long as two traces; as these and importing torch's tracer
CHECKS = 2  # evaluations of a graph that the programs make, too
Key = tuple[Any, ...]
Made = TypeVar("Made")


class Differentiable(Protocol):
    """Densities of a batch of rows, as graphs are made of them."""

    problem: Problem

    def over(self, *args: Tensor) -> Differentiable:
        """Return those of other rows."""

    def evaluate(self, u: Tensor) -> Point:
        """Run the programs."""


@dataclass(eq=False)
class DensityGraphs:
    """Graphs of one pair's densities, one for each number of chains and rows, made when these are first met.

    A graph is checked against the programs at the first points, to the bit. Where a flag of it is set, parameters are to be
    looked at, and where it stops, a matrix is singular: there the programs are run at the same point.
    """

    planned: int  # evaluations
    notes: Notes = field(default_factory=Notes)
    graphs: dict[Key, FlatProgram | None] = field(default_factory=dict)
    checks: dict[Key, int] = field(default_factory=dict)
    recorded: dict[tuple[Key, int], Any] = field(
        default_factory=dict
    )  # transitions by leapfrogs; 0: cannot be recorded
    unread: Tensor | None = None  # whether a transition was to be looked at, where nobody reads that each time
    reads: bool = True

    def __call__(self, density: Differentiable, u: Tensor) -> Point | None:
        """Evaluate a density at u; None where the programs are to be run."""
        known = torch_private.MAKE_FX.rpartition(".")[0] in sys.modules
        if self.planned < (WORTH_TRACE if known else WORTH_FIRST) or "loop" in modes(density):
            return None
        key = key_of(u, density.problem.args)
        try:
            if key not in self.graphs:
                self.graphs[key], self.checks[key] = self.traced(density, u), CHECKS
            flat = self.graphs[key]
            return None if flat is None else self.evaluated(key, flat, density, u)
        except Untraceable as why:
            self.graphs[key] = None
            self.notes.add(f"evaluated by the programs themselves: {why}")
            return None

    def transition(
        self, args: Sequence[Tensor], beta: float, point: Point, step: Tensor, leapfrogs: int
    ) -> tuple[Point, Tensor] | None:
        """Replay a transition on a GPU, once its graph is checked; None, and nothing drawn, for the programs to make it."""
        key, device = key_of(point.u, args), point.u.device
        flat = self.graphs.get(key)
        if flat is None or self.checks[key] or (recorder := on_device(device)) is None or (key, 0) in self.recorded:
            return None
        noise_before = random_states(device)
        try:
            if (key, leapfrogs) not in self.recorded:
                self.recorded[key, leapfrogs] = RecordedTransition(flat, args, point, step, leapfrogs, recorder)
            *made, doubtful = self.recorded[key, leapfrogs](args, beta, point, Noise.draw(point), step)
        except RuntimeError as error:
            self.recorded[key, 0] = None
            self.notes.add(f"transitions are not recorded: {str(error).splitlines()[0]}")
        else:
            if not self.reads:
                self.unread = doubtful if self.unread is None else self.unread | doubtful
            if not self.reads or not doubtful:
                return made[0], made[1]
        restore_states(device, noise_before)
        return None

    def trusted(self, run: Callable[[], Made]) -> Made:
        """Run transitions without a look at each, so that a GPU does not wait; once more, if one was to be looked at.

        Args:
            run: makes the same each time that it is called.
        """
        self.reads = False
        try:
            made = run()
        except DeviceLostError:  # nothing can be asked of it
            raise
        except Exception:  # of numbers that were not to be trusted, maybe
            if not self.doubted():
                raise
        else:
            if not self.doubted():
                return made
        finally:
            self.reads = True
        return run()

    def doubted(self) -> bool:
        """Return whether a transition since the last call was to be looked at."""
        unread, self.unread = self.unread, None
        return unread is not None and bool(unread)

    def traced(self, density: Differentiable, u: Tensor) -> FlatProgram:
        """Trace values and gradients, at these and at other points and rows."""
        args = density.problem.args
        flat = flat_evaluation(tensors_of(density), (u, *args), (0.9 * u.flip(1), *(a.flip(0) for a in args)))
        self.notes.add(f"{flat.operations} operations traced, the same to the bit as the programs")
        return flat

    def evaluated(self, key: Key, flat: FlatProgram, density: Differentiable, u: Tensor) -> Point | None:
        """Run a graph; the first times, run the programs as well."""
        try:
            *tensors, doubtful = flat(u, *density.problem.args)
        except RuntimeError:  # a singular matrix, or memory: as the programs have it
            return None
        if doubtful:
            return None
        if self.checks[key]:
            self.checks[key] -= 1
            expected = tensors_of(density)(u, *density.problem.args)
            if not all(map(identical, tensors, expected)):
                raise Untraceable("its values are not those of the programs")
        return Point(u.detach(), *tensors)


def key_of(u: Tensor, args: Sequence[Tensor]) -> Key:
    """Describe what a graph is good for."""
    return tuple((a.shape, a.dtype, a.device) for a in (u, *args))


def modes(density: Differentiable) -> Sequence[str]:
    """Return how the programs are run for several chains."""
    return density.problem.vectorizing.model, density.problem.vectorizing.guide


def tensors_of(density: Differentiable) -> Callable[..., list[Tensor]]:
    """Return the function to be traced: u and the arguments of a batch of rows to the tensors of a point."""

    def evaluate(u: Tensor, *args: Tensor) -> list[Tensor]:
        point = density.over(*args).evaluate(u)
        return [point.start, point.ratio, point.d_start, point.d_ratio]

    return evaluate
