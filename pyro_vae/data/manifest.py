"""A folder of shards and the manifest that counts them: files, rows, bytes and digests, in the order of the rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.common.atomic_write import storage, write_atomic
from pyro_vae.common.given import whole
from pyro_vae.common.safe_read import parse_json, read_regular
from pyro_vae.errors import DataError, PyroVAEError, UsageError

from .arrays import real_array
from .open_row_file import ENDINGS, open_row_file
from .row_files import RowFile
from .sparse import sparse_or_same

MANIFEST = "manifest.json"
SCHEMA = 1
LIMIT = 2**26  # bytes of a manifest
SHARD = 2**28  # bytes of a shard, about
READ = 2**20  # bytes that are read at a time, for a digest
AGAIN = "Restore the files, or count them anew: pyro-vae manifest FOLDER, or pyro_vae.data.write_manifest(folder)."


def write_manifest(folder: Path | str, key: str | None = None) -> dict[str, Any]:
    """Count the shards of a folder, and write its manifest.json: files, rows, bytes, SHA-256, in alphabetical order.

    Reads every byte once. After that :class:`~pyro_vae.data.Stored` knows a file that is missing, damaged, or not counted.

    Args:
        folder: with .npy, .npz or .parquet files, of one kind.
        key: the array or column of each that is looked at, as of :class:`~pyro_vae.data.Stored`.

    Returns:
        What it wrote.

    Raises:
        DataError: no such files, of two kinds, or rows of unlike shapes or dtypes; names the file.
        StorageError: the manifest cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(folder + "/a.npy", np.zeros((3, 2), np.float32))
        ...     np.save(folder + "/b.npy", np.ones((5, 2), np.float32))
        ...     [(entry["file"], entry["rows"]) for entry in write_manifest(folder)["files"]]
        [('a.npy', 3), ('b.npy', 5)]
    """
    folder = Path(folder).expanduser()
    paths = shards_in(folder)
    files = [open_row_file(path, key) for path in paths]
    check_alike(files)
    entries = [entry_of(file) for file in files]
    manifest = {
        "schema": SCHEMA,
        "rows": sum(file.rows for file in files),
        "row_shape": list(files[0].row_shape),
        "dtype": files[0].dtype.str,
        "key": key,
        "files": entries,
    }
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def write_shards(x: Any, folder: Path | str, rows: int | None = None, *, num_rows: int | None = None) -> dict[str, Any]:
    """Cut an array into a folder of .npy files with a manifest.

    Args:
        x: an array, a tensor, a memory map, :class:`~pyro_vae.data.Stored` rows; or an iterator of arrays, the rows of each
            after those of the one before, of which one at a time is in memory.
        folder: a new one, or an empty one.
        rows: of a file; by default as many as 256 MiB hold.
        num_rows: how many there are in all, where you know: an iterator that ends before, or goes on, is refused then. By
            default as many as come.

    Returns:
        The manifest.

    Raises:
        DataError: no rows of real numbers, arrays of unlike rows, or another number of them; no manifest is written then.
        UsageError: a folder that holds something.
        StorageError: it cannot be written.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} holds something already: name a new folder, so that no file of it is taken for a shard"
        )
    if rows is not None and rows < 1:
        raise UsageError(f"rows={rows}: a file holds at least one row")
    with storage(f"cannot write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        shards = counted(shards_of(arrays_of(x), rows), num_rows, folder)
        for number, shard in enumerate(shards):
            by_rows = np.ascontiguousarray(shard)  # a frame's lie by columns
            np.save(folder / f"{number:05}.npy", by_rows, allow_pickle=False)
    return write_manifest(folder)


def arrays_of(x: Any) -> Iterator[np.ndarray]:
    """Yield the arrays that rows come in, of about a shard each at most."""
    if isinstance(x, Iterator):
        first = None
        for number, part in enumerate(x):
            array = real_array(part, "x")
            first = array if first is None else first
            if not array.ndim or array.shape[1:] != first.shape[1:]:
                raise DataError(
                    f"array {number} (counted from 0) has shape {array.shape}, and the first one {first.shape}: wanted arrays "
                    "of rows, all of one shape but for how many there are."
                )
            yield array
        return
    x = sparse_or_same(x)
    array = x if getattr(x, "shape", ()) and hasattr(x, "__getitem__") else real_array(x, "x")
    if not array.ndim:
        raise DataError("x is a single number, and holds no rows. Give an array (N, ...).")
    row = max(1, int(np.prod(array.shape[1:])) * 8)
    for start in range(0, len(array), max(1, SHARD // row)):
        part = array[start : start + max(1, SHARD // row)]
        if isinstance(part, torch.Tensor):
            part = part.float() if part.dtype == torch.bfloat16 else part  # which numpy does not have
            yield part.detach().cpu().numpy()
        else:
            yield real_array(part, "x")


def shards_of(arrays: Iterable[np.ndarray], rows: int | None) -> Iterator[np.ndarray]:
    """Yield as many rows at a time, whatever arrays they come in."""
    waiting: list[np.ndarray] = []
    size = rows
    for array in arrays:
        size = size or max(1, SHARD // max(1, array[:1].nbytes))
        waiting.append(array)
        while sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting) if len(waiting) > 1 else waiting[0]
            yield joined[:size]
            waiting = [joined[size:]] if len(joined) > size else []
    if waiting:
        yield np.concatenate(waiting)


def counted(shards: Iterator[np.ndarray], num_rows: int | None, folder: Path) -> Iterator[np.ndarray]:
    """Pass shards on while they are of `num_rows` rows at most, and of no fewer at the end."""
    wanted, count = None if num_rows is None else whole("num_rows", num_rows, 1), 0
    left = f"{folder} has no manifest, and is no data set: delete it, and write all rows."
    for shard in shards:
        count += len(shard)
        if wanted is not None and count > wanted:
            raise DataError(f"num_rows={wanted:,}, and x goes on: {count:,} rows have come. {left}")
        yield shard
    if wanted is not None and count < wanted:
        raise DataError(f"num_rows={wanted:,}, and x has ended after {count:,} rows. {left}")


def shards_in(folder: Path) -> list[Path]:
    """List the shards of a folder in alphabetical order."""
    if folder.is_file():
        raise DataError(
            f"{folder} is a file: pyro-vae manifest NEW_FOLDER --of {folder} cuts it into the shards of a folder."
        )
    if not folder.is_dir():
        raise DataError(f"no folder {folder}. Check the path.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no shards: files that end in {', '.join(ENDINGS)}.")
    if len(kinds := sorted({p.suffix.lower() for p in found})) > 1:
        raise DataError(f"{folder} holds files of several kinds, {' and '.join(kinds)}: keep shards of one kind in it.")
    return found


def beside_shards(folder: Path) -> list[str]:
    """List what a folder holds beside its shards, and whose rows are therefore not counted."""
    known = {MANIFEST, *(path.name for path in shards_in(folder))}
    return sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if p.name not in known and p.name[0] != ".")


def format_bytes(amount: int) -> str:
    """Format an amount of bytes in the unit that has one to three digits before the point.

    Example:
        >>> format_bytes(72_384), format_bytes(6_100_000_000), format_bytes(12)
        ('72.4 kB', '6.1 GB', '12 bytes')
    """
    for unit, size in {"TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3}.items():
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount} bytes"


def check_alike(files: list[RowFile]) -> None:
    """Refuse shards whose rows differ in shape, dtype or columns from those of the first."""
    first = files[0]
    for file in files:
        if (columns := getattr(file, "columns", [])) != (wanted := getattr(first, "columns", [])):
            at = next(
                (i for i, (a, b) in enumerate(zip(columns, wanted, strict=False)) if a != b),
                min(len(columns), len(wanted)),
            )
            raise DataError(
                f"{file.path} has the columns {format_column(columns, at)} where {first.path} has "
                f"{format_column(wanted, at)}: shards of one data set have the same columns in the same order. Write it anew."
            )
        if (file.row_shape, file.dtype) != (first.row_shape, first.dtype):
            raise DataError(
                f"{file.path} holds rows of shape {file.row_shape} and dtype {file.dtype}, and {first.path} of shape "
                f"{first.row_shape} and dtype {first.dtype}: shards of one data set are alike. Write it anew."
            )


def format_column(columns: list[str], at: int) -> str:
    """Name a column by its place, and how many there are."""
    return f"{columns[at]!r} (number {at} of {len(columns)})" if at < len(columns) else f"{len(columns)} columns"


def entry_of(file: RowFile) -> dict[str, Any]:
    """Describe a shard: the time lets one that nobody touched pass without being read again."""
    digest, status = file_digest(file.path), os.stat(file.path)
    about: dict[str, Any] = {"file": file.path.name, "rows": file.rows, "bytes": status.st_size}
    return about | {"sha256": digest, "modified": status.st_mtime_ns}


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    total = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(READ):
                total.update(part)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from error
    return total.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest, and check its form.

    Raises:
        DataError: it is none.
    """
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_regular(path, LIMIT), path)
        names = [str(entry["file"]) for entry in manifest["files"]]
        counted = sum(int(entry["rows"]) for entry in manifest["files"])
        whole = all({"bytes", "sha256", "modified"} <= entry.keys() for entry in manifest["files"])
    except (PyroVAEError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no manifest of shards ({error}). {AGAIN}") from error
    strange = [name for name in names if Path(name).name != name or Path(name).suffix.lower() not in ENDINGS]
    if manifest.get("schema") != SCHEMA or not names or len(set(names)) < len(names) or strange or not whole:
        why = (
            f"{strange[0]!r} is no file beside it"
            if strange
            else "its schema or its files are not what is written here"
        )
        raise DataError(f"{path} is no manifest of shards ({why}). {AGAIN}")
    if counted != manifest.get("rows"):
        raise DataError(f"{path} counts {manifest.get('rows')} rows, and its files have {counted}. {AGAIN}")
    return dict(manifest)


def open_manifest(folder: Path, key: str | None = None, check: bool = False) -> tuple[list[RowFile], dict[str, Any]]:
    """Open the shards of a folder as its manifest lists them.

    A file of the size and the time that the manifest has is taken for what it was; another time, as of a copy, and its digest
    is taken once. With `check`, all digests are.

    Raises:
        DataError: a shard that is missing, damaged, of other rows, or not counted; names the file.
    """
    manifest = read_manifest(folder)
    listed = {entry["file"] for entry in manifest["files"]}
    if more := [path.name for path in shards_in(folder) if path.name not in listed]:
        raise DataError(
            f"{folder} holds {more[0]!r}{f' and {len(more) - 1} more files' if len(more) > 1 else ''}, whose rows {MANIFEST} "
            f"does not count. Move it away, or count it: pyro-vae manifest {folder}"
        )
    files = []
    for entry in manifest["files"]:
        check_entry(folder / entry["file"], entry, check)
        file = open_row_file(folder / entry["file"], key if key is not None else manifest.get("key"))
        if file.rows != entry["rows"]:
            raise DataError(f"{file.path} has {file.rows} rows, and {MANIFEST} counts {entry['rows']}. {AGAIN}")
        files.append(file)
    check_alike(files)
    return files, manifest


def check_entry(path: Path, entry: dict[str, Any], check: bool) -> None:
    """Refuse a shard that is not the one that was counted."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"the shard {path} is missing ({error.strerror}). {AGAIN}") from error
    if status.st_size != entry["bytes"]:
        raise DataError(
            f"the shard {path} has {status.st_size:,} bytes, and was counted with {entry['bytes']:,}. {AGAIN}"
        )
    if (check or status.st_mtime_ns != entry["modified"]) and file_digest(path) != entry["sha256"]:
        raise DataError(f"the shard {path} is damaged: its bytes have another SHA-256 than {MANIFEST} has. {AGAIN}")
