"""One step's loss and gradients as a flat graph of tensor operations: handlers, plates and autograd run while it is traced.

Tensors that the programs hold (parameters, buffers, constants) become inputs of the graph, the same objects that the
programs see; what would read a number back is refused, by the operation and the site before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from pyro_vae.common import torch_private

from .scheduled_values import Answers

READS = ("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__")
READS_OF = {getattr(Tensor, name): name for name in READS} | {torch.equal: "equal", Tensor.equal: "equal"}


class Untraceable(Exception):
    """Why a step cannot be traced, or its trace cannot be trusted."""


class Unfinished(Exception):
    """Why nothing faster can be made of a trace, which is good as it is."""


class Sites(Messenger):
    """Remembers the last site that a program came to."""

    last: str | None = None

    def _pyro_sample(self, msg: Message) -> None:
        self.last = msg["name"]

    def where(self) -> str:
        return f"after site {self.last!r}" if self.last else "before the first site"


class NoCalls(TorchFunctionMode):
    """Refuses methods that turn a tensor into Python numbers: they would be frozen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_OF:
            raise Untraceable(f"Tensor.{READS_OF[func]}() reads numbers back")
        return func(*args, **(kwargs or {}))


def no_reads(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs an operation, unless its result, or its shape, hangs on the numbers in a tensor."""
    if func is torch.ops.aten.index.Tensor:
        hangs = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])  # else whole numbers
    else:
        hangs = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
    if hangs:
        raise Untraceable(f"{func} depends on the numbers in a tensor")
    return func(*args, **kwargs)


@dataclass(eq=False)
class FlatGraph:
    """A traced step.

    Attributes:
        module: ``module(*batch, *state)`` gives the loss and the gradients of `reached`.
        state: the tensors that the programs hold.
        reached: positions of the parameters that a gradient reaches.
        answers: what the programs asked of numbers that change.
        run: what is called, `module` or a compiled form of it.
    """

    module: fx.GraphModule
    state: list[Tensor]
    reached: list[int]
    answers: Answers = field(default_factory=list)
    run: Callable[..., Any] | None = None

    def __call__(self, *batch: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss and the gradients of `reached`."""
        with torch.no_grad():
            loss, *gradients = (self.run or self.module.forward)(*batch, *self.state)
        return loss, gradients

    @property
    def operations(self) -> int:
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    def mutated(self) -> list[Tensor]:
        """List tensors of the programs that the graph changes in place."""
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        held = dict(zip(inputs[len(inputs) - len(self.state) :], self.state, strict=True))
        written = (n for node in self.module.graph.nodes for n in writes(node))
        return list({id(held[root]): held[root] for root in map(root_of, written) if root in held}.values())


def writes(node: fx.Node) -> list[fx.Node]:
    """List the arguments that an operation changes in place."""
    schema = torch_private.schema(node.target)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    named = [
        (a, node.args[i] if i < len(node.args) else node.kwargs.get(a.name)) for i, a in enumerate(schema.arguments)
    ]
    values = [value for a, value in named if a.alias_info is not None and a.alias_info.is_write]
    return [
        n for value in values for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, fx.Node)
    ]


