"""Files that are there whole or not at all, whatever kills the process or fills the disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyro_vae.errors import StorageError

PART = ".part"  # ending of what is not whole yet
WAYS_ON = {
    errno.ENOSPC: "Free some space and go on",
    errno.EDQUOT: "Free some of your quota and go on",
    errno.EFBIG: "Raise the limit on file sizes and go on",
    errno.EROFS: "Write to another folder",
    errno.EACCES: "Get write permission, or take another folder",
    errno.ENOENT: "The folder is gone: was it moved or deleted? Put it back, or take another one",
}


def crash_point(name: str) -> None:
    """Where tests kill the process: $PYRO_VAE_CRASH_AT names a point, and perhaps the visit ("best:3")."""
    wanted, _, visit = os.environ.get("PYRO_VAE_CRASH_AT", "").partition(":")
    if wanted == name:
        VISITS[name] = VISITS.get(name, 0) + 1
        if VISITS[name] == int(visit or 1):
            os.kill(os.getpid(), signal.SIGKILL)


VISITS: dict[str, int] = {}


def write_atomic(path: Path, content: bytes | str) -> None:
    """The file as a whole or not at all: under another name, synced, renamed, and the folder synced.

    Raises:
        StorageError: it cannot be written; a file of that name is as it was, and nothing half-written is left.

    Example:
        >>> import tempfile
        >>> from pyro_vae.common.atomic_write import write_atomic
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder) / "a.txt", "whole")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    with storage(f"cannot write {path}"):
        try:
            put(temporary, content.encode() if isinstance(content, str) else content)
            crash_point("written")
            os.replace(temporary, path)
            crash_point("renamed")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def publish(path: Path, files: Mapping[str, bytes]) -> None:
    """A new folder with these files, by one rename: all of them, or nothing.

    Raises:
        StorageError: as of :func:`write_atomic`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    with storage(f"cannot write {path}"):
        try:
            temporary.mkdir()
            for name, content in files.items():
                put(temporary / name, content)
                crash_point(name.partition(".")[0])
            sync_folder(temporary)
            crash_point("unpublished")
            os.rename(temporary, path)
            crash_point("published")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


def put(path: Path, content: bytes) -> None:
    """A file that is not there yet, on the disk when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """A rename is on the disk once its folder is; file systems that sync no folders are left to their own ways."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


@contextmanager
def storage(what: str) -> Iterator[None]:
    """Turns the system's refusals to write into a StorageError that says how to go on."""
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed: no disk's doing
        raise
    except OSError as error:
        hint = WAYS_ON.get(error.errno or 0, "See to the disk and go on")
        where = f", {error.filename}" if error.filename and str(error.filename) not in what else ""
        raise StorageError(
            f"{what}{where}: {error.strerror or error}. {hint}. What was saved before is as it was."
        ) from error


def sweep(path: Path) -> None:
    """Deletes what killed writers left half-written in a folder. For whoever holds its lock."""
    for left in path.glob(f".*{PART}"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
