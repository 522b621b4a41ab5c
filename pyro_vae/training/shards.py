"""Steps of S shards: a batch in S parts of equal size, each with noise of its own, the same bits on 1, 2, ... S processes.

Shard s of a step draws from ``stream(seed, NOISE, epoch, step, s)``, and the sums over shards are those of one tree
(:mod:`~pyro_vae.training.gradient_tree`): neither depends on how many processes compute them. Every process has the whole
data, draws order and binarization of whole batches, computes its contiguous shards, and makes the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.exchange import agree, gather
from pyro_vae.common.processes import Processes, processes
from pyro_vae.common.random import seeded, stream
from pyro_vae.errors import UsageError

from .gradient_tree import SumOverProcesses, Sums, TreeSum, owned, tree_sum
from .shuffle import NOISE

Batch = tuple[Tensor, ...]
SAME = 1e-4  # relative: machines that round otherwise than another


@dataclass(eq=False)
class Shards:
    """Computes the loss and gradients of a batch as those of its shards, shared by all processes.

    Attributes:
        count: S, a power of two.
        seed: of the noise.
        here: this process; its shards are the next S/W after those of the ranks before it.
        position: the epoch, and the number of steps before this one.
        rate: a multiple of the learning rate, for the update that follows; that of rank 0.
        signal: what this process has heard and the others shall hear of, 0 if nothing.
        heard: the largest `signal` of any process, as of the last step: all know it at the same step.
    """

    count: int
    seed: int
    here: Processes = field(default_factory=processes)
    position: tuple[int, int] = (1, 0)
    rate: float = 1.0
    signal: int = 0
    heard: int = 0
    sum: SumOverProcesses | None = field(default=None, init=False)

    @property
    def notes(self) -> list[str]:
        """What was met on the way, a line each."""
        among = f", of which each of {self.here.world} processes computes {self.count // self.here.world}"
        return [f"batches in {self.count} shards{among if self.here.world > 1 else ''}"]

    @property
    def own(self) -> range:
        """The numbers of this process's shards."""
        each = self.count // self.here.world
        return range(self.here.rank * each, (self.here.rank + 1) * each)

    def of(self, batch: Batch) -> list[Batch]:
        """Cut a batch into all shards, whose sizes differ by a row at most; the last have none where rows are few."""
        return list(zip(*(a.tensor_split(self.count) for a in batch), strict=True))

    def seed_of(self, shard: int) -> int:
        """Return the seed of the stream of a shard of this step."""
        return stream(self.seed, NOISE, *self.position, shard)

    def noise(self, shard: int, batch: Batch) -> AbstractContextManager[None]:
        """Draw from the stream of a shard of this step inside."""
        return seeded(self.seed, NOISE, *self.position, shard, device=batch[0].device)

    def __call__(self, step: Any, compute: Callable[..., Tensor], *batch: Tensor) -> Tensor:
        """Return the loss of a batch, its gradients left on the step's parameters.

        Args:
            step: the :class:`~pyro_vae.training.step.Step`.
            compute: ``step.compute``, by which the parameters are declared at the first step.

        Raises:
            ProcessesError: another process did not come.
        """
        shards, engine = self.of(batch), step.engine
        first = None
        if step.optimizer is None:  # on every process by the first shard: what it initialises is the same
            first = self.leaf(step, compute, 0, shards[0])
            check_parameters(step, self.here, first)
        together = getattr(engine, "one_step", None)
        with nullcontext() if together is None else together([part for part in shards if len(part[0])]):
            total, anew = self.all_of(step, shards, first)
            while anew:  # a graph failed on a shard, of this process or another: all compute the step as one would
                total, anew = self.all_of(step, shards, first)
        for parameter, gradient in zip(step.parameters, total.gradients, strict=True):
            parameter.grad = None if gradient is None else laid_out(gradient, parameter)
        return total.loss

    def all_of(self, step: Any, shards: list[Batch], first: Sums | None) -> tuple[Sums, bool]:
        """Compute this process's shards, and add up those of all; return whether all are to be computed anew."""
        compute, untraced = getattr(step.engine, "compute", step.engine), getattr(step.engine, "untraced", None)
        for number in untraced(self.own) if untraced else ():
            self.leaf(step, compute, number, shards[number])  # for its graph
        own, seeds = [shards[number] for number in self.own], [self.seed_of(number) for number in self.own]
        at_once = getattr(step.engine, "at_once", None) if first is None else None
        if at_once is not None and (sums := at_once(own, seeds)) is not None:
            return self.summed(step, sums)
        tree = TreeSum()
        for number in self.own:
            declared = first.copy() if number == 0 and first is not None else None  # it is added to, in place
            tree.add(declared or self.leaf(step, compute, number, shards[number]))
        if at_once is not None:
            at_once.prove(own, seeds, tree.total)
        return self.summed(step, tree.total)

    def leaf(self, step: Any, compute: Callable[..., Tensor], number: int, part: Batch) -> Sums:
        """Compute a shard; one without rows adds nothing."""
        if not len(part[0]):
            return Sums(part[0].new_zeros((), dtype=torch.float64), [None] * len(step.parameters))
        for parameter in step.parameters:
            parameter.grad = None
        with self.noise(number, part):
            loss = compute(*part).detach().double()
        return Sums(loss, owned((p.grad for p in step.parameters), step.engine.name == "graph"))

    def summed(self, step: Any, own: Sums) -> tuple[Sums, bool]:
        """Exchange the sums of this process's shards with the others, and add up the rest of the tree.

        With them go the engines' verdicts on their graphs; returns whether the worst has all compute the step anew.
        """
        verdict, follow = getattr(step.engine, "verdict", 0), getattr(step.engine, "follow", None)
        if self.here.world == 1:
            self.heard = self.signal
            return own, follow is not None and verdict > 0 and follow(verdict)
        epoch, steps = self.position
        what = f"step {steps + 1}, in epoch {epoch}"
        reached = [g is not None for g in own.gradients]
        head = torch.tensor([float(self.signal), float(verdict), self.rate, *reached], dtype=torch.float64)
        told = gather(torch.cat([own.loss.reshape(1), head.to(own.loss.device)]), what)
        loss, (signal, verdict, *anywhere) = tree_sum(told[:, 0].clone()), told[:, 1:].amax(0).tolist()
        self.heard, self.rate = int(signal), float(told[0, 3])
        if verdict and follow is not None and follow(int(verdict)):
            return own, True
        self.sum = self.sum or SumOverProcesses(step.parameters)
        return Sums(loss, self.sum(own.gradients, [bool(reached) for reached in anywhere[1:]], what)), False


