"""Products x w (+ c) of a graph of one part, for all parts of a batch: at once where that gives each row the same bits.

The rows of a product are independent of each other, but a library may cut sums over many columns into other pieces where
there are more rows. So it is tried, for each product of a graph, by an example of its shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.common import torch_private

ATEN = torch.ops.aten
PRODUCTS = (ATEN.mm.default, ATEN.addmm.default)


class Product(torch.autograd.Function):
    """x w (+ c), of which :func:`torch.vmap` takes the rows of all parts at once, or part by part."""

    @staticmethod
    def forward(c: Tensor | None, x: Tensor, w: Tensor, at_once: bool) -> Tensor:
        return plain(c, x, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return None  # what is traced is behind autograd

    @staticmethod
    def vmap(info: Any, in_dims: Any, c: Tensor | None, x: Tensor, w: Tensor, at_once: bool) -> tuple[Tensor, int]:
        count, of_w = info.batch_size, in_dims[2]
        cs, xs, ws = (each(t, dim, count) for t, dim in zip((c, x, w), in_dims[:3], strict=True))
        if not at_once or of_w is not None or in_dims[1] is None:
            return torch.stack([plain(*given) for given in zip(cs, xs, ws, strict=True)]), 0
        x = x.movedim(in_dims[1], 0)
        return plain(added(cs, x.shape[1]), x.flatten(0, 1), w).unflatten(0, x.shape[:2]), 0


def times(c: Tensor | None, x: Tensor, w: Tensor, at_once: bool) -> Tensor:
    """Compute x w (+ c); under vmap as :class:`Product` says."""
    result: Tensor = Product.apply(c, x, w, at_once)
    return result


def plain(c: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
    return x @ w if c is None else torch.addmm(c, x, w)


def each(tensor: Tensor | None, dim: int | None, count: int) -> Sequence[Any]:
    """List what each part has of a tensor: a slice of it along `dim`, all the same where that is None."""
    return [tensor] * count if tensor is None or dim is None else tensor.unbind(dim)


def added(cs: Sequence[Any], rows: int) -> Tensor | None:
    """Put together what is added to the rows of all parts: a vector that is the same for all, or a row for each."""
    if cs[0] is None or (cs[0].dim() == 1 and all(c is cs[0] for c in cs)):
        return cs[0]
    return torch.cat([c.expand(rows, -1) for c in cs])


@torch_private.without_sources()
def for_parts(module: fx.GraphModule, shapes: dict[fx.Node, Any], count: int) -> None:
    """Put :func:`times` in the place of a graph's products.

    Args:
        module: of one part.
        shapes: tensors like those that its operations return; what is put there is added.
        count: of the parts.
    """
    for node in [n for n in module.graph.nodes if n.target in PRODUCTS and not n.kwargs]:
        c, x, w = node.args if len(node.args) == 3 else (None, *node.args)
        at_once = same_bits(None if c is None else shapes[c], shapes[x], shapes[w], count)
        with module.graph.inserting_before(node):
            made = module.graph.call_function(times, (c, x, w, at_once))
        shapes[made] = shapes[node]
        node.replace_all_uses_with(made)
        module.graph.erase_node(node)
    for node in module.graph.nodes:
        node.meta.clear()
    module.recompile()


def same_bits(c: Tensor | None, x: Tensor, w: Tensor, count: int) -> bool:
    """Return whether x w (+ c) of `count` parts at once has the bits of part by part, for tensors like these.

    Example:
        >>> same_bits(None, torch.empty(32, 20), torch.empty(20, 10), count=1)
        True
    """
    generator = torch.Generator().manual_seed(0)

    def example(like: Tensor) -> Tensor:
        return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).normal_(generator=generator)

    if not x.is_floating_point() or x.dtype != w.dtype:
        return False
    fixed, xs = example(w), torch.stack([example(x) for _ in range(count)])
    cs: list[Any] = [None] * count
    if c is not None:
        cs = [example(c)] * count if c.dim() == 1 else [example(c) for _ in range(count)]
    at_once = plain(added(cs, len(x)), xs.flatten(0, 1), fixed)
    return torch.equal(at_once, torch.cat([plain(*given, fixed) for given in zip(cs, xs, strict=True)]))


def add_within(module: fx.GraphModule, shapes: dict[fx.Node, Any]) -> None:
    """Make one operation of x w + c, as Inductor does in the graph of one part.

    In that of several it would not see that there is one, for what stands between the two.
    """
    for node in module.graph.find_nodes(op="call_function", target=ATEN.add.Tensor):
        a, b = node.args
        for c, product in ((a, b), (b, a)):
            if (
                not node.kwargs
                and isinstance(c, fx.Node)
                and is_used_once(product)
                and alike(shapes[c], shapes[product])
            ):
                with module.graph.inserting_before(node):
                    fused = module.graph.call_function(ATEN.addmm.default, (c, *product.args))
                shapes[fused] = shapes[node]
                node.replace_all_uses_with(fused)
                module.graph.erase_node(node)
                module.graph.erase_node(product)
                break


def is_used_once(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is ATEN.mm.default and len(node.users) == 1


def alike(a: Any, b: Any) -> bool:
    return bool(a.shape == b.shape and a.dtype == b.dtype)
