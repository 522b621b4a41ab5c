"""Lock of a run folder: one writer each. It is the kernel's, so that it ends with its process, kill −9 included."""

from __future__ import annotations

import json
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.common.atomic_write import storage, unlink, write_atomic
from pyro_vae.common.held_folder import held
from pyro_vae.common.plain_text import plain
from pyro_vae.common.safe_read import MIB, parse_json, read_bytes
from pyro_vae.errors import BusyError, RunFolderError

LOCK = ".lock"
PATIENCE = 1.0  # seconds for the owner to say who it is
TOLD = 10.0  # seconds between notes on who is waited for


@contextmanager
def locked(path: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Lock a folder for one writer.

    Args:
        path: the folder, which exists.
        name: of the lock's file in it; beside it stands who holds it.
        wait: until it is free, in place of refusing; notes say for whom.

    Raises:
        BusyError: another process holds it; names its pid, its host and since when.
        StorageError: the folder cannot be written to.
        RunFolderError: a link stands in the place of the lock.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        ...     with locked(Path(folder)):  # doctest: +IGNORE_EXCEPTION_DETAIL
        ...         pass
        Traceback (most recent call last):
        pyro_vae.errors.BusyError: ... is being written to by process ...
    """
    refuse_link(path, name)
    lock, owner = FileLock(path / name, timeout=0), path / f"{name}.json"
    with storage(f"cannot lock {path}"):
        try:
            acquire(lock, owner, wait)
        except Timeout:  # an OSError, too
            raise BusyError(
                f"{path} is being written to by {describe_owner(owner)}. Wait for it, or take another folder."
            ) from None
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        write_atomic(owner, json.dumps({"pid": os.getpid(), "host": platform.node(), "since": since}))
        yield
    finally:
        with suppress(OSError):
            unlink(owner)
        lock.release()


def refuse_link(path: Path, name: str) -> None:
    """Refuse a lock in whose place a link stands: it would be opened by name.

    Raises:
        RunFolderError: one does.
        StorageError: the folder is gone, or a link itself where links are not followed.
    """
    with storage(f"cannot lock {path}"), held(path) as place:
        found = [status for entry in (name, f"{name}.json") if (status := place.status(entry)) is not None]
    if any(stat.S_ISLNK(status.st_mode) for status in found):
        raise RunFolderError(f"{path / name} is a link, and links in a run are not followed: delete it")


def acquire(lock: FileLock, owner: Path, wait: bool) -> None:
    """Take the lock; if it is to be waited for, say now and then who holds it: a process that was stopped never lets go."""
    while True:
        try:
            lock.acquire(timeout=TOLD if wait else 0)
            return
        except Timeout:
            if not wait:
                raise
            print(f"note: waiting for {describe_owner(owner)}, which scores {owner.parent}", file=sys.stderr)


def describe_owner(owner: Path) -> str:
    """Describe the process that holds the lock, once it has written who it is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            record = parse_json(read_bytes(owner, MIB), owner)
            return plain(
                f"process {int(record['pid'])} on {str(record['host'])[:80]} since {str(record['since'])[:40]}"
            )
        except (RunFolderError, ArithmeticError, ValueError, KeyError, TypeError):
            if time.monotonic() > deadline:
                return "another process"
        time.sleep(0.02)
