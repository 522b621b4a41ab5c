"""Files that hold more rows than one memory, read a stretch of rows at a time: what each form of them gives and refuses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pyro_vae.errors import DataError

NUMERIC = "biuf"  # numpy's kinds: bool, int, unsigned, float
Shape = tuple[int, ...]


class RowFile(Protocol):
    """Rows of one file, in order, each of one shape and dtype."""

    @property
    def path(self) -> Path: ...
    @property
    def rows(self) -> int: ...
    @property
    def row_shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows ``(stop - start, *row_shape)`` into memory."""

    def pieces(self) -> Sequence[int]:
        """Return where row groups or chunks, which are read as wholes, begin; ``()`` where any row can be read alone."""


@dataclass(frozen=True)
class FileState:
    """A file as it was when it was opened: another one since is no longer what was looked at."""

    path: Path
    identity: tuple[int, int, int, int]  # device, inode, bytes, nanoseconds of the last change

    @classmethod
    def at(cls, path: Path) -> FileState:
        """Look at a file."""
        try:
            return cls(path, identity_of(os.stat(path)))
        except OSError as error:
            raise DataError(f"no file {path} ({error.strerror}). Restore it, or check the path.") from error

    def check(self, now: os.stat_result) -> None:
        """Refuse a file that has been written to, or replaced.

        Raises:
            DataError: names the file.
        """
        if identity_of(now) != self.identity:
            raise DataError(
                f"{self.path} has changed since it was opened: it had {self.identity[2]:,} bytes, and has {now.st_size:,} "
                "now, or was written to. Rows of two states are no data set: leave the file alone while it is read, and open "
                "it again."
            )


def identity_of(status: os.stat_result) -> tuple[int, int, int, int]:
    """Return what tells that a file is still the same."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_rows(shape: Shape, dtype: np.dtype[Any], name: str) -> None:
    """Refuse what holds no rows of real numbers."""
    if dtype.kind not in NUMERIC:
        raise DataError(f"{name} has dtype {dtype}, wanted real numbers. Encode text or categories as numbers.")
    if not shape or 0 in shape:
        raise DataError(f"{name} holds no rows: shape {shape}. Check what it was written from.")


def choose_key(names: Any, key: str | None, path: str) -> str:
    """Return the key of x: as asked for, the only one, or ``x``."""
    if key is None and (len(names) == 1 or "x" in names):
        return "x" if "x" in names else str(next(iter(names)))
    if key not in names:
        told = ", ".join(sorted(map(repr, names))) or "nothing"
        raise DataError(f"{path} holds {told}" + (f", and no {key!r}" if key else "") + ". Name one of them: key=...")
    return str(key)
