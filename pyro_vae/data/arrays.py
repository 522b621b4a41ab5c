"""Arrays of any library as one checked tensor of rows: real, finite, not empty."""

from __future__ import annotations

import mmap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.mapped_files import check_whole, mapped_files
from pyro_vae.errors import DataConversionWarning, DataError, ShapeError

from .lazy_rows import LazyRows
from .sparse import sparse_or_same

AT_ONCE = 2**24  # numbers that are checked at a time
Dtypes = tuple[torch.dtype | None, ...]
NUMERIC = "biuf"  # numpy's kinds: bool, int, unsigned, float
ARRAYS = ("__array__", "__array_interface__", "to_numpy", "__dlpack__")
GAPS = (
    "Drop those rows, or fill the gaps in first. To model gaps: --missing on the command line; in Python, "
    "SkipMissing(likelihood), WithMask(net) and fit(..., missing=True) take NaN."
)

INFINITE = (
    "Drop those rows, or cap the values: infinity stands for no value that was missed. What was not observed is NaN, or an "
    "empty cell, under --missing (in Python missing=True)."
)


def as_rows(
    x: Any,
    name: str = "x",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    missing: bool = False,
) -> Tensor:
    """Convert x to a finite tensor of shape ``(N, *event)``, N > 0, detached; x itself is left as it is.

    Shares memory with x where nothing needs converting (a float tensor, a writable contiguous float32 array); a float32 file
    that is memory-mapped (``np.load(path, mmap_mode="r")``) stays on disk, and is read as its rows are.

    Args:
        x: a tensor, a numpy array, nested lists, anything with ``.to_numpy()``, or a data set with a length that hands out one
            row for each number; of any real dtype.
        name: what messages call it.
        dtype: what to convert to. None keeps float tensors and numpy float32, and takes all else to torch's default.
        device: where to; None leaves it where it is.
        missing: NaN stands for what was not observed, and stays. Infinite values are refused either way.

    Raises:
        DataError: not numbers, complex, masked, empty, or with NaN or infinite values (the message names the rows).
        ShapeError: a single number.

    Warns:
        DataConversionWarning: the dtype was changed (lists have none, so they convert silently).

    Example:
        >>> from pyro_vae.data import as_rows
        >>> as_rows([[0, 1], [1, 1], [1, 0]]).shape
        torch.Size([3, 2])
    """
    rows, note = convert(x, name, dtype, device, missing)
    if note and not isinstance(x, list | tuple):
        kind = "tensor" if isinstance(x, Tensor) else "array"
        warnings.warn(f"{note} (a copy; your {kind} is unchanged)", DataConversionWarning, stacklevel=2)
    return rows


def batch_of(
    x: Any,
    *context: Any,
    name: str = "x",
    like: Tensor | None = None,
    device: torch.device | str | None = None,
    missing: bool = False,
    dtypes: Dtypes | None = None,
    on_disk: bool = False,
) -> tuple[Tensor, ...]:
    """Convert x and its contexts to what programs take: as many rows each, in the dtype and on the device of `like`.

    Args:
        x: as for :func:`as_rows`.
        *context: each with N rows; whole numbers and booleans (labels) stay what they are.
        name: what messages call x.
        like: a parameter of the programs; None leaves x's dtype and device to x.
        device: where to, in place of `like`'s device; without either, contexts go where x is.
        missing: x and contexts may hold NaN, for what was not observed.
        dtypes: of x and of each context, in place of those (None: as without), as
            :func:`~pyro_vae.programs.arguments.argument_dtypes` chooses them.
        on_disk: leave rows there that are (:class:`~pyro_vae.data.Stored`), for a caller who takes some at a time; others are
            read as wholes, if they fit. Contexts on disk have no gaps.

    Raises:
        DataError, ShapeError: as :func:`as_rows` and :func:`same_rows`.
    """
    as_given = rows_or_stored if on_disk else as_rows
    device = device if device is not None or like is None else like.device
    wanted: Dtypes = (dtypes or (None,)) + (None,) * len(context)
    rows = as_given(x, name, wanted[0] or (None if like is None else like.dtype), device, missing)
    parameters = torch.get_default_dtype() if like is None else like.dtype
    floats = rows.dtype if rows.is_floating_point() else parameters
    chosen = [wanted[1 + i] or integer_dtype(c) or floats for i, c in enumerate(context)]
    contexts = [as_given(c, f"{name}: context {i}", chosen[i], rows.device, missing) for i, c in enumerate(context)]
    same_rows(rows, *contexts)
    return (rows, *contexts)


