"""Limits on building a model: refuse what a config asks for before it takes memory beyond its weights, or the machine's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.common.safe_read import Layout, num_bytes
from pyro_vae.common.torch_private import dispatching
from pyro_vae.errors import DeviceMemoryError, PyroVAEError, RunFolderError, UsageError
from pyro_vae.objectives.bound_objective import free_bytes

NAMES = "arange empty empty_strided eye full linspace logspace ones rand randint randn randperm tensor zeros"
FACTORIES = [getattr(torch, name) for name in NAMES.split()]
SPARE_BYTES, SPARE_CALLS = 64 * 2**20, 5_000
UNKNOWN_BYTES, UNKNOWN_CALLS = 2 * 2**30, 20_000  # of a run that holds no weights yet, to compare with
OWN_CALLS = 200_000  # of a config of one's own: some seconds, of tens of thousands of layers


@dataclass
class BoundedBuild:
    """A limit on factories of tensors (zeros, randn, arange …), and on operations: refused once they come to more.

    Attributes:
        bytes: that are left to factories.
        calls: operations that are left.
        refusal: makes the error, told whether it is of bytes.
    """

    bytes: float
    calls: int
    refusal: Callable[[bool], PyroVAEError]

    def __call__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.calls -= 1
        if not any(isinstance(a, Tensor) for a in args) and "device" in kwargs and "generator" not in kwargs:
            shaped = func(*args, **{**kwargs, "device": "meta", "pin_memory": False})
            self.bytes -= shaped.numel() * shaped.element_size()
        if self.bytes < 0 or self.calls < 0:
            raise self.refusal(self.bytes < 0)
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
    num, calls, than = UNKNOWN_BYTES, UNKNOWN_CALLS, "a run without weights may"
    if layout is not None:
        num, calls, than = 8 * num_bytes(layout) + SPARE_BYTES, 100 * len(layout) + SPARE_CALLS, "the weights beside it"
    refused = RunFolderError(f"config.json asks for a model far larger than {than}")
    with bounded(BoundedBuild(num + spare, calls, lambda of_bytes: refused)):
        yield


@contextmanager
def within_machine(device: torch.device, free: float | None = None) -> Iterator[None]:
    """Limit what is built inside to half of the memory that is free, and to the operations of a model that can be trained.

    Training holds each weight four times (its gradient, and two moments of Adam's), so that what is refused here would not
    have been trained: it would have run, or allocated, until the system killed it.

    Args:
        device: where the model goes.
        free: bytes of its memory; None asks the system, and where that does not tell, there is no limit of bytes.

    Raises:
        DeviceMemoryError: more bytes.
        UsageError: more operations.

    Example:
        >>> with within_machine(torch.device("cpu"), free=2**20):
        ...     torch.nn.Linear(1000, 1000)
        Traceback (most recent call last):
        pyro_vae.errors.DeviceMemoryError: the model that these options ask for takes more than 0.5 MiB for its ...
    """
    free = free_bytes((torch.empty(0, device=device),)) if free is None else free
    limit = math.inf if free is None else free / 2

    def refusal(of_bytes: bool) -> PyroVAEError:
        if of_bytes:
            return DeviceMemoryError(
                f"the model that these options ask for takes more than {limit / 2**20:,.1f} MiB for its weights, and {device} "
                f"has {(free or 0) / 2**20:,.1f} MiB free, of which training takes four times the weights. Take smaller "
                "--hidden, --latent-dim, or options of its parts; or another --device."
            )
        return UsageError(
            f"the model that these options ask for takes more than {OWN_CALLS:,} operations to be built, as of "
            "thousands of layers: take fewer in --hidden, or smaller options of its parts."
        )

    with bounded(BoundedBuild(limit, OWN_CALLS, refusal)):
        yield


def bounded(bounds: BoundedBuild) -> AbstractContextManager[Any]:
    """Have these bounds look at what is built inside."""
    return dispatching(bounds) or FactoryCalls(bounds)