def root_of(node: fx.Node) -> fx.Node:
    """Find, behind views and in-place operations, the tensor whose memory it is."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node) and shares(node):
        node = node.args[0]
    return node


def shares(node: fx.Node) -> bool:
    schema = torch_private.schema(node.target)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)


def trace(loss_of: Callable[..., Tensor], parameters: Sequence[Tensor], batch: Sequence[Tensor]) -> FlatGraph:
    """Trace ``loss_of(*batch)`` and its gradients into a flat graph.

    Raises:
        Untraceable: what the programs do that no graph can hold; the site before it is named.
    """
    if reason := torch_private.no_trace():
        raise Untraceable(reason)
    make_fx, watching = torch_private.find(torch_private.MAKE_FX), torch_private.dispatching(no_reads)
    assert watching is not None
    reached: list[int] = []

    def loss_and_gradients(*inputs: Tensor) -> list[Tensor]:
        loss = loss_of(*inputs)
        learnt = [i for i, p in enumerate(parameters) if p.requires_grad]
        gradients = torch.autograd.grad(loss, [parameters[i] for i in learnt], allow_unused=True)
        pairs = [(i, g) for i, g in zip(learnt, gradients, strict=True) if g is not None]
        reached[:] = [i for i, _ in pairs]
        return [loss.detach(), *(like(g, parameters[i]) for i, g in pairs)]

    with naming_the_site(), NoCalls(), watching, torch_private.shared_fakes():
        module = make_fx(loss_and_gradients, tracing_mode="real")(*batch)
    return FlatGraph(module, lift(module), reached)


def like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Put a gradient into memory of its own in the parameter's layout, as fused optimizers need it."""
    plain = gradient.stride() == parameter.stride() and gradient.untyped_storage().nbytes() == gradient.nbytes
    return gradient if plain else torch.empty_like(parameter).copy_(gradient)


@contextmanager
def naming_the_site() -> Iterator[None]:
    """Make of what goes wrong inside an Untraceable that says after which site."""
    with Sites() as sites:
        try:
            yield
        except Exception as error:  # whatever a program raises here, it raises again when it runs eager
            what = str(error).strip().split("\n")[0] or type(error).__name__
            raise Untraceable(f"{what} ({sites.where()})") from error


def lift(module: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that the graph holds its last inputs, each once; drop operations whose result nobody takes."""
    graph = module.graph
    state: list[Tensor] = []
    graph.eliminate_dead_code()
    place = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        tensor = getattr(module, str(node.target))
        if id(tensor) not in inputs:
            with graph.inserting_after(place):
                place = inputs[id(tensor)] = graph.placeholder(f"state_{len(state)}")
            state.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()
    module.recompile()
    return state


def difference(a: FlatGraph, b: FlatGraph) -> str | None:
    """Say what two traces of one step do not have in common; None if they are one.

    They are made from other rows and other noise, so a number that differs was frozen.
    """
    if a.reached != b.reached:
        return "gradients reach other parameters"
    here, there = list(a.module.graph.nodes), list(b.module.graph.nodes)
    numbers = [{node: i for i, node in enumerate(nodes)} for nodes in (here, there)]
    for one, other in zip(here, there, strict=False):
        if (one.op, str(one.target)) != (other.op, str(other.target)):
            return f"{one.target} in one, {other.target} in the other"
        mine, theirs = (flat_arguments(n, of) for n, of in zip((one, other), numbers, strict=True))
        if len(mine) != len(theirs):
            return f"{one.target} takes {mine} in one, {theirs} in the other"
        for x, y in zip(mine, theirs, strict=True):
            if not equal(x, y):
                return f"{one.target} takes {x!r} in one, {y!r} in the other"
    if len(here) != len(there):
        return f"{len(here)} operations in one, {len(there)} in the other"
    for x, y in zip(a.state, b.state, strict=True):
        if x is not y and not (x.shape == y.shape and torch.equal(x, y)):
            return f"a tensor of shape {tuple(x.shape)} is made afresh each time, with other numbers"
    return None


def flat_arguments(node: fx.Node, numbers: dict[fx.Node, int]) -> list[Any]:
    """The arguments of an operation, nodes by their place in the graph."""
    values = leaves((node.args, node.kwargs))
    return [("node", numbers[value]) if isinstance(value, fx.Node) else value for value in values]


def leaves(value: Any) -> Iterator[Any]:
    """What tuples, lists and dictionaries hold in the end."""
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(value, tuple | list | dict):
        for one in inner:
            yield from leaves(one)
    else:
        yield value


def equal(x: Any, y: Any) -> bool:
    if isinstance(x, float) and isinstance(y, float) and math.isnan(x) and math.isnan(y):
        return True
    return bool(x == y)
