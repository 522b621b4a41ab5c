"""Buffers of modules (batch statistics): a run of the programs that only looks leaves them as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .pair import owners


@contextmanager
def buffers_restored(*things: Any) -> Iterator[None]:
    """Restore the buffers of the programs' modules after, however it ends.

    Example:
        >>> from torch import nn
        >>> norm = nn.BatchNorm1d(2)
        >>> with buffers_restored(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> norm.num_batches_tracked.item()
        0
    """
    before = [(b, b.detach().clone()) for module in owners(*things) for b in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
