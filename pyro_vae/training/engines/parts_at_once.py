"""Equal parts of a batch by one graph: their losses and the sums of their gradients, to the bits of one part after the other.

A part of few rows is a less efficient matrix product, and its gradients are as large as those of a large one. One graph of all
parts takes products for the rows of all (:mod:`~pyro_vae.training.engines.part_products`), and adds up the weights' gradients
as they are computed (:mod:`~pyro_vae.training.engines.product_sums`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, fx

from pyro_vae.common.flat_program import FlatProgram, Unfinished, Untraceable, flattened, stand_ins
from pyro_vae.common.identical import identical
from pyro_vae.common.inductor import compile_flat
from pyro_vae.training.gradient_tree import Sums, TreeSum, owned, tree_sum

from .flat_graph import FlatGraph
from .noise_outside import Draw, Recorder, draw_of, free_draws, is_random, with_draws_as_inputs
from .part_products import add_within, for_parts
from .product_sums import sum_of_products

ATEN = torch.ops.aten
Batch = Sequence[Tensor]
TRIALS = 32  # losses of parts by a new graph: a sum in another order has the same bits by chance every other time
OTHER_BITS = "by one graph they have other bits"


class Graphs(Protocol):
    """An engine's graphs of one part, of which those of several are made."""

    log: list[str]
    eager_reason: str | None

    def key(self, batch: tuple[Tensor, ...]) -> Any: ...
    def graph_of(self, key: Any) -> FlatGraph | None: ...
    def is_due(self, key: Any, flat: FlatGraph) -> bool: ...


