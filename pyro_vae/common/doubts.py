"""Questions about numbers, answered now or put off: a graph cannot read a tensor, and notes what is to be looked at instead.

Scoring asks whether parameters are valid, and mostly hears that they are. While a graph is traced nothing can be read:
each question becomes a flag, the answer that all is well is assumed, and whoever runs the graph looks at one flag for all of
them; where it is set, the programs themselves are run on the same numbers, and say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

NOTES: ContextVar[list[Tensor] | None] = ContextVar("NOTES", default=None)


@contextmanager
def put_off() -> Iterator[list[Tensor]]:
    """Put off all questions inside; yields the list of their flags, tensors ``()`` of bool.

    Example:
        >>> with put_off() as flags:
        ...     is_doubtful(torch.tensor([1.0, -1.0]).min() < 0)
        False
        >>> flags
        [tensor(True)]
    """
    notes: list[Tensor] = []
    token = NOTES.set(notes)
    try:
        yield notes
    finally:
        NOTES.reset(token)


def putting_off() -> bool:
    """Return whether questions are put off."""
    return NOTES.get() is not None


def is_doubtful(flag: Tensor) -> bool:
    """Read a flag; where questions are put off, note it and answer False."""
    notes = NOTES.get()
    if notes is None:
        return bool(flag)
    notes.append(flag)
    return False


def any_of(flags: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return one flag for all of them, ``()``, on the device of `like`."""
    return torch.stack(list(flags)).any() if flags else torch.zeros((), dtype=torch.bool, device=like.device)
