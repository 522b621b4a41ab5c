"""Σ aᵢᵀ bᵢ over the parts of a batch, as a binary tree, in the processor's cache: the gradient of a weight matrix.

A weight matrix may have so many more numbers than a part has rows to sum over that to write each part's gradient, and to read
it again for the sum, takes longer than the products do. Here the tree is that of one panel of rows after the other: rows that
lie one behind the other in memory, and take fewer, larger products than square tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

PANEL = 300_000  # numbers, of which as many times lie in a processor's cache as the tree is deep


@cache
def sum_of_products() -> Any:
    """Register the sum as an operation on ``(S, m, p)`` and ``(S, m, q)`` that a compiler leaves as it is."""
    library = torch.library.Library("pyro_vae", "FRAGMENT")
    library.define("sum_of_products(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.flexible_layout,))
    library.impl("sum_of_products", by_panels, "CPU")
    library.impl("sum_of_products", lambda a, b: a.new_empty(a.shape[2], b.shape[2]), "Meta")
    KEPT.append(library)  # what it registers is gone with it
    return torch.ops.pyro_vae.sum_of_products.default


KEPT: list[Any] = []


def by_panels(a: Tensor, b: Tensor) -> Tensor:
    """Sum aᵢᵀ bᵢ as the binary tree of :class:`~pyro_vae.training.gradient_tree.TreeSum` does.

    Args:
        a, b: parts, rows and columns, ``(S, m, p)`` and ``(S, m, q)``, S a power of two.

    Returns:
        ``(p, q)``.

    Example:
        >>> a, b = torch.randn(4, 32, 1000), torch.randn(4, 32, 700)
        >>> c = [x.T @ y for x, y in zip(a, b)]
        >>> torch.equal(by_panels(a, b), (c[0] + c[1]) + (c[2] + c[3]))
        True
    """
    p, q = a.shape[2], b.shape[2]
    total, count = a.new_empty(p, q), panels(p, q)
    outs = total.tensor_split(count)
    spare = [torch.empty_like(outs[0]) for _ in range(len(a).bit_length() - 1)]
    right = b.unbind()
    for left, out in zip(a.tensor_split(count, 2), outs, strict=True):
        add_up(left.mT.unbind(), right, out, [held[: len(out)] for held in spare])
    return total


def panels(p: int, q: int) -> int:
    """Count the panels of a matrix: none of one row alone, as a product with a vector is rounded otherwise.

    Example:
        >>> panels(40, 2000), panels(2000, 784), panels(3, 10**6)
        (1, 6, 1)
    """
    return max(1, min(-(-p * q // PANEL), p // 2 if q > 1 else 1))


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
