"""Rows that stay on disk: a file, or a folder of shards with a manifest, larger than the memory."""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.digests import digest_of
from pyro_vae.common.given import whole
from pyro_vae.errors import DataError, UsageError

from .arrays import GAPS, INFINITE, to_tensor
from .lazy_rows import LazyRows
from .manifest import MANIFEST, open_manifest
from .open_row_file import open_row_file
from .row_files import FileState, RowFile

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
BLOCK = 2**22  # bytes of a block, about; less under little memory
PER_WINDOW = 16  # blocks that a window holds, at least
PARTS = 3  # of the memory: the window that batches are made of, the one that is read meanwhile, and what reading takes
NEAR = 2**16  # bytes between two rows that are read over, as a second read takes longer
SAMPLES, SAMPLE = 256, 2**16  # of a file without a manifest, for its digest: how many stretches, of how many bytes


class Stored(LazyRows):
    """The rows of a file or of a folder of shards, which stay there: ``fit(vae, Stored("rows.npy"))``.

    :func:`~pyro_vae.fit` trains on them, and :func:`~pyro_vae.log_likelihood` scores them, a part at a time. Training shuffles
    them in blocks: the blocks of the file are permuted, and rows are drawn from a window of as many blocks as the memory
    holds (:class:`~pyro_vae.training.block_shuffle.ShuffledBlocks`). Rows are read, not mapped, and each is checked as it is
    read. Slices are tensors in memory; whoever wants all rows at once is refused, unless they fit.

    Args:
        path: an .npy; an .npz that is not compressed; a .parquet, by its row groups; a folder of a Zarr array, by its chunks;
            or a folder of such files with a manifest.json (:func:`write_manifest`, :func:`write_shards`).
        key: the array of an .npz or of a Zarr group, or the column of a .parquet, such as labels. By default ``x``, or the
            only one; of a .parquet all columns, side by side.
        memory: what rows may take of it while training, such as ``"2 GB"`` or a number of bytes. The window follows from it,
            and so does the order: another memory is another order.
        missing: NaN stands for what was not observed; refused otherwise.
        num_rows: how many there are, if you know; files that have another number are refused. Of a Zarr array with chunks that
            nobody wrote, whose shape says how many it was made for, it is asked for: the first so many rows are taken.

    Raises:
        DataError: a file that is missing, damaged, compressed, in Fortran order, a pickle, or not what its manifest says;
            shards of unlike rows, or of another number than `num_rows`; a row group that is larger than the memory; a Zarr
            array of which chunks were never written, without `num_rows`. Of a row that is read: NaN or infinite values,
            by file and row; a file that has changed.
        UsageError: a memory that is no amount.

    Example:
        >>> import tempfile
        >>> from pyro_vae.data import Stored, write_shards
        >>> folder = tempfile.TemporaryDirectory()
        >>> write_shards(torch.arange(20.0).view(10, 2), folder.name + "/rows", rows=4)["rows"]
        10
        >>> x = Stored(folder.name + "/rows", memory="1 MB")
        >>> x.shape, x[7:9].tolist()
        (torch.Size([10, 2]), [[14.0, 15.0], [16.0, 17.0]])
        >>> folder.cleanup()
    """

    def __init__(
        self,
        path: Path | str,
        key: str | None = None,
        *,
        memory: str | int = "1 GB",
        missing: bool = False,
        num_rows: int | None = None,
    ) -> None:
        self.path, self.key, self.memory = Path(path).expanduser(), key, bytes_of(memory)
        self.files, self.manifest = files_at(self.path, key, num_rows)
        self.starts = np.cumsum([0, *(file.rows for file in self.files)])
        first = self.files[0]
        self.source_dtype, self.name, self.missing = first.dtype, self.path.name, missing
        self.held_out = np.zeros(0, np.int64)  # rows of the files that are none of these, in order
        self.shape = torch.Size((int(self.starts[-1]), *first.row_shape))
        self.dtype, self.device = natural_dtype(first.dtype), torch.device("cpu")
        self.blocks = self.find_blocks()

    def __repr__(self) -> str:
        return f"Stored({str(self.path)!r}, shape={tuple(self.shape)}, {self.source_dtype}, {len(self.files)} files)"

    @property
    def row_bytes(self) -> int:
        """Of one row in memory, as it is held until a batch is made of it."""
        return int(math.prod(self.shape[1:]) * self.held_dtype.itemsize)

    @property
    def held_dtype(self) -> np.dtype[Any]:
        """In which rows wait: as they are stored, or as they are handed out, whichever is smaller."""
        target = torch.empty(0, dtype=self.dtype).numpy().dtype
        return self.source_dtype if self.source_dtype.itemsize <= target.itemsize else target

    @property
    def window(self) -> int:
        """Rows that are shuffled among each other, about."""
        return max(1, self.memory // PARTS // self.row_bytes)

    @property
    def nbytes(self) -> int:
        """Of all rows in memory, as they are handed out."""
        return self.numel() * self.dtype.itemsize

    def find_blocks(self) -> np.ndarray:
        """Return where the blocks begin that are read as wholes, and where the last one ends, in rows of the files.

        They end where files do, and where row groups or chunks do.
        """
        largest = max(1, self.window // PER_WINDOW)
        wanted = min(largest, max(1, BLOCK // max(1, self.row_bytes)))
        bounds: list[int] = []
        for file, start in zip(self.files, self.starts, strict=False):
            pieces = file.pieces() or range(0, file.rows, wanted)
            sizes = np.diff([*pieces, file.rows])
            if file.pieces() and sizes.max() > self.window:
                what = f"{int(sizes.max()):,} rows of {file.path} are read as a whole, {sizes.max() * self.row_bytes:,} bytes"
                raise DataError(
                    f"{what}, and memory={self.memory:,} leaves {self.memory // PARTS:,} for them: allow more memory, or write "
                    "the file in smaller row groups or chunks."
                )
            bounds += [int(start) + at for at in merged(list(pieces), file.rows, wanted)]
        return np.array([*bounds, self.starts[-1]], dtype=np.int64)

    @property
    def bounds(self) -> np.ndarray:
        """The blocks in rows of this object, of which some rows of the files may be held out."""
        return self.blocks - np.searchsorted(self.held_out, self.blocks)

    def without(self, rows: np.ndarray) -> Stored:
        """Return the rows but these, which are held out for evaluation; `rows` are numbers of the file, in order."""
        other = copy.copy(self)
        other.held_out = np.asarray(rows, dtype=np.int64)
        other.shape = torch.Size((int(self.starts[-1]) - len(rows), *self.shape[1:]))
        return other

    def flat(self) -> Stored:
        """Return the same rows as vectors ``(N, d)``."""
        other = copy.copy(self)
        other.shape = torch.Size((len(self), math.prod(self.shape[1:])))
        return other

    def converted(self, dtype: torch.dtype, device: torch.device | None, missing: bool, name: str) -> Stored:
        other = copy.copy(self)
        other.dtype, other.name = dtype, f"{name} ({self.path.name})"
        other.device = device or self.device
        other.missing = missing or self.missing
        other.blocks = other.find_blocks()
        return other

    def numbers_in_files(self, rows: np.ndarray) -> np.ndarray:
        """Number rows as the files have them: held-out rows are passed over."""
        if not len(self.held_out):
            return rows
        return rows + np.searchsorted(self.held_out - np.arange(len(self.held_out)), rows, side="right")

    def read(self, numbers: np.ndarray) -> Tensor:
        return self.hand_out(self.read_held(numbers))

    def hand_out(self, rows: np.ndarray) -> Tensor:
        """Make a tensor of rows as they are held."""
        return to_tensor(rows).to(self.device, self.dtype)

    def read_held(self, numbers: np.ndarray) -> np.ndarray:
        """Read rows as they are held, and check them: neighbours by one read."""
        numbers = np.asarray(numbers, dtype=np.int64)
        found = np.empty((len(numbers), *self.shape[1:]), self.held_dtype)
        if not len(numbers):
            return found
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if (outside := (numbers < 0) | (numbers >= len(self))).any():
            raise IndexError(f"{self.name} has {len(self)} rows, and row {int(numbers[outside][0])} was asked for")
        places = self.numbers_in_files(numbers)
        order = np.argsort(places, kind="stable")
        for some in np.split(order, self.breaks(places[order])):
            first, last = int(places[some[0]]), int(places[some[-1]])
            found[some] = self.stretch(first, last + 1)[places[some] - first]
        return found

    def breaks(self, places: np.ndarray) -> np.ndarray:
        """Find where sorted rows are far apart, of two files or too many, so that each side is read by itself."""
        row = self.source_dtype.itemsize * math.prod(self.shape[1:])
        of_file = np.searchsorted(self.starts, places, side="right")
        of_read = (places - places[0]) * row // BLOCK
        apart = (np.diff(places) * row > NEAR + row) | (np.diff(of_file) > 0) | (np.diff(of_read) > 0)
        return np.flatnonzero(apart) + 1

    def stretch(self, start: int, stop: int) -> np.ndarray:
        """Read neighbouring rows of one file, and check them."""
        i = int(np.searchsorted(self.starts, start, side="right")) - 1
        file, first = self.files[i], int(self.starts[i])
        rows = file.read(start - first, stop - first)
        with np.errstate(over="ignore", invalid="ignore"):
            held = rows.astype(self.held_dtype, copy=False)
        for values in (rows, held) if held is not rows else (rows,):
            if values.dtype.kind == "f" and (bad := self.bad_rows(values)).any():
                self.refuse(values, bad, file, start - first, start)
        if not self.dtype.is_floating_point and rows.dtype.kind == "f" and (rows != np.round(rows)).any():
            row = start - first + int((rows != np.round(rows)).reshape(len(rows), -1).any(1).argmax())
            raise DataError(f"{file.path}, row {row}: a fraction, where the programs take whole numbers. Round it.")
        return held.reshape(len(held), *self.shape[1:])

    def bad_rows(self, values: np.ndarray) -> np.ndarray:
        """Find rows with infinite values, or NaN unless that stands for what is missing."""
        bad = np.isinf(values) if self.missing else ~np.isfinite(values)
        return bad.reshape(len(values), -1).any(1)

    def refuse(self, values: np.ndarray, bad: np.ndarray, file: RowFile, in_file: int, in_all: int) -> None:
        """Refuse rows by their place in the file."""
        row = int(bad.argmax())
        if in_all + row in self.held_out:  # read over on the way to others
            bad[row] = False
            return self.refuse(values, bad, file, in_file, in_all) if bad.any() else None
        flat = values[row].reshape(-1)
        column = int((np.isinf(flat) if self.missing else ~np.isfinite(flat)).argmax())
        beside = "" if len(self.files) == 1 else f" (row {in_all + row} of all)"
        raise DataError(
            f"{self.name} has {'infinite values' if self.missing else 'NaN or infinite values'}: {file.path}, row "
            f"{in_file + row}{beside}, first in column {column} ({flat[column]}), counted from 0. "
            f"{GAPS if np.isnan(flat).any() else INFINITE}"
        )

    def head(self, rows: int) -> np.ndarray:
        places = self.numbers_in_files(np.arange(min(rows, len(self))))
        found = np.concatenate([self.raw(int(place)) for place in places])
        return found.reshape(len(found), *self.shape[1:])

    def raw(self, place: int) -> np.ndarray:
        """Read one row as it is stored."""
        i = int(np.searchsorted(self.starts, place, side="right")) - 1
        return self.files[i].read(place - int(self.starts[i]), place - int(self.starts[i]) + 1)

    def whole(self, name: str) -> np.ndarray:
        if self.numel() * self.source_dtype.itemsize > self.memory:
            raise DataError(
                f"{name} is wanted as a whole here, and {self.path} holds {len(self):,} rows of {tuple(self.shape[1:])}, "
                f"{self.numel() * self.source_dtype.itemsize:,} bytes, more than memory={self.memory:,}. Give some of the rows "
                "(x[:10_000], a tensor), or allow more memory."
            )
        return self.read_held(np.arange(len(self)))

    @property
    def digest(self) -> str:
        """SHA-256 of what is stored: by the digests of a manifest, of every byte; else of samples, sizes and times.

        A file without a manifest is not read through for it: it goes by its size, when it was written, and 256 stretches of 64
        KiB. So a copy of it counts as another data set, and what changes between the stretches under the same time does not
        show; a manifest (:func:`write_manifest`) knows every byte, wherever the files lie.
        """
        about = {"row": list(self.shape[1:]), "dtype": self.source_dtype.str, "key": self.key}
        about["held out"] = hashlib.sha256(self.held_out.tobytes()).hexdigest()
        if self.manifest is not None:
            files = [[entry["rows"], entry["sha256"]] for entry in self.manifest["files"]]
        else:
            files = [[file.rows, sampled_digest(file.path)] for file in self.files]
        return digest_of({**about, "files": files})


def files_at(path: Path, key: str | None, num_rows: int | None = None) -> tuple[list[RowFile], dict[str, Any] | None]:
    """Open the files that a path stands for, and the manifest that lists them, where there is one."""
    wanted = None if num_rows is None else whole("num_rows", num_rows, 1)
    has_manifest = (path / MANIFEST).is_file()
    files, manifest = open_manifest(path, key) if has_manifest else ([open_row_file(path, key, wanted)], None)
    if wanted not in (None, found := sum(file.rows for file in files)):
        raise DataError(
            f"{path} has {found:,} rows, and num_rows={wanted:,}: it is another file than you mean, or was not written to its "
            f"end. Look at it, or leave num_rows out; some of its rows are Stored(path)[:{min(found, wanted or 0)}]."
        )
    return files, manifest


def merged(pieces: Sequence[int], end: int, wanted: int) -> Iterator[int]:
    """Yield where blocks begin that are made of whole pieces, as many as `wanted` rows hold, one at least."""
    begin = pieces[0]
    yield begin
    for piece, stop in zip(pieces[1:], [*pieces[2:], end], strict=False):
        if stop - begin > wanted:
            begin = piece
            yield begin


def natural_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the dtype that rows are handed out in by themselves, as :func:`~pyro_vae.data.as_rows` has it."""
    return torch.float32 if dtype.kind == "f" and dtype.itemsize == 4 else torch.get_default_dtype()


def sampled_digest(path: Path) -> str:
    """Digest a file by size, time and evenly spaced stretches; a folder by its files' names, sizes and times."""
    total = hashlib.sha256()
    if path.is_dir():
        for part in sorted(p for p in path.rglob("*") if p.is_file()):
            state = FileState.at(part)
            total.update(f"{part.relative_to(path)}\0{state.identity[2:]}\0".encode())
        return total.hexdigest()
    state = FileState.at(path)
    size = state.identity[2]
    total.update(f"{size} {state.identity[3]}".encode())
    with path.open("rb") as file:
        for start in sorted({(size - SAMPLE) * i // (SAMPLES - 1) for i in range(SAMPLES)}) if size > SAMPLE else (0,):
            file.seek(max(0, start))
            total.update(file.read(SAMPLE))
    return total.hexdigest()


def bytes_of(memory: str | int) -> int:
    """Read an amount of memory.

    Example:
        >>> bytes_of("2 GB"), bytes_of("512 MiB")
        (2000000000, 536870912)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", str(memory).lower())
    amount = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if isinstance(memory, bool) or amount < 1:
        raise UsageError(f"memory={memory!r} is no amount: give bytes, or a text such as '2 GB' or '512 MiB'")
    return amount
