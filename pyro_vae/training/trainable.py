"""What a step of training refuses of parameters and layers: gradients that no optimizer here takes, or that are lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.programs.pair import owners

from .optimizers import name_parameters

QUANTIZED = ("torch.ao.nn.", "torch.nn.quantized.")  # where torch has layers of whole numbers, by their class's module


def check_trained(parameters: Sequence[Tensor]) -> None:
    """Refuse parameters that cannot be trained as they are, by name, once the first loss has left gradients on them.

    Raises:
        UsageError: sparse gradients (``nn.Embedding(sparse=True)``), complex numbers, half precision.

    Example:
        >>> check_trained([torch.zeros(2, dtype=torch.complex64, requires_grad=True)])
        Traceback (most recent call last):
          ...
        pyro_vae.errors.UsageError: parameter 'one of shape (2,)' is complex (torch.complex64), and ...
    """
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise UsageError(
                f"{named(p)} gets a sparse gradient, as nn.Embedding(sparse=True) makes them, and the optimizers of fit take "
                "dense ones. Fix: leave sparse=True out (embedding.sparse = False on one that is made)."
            )
        if p.is_complex():
            raise UsageError(
                f"{named(p)} is complex ({p.dtype}), and fit trains real numbers. Fix: hold its real and imaginary parts as a "
                "real parameter, nn.Parameter(torch.view_as_real(c)), and make torch.view_as_complex(p) of it where it is "
                "used; or freeze it: requires_grad_(False)."
            )
        if p.dtype == torch.float16:
            raise UsageError(
                f"{named(p)} is in float16, in which Adam's eps is 0 and small steps are none: its weights become NaN. Fix: "
                "module.float(), and precision='bf16' for speed."
            )


def named(parameter: Tensor) -> str:
    """Name a parameter for a message."""
    return f"parameter {name_parameters([parameter])}"


@contextmanager
def no_gradient_lost(*programs: Any) -> Iterator[None]:
    """Refuse to run a quantized layer on what a gradient is wanted of: it returns numbers without one, and says nothing.

    The loss would stay the loss, and the gradients would be those of another: what feeds the layer is told nothing by what is
    behind it. A quantized layer that sees the data alone, as one that prepares rows, loses none.

    Raises:
        ProgramError: names the layer.
    """
    with ExitStack() as stack:
        for owner in owners(*programs):
            for name, layer in owner.named_modules():
                if type(layer).__module__.startswith(QUANTIZED) and "quantized" in type(layer).__module__:
                    stack.callback(layer.register_forward_pre_hook(refusal(name)).remove)
        yield


def refusal(name: str) -> Any:
    """Make the hook that refuses to run a layer of this name."""

    def refuse(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in inputs):
            raise ProgramError(
                f"layer {name!r} is quantized ({type(layer).__module__}.{type(layer).__name__}), and no gradient passes "
                "through it to what comes before it. Fix: train the layers in float32, and quantize a copy of them afterwards."
            )

    return refuse
