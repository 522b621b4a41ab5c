"""Read a user's own file, an array or a table, as a :class:`Source`. Pickles are never loaded."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataError, UsageError

from .cells import separator_of
from .other_files import other_kind
from .sequences import as_tensor, read_lengths
from .splits import SPLIT_NAMES, SPLITS, Part, Source, format_shuffle, shuffle, split_by
from .table_files import PARQUET, TEXT, read_mixed
from .table_layout import HEAD, TableOptions
from .tables import read_table

UNPACKED, RATIO = 256 * 2**20, 100  # of an archive: bytes, and as many times its own size
TABLES = (*TEXT, PARQUET)
ENDINGS = (".npy", ".npz", *TABLES)
CHANNELS, SIDE = (1, 3), 4  # of images: how many channels, and pixels a side at least
LOOKED_AT = 2**16  # bytes, to see what parts the cells of a table
UNREADABLE = (  # what np.load raises for damaged files, found by damaging them
    *(ValueError, OSError, EOFError, KeyError, MemoryError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read_file(path: Path, seed: int, options: TableOptions | None = None, sequences: bool = False) -> Source:
    """Read the rows of a file, with labels where it has them.

    Args:
        path: ``.npy``: one array. ``.npz``: one array, or ``x`` and perhaps ``y``, or ``x_train``, ``x_validation`` and
            ``x_test``, perhaps each with its ``y_...``. ``.csv``: numbers between commas, perhaps under one line of names;
            ``.tsv``, ``.parquet``: likewise. Under ``options.columns`` tables may hold texts and gaps, too.
        seed: of the permutation that splits the rows 80/10/10, where the file does not split them itself.
        sequences: an .npz may have ``lengths`` beside x: what lies beyond them becomes NaN.
        options: how a .csv is read, and what its labels are called; its `label` is that of an .npz, too, ``y`` by default.

    Raises:
        DataError: a missing, damaged or truncated file, a pickle, a cell that is no number, a row of another length, no such
            column as the options name.
    """
    check_readable(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder, though its name ends as a file's does: name the file in it.")
    if not path.is_file():
        raise DataError(
            f"no file {path}. Check the path; it is taken from the current folder unless it starts with /. "
            "Of a run whose data file has moved: --data-dir FOLDER, or the file itself."
        )
    if other := other_kind(path):
        raise DataError(other)
    options = options or TableOptions()
    read = table_source if path.suffix.lower() in TABLES else array_source
    return read(path, seed, options, sequences)


def check_readable(path: Path) -> None:
    """Refuse a file that may not be read: whoever asks is told so, and not to write elsewhere."""
    try:
        if path.is_file():
            path.open("rb").close()
    except PermissionError as error:
        raise DataError(f"{path} may not be read ({error.strerror}): get permission to read it, or a copy.") from error


def table_source(path: Path, seed: int, options: TableOptions, sequences: bool) -> Source:
    """Read the rows of a table, which a column of it may split."""
    table = (read_table if is_plain(path, options) else read_mixed)(path, options)
    part = Part("x", table.x, table.y, table.index, table.classes, table.columns)
    cut, split = partial(shuffle, seed=seed), format_shuffle(seed)
    if table.split:
        cut = partial(split_by, values=table.split, seed=seed)
        split = f"split by column {options.split_by!r}: {told_groups(table.split, seed)}"
    notes = (*table.notes, split, *layout(part.x, sequences))
    return Source(path.name, (part,), cut, notes=notes, split=table.split)


def array_source(path: Path, seed: int, options: TableOptions, sequences: bool) -> Source:
    """Read the rows of an .npy or .npz, which may hold its splits."""
    check_numpy_options(path, options)
    arrays, y = read_numpy(path), options.label or "y"
    arrays = cut_off(arrays, path) if sequences else {key: channels_first(array) for key, array in arrays.items()}
    if all(f"x_{split}" in arrays for split in SPLITS):
        parts = tuple(Part(f"x_{s}", arrays[f"x_{s}"], arrays.get(f"{y}_{s}")) for s in SPLITS)
        notes = (
            *map(describe, parts),
            "split as the file does",
            *layout(parts[0].x, sequences),
            *unused(arrays, SPLITS, y=y),
        )
        return Source(path.name, parts, tuple, notes=notes)
    x = key_of_x(arrays, path)
    part = Part("x", arrays[x], arrays.get(y))
    if options.label and part.y is None:
        raise DataError(f"{path} holds no array {y!r}, which --label names; it has {', '.join(sorted(arrays))}.")
    notes = (describe(part), format_shuffle(seed), *layout(part.x, sequences), *unused(arrays, (), x, y))
    return Source(path.name, (part,), partial(shuffle, seed=seed), notes=notes)


def told_groups(values: tuple[str, ...], seed: int) -> str:
    """Say how a column splits the rows."""
    groups = set(values)
    if all(group.lower() in SPLIT_NAMES for group in groups):
        return "train, validation and test, as it says"
    return f"each of its {len(groups)} groups in one split, about 80/10/10 per cent, dealt from seed {seed}"


def is_plain(path: Path, options: TableOptions) -> bool:
    """Return whether a file holds numbers between commas, as it looks and as it is asked for."""
    if options.former:
        return True
    if path.suffix.lower() != ".csv" or options.columns is not None or options.split_by or options.known:
        return False
    with path.open("rb") as file:
        head = file.read(LOOKED_AT).decode("utf-8-sig", errors="replace").splitlines()
    return separator_of(head[: max(1, min(HEAD, len(head) - 1))], ".csv") == ","


def cut_off(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Put NaN beyond the lengths of sequences, and leave the lengths out."""
    found = dict(arrays)
    for name in ("", *(f"_{split}" for split in SPLITS)):
        if (lengths := found.pop(f"lengths{name}", None)) is None:
            continue
        if f"x{name}" not in found:
            raise DataError(f"{path} holds lengths{name} and no x{name}: name the sequences so.")
        x = as_tensor(found[f"x{name}"], f"x{name}")
        ends = read_lengths(x, lengths, None).numpy()
        beyond = np.arange(x.shape[1]) >= ends[:, None]
        floats = np.result_type(found[f"x{name}"].dtype, np.float32)
        found[f"x{name}"] = np.where(
            beyond.reshape(*beyond.shape, *[1] * (x.dim() - 2)), np.nan, found[f"x{name}"]
        ).astype(floats)
    return found


