"""Σ aᵢᵀ bᵢ over the parts of a batch, as a binary tree, in the processor's cache: the gradient of a weight matrix.

A weight matrix may have so many more numbers than a part has rows to sum over that to write each part's gradient, and to read
it again for the sum, takes longer than the products do. Here the tree is that of one piece of the matrix after the other:
by tiles, in C++, where a graph is compiled, and all cores take some; else by panels of rows, in torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.inductor import compile_cpp

SOURCE = Path(__file__).with_suffix(".cpp")
PANEL = 300_000  # numbers, of which as many times lie in a processor's cache as the tree is deep
TILE = (160, 400)  # rows and columns at most: large enough for a product, small enough for a core's own cache
ALIGNED = 16  # numbers: a vector register's


@cache
def sum_of_products(compiled: bool) -> Any:
    """Register the sum as an operation on ``(S, m, p)`` and ``(S, m, q)`` that a compiler leaves as it is.

    Args:
        compiled: by tiles, where a compiler makes that, and it has the bits of the panels; else by panels.
    """
    name = "sum_of_products" if compiled else "sum_by_panels"
    library = torch.library.Library("pyro_vae", "FRAGMENT")
    library.define(f"{name}(Tensor a, Tensor b) -> Tensor", tags=(torch.Tag.flexible_layout,))
    library.impl(name, by_tiles if compiled else by_panels, "CPU")
    library.impl(name, lambda a, b: a.new_empty(a.shape[2], b.shape[2]), "Meta")
    KEPT.append(library)  # what it registers is gone with it
    return getattr(torch.ops.pyro_vae, name).default


KEPT: list[Any] = []


def by_tiles(a: Tensor, b: Tensor) -> Tensor:
    """Sum aᵢᵀ bᵢ as :func:`by_panels` does, to its bits; by tiles where they have been seen to have them."""
    run = kernels().get(a.dtype)
    # the compiled sum reads memory as it is told; where something is wrong, torch says what
    if run is None or b.dtype != a.dtype or a.shape[:2] != b.shape[:2] or 0 in (*a.shape, *b.shape):
        return by_panels(a, b)
    return run(a, b) if has_the_bits((*a.shape, b.shape[2]), a.dtype, torch.get_num_threads()) else by_panels(a, b)


@cache
def has_the_bits(shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> bool:
    """Return whether sums by tiles have the bits of those by panels: by an example of ``(S, m, p, q)``.

    A library may sum over many rows in other pieces where a product has fewer columns, or its threads share the rows out.
    """
    generator = torch.Generator().manual_seed(0)
    parts, m, p, q = shape
    a, b = (torch.randn(parts, m, n, dtype=dtype, generator=generator) for n in (p, q))
    return torch.equal(kernels()[dtype](a, b), by_panels(a, b))


@cache
def kernels() -> dict[torch.dtype, Callable[[Tensor, Tensor], Tensor]]:
    """Compile the sums by tiles, for each type of numbers; none where there is no compiler, or torch's BLAS is hidden."""
    library = compile_cpp(SOURCE.read_text(encoding="utf-8"))
    if library is None:
        return {}
    return {torch.float32: called(library.sum_float32), torch.float64: called(library.sum_float64)}


def called(function: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Give the compiled sum tensors."""
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] + [ctypes.c_int] * 5
    function.restype = None

    def run(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        (parts, m, p), q = a.shape, b.shape[2]
        out = a.new_empty(p, q)
        function(a.data_ptr(), b.data_ptr(), out.data_ptr(), parts, m, p, q, piece(p, TILE[0]), piece(q, TILE[1]))
        return out

    return run


def piece(size: int, largest: int) -> int:
    """Cut a side of the matrix into equal pieces, but for the last: how long each is.

    Example:
        >>> piece(2000, 256), piece(784, 512), piece(20, 256)
        (256, 400, 32)
    """
    count = -(-size // largest)
    return -(-size // (count * ALIGNED)) * ALIGNED


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
