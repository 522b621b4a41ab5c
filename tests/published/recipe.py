"""What a published program is here: a model and a guide, rows, and what is known of log p(x)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

N = 4  # rows
Program = Callable[..., Any]


@dataclass(eq=False)
class Pair:
    """One instance of a program, with weights and rows of its own."""

    model: Program
    guide: Program
    x: Tensor
    context: tuple[Tensor, ...] = ()
    net: nn.Module | None = None  # holds all modules
    exact: Callable[..., Tensor] | None = None  # log p(x_n), by other means than Pyro: (x, *context) to (N,)
    elbo: Callable[..., Tensor] | None = None  # of a guide that is not drawn from (enumerated latents): likewise
    proposal: Program | None = None  # a guide that can be drawn from, for the oracle, where `guide` cannot
    summed: bool = (
        False  # a label is summed out: weights are p(x, z) / q(z | x), no plain trace's; log p(x) is what it was
    )
    shared: str | None = None  # a site that rows share: there is no log p(x_n)
    no_weight: str | None = None  # a site of the guide without a density against the prior's measure
    reads_x: bool = False  # the model reads the values of x beside observing them: it cannot be run to simulate
    draws_context: bool = False  # a context is observed, too, and simulated with x
    weighed: bool = False  # a handler weighs some sites more than others, which a bound follows (and log p(x) does not)
    whole: bool = False  # the guide is of just these rows, so that it cannot be run on one of them
    x_of: Callable[[dict[str, Tensor]], Tensor] | None = None  # x, of the values of the observed sites
    objective: Callable[[], Any] = field(default=lambda: None)  # that it is trained by; None is the default
    missing: Tensor | None = None  # x with NaN, for programs that take it
    gaps: Tensor | None = None  # x with NaN, for programs that do not take it, where not any entry will do
    linear: bool = False  # jointly Gaussian, each mean affine in the sites before it
    whole_px: Callable[..., Any] | None = (
        None  # log p(X) of all rows, by other means than Pyro: (x, *context) to a number
    )
    drawn: Program | None = (
        None  # the guide with draws from densities, as a refusal of its points or rounded draws asks for
    )
    as_context: Callable[[], Pair] | None = None  # the pair with what the model read of x passed beside it, likewise
    collapsed: Program | None = None  # the model with what it marks for enumeration summed out, by hand
    plain: tuple[Program, Program] | None = None  # the programs as written, where `model` and `guide` are the package's
    together: bool = False  # the only row is the data set

    @property
    def written(self) -> tuple[Program, Program]:
        """Model and guide as they are written: what the oracle runs."""
        return self.plain or (self.model, self.guide)

    @property
    def args(self) -> tuple[Tensor, ...]:
        """x and contexts."""
        return (self.x, *self.context)

    def simulated(self, sites: dict[str, Tensor]) -> Tensor:
        """x, of what a run with its observations undone drew."""
        if self.x_of is not None:
            return self.x_of(sites)
        (value,) = sites.values()
        return value.reshape(-1, *self.x.shape[1:])


@dataclass(frozen=True)
class Recipe:
    """A program's name, what it was written after, and how to make one."""

    name: str
    after: str
    build: Callable[[], Pair]

    def make(self) -> Pair:
        """Make an instance; always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(zlib.crc32(self.name.encode()))
            return self.build()


RECIPES: dict[str, Recipe] = {}


def recipe(name: str, after: str) -> Callable[[Callable[[], Pair]], Callable[[], Pair]]:
    """Enter a program in the list under a name, with what it was written after."""

    def enter(build: Callable[[], Pair]) -> Callable[[], Pair]:
        RECIPES[name] = Recipe(name, after, build)
        return build

    return enter


def mlp(inputs: int, outputs: int, hidden: int = 6) -> nn.Sequential:
    """A small network, with weights large enough that rows differ."""
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    for p in net.parameters():
        p.data.mul_(1.5)
    return net


def halves(h: Tensor) -> tuple[Tensor, Tensor]:
    """Location and scale, of the two halves of a network's output; wide, so that guides reach their posteriors' tails."""
    loc, raw = h.chunk(2, -1)
    return loc / 2, 0.7 + 0.5 * raw.sigmoid()


def cat(*parts: Tensor) -> Tensor:
    """Join on the right, broadcast on the left."""
    batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*batch, p.shape[-1]) for p in parts], -1)


def bits(*shape: int) -> Tensor:
    """Coin flips."""
    return torch.rand(shape).lt(0.5).float()