def check_numpy_options(path: Path, options: TableOptions) -> None:
    """Refuse options of tables for what is none."""
    for name in options.given:
        if name != "label" or path.suffix.lower() == ".npy":
            raise UsageError(
                f"--{name.replace('_', '-')} is of a table (.csv, .tsv, .parquet)"
                f"{' or an .npz' if name == 'label' else ''}, and {path} is none: leave it out"
            )


def describe(part: Part) -> str:
    """Say what an array is read as."""
    columns = " × ".join(map(str, part.x.shape[1:])) or "1"
    labels = "none" if part.y is None else f"{part.name.replace('x', 'y', 1)}, {part.y.dtype}"
    return (
        f"{part.name}: {counted(len(part.x) if part.x.ndim else 1, 'row')} × {columns} "
        f"column{'s' * (columns != '1')} of {part.x.dtype}; labels: {labels}"
    )


def key_of_x(arrays: dict[str, np.ndarray], path: Path) -> str:
    """Return the key of x: ``x``, or the only one."""
    if "x" in arrays:
        return "x"
    if len(arrays) == 1:
        return next(iter(arrays))
    splits = ("x_train", "x_validation", "x_test")
    lacking = [name for name in splits if name not in arrays]
    which = f" ({' and '.join(lacking)} of its splits is not there)" if 0 < len(lacking) < len(splits) else ""
    raise DataError(
        f"{path} holds {sorted(arrays) or 'nothing'}, and none of them is x{which}. Save one array, or x (and y), or x_train, "
        "x_validation and x_test: np.savez(path, x=x, y=y)."
    )


def unused(arrays: dict[str, np.ndarray], splits: tuple[str, ...], x: str = "x", y: str = "y") -> list[str]:
    """Note the arrays of a file that nothing reads."""
    rest = sorted(set(arrays) - ({f"{v}_{s}" for v in ("x", y) for s in splits} or {x, y}))
    return [f"not read: {', '.join(rest)}"] if rest else []


def channels_first(x: np.ndarray) -> np.ndarray:
    """Return images ``(N, height, width, channels)`` of 1 or 3 channels with these before height and width; others as they are.

    Example:
        >>> channels_first(np.zeros((9, 32, 32, 3))).shape, channels_first(np.zeros((9, 3, 32, 32))).shape
        ((9, 3, 32, 32), (9, 3, 32, 32))
    """
    last = x.ndim == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS and min(x.shape[1:3]) >= SIDE
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if last else x


def layout(x: np.ndarray, sequences: bool = False) -> list[str]:
    """Note how the dimensions of x are read, unless they are rows and columns."""
    names = {1: "rows of one value", 3: "(rows, height, width)", 4: "(rows, channels, height, width)"}
    if sequences:
        names = {2: "(rows, steps)", 3: "(rows, steps, elements)"}
    return [f"shape {x.shape} read as {names[x.ndim]}"] if x.ndim in names else []


def read_numpy(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npy (as x) or .npz file."""
    try:
        with path.open("rb") as file:  # opened here, as numpy leaves a damaged .npz open
            check_ratio(file, path)
            loaded = np.load(file, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except DataError:
        raise
    except UNREADABLE as e:
        raise DataError(f"{path}: {explain_error(e)}") from e


def check_ratio(file: BinaryIO, path: Path) -> None:
    """Refuse an archive that asks for far more memory than it fills: 8 MiB of zeros deflate to 8 KiB, 8 GiB to 8 MiB.

    Raises:
        DataError: it unpacks to more than 256 MiB and a hundred times its size.
    """
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            size = sum(member.file_size for member in archive.infolist())
        packed = os.fstat(file.fileno()).st_size
        if size > UNPACKED + RATIO * packed:
            raise DataError(
                f"{path} has {packed:,} bytes and unpacks to {size:,}, which is more than a file may ask for: save it "
                "unpacked, np.savez(path, x=x), or as .npy"
            )
    file.seek(0)


def explain_error(e: BaseException) -> str:
    """Explain numpy's error to the user."""
    if "Object arrays" in str(e):
        return (
            "it holds pickled Python objects, and pickles are never loaded, as they can run code. "
            "Re-save it as a plain numeric array: np.save(path, np.asarray(rows, dtype=np.float32))."
        )
    if "pickled" in str(e):  # numpy says so of whatever does not start as its own files do
        return (
            "no numpy file, but a pickle or a damaged file, and pickles are never loaded, as they can run code. "
            "Re-save it as a plain numeric array with np.save."
        )
    return f"damaged or truncated ({type(e).__name__}: {e}). Write or copy it again."
