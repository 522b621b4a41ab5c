"""Out of memory: tell it apart from other errors, on a device or the host, and raise one error for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pyro_vae.errors import DeviceMemoryError

from .lost_device import is_lost, lost

WORDS = ("can't allocate memory", "not enough memory", "alloc_cpu")  # the host says so in words only
SMALLER = "Free some of it, take a smaller chunk_size, or device='cpu'."


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory was lacking, on the device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)


@contextmanager
def fitting(what: str, way_on: str) -> Iterator[None]:
    """Raise one error that names what did not fit, where memory runs out inside, or what ran where the device fails.

    Args:
        what: starts the message: "a batch of 500 rows on cuda:0".
        way_on: what to do, a sentence.

    Raises:
        DeviceMemoryError: it does not fit.
        DeviceLostError: the device failed.

    Example:
        >>> with fitting("a batch of 500 rows", "Take a smaller one: batch_size=250."):
        ...     raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        Traceback (most recent call last):
        pyro_vae.errors.DeviceMemoryError: a batch of 500 rows does not fit into memory (CUDA out of memory. Tried to
        allocate 2.00 GiB.). Take a smaller one: batch_size=250.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_lost(error):
            raise lost(error, what) from error
        if isinstance(error, DeviceMemoryError) or not out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise DeviceMemoryError(f"{what} does not fit into memory ({reason}). {way_on}") from error
