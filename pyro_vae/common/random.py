"""Seeds and private random streams: a block draws from its own seed, and leaves the global state as it found it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pyro_vae.common.given import whole


@contextmanager
def seeded(seed: int, *block: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch (CPU, and `device` if it is CUDA) with (seed, *block) inside, and restore its generators after.

    Args:
        seed: any non-negative integer.
        *block: integers that name a part of the work, so that its noise does not depend on what ran before it.
        device: where the work runs.

    Example:
        >>> with seeded(0, 3):
        ...     a = torch.rand(())
        >>> with seeded(0, 3):
        ...     b = torch.rand(())
        >>> bool(a == b)
        True
    """
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # not torch.manual_seed, which would seed every GPU as well
        torch.random.default_generator.manual_seed(stream(seed, *block))
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(stream(seed, *block))
        yield


def random_states(device: torch.device) -> list[torch.Tensor]:
    """Return the global random state, on the CPU and on `device`, if that is a GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore_states(device: torch.device, states: list[torch.Tensor]) -> None:
    """Set the global random state to what :func:`random_states` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def stream(seed: int, *block: int) -> int:
    """Mix a 63-bit seed for one part of the work, the same in every process.

    Raises:
        UsageError: a seed that is no whole number from 0.
    """
    state = np.random.SeedSequence(entropy=whole("seed", seed, 0), spawn_key=block).generate_state(1, np.uint64)[0]
    return int(state >> 1)  # manual_seed takes 63 bits without a sign