def rows_or_stored(
    x: Any, name: str, dtype: torch.dtype | None, device: torch.device | str | None, missing: bool
) -> Tensor:
    """Convert as :func:`as_rows`, and leave rows on disk there, to be converted as they are read."""
    x = sparse_or_same(x, name)
    if not isinstance(x, LazyRows):
        return as_rows(x, name, dtype, device, missing)
    gaps = missing and "context" not in name
    stored: Any = x.converted(dtype or x.dtype, None if device is None else torch.device(device), gaps, name)
    return stored


def integer_dtype(x: Any) -> torch.dtype | None:
    """Return the dtype of whole numbers and booleans, which labels keep; None for anything else."""
    if not isinstance(x, Tensor):
        dtype = x.source_dtype if isinstance(x, LazyRows) else real_array(x, "context").dtype
        x = torch.from_numpy(np.zeros(0, dtype.newbyteorder("=") if dtype.itemsize <= 8 else np.float64))
    source: Tensor = x
    return None if source.is_floating_point() or source.is_complex() else source.dtype


def head_of(x: Any, rows: int) -> Any:
    """Take the first rows of anything that :func:`as_rows` takes, where that is cheap; else all of it."""
    if isinstance(x, LazyRows):
        return x.head(rows)
    if hasattr(x, "iloc"):
        return x.iloc[:rows]
    return x[:rows] if isinstance(x, Tensor | np.ndarray) and x.ndim else x


def read_once(x: Any) -> Any:
    """Read the rows of a data set that hands them out one by one, as an array; return any other x as it is.

    A sparse matrix becomes rows that are made dense a batch at a time (:class:`~pyro_vae.data.sparse.SparseRows`).
    """
    x = sparse_or_same(x)
    return real_array(x, "x") if is_items(x) else x


def same_rows(x: Tensor, *context: Tensor) -> None:
    """Check that every context has as many rows as x; raise a ShapeError that says both otherwise."""
    for i, c in enumerate(context):
        rows = "none" if c.dim() == 0 else len(c)
        if rows != len(x):
            raise ShapeError(
                f"x has {counted(len(x), 'row')}, context {i} has {rows} (shape {tuple(c.shape)}). "
                "Give each row of x one row of every context, in the same order."
            )


def convert(
    x: Any, name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None, missing: bool = False
) -> tuple[Tensor, str | None]:
    """Convert as :func:`as_rows`, and return a line on the conversion, or None, in place of a warning."""
    source = x.detach() if isinstance(x, Tensor) else real_array(x, name)
    check_rows(source, name)
    target = dtype or default_dtype(source)
    same = (str(target), f"numpy {str(target).removeprefix('torch.')}")
    note = None if dtype_name(source) in same else f"{name}: converted from {dtype_name(source)} to {target}"
    rows = source if isinstance(source, Tensor) else to_tensor(source)
    missing = missing and target.is_floating_point  # whole numbers have no NaN
    check_finite(rows, name, missing=missing)
    converted = rows.to(device=device, dtype=target)
    if rows.is_floating_point() and not target.is_floating_point and not torch.equal(converted.to(rows.dtype), rows):
        bad = converted.to(rows.dtype) != rows
        raise DataError(
            f"{name} holds fractions, where the programs take whole numbers, in {format_rows(bad)}. Round it."
        )
    if converted.dtype != rows.dtype:
        when, hint = f" once converted from {rows.dtype} to {target}", "Rescale x, or pass a wider dtype."
        check_finite(converted, name, when, hint, missing)
    return converted, note


