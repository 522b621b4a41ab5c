"""Work that a GPU was given and has not done yet: results on their way to the host, and a wait for these alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def computes_behind(device: torch.device) -> bool:
    """Return whether a device works on while the host goes on: a GPU does."""
    return device.type == "cuda"


class OnTheWay:
    """Copies of tensors on the host, which are there after :meth:`wait`; what a GPU is given later is not waited for.

    Example:
        >>> made = OnTheWay([torch.ones(2), torch.zeros(1)])
        >>> made.wait()
        [tensor([1., 1.]), tensor([0.])]
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        on_gpu = any(t.is_cuda for t in tensors)
        self.copies = [t.to("cpu", non_blocking=True) if t.is_cuda else t for t in tensors]  # into pinned memory
        self.done = torch.cuda.Event() if on_gpu else None
        if self.done is not None:
            self.done.record()

    def wait(self) -> list[Tensor]:
        """Return the copies, in memory of their own."""
        if self.done is None:
            return self.copies
        self.done.synchronize()
        return [t.clone() for t in self.copies]
