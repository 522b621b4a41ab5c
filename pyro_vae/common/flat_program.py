"""A function of tensors as a flat graph of operations: handlers, plates and autograd run while it is traced, never again.

Tensors that the function holds (parameters, buffers, constants) become inputs of the graph, the same objects that the
programs see; what would read a number back is refused, by the operation and the site before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.overrides import TorchFunctionMode

from . import torch_private
from .identical import identical

READS = ("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__complex__")
READS_OF = {getattr(Tensor, name): name for name in READS} | {torch.equal: "equal", Tensor.equal: "equal"}


class Untraceable(Exception):
    """A step cannot be traced, or its trace cannot be trusted."""


class Unfinished(Exception):
    """Nothing faster can be made of a trace, which is good as it is."""


class SiteNamed(Messenger):
    """Makes of an error inside an Untraceable that names the last site before it."""

    where = "before the first site"

    def _pyro_sample(self, msg: Message) -> None:
        self.where = f"after site {msg['name']!r}"

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        if isinstance(error, Exception):  # a program that raises here does so again when it runs eager
            what = str(error).strip().split("\n")[0] or type(error).__name__
            raise Untraceable(f"{what} ({self.where})") from error


class NoReads(TorchFunctionMode):
    """Refuses methods that turn a tensor into Python numbers: they would be frozen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS_OF:
            raise Untraceable(f"Tensor.{READS_OF[func]}() reads numbers back")
        return func(*args, **(kwargs or {}))


def checked_operation(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation, unless its result or its shape depends on the numbers in a tensor."""
    if func is torch.ops.aten.index.Tensor:
        depends = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])  # else whole numbers
    else:
        depends = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
    if depends:
        raise Untraceable(f"{func} depends on the numbers in a tensor")
    return func(*args, **kwargs)


@dataclass(eq=False)
class FlatProgram:
    """A traced function: ``module(*inputs, *state)`` returns what it returned, a list of tensors."""

    module: fx.GraphModule
    state: list[Tensor]  # that the programs hold
    run: Callable[..., Any] | None = None  # a compiled or recorded form of `module`

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list((self.run or self.module.forward)(*inputs, *self.state))

    @property
    def operations(self) -> int:
        """Count the operations."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    def checks(self) -> bool:
        """Return whether operations without a result check others, and stop."""
        return any(is_check(node) for node in self.module.graph.nodes)

    def difference(self, other: Any) -> str | None:
        """Describe the first difference to another trace of one function; None if they are the same."""
        here, there = (operations(flat.module.graph) for flat in (self, other))
        for (op, target, mine), (other_op, other_target, theirs) in zip(here, there, strict=False):
            if (op, target) != (other_op, other_target):
                return f"{target} in one, {other_target} in the other"
            if len(mine) != len(theirs):
                return f"{target} takes {mine} in one, {theirs} in the other"
            for x, y in zip(mine, theirs, strict=True):
                if x != y and not (x != x and y != y):  # NaN is NaN
                    return f"{target} takes {x!r} in one, {y!r} in the other"
        if len(here) != len(there):
            return f"{len(here)} operations in one, {len(there)} in the other"
        for x, y in zip(self.state, other.state, strict=True):
            if x is not y and not identical(x, y):
                return f"a tensor of shape {tuple(x.shape)} is made afresh each time, with other numbers"
        return None

    def mutated(self) -> list[Tensor]:
        """List tensors of the programs that the graph changes in place."""
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        state = dict(zip(inputs[len(inputs) - len(self.state) :], self.state, strict=True))
        roots = dict.fromkeys(root_of(n) for node in self.module.graph.nodes for n in writes(node))
        return [state[root] for root in roots if root in state]


def flattened(function: Callable[..., Any], inputs: Sequence[Tensor]) -> FlatProgram:
    """Trace ``function(*inputs)``, whatever runs inside of it; raises as :func:`flatten`."""
    module = flatten(function, inputs)
    return FlatProgram(module, lift(module))


@torch_private.without_sources()
def flatten(function: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Run a function of tensors, and note the operations that it does; what it does in place is done.

    Raises:
        Untraceable: what no graph can hold; the site before it is named.
    """
    if reason := torch_private.no_trace():
        raise Untraceable(reason)
    make_fx, checked = torch_private.find(torch_private.MAKE_FX), torch_private.dispatching(checked_operation)
    assert checked is not None
    with SiteNamed(), NoReads(), checked, torch_private.shared_fakes():
        module: fx.GraphModule = make_fx(function, tracing_mode="real")(*inputs)
    return module


def stand_ins(module: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """Find what each operation of a graph returns, by shape, dtype, device and strides; nothing is computed or changed."""
    with torch.no_grad():
        FakeTensorProp(module).propagate(*inputs)
    return {node: node.meta.get("val") for node in module.graph.nodes}


def is_check(node: fx.Node) -> bool:
    """Return whether an operation only looks whether another went well (``_linalg_check_errors``): it is no dead code."""
    schema = torch_private.schema(node.target)
    return node.op == "call_function" and schema is not None and not schema.returns


def writes(node: fx.Node) -> list[fx.Node]:
    """List the arguments that an operation changes in place."""
    schema = torch_private.schema(node.target)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    written = [(i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info and a.alias_info.is_write]
    values = [node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in written]
    return [node for node in leaves(values) if isinstance(node, fx.Node)]


def root_of(node: fx.Node) -> fx.Node:
    """Find, behind views and in-place operations, the tensor whose memory it is."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        schema = torch_private.schema(node.target)
        if schema is None or all(r.alias_info is None for r in schema.returns):
            break
        node = node.args[0]
    return node


@torch_private.without_sources()
def lift(module: fx.GraphModule) -> list[Tensor]:
    """Make the tensors that the graph holds its last inputs, each once; drop operations whose result is not used."""
    graph = module.graph
    state: list[Tensor] = []
    graph.eliminate_dead_code(lambda node: node.is_impure() or is_check(node))
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        tensor = getattr(module, str(node.target))
        if id(tensor) not in inputs:
            with graph.inserting_after(last):
                last = inputs[id(tensor)] = graph.placeholder(f"state_{len(state)}")
            state.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()
    module.recompile()
    return state


def check_traces(flat: FlatProgram, other: FlatProgram, owned: Iterable[Tensor] = ()) -> None:
    """Refuse a trace that differs from another of one function, made from other inputs and noise, or that writes elsewhere.

    A number that differs was frozen.

    Raises:
        Untraceable: they differ, or a tensor of the programs is changed in place that is none of `owned`.
    """
    if apart := flat.difference(other):
        raise Untraceable(f"two traces differ: {apart}. A number of the programs' own changes")
    known = {id(t) for t in owned}
    if any(id(t) not in known for t in flat.mutated()):
        raise Untraceable("the programs change a tensor in place that is no buffer of their modules")


def operations(graph: fx.Graph) -> list[tuple[str, str, list[Any]]]:
    """List kind, name and arguments of each operation, other nodes among these by their numbers."""
    numbers = {node: ("node", i) for i, node in enumerate(graph.nodes)}
    of = {node: leaves((node.args, node.kwargs)) for node in numbers}
    return [(n.op, str(n.target), [numbers[v] if isinstance(v, fx.Node) else v for v in of[n]]) for n in numbers]


def leaves(value: Any) -> Iterator[Any]:
    """Flatten tuples, lists and dictionaries."""
    if isinstance(value, tuple | list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    else:
        yield value
