"""Limits on building a model: refuse what a config asks for before it takes memory that the weights beside it do not fill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.common.safe_read import Layout, num_bytes
from pyro_vae.common.torch_private import dispatching
from pyro_vae.errors import RunFolderError

NAMES = "arange empty empty_strided eye full linspace logspace ones rand randint randn randperm tensor zeros"
FACTORIES = [getattr(torch, name) for name in NAMES.split()]
SPARE_BYTES, SPARE_CALLS = 64 * 2**20, 5_000
UNKNOWN_BYTES, UNKNOWN_CALLS = 2 * 2**30, 20_000  # of a run that holds no weights yet, to compare with


class BoundedBuild:
    """A limit on factories of tensors (zeros, randn, arange …): refused once they come to more than the weights account for."""

    def __init__(self, layout: Layout | None, spare: int = 0) -> None:
        self.bytes, self.calls = UNKNOWN_BYTES + spare, UNKNOWN_CALLS
        if layout is not None:
            self.bytes, self.calls = 8 * num_bytes(layout) + SPARE_BYTES + spare, 100 * len(layout) + SPARE_CALLS
        self.than = "a run without weights may" if layout is None else "the weights beside it"

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.calls -= 1
        if not any(isinstance(a, Tensor) for a in args) and "device" in kwargs and "generator" not in kwargs:
            shaped = func(*args, **{**kwargs, "device": "meta", "pin_memory": False})
            self.bytes -= shaped.numel() * shaped.element_size()
        if self.bytes < 0 or self.calls < 0:
            raise RunFolderError(f"config.json asks for a model far larger than {self.than}")
        return func(*args, **kwargs)


class FactoryCalls(TorchFunctionMode):
    """What Python calls of the factories goes to `handle`: for a torch that shows no operations."""

    def __init__(self, handle: BoundedBuild) -> None:
        super().__init__()
        self.handle = handle

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self.handle(func, args, {"device": None, **kwargs}) if func in FACTORIES else func(*args, **kwargs)


@contextmanager
def bounded_build(layout: Layout | None, spare: int = 0) -> Iterator[None]:
    """Limit what is built inside by the layout of the weights that will fill it, and `spare` bytes beside them.

    Without a layout, of a run that holds none yet, the limit is 2 GiB.

    Example:
        >>> with bounded_build({"w": ((10, 10), torch.float32)}):
        ...     torch.nn.Linear(10**6, 10**6)
        Traceback (most recent call last):
        pyro_vae.errors.RunFolderError: config.json asks for a model far larger than the weights beside it
    """
    bounds = BoundedBuild(layout, spare)
    with dispatching(bounds) or FactoryCalls(bounds):
        yield
