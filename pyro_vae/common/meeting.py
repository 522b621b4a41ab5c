"""Where processes of one run meet: the store at the address that torchrun names, within a time, whoever has the port.

torch's own connect waits for the answer of what listens there without end. A store of rank 0 answers at once, however busy
that process is; so a port that takes connections, and says nothing or something else, is another program's.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed

SILENT = 60.0  # seconds that what listens may take to answer as it should: beyond any load of a machine
LATE = 10.0  # seconds beyond those that torch was given
LOOK = 0.5  # seconds between two looks at the port


def meet(host: str, port: int, rank: int, world: int, timeout: float) -> Any:
    """Return the store of a group, which rank 0 opens (or torchrun has opened) and all others connect to.

    Args:
        host, port: the address that all were given.
        rank, world: of this process.
        timeout: seconds that it waits for the others, and for an answer SILENT at most.

    Raises:
        TimeoutError: something listens there and is no store, or nobody came.
        RuntimeError, OSError, ValueError: as torch says it, such as of a port in use.
    """
    found: list[Any] = []
    waiting = threading.Thread(target=connect, args=(f"tcp://{host}:{port}", rank, world, timeout, found), daemon=True)
    waiting.start()  # what never returns is left behind, and ends with the process
    start, heard = time.monotonic(), None
    while waiting.is_alive():
        waiting.join(LOOK)
        now = time.monotonic()
        if rank and heard is None and listens(host, port):  # rank 0 itself waits for the others, at its own port
            heard = now
        if waiting.is_alive() and heard is not None and now - heard > min(SILENT, timeout):
            raise TimeoutError(
                f"what listens there has not answered as a store of rank 0 does for {now - heard:.0f} s: another program has "
                "the port. Choose another MASTER_PORT, or torchrun --standalone"
            )
        if waiting.is_alive() and now - start > timeout + LATE:
            raise TimeoutError(f"nobody answered for {now - start:.0f} s")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def connect(address: str, rank: int, world: int, timeout: float, found: list[Any]) -> None:
    """Leave in `found` the store, or the error of torch."""
    try:
        store, _, _ = next(distributed.rendezvous(address, rank, world, timeout=timedelta(seconds=timeout)))
        store.set_timeout(timedelta(seconds=timeout))
        found.append(distributed.PrefixStore("default_pg", store))  # apart from what others keep there, as torch has it
    except BaseException as error:
        found.append(error)


def listens(host: str, port: int) -> bool:
    """Return whether a connection to the port is taken."""
    with suppress(OSError):
        socket.create_connection((host, port), timeout=LOOK).close()
        return True
    return False
