"""Σ aᵢᵀ bᵢ over the parts of a batch, as a binary tree, in the processor's cache: the gradient of a weight matrix.

A weight matrix may have so many more numbers than a part has rows to sum over that to write each part's gradient, and to read
it again for the sum, takes longer than the products do. Here the tree is that of one tile of the matrix after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isqrt
from typing import Any

import torch
from torch import Tensor

TILE = 400 * 400  # numbers, of which as many times lie in a processor's cache as the tree is deep


@cache
def sum_of_products() -> Any:
    """Register the sum as an operation on ``(S, m, p)`` and ``(S, m, q)`` that a compiler leaves as it is."""
    library = torch.library.Library("pyro_vae", "FRAGMENT")
    library.define("sum_of_products(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.flexible_layout,))
    library.impl("sum_of_products", tiled, "CPU")
    library.impl("sum_of_products", lambda a, b: a.new_empty(a.shape[2], b.shape[2]), "Meta")
    KEPT.append(library)  # what it registers is gone with it
    return torch.ops.pyro_vae.sum_of_products.default


KEPT: list[Any] = []


def tiled(a: Tensor, b: Tensor) -> Tensor:
    """Sum aᵢᵀ bᵢ as the binary tree of :class:`~pyro_vae.training.gradient_tree.TreeSum` does.

    Args:
        a, b: parts, rows and columns, ``(S, m, p)`` and ``(S, m, q)``, S a power of two.

    Returns:
        ``(p, q)``.

    Example:
        >>> a, b = torch.randn(4, 32, 300), torch.randn(4, 32, 1000)
        >>> c = [x.T @ y for x, y in zip(a, b)]
        >>> torch.equal(tiled(a, b), (c[0] + c[1]) + (c[2] + c[3]))
        True
    """
    p, q = a.shape[2], b.shape[2]
    total = a.new_empty(p, q)
    rows, columns = (p, q) if min(p, q) == 1 else tile_of(p, q)
    spare = [total.new_empty(rows, columns) for _ in range(len(a).bit_length() - 1)]
    lefts = [a[:, :, start : start + rows].mT.unbind() for start in range(0, p, rows)]
    rights = [b[:, :, start : start + columns].unbind() for start in range(0, q, columns)]
    for left, outs in zip(lefts, total.split(rows), strict=True):
        for right, out in zip(rights, outs.split(columns, 1), strict=True):
            add_up(left, right, out, [held[: out.shape[0], : out.shape[1]] for held in spare])
    return total


def tile_of(p: int, q: int) -> tuple[int, int]:
    """Choose rows and columns of a tile, as square as the matrix lets it be.

    Example:
        >>> tile_of(40, 2000), tile_of(2000, 784), tile_of(784, 20)
        ((40, 2000), (400, 400), (784, 20))
    """
    rows = min(p, max(isqrt(TILE), TILE // q))
    return rows, min(q, max(1, TILE // rows))


def add_up(a: Sequence[Tensor], b: Sequence[Tensor], out: Tensor, spare: Sequence[Tensor]) -> None:
    """Sum aᵢ bᵢ into `out`, by way of what is spare: one tensor for each level of the tree."""
    half = len(a) // 2
    if half == 0:
        torch.mm(a[0], b[0], out=out)
    elif half == 1 and 1 not in out.shape:  # a product of a matrix and a vector is rounded otherwise where it is added
        torch.mm(a[0], b[0], out=out)
        out.addmm_(a[1], b[1])
    else:
        add_up(a[:half], b[:half], out, spare)
        add_up(a[half:], b[half:], spare[0], spare[1:])
        out.add_(spare[0])
