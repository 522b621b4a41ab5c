"""Several processes that work on one run, as torchrun starts them: who they are, what they tell each other, who is missing.

Whatever asks is answered without torchrun, too, as by one process. What they exchange is in
:mod:`~pyro_vae.common.exchange`. A process that dies, leaves or hangs ends the others, with its rank and the place where
they waited for it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import distributed

from pyro_vae.common import torch_private
from pyro_vae.errors import ProcessesError, UsageError

from .meeting import meet

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them
TIMEOUT = 600.0  # seconds that the others wait for one: longer than a step, an evaluation of a few rows, a checkpoint
LOOK = 2.0  # seconds to find out who is missing
NOTE = "pyro_vae/{}/{}"  # notes of a rank in the group's store: process, at, ended
ABSENT = "has not come"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together: `rank` of `world`."""

    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes, locks and prints."""
        return self.rank == 0


def processes() -> Processes:
    """Return this process's place in the group of torch.distributed that is open, or (0, 1) where there is none.

    Example:
        >>> processes()
        Processes(rank=0, world=1)
        >>> processes().leads
        True
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return Processes()
    return Processes(distributed.get_rank(), distributed.get_world_size())


@contextmanager
def joined(
    device: torch.device | str = "auto", timeout: float = TIMEOUT, environment: Mapping[str, str] = os.environ
) -> Iterator[Processes]:
    """Join the processes that torchrun has started, and part after; without torchrun, or with one process, do nothing.

    Args:
        device: where the work runs; on CUDA each process takes the GPU of its LOCAL_RANK.
        timeout: seconds that one waits for another, before it ends with a ProcessesError.
        environment: where torchrun's variables are.

    Raises:
        UsageError: an environment of which a part is missing or is no number; fewer GPUs than processes.
        ProcessesError: the others cannot be reached, or the port is another program's.

    Example:
        >>> with joined(environment={}) as here:
        ...     here.world
        1
    """
    asked = asked_of(environment)
    if asked.world == 1 or processes().world > 1:  # whoever has opened a group closes it
        yield processes()
        return
    if not distributed.is_available():
        raise ProcessesError(f"WORLD_SIZE={asked.world}, and this torch was built without torch.distributed")
    open_group(asked, device, timeout, environment)
    try:
        note("process", f"{socket.gethostname()} {os.getpid()}")
        yield asked
    except BaseException as error:
        lines = str(error).strip().splitlines()
        note("ended", f"{type(error).__name__}{': ' * bool(lines)}{lines[0] if lines else ''}")
        raise
    finally:
        with suppress(RuntimeError):  # of connections that others have closed
            distributed.destroy_process_group()


def asked_of(environment: Mapping[str, str]) -> Processes:
    """Read torchrun's variables; (0, 1) where there are none."""
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return Processes()
    how = "start the processes by torchrun --nproc-per-node W -m pyro_vae -- ..., or one without these variables"
    if absent := [name for name in NEEDED if name not in environment]:
        if environment.get("WORLD_SIZE") == "1":
            return Processes()
        raise UsageError(
            f"the environment has {' and '.join(set(NEEDED) & set(environment))} but no {absent[0]}: {how}"
        )
    numbers = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise UsageError(f"{name}={value!r} in the environment is no whole number: {how}")
    rank, world = int(numbers["RANK"]), int(numbers["WORLD_SIZE"])
    if rank >= world:
        raise UsageError(f"RANK={rank} and WORLD_SIZE={world} in the environment: ranks are 0 to WORLD_SIZE − 1; {how}")
    return Processes(rank, world)


