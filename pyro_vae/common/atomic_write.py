"""Files that are there whole or not at all, whatever kills the process or fills the disk."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_vae.errors import StorageError

PART = ".part"  # ending of what is not whole yet
WAYS_ON = {
    errno.ENOSPC: "Free some space and go on",
    errno.EDQUOT: "Free some of your quota and go on",
    errno.EFBIG: "Raise the limit on file sizes and go on",
    errno.EROFS: "Write to another folder",
    errno.EACCES: "Get write permission, or take another folder",
    errno.ELOOP: "Put a folder or a file of its own there",
    errno.ENOTDIR: "Move it away",
    errno.ENOENT: "The folder is gone: was it moved or deleted? Put it back, or take another one",
}


VISITS: dict[str, int] = {}


def crash_point(name: str) -> None:
    """Kill the process here if tests ask for it: $PYRO_VAE_CRASH_AT names a point, and perhaps the visit ("best:3")."""
    target, _, visit = os.environ.get("PYRO_VAE_CRASH_AT", "").partition(":")
    if target == name:
        VISITS[name] = VISITS.get(name, 0) + 1
        if VISITS[name] == int(visit or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file as a whole or not at all.

    Raises:
        StorageError: it cannot be written; a file of that name is as it was, and nothing half-written is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(Path(folder) / "a.txt", "whole")
        ...     [p.name for p in Path(folder).iterdir()]
        ['a.txt']
    """
    with renamed_when_whole(path, "renamed") as temporary:
        write_synced(temporary, content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        crash_point("written")


def publish(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a new folder with these files: all of them, or nothing.

    Raises:
        StorageError: as of :func:`write_atomic`.
    """
    with renamed_when_whole(path, "published") as temporary:
        temporary.mkdir()
        for name, content in files.items():
            write_synced(temporary / name, content)
            crash_point(name.partition(".")[0])
        sync_folder(temporary)
        crash_point("unpublished")


def append(path: Path, line: str) -> None:
    """Append a line to a regular file; a link in its place is not followed.

    Raises:
        StorageError: it cannot be written, or is none.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with storage(f"cannot write {path}"), open(os.open(path, flags, 0o666), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        file.write(line.encode())


def folder_in(path: Path, name: str) -> Path:
    """Return a folder within a folder, made if it is missing; a link in its place is not followed.

    Raises:
        StorageError: it cannot be made, or something else stands there.
    """
    inner = path / name
    with storage(f"cannot write into {inner}"):
        with suppress(FileExistsError):
            inner.mkdir()
        status = inner.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, "a link, and links in a run are not followed")
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder")
    return inner


@contextmanager
def renamed_when_whole(path: Path, done: str) -> Iterator[Path]:
    """Yield another name, which becomes `path` by one rename; on an error what has it is deleted."""
    # a process that was killed may have had the same number, and left its own
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{PART}")
    with storage(f"cannot write {path}"):
        try:
            yield temporary
            os.replace(temporary, path)
            crash_point(done)
        except BaseException:
            delete(temporary)
            raise
        sync_folder(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that is not there yet; it is on the disk when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Put a folder's renames on the disk; file systems that sync no folders are left to their own ways."""
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
    """Turn the system's refusals to write into a StorageError that says how to go on."""
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


SWAP = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
HERE = -100  # AT_FDCWD of Linux: names are of the current folder


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders by one rename; return False, and nothing is done, where the system cannot.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     a, b = Path(folder) / "a", Path(folder) / "b"
        ...     a.mkdir(), b.mkdir(), (a / "of a").touch()
        ...     not exchange(a, b) or (b / "of a").exists()
        (None, None, None)
        True
    """
    import ctypes

    library, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(first), os.fsencode(second))
    if (linux := getattr(library, "renameat2", None)) is not None:
        failed = linux(HERE, names[0], HERE, names[1], SWAP)
    elif (mac := getattr(library, "renamex_np", None)) is not None:
        failed = mac(*names, SWAP)
    else:
        return False
    return not failed


def sweep(path: Path) -> None:
    """Delete what killed writers left half-written in a folder. For the holder of its lock."""
    for left_over in path.glob(f".*{PART}"):
        delete(left_over)


def delete(path: Path) -> None:
    """Delete a file, a link, or a folder with what is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
