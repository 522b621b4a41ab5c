"""Files that are there whole or not at all, whatever kills the process or fills the disk."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pyro_vae.errors import StorageError

from .held_folder import NONBLOCK, HeldFolder, held

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
    with renamed_when_whole(path, "renamed") as (place, temporary):
        place.write_new(temporary, content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        crash_point("written")


def publish(path: Path, files: Mapping[str, bytes]) -> None:
    """Make a new folder with these files: all of them, or nothing.

    Raises:
        StorageError: as of :func:`write_atomic`.
    """
    with renamed_when_whole(path, "published") as (place, temporary):
        place.mkdir(temporary)
        with place.inner(temporary) as made:
            for name, content in files.items():
                made.write_new(name, content)
                crash_point(name.partition(".")[0])
            made.sync()
        crash_point("unpublished")


def append(path: Path, line: str) -> None:
    """Append a line to a regular file; a link in its place is not followed.

    Raises:
        StorageError: it cannot be written, or is none.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | NONBLOCK
    with storage(f"cannot write {path}"), held(path.parent) as place, open(place.open(path.name, flags), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        file.write(line.encode())


def folder_in(path: Path, name: str) -> Path:
    """Return a folder within a folder, made if it is missing; a link in its place is not followed.

    Raises:
        StorageError: it cannot be made, or something else stands there.
    """
    inner = path / name
    with storage(f"cannot write into {inner}"), held(path) as place:
        with suppress(FileExistsError):
            place.mkdir(name)
        place.check_folder(name)
    return inner


@contextmanager
def renamed_when_whole(path: Path, done: str) -> Iterator[tuple[HeldFolder, str]]:
    """Yield the folder, held, and another name in it, which becomes that of `path` by one rename; deleted on an error."""
    # a process that was killed may have had the same number, and left its own
    temporary = f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{PART}"
    with storage(f"cannot write {path}"), held(path.parent) as place:
        try:
            yield place, temporary
            place.rename(temporary, path.name)
            crash_point(done)
        except BaseException:
            place.delete(temporary)
            raise
        place.sync()


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
    with held(path) as place:
        for name in place.names():
            if name.startswith(".") and name.endswith(PART):
                place.delete(name)


def sync_folder(path: Path) -> None:
    """Put a folder's renames on the disk."""
    with held(path) as place:
        place.sync()


def unlink(path: Path) -> None:
    """Delete a file or a link, if it is there."""
    with suppress(FileNotFoundError), held(path.parent) as place:
        place.unlink(path.name)


def rename(path: Path, name: str) -> None:
    """Give an entry of a folder another name, over what has it."""
    with held(path.parent) as place:
        place.rename(path.name, name)


def delete(path: Path, quietly: bool = True) -> None:
    """Delete a file, a link, or a folder with what is in it, if it is there."""
    with suppress(FileNotFoundError), held(path.parent) as place:
        place.delete(path.name, quietly)