@dataclass(eq=False)
class PartsAtOnce:
    """The graph of several parts: ``program(*batch, *draws)`` returns their losses, and each gradient's sum."""

    reached: list[bool]  # by a gradient, for each parameter
    draws: list[Draw]  # what a part draws, in its order
    buffers: list[Tensor]  # for the draws of all parts
    program: FlatProgram
    generator: torch.Generator = field(default_factory=torch.Generator)

    @classmethod
    def of(cls, flat: FlatGraph, parts: Sequence[Batch]) -> PartsAtOnce:
        """Trace the graph of these parts, from that of one; compile it if that one is.

        Raises:
            Untraceable, Unfinished: what the graph of one does cannot be done for several at once.
        """
        drawn = free_draws(flat.module.graph)
        if sum(map(is_random, flat.module.graph.nodes)) > len(drawn):
            raise Untraceable("what a part draws depends on what it computes")
        if flat.mutated():
            raise Untraceable("a part changes buffers")
        recorded = Recorder(flat.module)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            recorded.run(*parts[0], *flat.state)
        draws = [draw_of(node, recorded) for node in drawn]
        one = with_draws_as_inputs(flat.module, [node.name for node in drawn], len(parts[0]))
        products = returning_factors(one)
        shapes = stand_ins(one, [*parts[0], *(draw.like for draw in draws), *flat.state])
        if flat.run is not None:
            add_within(one, shapes)
        for_parts(one, shapes, len(parts))
        buffers = [draw.buffer(len(parts)) for draw in draws]
        inputs = [*stacked(parts), *buffers]
        program = traced(one, products, flat.state, inputs, compiled=flat.run is not None)
        if flat.run is not None:
            program.run = compile_flat(program, inputs)
        return cls(flat.reached, draws, buffers, program)

    def __call__(self, parts: Sequence[Batch], seeds: Sequence[int]) -> Sums:
        """Compute parts, each drawing from a seed."""
        losses, gradients = self.each(parts, seeds)
        return Sums(tree_sum(losses.double()), gradients)

    def each(self, parts: Sequence[Batch], seeds: Sequence[int]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the loss of each part, and the sums of gradients."""
        for i, seed in enumerate(seeds):
            self.generator.manual_seed(seed)
            for draw, buffer in zip(self.draws, self.buffers, strict=True):
                draw.fill(buffer[i], self.generator)
        losses, *reached = self.program(*stacked(parts), *self.buffers)
        gradients = iter(reached)
        return losses, owned([next(gradients) if r else None for r in self.reached], False)

    def agrees(self, flat: FlatGraph, parts: Sequence[Batch]) -> bool:
        """Return whether this has the bits of part by part, in some trials of other noise."""
        for trial in range(-(-TRIALS // len(parts))):
            seeds, tree, losses = range(trial * len(parts), (trial + 1) * len(parts)), TreeSum(), []
            with torch.random.fork_rng(devices=[]):
                for seed, part in zip(seeds, parts, strict=True):
                    torch.random.default_generator.manual_seed(seed)
                    loss, gradients = flat(*part)
                    losses.append(loss.clone())
                    tree.add(Sums(loss.double(), owned(gradients, True)))
            found, gradients = self.each(parts, seeds)
            if not torch.equal(found, torch.stack(losses)) or not all_identical(gradients, tree.total.gradients):
                return False
        return True


def all_identical(these: Sequence[Tensor | None], those: Sequence[Tensor | None]) -> bool:
    """Return whether all tensors hold the same, None where there is none."""
    pairs = zip(these, those, strict=True)
    return all(a is b if a is None or b is None else identical(a, b) for a, b in pairs)


@dataclass(eq=False)
class AtOnce:
    """Computes the parts of a step by one graph, where it was seen in this epoch that its bits are those of part by part.

    So it changes nothing in a run how many of its parts a process computes.
    """

    engine: Graphs
    made: WeakKeyDictionary[FlatGraph, tuple[Any, PartsAtOnce | None]] = field(default_factory=WeakKeyDictionary)
    proven: WeakSet[FlatGraph] = field(default_factory=WeakSet)

    def __call__(self, parts: Sequence[Batch], seeds: Sequence[int]) -> Sums | None:
        """Compute parts, each drawing from a seed; None where it is to be done part by part."""
        key = self.key(parts)
        flat = None if key is None else self.engine.graph_of(key)
        if flat is None or flat not in self.proven or self.engine.is_due(key, flat):
            return None
        at_once = self.made[flat][1]
        return None if at_once is None else at_once(parts, seeds)

    def prove(self, parts: Sequence[Batch], seeds: Sequence[int], sums: Sums) -> None:
        """Compare with the sums of parts that were computed one after the other."""
        key = self.key(parts)
        flat = None if key is None else self.engine.graph_of(key)
        if flat is None or flat in self.proven:
            return
        if flat not in self.made or self.made[flat][0] is not flat.run:
            self.made[flat] = flat.run, self.make(flat, parts)
        if (at_once := self.made[flat][1]) is None:
            return
        found = at_once(parts, seeds)
        if all_identical([found.loss, *found.gradients], [sums.loss, *sums.gradients]):
            self.proven.add(flat)
        else:
            self.made[flat] = flat.run, None
            self.note(parts, OTHER_BITS)

    def key(self, parts: Sequence[Batch]) -> Any:
        """Describe what the graph of each of these parts is traced under; None if they are too few, or unlike."""
        first = parts[0]
        like = all(a.shape == b.shape for part in parts for a, b in zip(part, first, strict=True))
        if len(parts) < 2 or not like or first[0].device.type != "cpu" or self.engine.eager_reason:
            return None
        return self.engine.key(tuple(first))

    def make(self, flat: FlatGraph, parts: Sequence[Batch]) -> PartsAtOnce | None:
        """Make the graph of several parts; None where that cannot be."""
        start = time.perf_counter()
        try:
            at_once = PartsAtOnce.of(flat, parts)
        except (Untraceable, Unfinished) as why:
            self.note(parts, str(why))
            return None
        if not at_once.agrees(flat, parts):
            self.note(parts, OTHER_BITS)
            return None
        how = "traced" if flat.run is None else "compiled"
        self.engine.log.append(f"{how} {len(parts)} parts as one graph in {time.perf_counter() - start:.1f} s")
        return at_once

    def note(self, parts: Sequence[Batch], why: str) -> None:
        """Note why parts are computed one after the other."""
        self.engine.log.append(f"{len(parts)} parts one after the other: {why}")

    def start_epoch(self) -> None:
        """Compare anew."""
        self.proven.clear()


def stacked(parts: Sequence[Batch]) -> list[Tensor]:
    """Stack what the parts have; views where they lie one behind the other in memory."""
    return [side_by_side(of) for of in zip(*parts, strict=True)]


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Stack tensors; a view where each begins in memory where the one before it ends.

    Example:
        >>> a = torch.arange(6)
        >>> side_by_side(a.split(3)).untyped_storage().data_ptr() == a.untyped_storage().data_ptr()
        True
    """
    first, size = parts[0], parts[0].numel()
    starts = {(p.untyped_storage().data_ptr(), p.storage_offset() - i * size) for i, p in enumerate(parts)}
    if len(starts) > 1 or not all(p.is_contiguous() for p in parts):
        return torch.stack(list(parts))
    return first.as_strided((len(parts), *first.shape), (size, *first.stride()))


def returning_factors(module: fx.GraphModule) -> list[tuple[bool, bool]]:
    """Let a graph return the two factors of each gradient that is a product over rows, in place of the product.

    Returns:
        For each gradient, whether it is returned as factors, and whether it is the transpose of their product.
    """
    output = module.graph.output_node()
    results: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    returned, kinds = results[:1], []
    for gradient in results[1:]:
        factors, transposed = factors_of(gradient)
        returned += factors or [gradient]
        kinds.append((bool(factors), transposed))
    output.args = (returned,)
    module.graph.eliminate_dead_code()
    module.recompile()
    return kinds


def factors_of(node: Any) -> tuple[list[fx.Node], bool]:
    """Find the a and b whose product aᵀ b, or its transpose, a gradient is; none where it is something else."""
    transposed = False
    while node.target is ATEN.t.default:
        transposed, node = not transposed, node.args[0]
    if node.target is not ATEN.mm.default or node.args[0].target is not ATEN.t.default:
        return [], False
    return [node.args[0].args[0], node.args[1]], transposed


def traced(
    one: fx.GraphModule,
    products: Sequence[tuple[bool, bool]],
    state: Sequence[Tensor],
    inputs: Sequence[Tensor],
    compiled: bool,
) -> FlatProgram:
    """Trace the graph of all parts from the graph of one, which returns factors of the gradients that are `products`."""
    over = torch.vmap(one.forward, in_dims=(*[0] * len(inputs), *[None] * len(state)), randomness="error")
    summed = sum_of_products(compiled)

    def all_parts(*given: Tensor) -> list[Tensor]:
        losses, *results = over(*given, *state)
        left, gradients = iter(results), []
        for is_product, transposed in products:
            total = summed(next(left), next(left)) if is_product else tree_of(next(left))
            gradients.append(total.t().contiguous() if transposed else total)
        return [losses, *gradients]

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vmap's, of operations that it takes one part after the other
            return flattened(all_parts, inputs)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise Untraceable(f"vmap does not take it: {str(error).strip().splitlines()[0]}") from error


def tree_of(rows: Tensor) -> Tensor:
    """Add up as :func:`~pyro_vae.training.gradient_tree.tree_sum`, out of place."""
    while len(rows) > 1:
        rows = rows[0::2] + rows[1::2]
    return rows[0]