def real_array(x: Any, name: str) -> np.ndarray:
    """Read x as a numpy array of real numbers."""
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        rows = format_rows(torch.from_numpy(np.array(np.ma.getmaskarray(x), ndmin=1)))
        raise DataError(f"{name} has masked entries in {rows}. Drop those rows, or fill them in (x.filled(...)).")
    try:
        x = sparse_or_same(x, name)
        if isinstance(x, LazyRows):
            x = x.whole(name)
        if is_items(x):
            x = read_items(x, name)
        array = np.asarray(x.to_numpy() if hasattr(x, "to_numpy") else x)
        check_mapping(array, name)
    except DataError:
        raise
    except (ValueError, TypeError, RuntimeError) as e:
        raise DataError(f"{name} cannot be read as one array ({e}). Give rows of one length, holding numbers.") from e
    if array.dtype.kind not in NUMERIC:
        raise DataError(
            f"{name} (a {type(x).__name__}) has dtype {array.dtype}, wanted real numbers. Encode text or categories as "
            "numbers, or split complex values into real and imaginary part."
        )
    return array


def check_rows(source: Tensor | np.ndarray, name: str) -> None:
    """Refuse complex and sparse tensors, single numbers, and arrays that hold nothing."""
    shape = tuple(source.shape)
    if isinstance(source, Tensor) and (source.is_complex() or source.layout != torch.strided):
        raise DataError(
            f"{name} is a {source.layout} tensor of dtype {source.dtype}, wanted a dense one of real numbers. "
            "Split complex values into real and imaginary part; make a sparse tensor dense with .to_dense()."
        )
    if not shape:
        raise ShapeError(f"{name} is a single number, wanted rows: shape (N, d). Give one row as x[None].")
    if 0 in shape:
        lacks = "rows" if shape[0] == 0 else "columns"
        raise DataError(
            f"{name} is empty: shape {shape}. It has no {lacks}: check the selection or file it comes from."
        )


def default_dtype(source: Tensor | np.ndarray) -> torch.dtype:
    """Return the dtype that dtype=None stands for."""
    if isinstance(source, Tensor):
        return source.dtype if source.dtype.is_floating_point else torch.get_default_dtype()
    return torch.float32 if source.dtype.kind == "f" and source.dtype.itemsize == 4 else torch.get_default_dtype()


def dtype_name(source: Tensor | np.ndarray) -> str:
    """Name the dtype as a message shall."""
    return str(source.dtype) if isinstance(source, Tensor) else f"numpy {source.dtype.newbyteorder('=')}"


