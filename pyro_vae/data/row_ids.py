"""Which rows a number is of: a digest of each row's values, and where the row stands in the file or table it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.csv_columns import read_lines, with_formula
from pyro_vae.errors import DataError

from .arrays import read_once, real_array
from .lazy_rows import LazyRows, chunk_of
from .structures import is_structure, lay_out

AT_ONCE = 4096  # rows that are converted at a time
DIGESTS = {"x": "row_digest", "context": "context_digest"}  # what a CSV calls them


@dataclass(frozen=True, eq=False)
class RowIds:
    """Identity of N rows: their values, and their place in what they come from.

    Attributes:
        x: 64 bits of the SHA-256 of each row's values in single precision, ``(N,)``, whatever shape or dtype holds them; None
            where the values are not known.
        context: likewise of all contexts of each row; None where there are none.
        source: number of each row in its file (from 0, a header not counted) or array; None where nobody says.
        index: its label in the index of a DataFrame, or in the index column of a table.
        label: its class or other label, where the data has some.

    Example:
        >>> a, b = RowIds.of(np.eye(3)), RowIds.of(torch.eye(3)[[2, 0, 1]])
        >>> a.difference(a), b.difference(a)
        (None, 'they are the same rows in another order')
    """

    x: Tensor | None = None
    context: Tensor | None = None
    source: Tensor | None = None
    index: tuple[str, ...] | None = None
    label: tuple[str, ...] | None = None

    @classmethod
    def of(cls, x: Any, *context: Any) -> RowIds:
        """Take the digests of x and its contexts, and the index of a DataFrame."""
        contexts = [array for c in context for array in arrays_of(c)]
        return cls(row_digests(arrays_of(x)), row_digests(contexts) if contexts else None, index=index_of(x))

    @classmethod
    def joined(cls, parts: Sequence[RowIds | None]) -> RowIds | None:
        """Join the rows of parts, in order; what one of them does not know is not known."""
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            return None
        joined: dict[str, Any] = {}
        for name in cls.__match_args__:
            values = [getattr(part, name) for part in known]
            if all(value is not None for value in values):
                joined[name] = torch.cat(values) if isinstance(values[0], Tensor) else sum(values, ())
        return cls(**joined)

    def __getitem__(self, rows: slice) -> RowIds:
        parts = {name: getattr(self, name) for name in self.__match_args__}
        return RowIds(**{name: part[rows] for name, part in parts.items() if part is not None})

    def at(self, places: RowIds) -> RowIds:
        """Return the same values at other places."""
        return replace(self, source=places.source, index=places.index, label=places.label)

    @property
    def digest(self) -> str | None:
        """SHA-256 over the digests of all rows in order, in hexadecimal; None where the values are not known."""
        if self.x is None:
            return None
        parts = [self.x] if self.context is None else [self.x, self.context]
        return hashlib.sha256(b"|".join(p.numpy().astype("<i8").tobytes() for p in parts)).hexdigest()

    @property
    def repeated(self) -> int:
        """How many rows stand there again, with the same values and contexts; 0 where the values are not known."""
        if self.x is None:
            return 0
        known = torch.stack([part for part in (self.x, self.context) if part is not None])
        return len(self.x) - known.unique(dim=1).shape[1]

    def difference(self, other: RowIds) -> str | None:
        """Say how these rows differ from as many others; None where they are the same, or cannot be told apart.

        Contexts are looked at where both have some: a conditional model may stand beside one without conditions.
        """
        for what, a, b in (("x", self.x, other.x), ("the context", self.context, other.context)):
            if a is None or b is None:
                continue
            if len(a) != len(b):
                return f"there are {len(a)} and {len(b)} of them"
            if not len(differ := (a != b).nonzero().flatten()):
                continue
            if torch.equal(a.sort().values, b.sort().values):
                return "they are the same rows in another order"
            first = int(differ[0])
            return (
                f"{what} differs in {len(differ)} of {counted(len(a), 'row')}, first in row "
                f"{first}{format_origins(first, self, other)}"
            )
        return None

    def columns(self) -> dict[str, list[str]]:
        """Return the columns of a table: source_row, index, label, and the digests, of those that are known."""
        numbers = None if self.source is None else [str(n) for n in self.source.tolist()]
        found = {"source_row": numbers, "index": self.index, "label": self.label}
        found |= {head: hexadecimal(getattr(self, name)) for name, head in DIGESTS.items()}
        return {head: list(column) for head, column in found.items() if column is not None}

    @classmethod
    def from_csv(cls, text: str) -> RowIds | None:
        """Read what :meth:`columns` left in a CSV; None where it left nothing.

        Raises:
            DataError: a digest or a row number that is none.
        """
        lines = read_lines(text)
        heads = set(lines[0]) & {"source_row", "index", "label", *DIGESTS.values()} if lines else set()
        if not heads:
            return None
        columns = {head: tuple(line[head] or "" for line in lines) for head in heads}
        try:
            numbers = {n: [signed(int(cell, 16)) for cell in columns[h]] for n, h in DIGESTS.items() if h in columns}
            numbers |= {"source": [int(cell) for cell in columns["source_row"]]} if "source_row" in columns else {}
            tensors: dict[str, Any] = {
                name: torch.tensor(values, dtype=torch.int64) for name, values in numbers.items()
            }
        except (ValueError, RuntimeError) as error:
            raise DataError(f"no evidence: a row is not told from others as it should be ({error})") from error
        texts: dict[str, Any] = {
            name: tuple(map(with_formula, columns[name])) for name in ("index", "label") if name in columns
        }
        return cls(**tensors, **texts)

    def tensors(self) -> dict[str, Tensor]:
        """Return those of its parts that are tensors, by name."""
        return {n: getattr(self, n) for n in ("x", "context", "source") if getattr(self, n) is not None}


def format_origins(row: int, a: RowIds, b: RowIds) -> str:
    """Format where a row of either comes from, where both know."""
    if a.source is None or b.source is None:
        return ""
    return f" (rows {int(a.source[row])} and {int(b.source[row])} of their files)"


def arrays_of(argument: Any) -> list[Any]:
    """Return the arrays of an argument: itself, or the parts of a structure."""
    return lay_out(argument, "x")[1] if is_structure(argument) else [read_once(argument)]


def index_of(x: Any) -> tuple[str, ...] | None:
    """Return the labels of a DataFrame's index, or the names of the rows of an AnnData."""
    if names := getattr(x, "row_names", None):  # of a sparse matrix
        return tuple(map(str, names))
    index = getattr(x, "index", None)
    return None if index is None or callable(index) or not hasattr(x, "to_numpy") else tuple(map(str, index))


