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
EXAMPLES = 1000  # numbers that two ways of rounding are compared by, at least


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
    within = pairs_within((*a.shape, b.shape[2]), a.dtype, torch.get_num_threads())
    return by_panels(a, b) if within is None else run(a, b, within)


@cache
def pairs_within(shape: tuple[int, ...], dtype: torch.dtype, threads: int) -> bool | None:
    """Return whether tiles may add up a pair within a product, to the bits of panels; None where tiles never have these.

    By examples of ``(S, m, p, q)``. A library may sum over many rows in other pieces where a product has fewer columns, or
    its threads share the rows out.
    """
    generator = torch.Generator().manual_seed(0)
    parts, m, p, q = shape
    run, ways = kernels()[dtype], [True, False]
    for _ in range(-(-EXAMPLES // (p * q))):
        a, b = (torch.randn(parts, m, n, dtype=dtype, generator=generator) for n in (p, q))
        total = by_panels(a, b)
        ways = [within for within in ways if torch.equal(run(a, b, within), total)]
    return ways[0] if ways else None


@cache
def kernels() -> dict[torch.dtype, Callable[[Tensor, Tensor, bool], Tensor]]:
    """Compile the sums by tiles, for each type of numbers; none where there is no compiler, or torch's BLAS is hidden."""
    library = compile_cpp(SOURCE.read_text(encoding="utf-8"))
    if library is None:
        return {}
    return {torch.float32: called(library.sum_float32), torch.float64: called(library.sum_float64)}


def called(function: Any) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """Give the compiled sum tensors."""
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] + [ctypes.c_int] * 6
    function.restype = None

    def run(a: Tensor, b: Tensor, within: bool) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        (parts, m, p), q = a.shape, b.shape[2]
        out = a.new_empty(p, q)
        tile = piece(p, TILE[0]), piece(q, TILE[1])
        function(a.data_ptr(), b.data_ptr(), out.data_ptr(), parts, m, p, q, *tile, within)
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
    m, p, q = *a.shape[1:], b.shape[2]
    total, count = a.new_empty(p, q), panels(p, q)
    outs = total.tensor_split(count)
    spare = [torch.empty_like(outs[0]) for _ in range(len(a).bit_length() - 1)]
    right, threads = b.unbind(), torch.get_num_threads()
    for left, out in zip(a.tensor_split(count, 2), outs, strict=True):
        within = adds_last((m, len(out), q), a.dtype, threads)
        add_up(left.mT.unbind(), right, out, [held[: len(out)] for held in spare], within)
    return total


@cache
def adds_last(shape: tuple[int, int, int], dtype: torch.dtype, threads: int) -> bool:
    """Return whether c += aᵀ b, of ``(m, p, q)``, has the bits of the product that is then added: by examples.

    A library may begin a sum with what it is added to, where a matrix is small, and on one processor and not on another.
    """
    m, p, q = shape
    if min(p, q) < 2:  # a product with a vector, which examples of few numbers may not tell
        return False
    generator = torch.Generator().manual_seed(0)
    for _ in range(-(-EXAMPLES // (p * q))):
        a, b, c = (torch.randn(size, dtype=dtype, generator=generator) for size in ((m, p), (m, q), (p, q)))
        if not torch.equal(c + a.T @ b, torch.addmm(c, a.T, b)):
            return False
    return True


def panels(p: int, q: int) -> int:
    """Count the panels of a matrix: none of one row alone, as a product with a vector is rounded otherwise.

    Example:
        >>> panels(40, 2000), panels(2000, 784), panels(3, 10**6)
        (1, 6, 1)
    """
    return max(1, min(-(-p * q // PANEL), p // 2 if q > 1 else 1))


def add_up(a: Sequence[Tensor], b: Sequence[Tensor], out: Tensor, spare: Sequence[Tensor], within: bool) -> None:
    """Sum aᵢ bᵢ into `out`, by way of what is spare: one tensor for each level of the tree; a last pair `within` a product."""
    half = len(a) // 2
    if half == 0:
        torch.mm(a[0], b[0], out=out)
    elif half == 1 and within:
        torch.mm(a[0], b[0], out=out)
        out.addmm_(a[1], b[1])
    else:
        add_up(a[:half], b[:half], out, spare, within)
        add_up(a[half:], b[half:], spare[0], spare[1:], within)
        out.add_(spare[0])
