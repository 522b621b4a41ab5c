"""Products within networks at fewer digits than float32, everything else in float32: log-probabilities stay what they are."""

from __future__ import annotations

import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
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


class TensorFloat32:
    """Products of float32 matrices round their factors to the 10 bits of TF32, on CUDA from Ampere on; sums stay float32.

    Torch has one switch for the process (``torch.backends.cuda.matmul``), which is put back on leaving, even if it stands for
    "not said". It is read when a product is launched, or captured, so a step is inside with its backward pass. Nothing
    changes on a CPU. Convolutions have a switch of their own (``torch.backends.cudnn``), which torch has on from the start.

    References:
        Numerical accuracy (PyTorch), https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html

    Example:
        >>> from torch.backends.cuda import matmul
        >>> with TensorFloat32():
        ...     matmul.allow_tf32
        True
        >>> matmul.allow_tf32
        False
    """

    def __enter__(self) -> None:
        matmul = torch.backends.cuda.matmul
        # torch 2.9 added a second name for the switch, and reading by the first fails once the second has set it
        self.was: Any = getattr(matmul, "fp32_precision", None)
        self.on = matmul.allow_tf32 if self.was is None else self.was == "tf32"
        if not self.on:
            matmul.allow_tf32 = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.on:
            return
        torch.backends.cuda.matmul.allow_tf32 = False
        if self.was is not None:
            torch.backends.cuda.matmul.fp32_precision = self.was


Context = Callable[[], AbstractContextManager[Any]]
PRECISIONS: dict[str, Context] = {"float32": nullcontext, "tf32": TensorFloat32, "bf16": Bfloat16}


def precision_of(name: str) -> Context:
    """Choose the context that a step's networks run in; raise UsageError for a name that is none of :data:`PRECISIONS`."""
    if name not in PRECISIONS:
        raise UsageError(f"precision={name!r}: choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def name_of(context: Context) -> str:
    """Name a context that :func:`precision_of` chose; another one by its own name.

    Example:
        >>> name_of(precision_of("bf16"))
        'bf16'
    """
    return next((name for name, known in PRECISIONS.items() if known is context), getattr(context, "__name__", "other"))


def matmul_switches() -> tuple[Any, ...]:
    """Read torch's switches of how float32 matrices are multiplied, on CUDA and on the CPU, by the names that were set."""
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.matmul if hasattr(torch.backends.mkldnn, "matmul") else None,
    )
    read = [getattr(backend, "fp32_precision", None) for backend in backends]
    return (torch.get_float32_matmul_precision(),) if read[0] is None else tuple(read)


def rounds(context: Context) -> bool:
    """Return whether products are rounded to fewer bits than float32 has: where a compiler fuses, it rounds elsewhere."""
    return context in (Bfloat16, TensorFloat32)


def whole_step(context: Context) -> AbstractContextManager[Any]:
    """Enter what a step's backward pass needs, too, and what is launched or captured of it: TF32's switch, nothing else."""
    return TensorFloat32() if context is TensorFloat32 else nullcontext()


def remarks(name: str, device: torch.device) -> list[str]:
    """List a note where a precision does nothing, or costs time: some processors are slower in bfloat16 than in float32."""
    if name == "tf32" and not has_tf32(device):
        return [
            f"precision='tf32' changes nothing on {device}: products in TF32 need a CUDA device of compute capability 8.0"
        ]
    if name != "bf16" or device.type != "cpu":
        return []
    speed = seconds(torch.float32) / seconds(torch.bfloat16)
    note = f"precision='bf16': products in bfloat16 run at {speed:.2f} of float32's speed here, leave it out"
    return [] if speed > 1 else [note]


def has_tf32(device: torch.device) -> bool:
    """Return whether a device multiplies in TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def seconds(dtype: torch.dtype) -> float:
    """Time a product of two matrices on this processor, the least of ten times."""
    a, b = torch.ones(512, 784, dtype=dtype), torch.ones(784, 512, dtype=dtype)
    return min(timeit.repeat(lambda: torch.mm(a, b), number=1, repeat=10))
