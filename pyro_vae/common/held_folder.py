"""Folders held open by their descriptors: what is read or written in one stays in it, whoever swaps names meanwhile.

A path is a promise that others may break between a look and a write: whoever can write into a run can put a link in the place
of ``RUN/figures``. A descriptor is of the folder itself. Each folder on the way is opened below the one before, and none of
them may be a link. Where the system opens nothing below a descriptor (Windows), each is looked at before it is used by name.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

NO_LINKS: ContextVar[tuple[Path, ...]] = ContextVar("NO_LINKS", default=())
NOFOLLOW, NONBLOCK = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
BELOW = {os.open, os.mkdir, os.stat, os.unlink, os.rename, os.rmdir} <= os.supports_dir_fd
SUPPORTED = BELOW and NOFOLLOW != 0 and os.listdir in os.supports_fd
NO_FOLDER = (errno.ENOTDIR, errno.ELOOP, getattr(errno, "EMLINK", 0))  # what systems say of a link that is not followed


@contextmanager
def no_links_below(path: Path) -> Iterator[None]:
    """Follow no link below a folder while this lasts, in whatever is read or written; the folder's own path is the user's."""
    token = NO_LINKS.set((*NO_LINKS.get(), path.absolute()))
    try:
        yield
    finally:
        NO_LINKS.reset(token)


@dataclass(frozen=True)
class HeldFolder:
    """A folder, by its descriptor; None where the system has no such, and names are used.

    Every name is that of an entry of the folder: no path.
    """

    path: Path
    handle: int | None

    def named(self, name: str) -> str | Path:
        """Return an entry's name, as functions take it that are given the descriptor, too."""
        return name if self.handle is not None else self.path / name

    def open(self, name: str, flags: int) -> int:
        """Open a file; a link in its place is not followed."""
        return os.open(self.named(name), flags | NOFOLLOW, 0o666, dir_fd=self.handle)

    def write_new(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet; it is on the disk when this returns."""
        with open(self.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def mkdir(self, name: str) -> None:
        os.mkdir(self.named(name), dir_fd=self.handle)

    def status(self, name: str) -> os.stat_result | None:
        """Look at an entry itself, a link, too; None where there is none."""
        with suppress(FileNotFoundError):
            return os.stat(self.named(name), dir_fd=self.handle, follow_symlinks=False)
        return None

    def check_folder(self, name: str) -> None:
        """Refuse an entry that is a link, or no folder."""
        if (status := self.status(name)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / name))
        if stat.S_ISLNK(status.st_mode):
            raise OSError(errno.ELOOP, "a link, and links in a run are not followed", str(self.path / name))
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(self.path / name))

    @contextmanager
    def inner(self, name: str) -> Iterator[HeldFolder]:
        """Hold a folder in it; a link in its place is not followed."""
        handle = open_inner(self, name)
        try:
            yield HeldFolder(self.path / name, handle)
        finally:
            if handle is not None:
                os.close(handle)

    def rename(self, old: str, new: str, to: HeldFolder | None = None) -> None:
        """Rename an entry over another, in this folder or in one that is held, too."""
        to = self if to is None else to
        os.replace(self.named(old), to.named(new), src_dir_fd=self.handle, dst_dir_fd=to.handle)

    def unlink(self, name: str) -> None:
        """Delete a file or a link, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(self.named(name), dir_fd=self.handle)

    def delete(self, name: str, quietly: bool = True) -> None:
        """Delete a file, a link, or a folder with what is in it; what of a folder cannot be deleted stays, quietly or not."""
        status = self.status(name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            shutil.rmtree(self.named(name), ignore_errors=quietly, dir_fd=self.handle)
        else:
            self.unlink(name)

    def rmdir(self, name: str) -> None:
        os.rmdir(self.named(name), dir_fd=self.handle)

    def names(self) -> list[str]:
        """List the entries."""
        return sorted(os.listdir(self.path if self.handle is None else self.handle))

    def sync(self) -> None:
        """Put the folder's renames on the disk; file systems that sync no folders are left to their own ways."""
        if self.handle is None:
            return
        try:
            os.fsync(self.handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise


@contextmanager
def held(path: Path) -> Iterator[HeldFolder]:
    """Hold a folder: the user's own links on the way to it are followed, none below a folder of :func:`no_links_below`.

    Raises:
        OSError: it is not there, or a link or a file stands in its place or on the way.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as run, tempfile.TemporaryDirectory() as outside:
        ...     Path(run, "figures").symlink_to(outside)
        ...     with no_links_below(Path(run)), held(Path(run, "figures")):
        ...         pass
        Traceback (most recent call last):
        OSError: [Errno ...] a link, and links in a run are not followed: ...
    """
    whole = path.absolute()
    above = [root for root in NO_LINKS.get() if whole.is_relative_to(root)]
    top = min(above, key=lambda root: len(root.parts)) if above else whole
    here = HeldFolder(top, open_top(top))
    try:
        for name in whole.relative_to(top).parts:
            if name == os.pardir:
                raise OSError(errno.EINVAL, "it leads out of the folder", str(path))
            inner = HeldFolder(here.path / name, open_inner(here, name))
            close(here)
            here = inner
        yield HeldFolder(path, here.handle)
    finally:
        close(here)


def open_top(path: Path) -> int | None:
    """Open the folder that paths begin with, by name."""
    if not SUPPORTED:
        return None
    try:
        return os.open(path, FOLDER)
    except PermissionError:  # one that may be written into, and not be listed
        return os.open(path, FOLDER | getattr(os, "O_PATH", 0))


def open_inner(here: HeldFolder, name: str) -> int | None:
    """Open a folder in one that is held; a link in its place is not followed."""
    if here.handle is None:
        here.check_folder(name)
        return None
    try:
        return here.open(name, FOLDER)
    except OSError as error:
        if error.errno in NO_FOLDER:
            here.check_folder(name)
        raise


def close(here: HeldFolder) -> None:
    if here.handle is not None:
        os.close(here.handle)
