"""A run that takes the place of another: made beside it, exchanged with it by one rename, and the other deleted after that.

At each instant the folder's name is of one whole run: the one before, or the new one, which has not begun. What a kill leaves
is a folder beside it, hidden and ending in ``.part``; whoever next holds the run's lock deletes what is ours of it, and puts
what is somebody else's back into the run. Where the system cannot exchange two folders, or links no files, the run is emptied
in place.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import (
    PART,
    crash_point,
    delete,
    exchange,
    folder_in,
    storage,
    sync_folder,
    unlink,
)
from pyro_vae.common.held_folder import held, no_links_below

from . import folder
from .lock import locked


def create(path: Path, record: dict[str, Any], overwrite: bool = False) -> Path:
    """Begin a run in a folder, as far as :func:`~pyro_vae.runs.folder.check_free` allows: figures/ and config.json.

    For the holder of its lock. A run that it takes the place of is exchanged for it whole: whatever kills this, the folder
    holds the run before, or one that has not begun.

    Raises:
        BusyError: the run before is being scored.
    """

    def fill(new: Path) -> None:
        with storage(f"cannot create {path}"):
            folder_in(new, "figures")
        folder.write_json(new / "config.json", record)

    folder.check_free(path, overwrite)
    with locked(path, folder.EVALUATION_LOCK):
        with storage(f"cannot create {path}"):
            folder_in(path, "figures")
        if not ((path / "config.json").is_file() and replace_run(path, fill)):
            folder.clear(path)
            crash_point("emptied")
            fill(path)
        settle(path)
    return path


def replace_run(path: Path, fill: Callable[[Path], None]) -> bool:
    """Put a folder that `fill` has written into in the place of a run's; return whether that could be done by one rename.

    For the holder of its locks, which are those of the new folder, too. :func:`settle` deletes what was there.

    Raises:
        StorageError: the new folder cannot be written; the run is as it was.
    """
    real = path.resolve()
    beside = real.with_name(f".{real.name}.{os.getpid()}.{secrets.token_hex(4)}{PART}")
    try:
        beside.mkdir()
        for name in folder.LOCKS:  # the same files under both names: who holds one holds the other
            if (real / name).exists():
                os.link(real / name, beside / name, follow_symlinks=False)
    except OSError:
        delete(beside)
        return False
    try:
        fill(beside)
        sync_folder(beside)
        crash_point("beside")
        done = exchange(beside, real)
    except BaseException:
        delete(beside)
        raise
    if done:
        crash_point("exchanged")
        sync_folder(real.parent)
    else:
        delete(beside)
    return done


def settle(path: Path) -> None:
    """Delete what replacements of a run have left beside it; entries that are somebody else's go back into the run.

    For the holder of the run's lock.
    """
    real = path.resolve()
    left = re.compile(rf"\.{re.escape(real.name)}\.\d+\.[0-9a-f]{{8}}{re.escape(PART)}")
    with storage(f"cannot clear {path}"):
        for aside in [entry for entry in real.parent.glob(f".*{PART}") if left.fullmatch(entry.name)]:
            if aside.is_dir() and not aside.is_symlink():
                with no_links_below(aside), no_links_below(real):
                    empty(aside, real)


def empty(aside: Path, run: Path) -> None:
    """Delete what is ours of a run (or an ensemble) that was replaced, and move the rest into the run."""
    ensemble = (aside / folder.ENSEMBLE).is_file()
    folder.clear(aside)
    crash_point("cleared")
    for member in sorted(aside.glob("seed*/")) if ensemble else ():
        if not member.is_symlink():
            (empty if (member / "config.json").is_file() else leave)(member, run / member.name)
    for file in [*(aside.glob("seeds*.json") if ensemble else ()), aside / "config.json", aside / folder.ENSEMBLE]:
        unlink(file)
    leave(aside, run)


def leave(aside: Path, run: Path) -> None:
    """Move what is somebody else's into a run, and delete the folder."""
    move(aside / "figures", run / "figures")
    for name in folder.LOCKS:
        unlink(aside / name)
    move(aside, run)


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, as far as they are missing; a link in the place of one is not followed."""
    return folder_in(path.parent if path.parent.exists() else make_folder(path.parent), path.name)


def move(old: Path, new: Path) -> None:
    """Move the entries of a folder that another lacks into that one, and delete it if it is empty then."""
    if not old.is_dir() or old.is_symlink():
        return
    with held(old) as source:
        names = source.names()
        if names:
            with held(make_folder(new)) as target:
                for name in names:
                    if target.status(name) is None:
                        source.rename(name, name, target)
    with suppress(OSError), held(old.parent) as above:  # of two entries by one name both stay
        above.rmdir(old.name)