def to_tensor(array: np.ndarray) -> Tensor:
    """Make a tensor of an array of any byte order, stride, alignment or float width; copy only where torch needs it."""
    array = copy_on_write(array)
    longer = array.dtype.kind == "f" and array.dtype.itemsize > 8
    native = np.dtype(np.float64) if longer else array.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # what float64 cannot hold becomes infinite, and check_finite names its row
        return torch.from_numpy(np.require(array, native, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"]))


def check_mapping(array: np.ndarray, name: str) -> None:
    """Refuse an array of a file that is shorter now than when it was mapped: reading it would kill the process."""
    part: Any = array
    while isinstance(part, np.ndarray) and not isinstance(part.base, mmap.mmap):
        part = part.base
    if isinstance(part, np.memmap) and part.filename is not None:
        check_whole(Path(part.filename), part.offset + part.nbytes, name)


def copy_on_write(array: np.ndarray) -> np.ndarray:
    """Map a whole read-only file anew as copy-on-write, as torch warns of read-only memory; return any other array as it is."""
    file = array if isinstance(array, np.memmap) else array.base
    if array.flags.writeable or not isinstance(file, np.memmap) or not isinstance(file.base, mmap.mmap):
        return array
    if file.filename is None or (file.shape, file.dtype) != (array.shape, array.dtype) or not array.flags.c_contiguous:
        return array
    return np.memmap(file.filename, file.dtype, "c", file.offset, file.shape)


def check_finite(rows: Tensor, name: str, when: str = "", hint: str = GAPS, missing: bool = False) -> None:
    """Refuse NaN (unless it may stand for what is missing) and infinite values, by row."""
    if not rows.is_floating_point():
        return
    find_bad = torch.isinf if missing else lambda chunk: ~torch.isfinite(chunk)
    chunks = rows.split(max(1, AT_ONCE * len(rows) // rows.numel()))  # a file may be larger than the memory
    files = mapped_files([rows]) if len(chunks) > 1 else ()

    def is_bad(chunk: Tensor) -> bool:
        for file in files:
            file.check()
        return bool(find_bad(chunk).any())

    if any(map(is_bad, chunks)):
        bad = find_bad(rows)
        what = "infinite values" if missing else "NaN or infinite values"
        if hint is GAPS and not any(bool(chunk.isnan().any()) for chunk in chunks):
            hint = INFINITE
        raise DataError(f"{name} has {what}{when} in {format_rows(bad)}. {hint}")


def format_rows(bad: Tensor) -> str:
    """Format where a mask ``(N, *event)`` holds: how many rows, the first five of them, and the first column."""
    bad = bad.reshape(len(bad), -1)
    rows = bad.any(1).nonzero().flatten().tolist()
    column = int(bad[rows[0]].nonzero()[0])
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f"{len(rows)} of {counted(len(bad), 'row')}: {shown} (counted from 0; in row {rows[0]} first in column {column})"


def is_items(x: Any) -> bool:
    """Return whether x has rows to ask for and is no array: a map-style torch Dataset, or a stream without a length."""
    if isinstance(x, str | bytes | dict | list | tuple | LazyRows) or any(hasattr(x, name) for name in ARRAYS):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def read_items(x: Any, name: str) -> np.ndarray:
    """Read the rows of a map-style data set as one array.

    Raises:
        DataError: a stream or a loader, which has no rows by number; an item that cannot be read, or is not as the first one,
            with its index.

    Example:
        >>> from pyro_vae.data.arrays import read_items
        >>> class Squares:
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, i):
        ...         return np.array([i, i * i])
        >>> read_items(Squares(), "x").tolist()
        [[0, 0], [1, 1], [2, 4]]
    """
    if not (hasattr(x, "__len__") and hasattr(x, "__getitem__")):
        raise DataError(
            f"{name} (a {type(x).__name__}) is a stream, whose rows have no numbers. Read it into one array first: "
            "torch.stack([row for row in data]); of a DataLoader: torch.cat([batch for batch in loader]). More of "
            "them than the memory holds: pyro_vae.data.write_shards(iter(loader), folder, num_rows=N), and then Stored(folder)."
        )
    rows = [read_item(x, i, name) for i in range(len(x))]
    for i, row in enumerate(rows):
        if row.shape != rows[0].shape:
            raise DataError(
                f"{name}[{i}] has shape {row.shape}, and {name}[0] has {rows[0].shape}: rows are of one shape."
            )
    return np.stack(rows) if rows else np.zeros(0)


def read_item(x: Any, i: int, name: str) -> np.ndarray:
    """Read one row as an array."""
    try:
        row = x[i]
    except Exception as error:  # the user's own code: whatever it raises belongs to row i
        raise DataError(f"{name}[{i}] cannot be read: {type(error).__name__}: {error}") from error
    if isinstance(row, tuple | dict):
        raise DataError(
            f"{name}[{i}] is a {type(row).__name__}, wanted one array. Pass what is to be modelled: "
            "torch.stack([row for row, *_ in data])."
        )
    return np.asarray(row)
