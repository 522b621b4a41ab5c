"""A flat graph through Inductor; process-wide settings that torch's compiler changes are restored."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import torch
from pyro import settings
from torch import Tensor

from . import torch_private
from .flat_program import FlatProgram, Unfinished, Untraceable
from .matrix_products import by_onednn

VALIDATE = "validate_distributions_torch"


def compiler() -> str | None:
    """Find the C++ compiler that Inductor would call, or None."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


@torch_private.without_leftovers()
@torch_private.without_sources()
def compile_flat(flat: FlatProgram, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """Compile a graph to machine code, drawing the noise that it draws uncompiled.

    Raises:
        Unfinished: torch has no Inductor, or calls it otherwise; or it would leave out a check within the graph.
        Untraceable: no compiler, or the compiler gave up.
    """
    if inputs[0].device.type == "cpu" and compiler() is None:
        raise Untraceable("no C++ compiler (g++ or clang++) was found, which Inductor needs")
    if flat.checks():
        raise Unfinished("it factorises matrices, and the compiler would leave out whether that went well")
    if reason := torch_private.lacks(*torch_private.INDUCTOR):
        raise Unfinished(reason)
    config, compile_fx, select_decomp_table = map(torch_private.find, torch_private.INDUCTOR)
    try:
        with as_found(), torch.no_grad():
            table = {**select_decomp_table(), torch.ops.aten.log1p.default: log1p}
            given = [*inputs, *flat.state]
            patched = config.patch(fallback_random=True, compile_threads=1)(compile_fx)
            # in a context of its own: each setting that is changed on the way leaves a variable in it
            run: Any = copy_context().run(patched, by_onednn(flat.module, given), given, decompositions=table)
            return run
    except Exception as error:  # the compiler's own errors are many
        what = str(error).strip().split("\n")[0] or "no message"
        raise Untraceable(f"Inductor gave up: {type(error).__name__}: {what}") from error


def compile_cpp(source: str) -> Any:
    """Compile C++ against torch's libraries into Inductor's cache on disk, and load it; None where that cannot be."""
    if compiler() is None:
        return None
    with as_found():
        return copy_context().run(torch_private.load_cpp, source)


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) by one logarithm and what rounding 1 + x lost of x: to the last digits, eight times torch's vector code.

    Softplus and log-sigmoid are made of it, and took a third of a small VAE's step.

    Example:
        >>> x = torch.tensor([1e-30, -1e-9, 1e-4, 1.0, 1e9, -1.0, float("inf")], dtype=torch.float64)
        >>> torch.equal(log1p(x).isinf(), x.log1p().isinf()), torch.allclose(log1p(x)[:5], x[:5].log1p(), rtol=1e-15)
        (True, True)
    """
    rounded = x + 1
    remainder = rounded - 1
    return rounded.log() - torch.where(remainder == x, 0.0, (remainder - x) / rounded)


@contextmanager
def as_found() -> Iterator[None]:
    """Silence the compiler inside; restore distribution validation and threads after."""
    log = logging.getLogger("torch.utils.cpp_extension")
    level, threads = log.level, torch.get_num_threads()
    try:
        log.setLevel(logging.ERROR)
        with settings.context(**{VALIDATE: settings.get(VALIDATE)}), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.setLevel(level)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