def laid_out(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Give a gradient the layout of its parameter, as fused optimizers need it."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def check_parameters(step: Any, here: Processes, first: Sums) -> None:
    """Refuse processes whose first step declared other parameters, or had another loss of the first shard.

    All compute that shard, of the same rows, weights and noise: it tells other programs, objectives and options apart.
    """
    if here.world == 1:
        return
    agree("what the programs declare", [[list(p.shape), str(p.dtype)] for p in step.parameters])
    refuse_other_losses(gather(first.loss.cpu(), "the first step").tolist())


def refuse_other_losses(losses: Sequence[float]) -> None:
    """Refuse losses of one shard that differ by more than rounding, as other machines round otherwise.

    Raises:
        UsageError: names the ranks.

    Example:
        >>> refuse_other_losses([1e3, 1e3 + 1e-3, 1e3])
    """
    told = torch.tensor(losses, dtype=torch.float64)
    if odd := (~torch.isclose(told, told[:1], rtol=SAME, equal_nan=True)).nonzero().flatten().tolist():
        raise UsageError(
            f"the loss of the first shard must be the same on each rank: rank {odd[0]} has {losses[odd[0]]:.6g}, and rank 0 "
            f"has {losses[0]:.6g}, of the same rows, weights and noise. Give each the same programs, objective and options."
        )
