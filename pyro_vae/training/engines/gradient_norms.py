"""Whether gradients are finite, by the factors that they are products of: ‖A B‖ ≤ ‖A‖ ‖B‖.

The gradient of a weight matrix is a product over the rows of a batch, δᵀ h. To look at its elements is one more pass over as
much memory as there are weights, a tenth of a step of a wide network on few rows; its factors are far smaller. The bound is
finite only where all elements are; a step where it overflows though they are finite is made singly, which looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from pyro_vae.common import torch_private
from pyro_vae.common.flat_program import stand_ins

ATEN = torch.ops.aten


@torch_private.without_sources()
def by_factors(module: fx.GraphModule, inputs: Sequence[Tensor], kept: int) -> None:
    """Bound the norms that a graph returns after its first `kept` results, and let it return those results alone.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> def f(a, b):
        ...     norm = torch.linalg.vector_norm(a @ b)
        ...     return [norm.isfinite(), norm]
        >>> inputs = [torch.full((9, 1), 2.0), torch.full((1, 9), float("nan"))]
        >>> graph = make_fx(f)(*inputs)
        >>> by_factors(graph, inputs, 1)
        >>> len(graph.graph.find_nodes(op="call_function", target=ATEN.linalg_vector_norm.default)), graph(*inputs)
        (2, [tensor(False)])
    """
    output = module.graph.output_node()
    results: list[fx.Node] = list(output.args[0])  # type: ignore[arg-type]
    sizes = {node: value.numel() for node, value in stand_ins(module, inputs).items() if isinstance(value, Tensor)}
    output.args = (results[:kept],)
    for norm in results[kept:]:
        factors = factors_of(norm)
        if factors and sum(sizes[factor] for factor in factors) < sizes[norm.args[0]]:  # type: ignore[index]
            bound(module.graph, norm, factors)
    module.recompile()


def factors_of(norm: fx.Node) -> list[fx.Node]:
    """List the two matrices whose product, or its transpose, a norm is of; none where it is of something else."""
    node = norm.args[0]
    while isinstance(node, fx.Node) and node.target is ATEN.t.default:
        node = node.args[0]
    product = isinstance(node, fx.Node) and node.target is ATEN.mm.default
    return list(node.args) if product else []  # type: ignore[union-attr, arg-type]


def bound(graph: fx.Graph, norm: fx.Node, factors: Sequence[fx.Node]) -> None:
    with graph.inserting_before(norm):
        norms = [graph.call_function(ATEN.linalg_vector_norm.default, (factor,)) for factor in factors]
        norm.replace_all_uses_with(graph.call_function(ATEN.mul.Tensor, tuple(norms)))
    graph.erase_node(norm)
