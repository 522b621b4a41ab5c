"""Read a user's own file, ``.npy``, ``.npz`` or ``.csv``, as a :class:`Source`. Pickles are never loaded."""

from __future__ import annotations

import csv
import tokenize
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from pyro_vae.errors import DataError

from .splits import Part, Source, shuffle

ENDINGS = (".npy", ".npz", ".csv")
LINE = 2**26  # characters of a line, at most: some million columns
SPLITS = ("train", "validation", "test")
UNREADABLE = (  # what np.load raises for damaged files, found by damaging them
    *(ValueError, OSError, EOFError, KeyError, MemoryError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def read_file(path: Path, seed: int) -> Source:
    """Read the rows of a file, with labels where it has them under ``y``.

    Args:
        path: ``.npy``: one array. ``.npz``: one array, or ``x`` and perhaps ``y``, or ``x_train``, ``x_validation`` and
            ``x_test``, perhaps each with its ``y_...``. ``.csv``: numbers between commas, perhaps under one line of
            names, of which ``y`` marks the labels.
        seed: of the permutation that splits the rows 80/10/10, where the file does not split them itself.

    Raises:
        DataError: a missing, damaged or truncated file, a pickle, a cell that is no number, a row of another length.
    """
    if not path.is_file():
        raise DataError(f"no file {path}. Check the path; it is taken from the current folder unless it starts with /.")
    arrays = read_csv(path) if path.suffix.lower() == ".csv" else read_numpy(path)
    if all(f"x_{split}" in arrays for split in SPLITS):
        parts = tuple(Part(f"x_{s}", arrays[f"x_{s}"], arrays.get(f"y_{s}")) for s in SPLITS)
        notes = ("split as the file does", *layout(parts[0].x), *unused(arrays, SPLITS))
        return Source(path.name, parts, tuple, notes=notes)
    x = key_of_x(arrays, path)
    part = Part("x", arrays[x], arrays.get("y"))
    notes = (f"split 80/10/10 per cent by a permutation from seed {seed}", *layout(part.x), *unused(arrays, (), x))
    return Source(path.name, (part,), partial(shuffle, seed=seed), notes=notes)


def key_of_x(arrays: dict[str, np.ndarray], path: Path) -> str:
    """Return the key of x: ``x``, or the only one."""
    if "x" in arrays:
        return "x"
    if len(arrays) == 1:
        return next(iter(arrays))
    raise DataError(
        f"{path} holds {sorted(arrays) or 'nothing'}, and none of them is x. Save one array, or x (and y), or x_train, "
        "x_validation and x_test: np.savez(path, x=x, y=y)."
    )


def unused(arrays: dict[str, np.ndarray], splits: tuple[str, ...], x: str = "x") -> list[str]:
    """Note the arrays of a file that nothing reads."""
    rest = sorted(set(arrays) - ({f"{v}_{s}" for v in "xy" for s in splits} or {x, "y"}))
    return [f"not read: {', '.join(rest)}"] if rest else []


def layout(x: np.ndarray) -> list[str]:
    """Note how the dimensions of x are read, unless they are rows and columns."""
    names = {1: "rows of one value", 3: "(rows, height, width)", 4: "(rows, channels, height, width)"}
    return [f"shape {x.shape} read as {names[x.ndim]}"] if x.ndim in names else []


def read_numpy(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npy (as x) or .npz file."""
    try:
        with path.open("rb") as file:  # opened here, as numpy leaves a damaged .npz open
            loaded = np.load(file, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except UNREADABLE as e:
        raise DataError(f"{path}: {explain_error(e)}") from e


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


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Read the numbers of a .csv file: x ``(N, d)``, float64, and y ``(N,)`` where a column is called so."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            names, values, width = parse(nonblank_lines(csv.reader(lines_of(file))), path)
    except (csv.Error, UnicodeDecodeError, OSError) as e:
        raise DataError(f"{path} cannot be read as comma-separated text in UTF-8 ({e}).") from e
    if not values:
        raise DataError(f"{path} is empty: it has no row of numbers.")
    table = np.frombuffer(values).reshape(-1, width)
    if "y" not in names:
        return {"x": table}
    column = names.index("y")
    y = table[:, column]
    # float64 holds every whole number below 2^53, so that labels survive the way through it
    are_integers = np.isfinite(y).all() and (y == y.round()).all() and (abs(y) < 2**53).all()
    return {"x": np.delete(table, column, axis=1), "y": y.astype(np.int64) if are_integers else y}


def lines_of(file: IO[str]) -> Iterator[str]:
    """Yield a text's lines; raise a csv.Error for one longer than a table has: a file of zeros is one, as long as the disk."""
    while line := file.readline(LINE):
        if len(line) == LINE:
            raise csv.Error(f"a line has more than {LINE:,} characters")
        yield line


def nonblank_lines(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of every line that is not blank."""
    for cells in reader:
        if cells:
            yield reader.line_num, [cell.strip() for cell in cells]  # type: ignore[attr-defined]


def parse(lines: Iterator[tuple[int, list[str]]], path: Path) -> tuple[list[str], array[float], int]:
    """Parse the lines to names (a first line without any number), all values end to end, and the width of the table."""
    names: list[str] = []
    values = array("d")
    width = row = 0
    for line, cells in lines:
        if not width:
            width = len(cells)
            if not any(is_number(cell) for cell in cells):
                names = cells
                continue
        where = f"{path}, row {row} (counted from 0; line {line} of the file)"
        if len(cells) != width:
            raise DataError(
                f"{where}: {len(cells)} cells, wanted {width} as in the first line. Make the rows equally long."
            )
        values.extend(parse_number(cell, where, column) for column, cell in enumerate(cells))
        row += 1
    return names, values, width


def parse_number(cell: str, where: str, column: int) -> float:
    """Parse a cell; NaN where it is empty, which :func:`~pyro_vae.data.load` takes for missing, or refuses."""
    if is_number(cell) or not cell:
        return float(cell or "nan")
    raise DataError(
        f"{where}, column {column}: {cell!r} is no number. Cells are numbers between commas; encode text as numbers, "
        "and leave gaps empty (--missing). Names may stand in the first line only, and there in every column."
    )


def is_number(cell: str) -> bool:
    """Return whether a cell reads as a number (Python's ``1_000`` does not)."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
