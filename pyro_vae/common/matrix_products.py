"""Matrix products of a graph by oneDNN, before Inductor has it: float32 on a CPU, where torch's own go to MKL.

x wᵀ and x w of a few million multiplications and more take 1.2 to 1.8 times as long by MKL on processors that are not Intel's
(`python -m benchmarks.matrix_products`); small ones are the faster there, and the weights' gradients, xᵀ g, about the same. On
Intel's own, MKL takes 0.7 to 1.0 of oneDNN's time, and products stay where they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from . import torch_private
from .environment import is_intel
from .flat_program import stand_ins

LEAST = 4_000_000  # multiplications of a product, below which MKL's smaller cost of a call counts
NARROW = 128  # columns, below which oneDNN's blocks are mostly empty
ATEN = torch.ops.aten


@torch_private.without_sources()
def by_onednn(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Return a copy of a graph in which large products are oneDNN's; the graph itself where it has none, or MKL is faster."""
    if is_intel() or not any(is_product(node) for node in module.graph.nodes) or (made := linear()) is None:
        return module
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    found = stand_ins(module, inputs)
    for node in [n for n in found if is_product(n) and worth_while(*map(found.get, n.args[-2:]))]:  # type: ignore[arg-type]
        replace(module.graph, node, made)
    module.recompile()
    return module


def replace(graph: fx.Graph, node: fx.Node, made: Any) -> None:
    """Put ``linear(x, wᵀ) + b`` in the place of ``x w + b``."""
    *bias, x, w = node.args
    with graph.inserting_before(node):
        result = graph.call_function(made, (x, graph.call_function(ATEN.t.default, (w,))))
        result = graph.call_function(ATEN.add.Tensor, (result, *bias)) if bias else result
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def is_product(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (ATEN.mm.default, ATEN.addmm.default) and not node.kwargs


def worth_while(x: Tensor, w: Tensor) -> bool:
    """Return whether x w is a large product of float32 matrices on a CPU, x one whose rows lie in memory as such."""
    (m, k), n = x.shape, w.shape[1]
    large = m * k * n >= LEAST and min(k, n) >= NARROW
    return large and x.device.type == "cpu" and x.dtype == torch.float32 and x.stride(1) == 1


@cache
def linear() -> Any:
    """Register x wᵀ by oneDNN as an operation that a compiler leaves as it is; None where torch has none."""
    made: Callable[..., Tensor] | None = torch_private.onednn_linear()
    if made is None:
        return None
    library = torch.library.Library("pyro_vae", "DEF")
    library.define("linear(Tensor x, Tensor w) -> Tensor")
    library.impl("linear", made, "CPU")
    library.impl("linear", lambda x, w: x.new_empty(x.shape[0], w.shape[0]), "Meta")
    KEPT.append(library)  # what it registers is gone with it
    return torch.ops.pyro_vae.linear.default


KEPT: list[Any] = []