def row_digests(arrays: Sequence[Any]) -> Tensor:
    """Return 64 bits of the SHA-256 of each row's values, ``(N,)``: of all arrays, side by side, in single precision."""
    sources = [
        a.converted(torch.float32, None, True, "x")
        if isinstance(a, LazyRows)
        else a.detach().cpu()
        if isinstance(a, Tensor)
        else real_array(a, "x")
        for a in arrays
    ]
    digests: list[int] = []
    size = chunk_of(sources, AT_ONCE)
    for start in range(0, len(sources[0]), size):
        table = np.concatenate([plain(source[start : start + size]) for source in sources], 1)
        digests += [int.from_bytes(hashlib.sha256(row).digest()[:8], "little", signed=True) for row in table]
    return torch.tensor(digests, dtype=torch.int64)


def plain(rows: Any) -> np.ndarray:
    """Return rows as ``(N, d)`` in float32, with one NaN and one zero, so that equal values have equal bytes."""
    array = rows.float().numpy() if isinstance(rows, Tensor) else rows
    with np.errstate(over="ignore"):
        table = np.array(array, dtype="<f4").reshape(len(array), -1) + np.float32(0)  # −0 + 0 = 0
    table[np.isnan(table)] = np.float32("nan")
    return np.ascontiguousarray(table)


def hexadecimal(digests: Tensor | None) -> list[str] | None:
    """Write digests in 16 hexadecimal digits."""
    return None if digests is None else [f"{n & 0xFFFFFFFFFFFFFFFF:016x}" for n in digests.tolist()]


def signed(n: int) -> int:
    """Read a number of 64 bits as one with a sign."""
    return n - 2**64 if n >= 2**63 else n
