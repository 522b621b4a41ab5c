"""Work shared by processes: each makes some of its parts, and all come to hold all of them, with the bits of one process.

A part's numbers depend on the part alone (its rows, its stream of noise), and not on which process makes it, or when. So
parts are exchanged as they are, and nothing is summed on the way.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.errors import IdleProcessesWarning, ProcessesError

from .exchange import gather_bytes
from .processes import Processes, processes
from .progress import tracked

Part = dict[str, Tensor]
SMALLER_CHUNKS = "take fewer processes, or a smaller chunk_size"
_by_itself: ContextVar[bool] = ContextVar("pyro_vae: works by itself", default=False)


def sharing() -> Processes:
    """Return this process's place among those that share the work that comes; (0, 1) within :func:`by_itself`.

    Example:
        >>> sharing()
        Processes(rank=0, world=1)
    """
    return Processes() if _by_itself.get() else processes()


@contextmanager
def by_itself() -> Iterator[None]:
    """Do what one process does while the others wait, or have work of their own: nothing inside is shared."""
    token = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(token)


def spread(
    count: int, make: Callable[[int], Part], what: str, verbose: bool = False, more: str | None = SMALLER_CHUNKS
) -> list[Part]:
    """Return parts 0 to `count` − 1, each made by one process: part i by rank i modulo the number of ranks.

    Args:
        count: of parts.
        make: makes a part, tensors by name; what it draws is of a stream of that part.
        what: where in the work that is, for errors and for the progress bar.
        verbose: a progress bar, of the parts of rank 0.
        more: what gives work to processes that have none, which a warning says; None: nothing is said of them.

    Raises:
        ProcessesError: on the other ranks, where `make` failed on one, whose own error it raises there.

    Example:
        >>> import torch
        >>> [part["square"].item() for part in spread(3, lambda i: {"square": torch.tensor(i**2)}, "squares")]
        [0, 1, 4]
    """
    here = sharing()
    if here.world == 1:
        return [make(i) for i in tracked(range(count), what, verbose)]
    own: dict[int, Part] = {}
    error = None
    try:
        if more is not None:
            warn_of_idle(
                here, count, what, more
            )  # an error to whoever makes errors of warnings, of which the others hear
        for i in tracked(range(here.rank, count, here.world), what, verbose):
            own[i] = make(i)
    except Exception as failed:
        error = failed
    made = {i: part for parts, _ in exchange(own, {}, what, error) for i, part in parts.items()}
    return [made[i] for i in range(count)]


def exchange(
    parts: Mapping[int, Part], about: Mapping[str, Any], what: str, error: Exception | None = None
) -> list[tuple[dict[int, Part], dict[str, Any]]]:
    """Give the other ranks these parts, and what JSON can hold `about` them; return those of each rank, in order.

    A rank that failed comes, too, with its `error`: so the others end where they are, and wait for nobody.

    Raises:
        ProcessesError: another rank failed, died or did not come.
    """
    ended = "" if error is None else f"{type(error).__name__}: {error}"
    tensors = {f"{i}/{name}": contiguous(t) for i, part in parts.items() for name, t in part.items()}
    empty = [i for i, part in parts.items() if not part]
    content = save(tensors, {"about": json.dumps({**about, "ended": ended, "empty": empty})})
    everyone = [opened(of_rank) for of_rank in gather_bytes(content, what)]
    if error is not None:
        raise error
    if failed := [
        f"rank {rank} ended with {about['ended']}" for rank, (_, about) in enumerate(everyone) if about["ended"]
    ]:
        raise ProcessesError(f"rank {processes().rank} stops at {what}: {'; '.join(failed)}")
    return everyone


def opened(content: bytes) -> tuple[dict[int, Part], dict[str, Any]]:
    """Read what a rank sent."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = json.loads(head["__metadata__"]["about"])
    parts: dict[int, Part] = {int(i): {} for i in about.pop("empty")}
    for name, tensor in load(content).items():
        i, _, own = name.partition("/")
        parts.setdefault(int(i), {})[own] = tensor
    return parts, about


def contiguous(tensor: Tensor) -> Tensor:
    """Copy a tensor of any device as a file holds it: in order, and with memory of its own."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def warn_of_idle(here: Processes, count: int, what: str, more: str) -> None:
    """Say on rank 0 how many processes have nothing to do, and what would give them `more`."""
    if here.leads and count < here.world:
        parts = f"{counted(count, 'part')} for {here.world} processes"
        idle = here.world - count
        warnings.warn(
            f"{what}: {parts}, of which {idle} {'have' if idle > 1 else 'has'} nothing to do. A part is as large as its noise "
            f"is drawn, whatever the processes: {more}.",
            IdleProcessesWarning,
            stacklevel=3,
        )


def own_share(items: Sequence[Any], here: Processes) -> Sequence[Any]:
    """Return this rank's part of a sequence: the ranks' parts follow each other, and differ by one in length at most.

    Example:
        >>> [list(own_share(range(7), Processes(rank, 3))) for rank in range(3)]
        [[0, 1], [2, 3], [4, 5, 6]]
    """
    count = len(items)
    return items[count * here.rank // here.world : count * (here.rank + 1) // here.world]