def open_group(asked: Processes, device: torch.device | str, timeout: float, environment: Mapping[str, str]) -> None:
    """Open the group of torch.distributed: gloo on the CPU, and NCCL beside it on CUDA."""
    cuda = torch.cuda.is_available() and torch.device("cuda" if device == "auto" else device).type == "cuda"
    if cuda:
        local = int(environment.get("LOCAL_RANK", asked.rank))
        if local >= (seen := torch.cuda.device_count()):
            how = f"start {seen} processes on this machine, or say --device cpu"
            raise UsageError(f"process {local} of this machine has no GPU, as torch sees {seen} here: {how}")
        torch.cuda.set_device(local)
    address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=meet(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), asked.rank, asked.world, timeout),
            rank=asked.rank,
            world_size=asked.world,
            timeout=timedelta(seconds=timeout),
        )
    except (RuntimeError, OSError, ValueError) as error:
        cause = first_line(error)
        in_use = "address already in use" in str(error).lower() or "EADDRINUSE" in str(error)
        why = "the port is in use: choose another MASTER_PORT, or torchrun --standalone" if in_use else cause
        raise ProcessesError(
            f"rank {asked.rank} of {asked.world} did not meet the others at {address}: {why}"
        ) from error


# Who is missing


def collective(call: Callable[[], Any], what: str) -> None:
    """Do what all ranks do together; where it fails, say which rank did not come, and to what."""
    note("at", what)
    try:
        call()
    except RuntimeError as error:
        explain(what, error)


def explain(what: str, error: RuntimeError) -> NoReturn:
    """Raise, in the place of an error of torch.distributed, one that says which rank did not come, and why if it is known."""
    here = processes()
    if "No backend type associated with device type" in str(error):  # of a group that another program opened
        raise UsageError(
            f"the group of torch.distributed that is open cannot exchange what is on this device ({first_line(error)}): open "
            'it with backend="cpu:gloo,cuda:nccl", or have each rank work alone, within pyro_vae.common.spread.by_itself()'
        ) from error
    whom = missing(what, here) or "a rank did not come"
    raise ProcessesError(f"rank {here.rank} waited at {what}: {whom} ({first_line(error)})") from error


def missing(what: str, here: Processes) -> str:
    """Say of each rank that ended, died or is elsewhere, what is known of it; "" where nothing is."""
    store = torch_private.group_store()
    if store is None:
        return ""
    with suppress(RuntimeError):
        store.set_timeout(timedelta(seconds=LOOK))
    others = [rank for rank in range(here.world) if rank != here.rank]
    until = time.monotonic() + LOOK
    try:
        while True:
            told = "; ".join(filter(None, (state_of(store, rank, what) for rank in others)))
            if (told and ABSENT not in told) or time.monotonic() > until:
                return told
            time.sleep(0.05)  # a process that was killed closes its connections before it is gone
    except RuntimeError:  # the store was in rank 0's own process
        return "rank 0 has ended, or does not answer"


def state_of(store: Any, rank: int, what: str) -> str:
    """Say why a rank has not come; "" where it has."""
    ended, process, at = (read_note(store, kind, rank) for kind in ("ended", "process", "at"))
    if ended:
        return f"rank {rank} ended with {ended}"
    if process and is_gone(process):
        return f"rank {rank} has died (process {process.split()[-1]})" + (f" after it came to {at}" if at else "")
    return "" if at == what else f"rank {rank} {ABSENT}: it was last seen at {at or 'the start'}"


def note(kind: str, text: str) -> None:
    """Leave a note for the other ranks, where the store of the group still stands."""
    store = torch_private.group_store()
    if store is not None:
        with suppress(RuntimeError):
            store.set(NOTE.format(kind, processes().rank), text[:1000])


def read_note(store: Any, kind: str, rank: int) -> str:
    """Read what a rank noted; nothing, where it did not."""
    key = NOTE.format(kind, rank)
    return str(store.get(key).decode(errors="replace")) if store.check([key]) else ""


def is_gone(process: str) -> bool:
    """Return whether a process of this machine, ``host pid``, has ended; False of other machines' processes."""
    host, _, pid = process.rpartition(" ")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with suppress(OSError):  # a system without /proc
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    return False


def first_line(error: BaseException) -> str:
    """Return the first line of a message, without torch's place in its source."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rpartition("] ")[2] if lines[0].startswith("[") and "] " in lines[0] else lines[0]
