"""One writer of checkpoints a folder, in Python, too: who trains holds their lock until training ends, however it does."""

from __future__ import annotations

import os
import weakref
from contextlib import ExitStack
from pathlib import Path
from threading import get_ident

from pyro_vae.common.atomic_write import folder_in
from pyro_vae.common.held_folder import no_links_below

from .checkpoint import FOLDER
from .lock import locked

_holding: weakref.WeakValueDictionary[str, OneWriter] = weakref.WeakValueDictionary()  # by folder, in this process


class OneWriter:
    """The lock of a folder's checkpoints.

    A training that was ended from outside in this thread, so that nobody let go of the lock (a SystemExit in a callback), is
    over: whoever trains next in the thread takes it. Another thread or process that holds it is a :class:`BusyError`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.stack, self.owner = path, ExitStack(), (0, 0)

    @property
    def holds(self) -> bool:
        return self.owner == me()

    def take(self) -> None:
        """Take the lock.

        Raises:
            BusyError: somebody else trains into the folder; the message names the process.
            StorageError: it cannot be written to.
        """
        if self.holds:
            return
        key = os.path.realpath(self.path)
        before = _holding.get(key)
        if before is not None and before.holds:
            before.release()
        with no_links_below(self.path):
            self.stack.enter_context(locked(folder_in(self.path, FOLDER)))
        self.owner = me()
        _holding[key] = self

    def release(self) -> None:
        """Let go of it."""
        self.owner = 0, 0
        with no_links_below(self.path):
            self.stack.close()


def me() -> tuple[int, int]:
    """Return this process and thread; a forked child has its parent's objects, and is another."""
    return os.getpid(), get_ident()
