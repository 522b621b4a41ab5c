"""One step of all members as a flat graph: ``torch.vmap`` over one member's, finiteness, and Adam, or its kernel behind it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.inductor import compile_flat
from pyro_vae.training.engines.flat_graph import FlatGraph, Untraceable, flatten, lift
from pyro_vae.training.engines.noise_outside import (
    Draw,
    draw_of,
    drawing_from,
    free_draws,
    is_random,
    with_draws_as_inputs,
)
from pyro_vae.training.engines.scheduled_values import answers_hold
from pyro_vae.training.engines.verify import close, disagreement, is_kink, kink_alone, replayed

from .adam import StackedAdam, along
from .fused_step import FusedStep
from .member_step import Batch, bare, record, run_eager, traced, traced_twice, untraceable
from .members import Member
from .stack import Stack
from .tally import Tally, count

Function = Callable[..., list[Tensor]]


@dataclass(eq=False)
class Together:
    """The step of all members on batches ``(M, B, ...)``, checked against each member's own."""

    members: Sequence[Member]
    adam: StackedAdam
    stack: Stack
    names: list[str]  # of operations whose noise is drawn outside, each member's from its own generator
    draws: list[Draw]
    tally: Tally
    notes: list[str] = field(default_factory=list)
    run: Function | None = None  # compiled
    fused: FusedStep | None = None  # Adam by torch's kernel behind the graph, until the graph is compiled with its own
    recorded: Callable[[Sequence[Tensor], Tensor], None] | None = None  # a replay of either, on a GPU

    @classmethod
    def of(cls, members: Sequence[Member], batches: Sequence[Batch]) -> Together:
        """Trace each member's step on its batch, and make one of all.

        Raises:
            Untraceable: a step that cannot be traced, or is another in another member, or that vmap does not take.
        """
        start = time.perf_counter()
        if reason := next(filter(None, map(untraceable, members)), None):
            raise Untraceable(reason)
        optimizers: list[Any] = [member.training.step.optimizer for member in members]
        adam = StackedAdam.of(optimizers, members[0].parameters[0])
        # the first member's two traces show whether a number was frozen, and the others' one whether they differ from it
        flats = [traced_twice(members[0], batches[0])]
        flats += [traced(member, batch) for member, batch in zip(members[1:], batches[1:], strict=True)]
        for member, flat in zip(members[1:], flats[1:], strict=True):
            if apart := bare(flats[0]).difference(bare(flat)):
                raise Untraceable(f"the step of seed {member.seed} is not that of seed {members[0].seed}: {apart}")
        recorded = record(flats[0], batches[0], members[0])
        drawn = free_draws(flats[0].module.graph)
        stack = Stack(members, flats)
        stack.attach()
        try:
            step = cls(
                members,
                adam,
                stack,
                [n.name for n in drawn],
                [draw_of(n, recorded) for n in drawn],
                Tally.of(len(members), batches[0][0]),
            )
            step.make(batches, start)
        except BaseException:
            stack.detach()
            raise
        return step

    def make(self, batches: Sequence[Batch], start: float) -> None:
        """Make the graph, after it was seen that vmap computes each member's own gradients."""
        self.stacked_draws = [draw.buffer(len(self.members)) for draw in self.draws]
        self.moments = [[torch.zeros_like(self.stack.tensors[j]) for j in self.stack.trained] for _ in range(2)]
        self.forward = self.function_of(self.names)
        self.check(batches)
        self.fused = FusedStep.of(self.adam, self.parameters, self.moments)
        inputs = self.inputs([torch.stack(arrays) for arrays in zip(*batches, strict=True)], self.row_like())
        self.module, self.constants = flattened(self.counted if self.fused else self.whole, inputs)
        flat = self.stack.flats[0]
        seconds = time.perf_counter() - start
        self.notes.append(f"traced {flat.operations} operations of {len(self.members)} members in {seconds:.1f} s")
        if others := [n.name for n in flat.module.graph.nodes if is_random(n) and n.name not in self.names]:
            self.notes.append(
                f"noise of {', '.join(others)} is drawn for all members at once: equal in law to that of lone runs"
            )

    def function_of(self, names: Sequence[str]) -> Function:
        """Make the function of batch, draws of these names and state that gives all members' losses and gradients."""
        flat, inputs = self.stack.flats[0], len(self.batch_like)
        module = with_draws_as_inputs(flat.module, names, inputs)
        dims = (*[0] * (inputs + len(names)), *self.stack.dims)
        return torch.vmap(module.forward, in_dims=dims, randomness="different")

    @property
    def batch_like(self) -> list[Any]:
        """The graph's inputs that are the batch."""
        flat = self.stack.flats[0]
        inputs = [node for node in flat.module.graph.nodes if node.op == "placeholder"]
        return inputs[: len(inputs) - len(flat.state)]

    def check(self, batches: Sequence[Batch], which: Sequence[int] | None = None) -> None:
        """Compare losses, gradients and buffers among all with those that a member computes alone, on the same noise.

        Gradients that differ by a kink alone, which rounding puts on either side in these rows, are looked at in others.

        Args:
            which: of the members, by number; all by default. The others are given the noise of the first of these.

        Raises:
            Untraceable: they differ by more than rounding, or vmap does not take the graph.
        """
        found = self.difference(batches, which)

        def look(rows: Tensor) -> str | None:
            other = self.difference([tuple(a[rows.to(a.device)] for a in batch) for batch in batches], which)
            return other and other[1]

        if found is not None and not (is_kink(found[1]) and kink_alone(len(batches[0][0]), look)):
            raise Untraceable(f"the step of seed {found[0]} among all is not the one that it makes alone: {found[1]}")

    def difference(self, batches: Sequence[Batch], which: Sequence[int] | None) -> tuple[int, str] | None:
        """Return the seed of the first member that differs, and how; None where none does."""
        device = batches[0][0].device
        which = range(len(self.members)) if which is None else which
        alone, recorded, buffers = {}, {}, {}
        for i in which:
            member = self.members[i]
            with replayed(member.buffers, device):
                alone[i] = run_eager(member, batches[i])
                buffers[i] = [b.clone() for b in member.buffers]
            recorded[i] = record(self.stack.flats[i], batches[i], member)
        everyone = [recorded.get(i, recorded[which[0]]) for i in range(len(self.members))]
        names = list(everyone[0].drawn)
        draws = [stacked([r.drawn[name] for r in everyone]) for name in names]
        inputs = [torch.stack(arrays) for arrays in zip(*batches, strict=True)]
        with replayed([b for member in self.members for b in member.buffers], device):
            losses, *gradients = vmapped(self.function_of(names), [*inputs, *draws, *self.stack.tensors])
            for i in which:
                member = self.members[i]
                found = [gradient[i] for gradient in gradients]
                at = iter(found)
                captured = losses[i], [next(at) if r else None for r in self.stack.flats[0].reached]
                what = disagreement(alone[i], captured)[1]
                if what is None and not close(buffers[i], member.buffers):
                    what = "it leaves other buffers (batch statistics)"
                if what is not None:
                    return member.seed, what
        return None

    def row_like(self) -> Tensor:
        return torch.ones(2, len(self.members), dtype=self.parameters[0].dtype, device=self.parameters[0].device)

    @property
    def scheduled(self) -> bool:
        """Whether numbers of the members move as training goes on."""
        return any(member.scheduled for member in self.members)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.stack.tensors[j] for j in self.stack.trained]

    def inputs(self, batch: Sequence[Tensor], row: Tensor) -> list[Tensor]:
        """List all that a step reads and changes."""
        return [
            *batch,
            *self.stacked_draws,
            row,
            *self.tally.tensors,
            *self.stack.tensors,
            *self.moments[0],
            *self.moments[1],
        ]

    @property
    def given(self) -> int:
        """Count the inputs that are the batch, and draws."""
        return len(self.batch_like) + len(self.draws)

    def counted(self, *inputs: Tensor) -> list[Tensor]:
        """Return which members move, and their gradients; tally and buffers among the inputs are changed in place."""
        tally = Tally(*inputs[self.given + 1 : self.given + 5])
        tensors = inputs[self.given + 5 : self.given + 5 + len(self.stack.tensors)]
        before = {j: tensors[j].clone() for j in self.stack.changed}
        losses, *gradients = self.forward(*inputs[: self.given], *tensors)
        moves = count(tally, losses, gradients)
        for j, old in before.items():
            tensors[j].copy_(torch.where(along(moves, old), tensors[j], old))
        return [moves, *gradients]

    def whole(self, *inputs: Tensor) -> list[Tensor]:
        """Make a step of these inputs; the tally, parameters, moments and buffers among them are changed in place."""
        row, trained = inputs[self.given], len(self.stack.trained)
        tensors, moments = inputs[self.given + 5 :], inputs[self.given + 5 + len(self.stack.tensors) :]
        moves, *gradients = self.counted(*inputs)
        for k, (j, gradient) in enumerate(zip(self.stack.trained, gradients, strict=True)):
            self.adam.update((tensors[j], moments[k], moments[k + trained]), gradient, row, moves)
        return [moves]

    def __call__(self, batch: Sequence[Tensor], row: Tensor, number: int) -> None:
        """Make one step of all members, which counts from 1, on draws that were made before."""
        if self.recorded is not None:
            self.recorded(batch, row)
            return
        with torch.no_grad():
            moves, *gradients = (self.run or self.module.forward)(*self.inputs(batch, row), *self.constants)
            if self.fused is not None:
                self.fused(gradients, row, moves, number)

    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Draw each member's noise of the next step from its generator."""
        for draw, buffer in zip(self.draws, self.stacked_draws, strict=True):
            for out, generator in zip(buffer, generators, strict=True):
                draw.fill(out, generator)

    def one_by_one(self, batches: Sequence[Batch], row: Tensor, generators: Sequence[torch.Generator]) -> None:
        """Make a step of all members on batches of another kind: each member's gradients as its programs run, then Adam."""
        before = {j: self.stack.tensors[j].clone() for j in self.stack.changed}
        results = []
        for member, batch, generator in zip(self.members, batches, generators, strict=True):
            with drawing_from(generator, batch[0].device):
                results.append(run_eager(member, batch))
        losses = torch.stack([loss for loss, _ in results])
        reached = [torch.stack([g[k] for _, g in results]) for k in self.stack.reached]  # type: ignore[misc]
        with torch.no_grad():
            moves = count(self.tally, losses, reached)
            for j, old in before.items():
                self.stack.tensors[j].copy_(torch.where(along(moves, old), self.stack.tensors[j], old))
            for p, m, v, gradient in zip(self.parameters, *self.moments, reached, strict=True):
                self.adam.update((p, m, v), gradient, row, moves)

    def refresh(self) -> None:
        """Take over the scheduled numbers of now.

        Raises:
            Untraceable: a question of the programs about them has another answer than when the graph was made.
        """
        numbers = [[getattr(owner, name) for owner, name in m.scheduled_values.numbers] for m in self.members]
        for k, tensor in enumerate(self.members[0].scheduled_values.tensors):
            if (j := next((j for j, t in enumerate(self.stack.flats[0].state) if t is tensor), None)) is not None:
                self.stack.tensors[j].copy_(self.stack.tensors[j].new_tensor([each[k] for each in numbers]))
        if not all(answers_hold(flat.answers) for flat in self.stack.flats):
            raise Untraceable("a scheduled number has passed a value that the programs ask for")

    def compile(self, batch: Sequence[Tensor]) -> None:
        """Compile the graph, and compare a step of it with one of the graph as it is.

        Raises:
            Untraceable, Unfinished: no compiler, it gave up, or its step is another.
        """
        start = time.perf_counter()
        inputs = self.inputs(batch, self.row_like() * 1e-3)
        module, constants = self.with_adam(inputs)
        flat = FlatGraph(module, [*inputs[len(batch) :], *constants])
        with replayed(inputs, batch[0].device):
            run = compile_flat(flat, batch)
        self.compare(lambda: run(*inputs, *constants), lambda: module.forward(*inputs, *constants), inputs, "compiled")
        self.run, self.module, self.constants, self.fused = run, module, constants, None
        self.notes.append(f"compiled in {time.perf_counter() - start:.1f} s")

    def with_adam(self, inputs: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
        """Return the graph that has Adam among its own operations, and its constants: what is compiled or recorded."""
        return (self.module, self.constants) if self.fused is None else flattened(self.whole, inputs)

    def compare(self, run: Callable[[], Any], plain: Callable[[], Any], inputs: Sequence[Tensor], how: str) -> None:
        """Raise Untraceable unless a step on these inputs is that of the graph as it is; all is put back."""
        with replayed(inputs, inputs[0].device), torch.no_grad():
            plain()
            wanted = [t.clone() for t in self.results]
        with replayed(inputs, inputs[0].device), torch.no_grad():
            run()
            found = [t.clone() for t in self.results]
        if not same(wanted, found):
            raise Untraceable(f"the {how} step is not the one that was traced")

    @property
    def results(self) -> list[Tensor]:
        """What shows a step's numbers: losses, and gradients in the running means."""
        return [self.tally.loss_sum, self.tally.good_steps, *self.moments[0]]


def flattened(function: Function, inputs: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    """Trace a step of all members into one flat graph, whose inputs are changed in place; return its constants, too."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap's, of operations that it takes one member after the other
        module = flatten(function, [t.clone() for t in inputs])
    return module, lift(module)


def stacked(values: Sequence[Any]) -> Any:
    """Stack what members drew, tensor by tensor."""
    if isinstance(values[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*values, strict=True))
    return torch.stack(list(values))


def vmapped(function: Function, inputs: list[Any]) -> list[Tensor]:
    """Call what vmap made; raise Untraceable, with torch's own words, where it cannot."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*inputs)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise Untraceable(f"vmap does not take it: {str(error).strip().splitlines()[0]}") from error


def same(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = 1e-4) -> bool:
    """Return whether tensors agree to rounding, each in its norm."""
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True)]
    return all(bool((x - y).norm() <= tolerance * x.norm() + 1e-12) for x, y in pairs)
