"""A graph run at many points with all else the same: operations that no point reaches are run once, and their results kept.

Of a density: what it makes of the rows, of scales and of parameters' checks. A trajectory that is recorded for a GPU runs a
third fewer kernels so, and each of them is a launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.common.flat_program import FlatProgram, is_check, root_of, writes

SHAPE_ALONE = {  # of these, whatever the numbers in the tensor
    torch.ops.aten.ones_like.default,
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.full_like.default,
}


class AtManyPoints:
    """``at(u)`` is a graph's results at u, beside arguments and state that stay as they are between one call and the next.

    Raises:
        RuntimeError: what an operation raises.

    Example:
        >>> from pyro_vae.common.flat_program import flattened
        >>> flat = flattened(lambda u, x: [u * x.exp()], [torch.ones(2), torch.zeros(2)])
        >>> at = AtManyPoints(flat, [torch.tensor([0.0, 1.0])])
        >>> at(torch.ones(2)), [node.name for node in at.kept]
        ([tensor([1.0000, 2.7183])], ['exp'])
    """

    def __init__(self, flat: FlatProgram, args: list[Tensor]) -> None:
        self.module, self.given = flat.module, [*args, *flat.state]
        fixed = fixed_operations(flat.module)
        self.idle = [n for n in idle_operations(flat.module, fixed) if n not in fixed]
        self.fixed, self.kept = fixed, dict[fx.Node, Any]()

    def __call__(self, u: Tensor) -> list[Tensor]:
        known = self.kept | dict.fromkeys(self.idle) if self.kept else {}
        run = fx.Interpreter(self.module, garbage_collect_values=bool(self.kept or not self.fixed))
        results = list(run.run(u, *self.given, initial_env=dict(known)))
        self.kept = self.kept or {node: run.env[node] for node in self.fixed}
        return results


def fixed_operations(module: fx.GraphModule) -> list[fx.Node]:
    """List the operations that the first input does not reach, nor draws, nor what is changed in place."""
    first = next(node for node in module.graph.nodes if node.op == "placeholder")
    moving = {first, *(root_of(written) for node in module.graph.nodes for written in writes(node))}
    fixed = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        reached = any(a in moving for a in node.all_input_nodes) and node.target not in SHAPE_ALONE
        if node in moving or reached or drawn or is_check(node) or writes(node):
            moving.add(node)
        else:
            fixed.append(node)
    return fixed


def idle_operations(module: fx.GraphModule, fixed: list[fx.Node]) -> list[fx.Node]:
    """List the operations that nothing asks for any more, once those of `fixed` are known."""
    known, asked, idle = set(fixed), set[fx.Node](), []
    for node in reversed(module.graph.nodes):
        if node.op == "output" or node in asked or is_check(node) or writes(node):
            if node not in known:
                asked.update(node.all_input_nodes)
        elif node.op == "call_function":
            idle.append(node)
    return idle
