"""Networks in bfloat16, everything else in float32: the products are fast, and log-probabilities stay what they are."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyro_vae.errors import UsageError

LAYERS = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
PRODUCTS = {getattr(functional, name) for name in LAYERS.split()}


class Bfloat16(TorchFunctionMode):
    """Linear and convolutional layers take float32, multiply in bfloat16 (sums are kept in float32), and give float32.

    Autocast hands bfloat16 on to what follows a layer, which would be the log-probabilities; here a layer's own arithmetic
    alone is rounded, to 8 bits. Their gradients are products in bfloat16, too; parameters and optimizer stay float32.

    References:
        Mixed Precision Training (Micikevicius et al., 2018), https://arxiv.org/abs/1710.03740

    Example:
        >>> layer, x = torch.nn.Linear(9, 3), torch.ones(5, 9)
        >>> with Bfloat16():
        ...     y = layer(x)
        >>> y.dtype, torch.equal(y, layer(x)), (y - layer(x)).abs().max().item() < 0.02
        (torch.float32, False, True)
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS or args[0].dtype != torch.float32:
            return func(*args, **kwargs)
        narrow = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return func(*(a.bfloat16() if isinstance(a, Tensor) else a for a in args), **narrow).float()


Context = Callable[[], AbstractContextManager[Any]]
PRECISIONS: dict[str, Context] = {"float32": nullcontext, "bf16": Bfloat16}


def precision_of(name: str) -> Context:
    """Choose the context that a step's networks run in; raise UsageError for another name than "float32" or "bf16"."""
    if name not in PRECISIONS:
        raise UsageError(f"precision={name!r}: choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def remarks(name: str, device: torch.device) -> list[str]:
    """List a note where a precision costs time: some processors are slower in bfloat16 than in float32."""
    if name != "bf16" or device.type != "cpu":
        return []
    speed = seconds(torch.float32) / seconds(torch.bfloat16)
    note = f"precision='bf16': products in bfloat16 run at {speed:.2f} of float32's speed here, leave it out"
    return [] if speed > 1 else [note]


def seconds(dtype: torch.dtype) -> float:
    """Time a product of two matrices on this processor, the least of ten times."""
    a, b = torch.ones(512, 784, dtype=dtype), torch.ones(784, 512, dtype=dtype)
    return min(timeit.repeat(lambda: torch.mm(a, b), number=1, repeat=10))
