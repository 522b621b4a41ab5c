"""A step's flat graph through Inductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.common.inductor import as_found, compile_module, compiler, log1p

from .flat_graph import FlatGraph, Unfinished, Untraceable

__all__ = ["as_found", "compile_flat", "compiler", "log1p"]


def compile_flat(flat: FlatGraph, batch: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile the graph to machine code, drawing the noise that it draws uncompiled.

    Raises:
        Unfinished: torch has no Inductor, or calls it otherwise; or it would leave out a check within the graph.
        Untraceable: no compiler, or the compiler gave up.
    """
    if batch[0].device.type == "cpu" and compiler() is None:
        raise Untraceable("no C++ compiler (g++ or clang++) was found, which Inductor needs")
    if flat.checks():
        raise Unfinished("it factorises matrices, and the compiler would leave out whether that went well")
    return compile_module(flat.module, [*batch, *flat.state])
