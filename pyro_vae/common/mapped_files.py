"""Files that rows are mapped from: looked at before rows are read, as memory beyond a file's end kills whoever reads it.

A mapping is found by the address of a tensor's memory, in what Linux says of the process; elsewhere no file is found, and none
is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

from torch import Tensor

from pyro_vae.errors import DataError

T = TypeVar("T")
MAPPINGS = Path("/proc/self/maps")
GONE = " (deleted)"  # the file of a mapping has no name any more, and is as it was
ADVICE = "Read it into memory (np.load without mmap_mode), or map a copy that nobody writes to."


@dataclass(frozen=True)
class MappedFile:
    """A file that rows are mapped from, as it was when they were first looked at.

    Attributes:
        path: its name, absolute.
        file: device and inode. Another file of that name leaves the mapping as it was.
        bytes: its size.
        changed: when it was written to last, in nanoseconds.
    """

    path: Path
    file: tuple[int, int]
    bytes: int
    changed: int

    @classmethod
    def at(cls, path: Path) -> MappedFile | None:
        """Look at a file; None where there is none of that name."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(path, (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Refuse to read on in a file that has been written to, or is shorter.

        Raises:
            DataError: it is; the message names the file, and says what is other than it was.
        """
        now = MappedFile.at(self.path)
        if now is None or now.file != self.file or now == self:
            return
        what = "it has been written to"
        if now.bytes != self.bytes:
            what = f"it has {now.bytes:,} bytes now, and had {self.bytes:,}"
        raise DataError(f"{self.path}, which rows are mapped from, changed while they were read: {what}. {ADVICE}")


class ReadInTurn(Sequence[T]):
    """Parts of rows that are mapped from a file, which may be larger than the memory: each is read when it is asked for."""

    def __init__(self, read: Callable[[slice], T], parts: Sequence[slice]) -> None:
        self.read, self.parts = read, parts

    def __len__(self) -> int:
        return len(self.parts)

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> ReadInTurn[T]: ...
    def __getitem__(self, i: int | slice) -> T | ReadInTurn[T]:
        return ReadInTurn(self.read, self.parts[i]) if isinstance(i, slice) else self.read(self.parts[i])


def mapped_files(tensors: Iterable[Tensor]) -> tuple[MappedFile, ...]:
    """Return the files that tensors in the host's memory are mapped from, each once.

    Example:
        >>> import numpy as np, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.zeros((4, 2), np.float32))
        ...     x = torch.from_numpy(np.load(f"{folder}/x.npy", mmap_mode="c"))
        ...     [file.path.name for file in mapped_files([x, x[2:], torch.zeros(3)])]
        ['x.npy']
    """
    mapped = (t for t in tensors if isinstance(t, Tensor))  # rows on disk look at their files themselves, at each read
    addresses = {t.data_ptr() for t in mapped if t.device.type == "cpu" and t.numel()}
    found = (MappedFile.at(path) for path in paths_at(addresses))
    return tuple(dict.fromkeys(file for file in found if file is not None))


def paths_at(addresses: set[int]) -> list[Path]:
    """Name the files that are mapped at some addresses."""
    paths: list[Path] = []
    low, high = min(addresses, default=0), max(addresses, default=0)
    with suppress(OSError):
        for line in MAPPINGS.read_bytes().splitlines() if addresses else []:
            first, _, last = line[: line.index(b" ")].partition(b"-")
            start, stop = int(first, 16), int(last, 16)
            if stop <= low or start > high or not any(start <= a < stop for a in addresses):
                continue  # most of thousands of lines, at each evaluation: their paths are not looked at
            *_, name = line.split(maxsplit=5)
            path = os.fsdecode(name.replace(b"\\012", b"\n"))
            if name.startswith(b"/") and not path.endswith(GONE):
                paths.append(Path(path))
    return paths


def check_whole(path: Path, needed: int, name: str) -> None:
    """Refuse a mapped array whose file is shorter now than what was mapped, before it is read.

    Raises:
        DataError: it is; `name` is what the message calls the array.
    """
    file = MappedFile.at(path)
    if file is not None and file.bytes < needed:
        raise DataError(
            f"{name} is mapped from {path}, which has {file.bytes:,} bytes now, and had {needed:,} or more when it was "
            f"mapped. {ADVICE}"
        )
