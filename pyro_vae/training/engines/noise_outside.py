"""The noise of a step, drawn outside of its graph: of each member of an ensemble, each part of a batch, from its own stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.common import torch_private

LIKE = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
NEW = ("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided")
SHAPE_ONLY = {*LIKE, *NEW}  # operations that read no number of the tensor that they take


@dataclass(eq=False)
class Draw:
    """A random operation of a step: what it is called with, and what its results look like."""

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    like: Tensor

    def buffer(self, members: int) -> Tensor:
        """Make room for the draws of all members."""
        return self.like.new_empty((members, *self.like.shape))

    def fill(self, out: Tensor, generator: torch.Generator) -> None:
        """Draw once more, into a contiguous tensor."""
        if self.in_place:
            self.operation(out, *self.args[1:], **self.kwargs, generator=generator)
        else:
            out.copy_(self.operation(*self.args, **self.kwargs, generator=generator))

    @cached_property
    def in_place(self) -> bool:
        return bool(torch_private.schema(self.operation).is_mutable)


def is_random(node: fx.Node) -> bool:
    """Return whether an operation draws from a generator."""
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def takes_generator(node: fx.Node) -> Any:
    """Find the overload of a random operation that takes a generator; None where torch has none."""
    schema = torch_private.schema(node.target)
    if any(a.name == "generator" for a in schema.arguments):
        return node.target
    packet = getattr(torch.ops.aten, schema.name.split("::")[-1])
    return getattr(packet, "generator", None) if "generator" in packet.overloads() else None


def free_draws(graph: fx.Graph) -> list[fx.Node]:
    """List the random operations whose distribution depends on no number in any tensor: standard normals, dropout's masks."""
    free: set[fx.Node] = set()
    found = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = str(node.target).split(".")[-2] if "." in str(node.target) else ""
        known = name in SHAPE_ONLY or all(n in free for n in node.all_input_nodes)
        if is_random(node):
            if known and takes_generator(node) is not None and not is_seen_otherwise(node):
                found.append(node)
        elif known:
            free.add(node)
    return found


def is_seen_otherwise(node: fx.Node) -> bool:
    """Return whether something else looks at the memory that a random operation fills in place."""
    filled = node.args[0] if node.args and torch_private.schema(node.target).is_mutable else None
    return isinstance(filled, fx.Node) and len(filled.users) > 1


class Recorder(fx.Interpreter):
    """Runs a graph, and remembers what its random operations were called with and what they gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.drawn: dict[str, Any] = {}
        self.called: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def run_node(self, node: fx.Node) -> Any:
        random = is_random(node)
        if random:
            args, kwargs = self.fetch_args_kwargs_from_env(node)
            self.called[node.name] = tuple(a.clone() if isinstance(a, Tensor) else a for a in args), kwargs
        value = super().run_node(node)
        if random:
            self.drawn[node.name] = tuple(v.clone() for v in value) if isinstance(value, tuple) else value.clone()
        return value


def draw_of(node: fx.Node, recorded: Recorder) -> Draw:
    """Make of a recorded operation one that can be drawn again and again."""
    args, kwargs = recorded.called[node.name]
    kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
    return Draw(takes_generator(node), args, kwargs, recorded.drawn[node.name])


@torch_private.without_sources()
def with_draws_as_inputs(module: fx.GraphModule, names: Sequence[str], after: int) -> fx.GraphModule:
    """Copy a graph whose draws of these names are inputs, behind the first `after` inputs (the batch)."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    result: Any = graph.graph_copy(module.graph, copies)
    graph.output(result)
    by_name = {node.name: copies[node] for node in module.graph.nodes if node in copies}
    last = [node for node in graph.nodes if node.op == "placeholder"][after - 1]
    for name in names:
        node = by_name[name]
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{name}")
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    for node in graph.nodes:
        if (
            node.target is torch.ops.aten.lift_fresh_copy.default
        ):  # of a constant; vmap has no rule for this name of a copy
            node.target = torch.ops.aten.clone.default
    graph.eliminate_dead_code()
    return fx.GraphModule(torch.nn.Module(), graph)


@contextmanager
def drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Have the programs draw from this generator, in the place of the device's own."""
    own = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    before = own.get_state()
    own.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(own.get_state())
        own.set_state(before)
