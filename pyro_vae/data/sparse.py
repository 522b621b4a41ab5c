"""Rows of a sparse matrix (scipy, the X of an AnnData): kept sparse, and made dense a batch at a time."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import DataConversionWarning, DataError, ShapeError

from .lazy_rows import LazyRows

WHOLE = 2**30  # bytes that all rows may take at most where something wants them dense at once
NUMERIC = "biuf"
GAPS = (
    "Drop those rows, or fill them in; a value that was not observed is no zero, and NaN is taken under missing=True."
)


def is_sparse(x: Any) -> bool:
    """Return whether x is a sparse matrix or array of scipy, which is not imported for it."""
    return any(t.__module__.startswith("scipy.sparse") for t in type(x).__mro__) and hasattr(x, "tocsr")


def is_annotated(x: Any) -> bool:
    """Return whether x is an AnnData, or looks so: a matrix X with names of its rows and columns."""
    return all(hasattr(x, name) for name in ("X", "obs_names", "var_names"))


def sparse_or_same(x: Any, name: str = "x") -> Any:
    """Take a sparse matrix, or an AnnData's X, as rows that are made dense a batch at a time; return anything else as it is.

    A dense X is returned as the array that it is.
    """
    if is_sparse(x):
        return SparseRows(x, name)
    if not is_annotated(x):
        return x
    matrix = x.X.to_memory() if hasattr(x.X, "to_memory") else x.X  # of a file that is open, "backed"
    if not is_sparse(matrix):
        return matrix
    return SparseRows(matrix, f"{name}.X", tuple(map(str, x.obs_names)), tuple(map(str, x.var_names)))


class SparseRows(LazyRows):
    """The rows ``(N, d)`` of a sparse matrix, which stays as it is: ``rows[2:5]`` and ``rows[numbers]`` are dense tensors.

    Whatever takes x takes the matrix itself, ``fit(vae, matrix)``; this is what becomes of it. What is not stored is 0.

    Args:
        matrix: of scipy, or an array of its; compressed by rows (CSR) it is not copied, any other is.
        name: what messages call it.
        row_names: one for each row, such as an AnnData's ``obs_names``.
        column_names: likewise, ``var_names``.

    Raises:
        DataError: complex numbers or objects, no rows, indices outside the matrix; stored values that are NaN or infinite, by
            row and column.
        ShapeError: an array of other than two dimensions.

    Warns:
        DataConversionWarning: the matrix was not compressed by rows.

    Example:
        >>> from scipy.sparse import csr_matrix
        >>> x = SparseRows(csr_matrix([[0, 3, 0], [0, 0, 1], [2, 0, 0]]))
        >>> x.shape, x[1:].tolist()
        (torch.Size([3, 3]), [[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    """

    def __init__(
        self, matrix: Any, name: str = "x", row_names: tuple[str, ...] = (), column_names: tuple[str, ...] = ()
    ) -> None:
        self.matrix = by_rows(matrix, name)
        self.name, self.row_names, self.column_names = name, row_names, column_names
        self.shape = torch.Size(map(int, self.matrix.shape))
        self.source_dtype = self.matrix.dtype
        single = self.source_dtype.kind == "f" and self.source_dtype.itemsize == 4
        self.dtype = torch.float32 if single else torch.get_default_dtype()
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        filled = self.matrix.nnz / max(1, self.numel())
        return f"SparseRows(shape={tuple(self.shape)}, {self.source_dtype}, {100 * filled:.3g} % stored)"

    @property
    def nbytes(self) -> int:
        """Of what is stored."""
        return sum(part.nbytes for part in (self.matrix.data, self.matrix.indices, self.matrix.indptr))

    def read(self, numbers: np.ndarray) -> Tensor:
        numbers = np.asarray(numbers, dtype=np.int64)
        some = self.matrix[np.where(numbers < 0, numbers + len(self), numbers)]
        kind: Any = torch.empty(0, dtype=self.dtype).numpy().dtype if self.dtype != torch.bfloat16 else np.float32
        return torch.from_numpy(some.astype(kind, copy=False).toarray()).to(self.device, self.dtype)

    def head(self, rows: int) -> np.ndarray:
        dense: np.ndarray = self.matrix[:rows].toarray()
        return dense

    def whole(self, name: str) -> np.ndarray:
        size = self.numel() * self.source_dtype.itemsize
        if size > WHOLE:
            raise DataError(
                f"{name} is a sparse matrix {len(self):,} × {self.shape[1]:,}, and is wanted dense here, all rows at once: "
                f"{size / 1e9:.1f} GB. Give some of the rows: x[:1000]."
            )
        dense: np.ndarray = self.matrix.toarray()
        return dense

    def converted(self, dtype: torch.dtype, device: torch.device | None, missing: bool, name: str) -> SparseRows:
        other = copy.copy(self)
        other.dtype, other.name, other.device = dtype, name, device or self.device
        other.check_values(missing)
        return other

    def check_values(self, missing: bool) -> None:
        """Refuse values that have no place in the dtype of the rows, among those that are stored.

        Raises:
            DataError: names row and column.
        """
        data, what, hint = self.matrix.data, "infinite values" if missing else "NaN or infinite values", GAPS
        bad = np.isinf(data) if missing and self.dtype.is_floating_point else ~np.isfinite(data)
        if self.dtype.is_floating_point and not bad.any() and len(data):
            largest = max(abs(float(np.fmax.reduce(data))), abs(float(np.fmin.reduce(data))))  # NaN aside
            limit = torch.finfo(self.dtype).max
            if largest > limit:
                bad, what, hint = np.abs(data.astype(np.float64)) > limit, f"values beyond {self.dtype}", "Rescale x."
        elif not self.dtype.is_floating_point and data.dtype.kind == "f":
            bad = bad | (data != np.round(data))
            what, hint = "fractions, where the programs take whole numbers", "Round it."
        if bad.any():
            at = int(bad.argmax())
            row = int(np.searchsorted(self.matrix.indptr, at, side="right")) - 1
            raise DataError(
                f"{self.name} has {what} in {int(bad.sum())} of its {len(data):,} stored values, first in row {row}, column "
                f"{self.column(int(self.matrix.indices[at]))} ({data[at]}; counted from 0). {hint}"
            )

    def column(self, number: int) -> str:
        """Name a column."""
        return f"{number} ({self.column_names[number]!r})" if self.column_names else str(number)

    def taking(self, rows: np.ndarray) -> SparseRows:
        """Return some of the rows, sparse."""
        other = copy.copy(self)
        other.matrix = self.matrix[rows]
        other.shape = torch.Size(map(int, other.matrix.shape))
        other.row_names = tuple(self.row_names[i] for i in rows) if self.row_names else ()
        return other

    @property
    def chunk(self) -> int:  # type: ignore[override]
        """Rows that are looked at together: some megabytes."""
        return max(64, min(2000, 2**20 // max(1, math.prod(self.shape[1:]))))

    @property
    def digest(self) -> str:
        """SHA-256 of shape, dtype and stored values."""
        total = hashlib.sha256(f"{tuple(self.shape)} {self.source_dtype.str}".encode())
        for part in (self.matrix.indptr.astype("<i8"), self.matrix.indices.astype("<i8"), self.matrix.data):
            total.update(np.ascontiguousarray(part).data.cast("B"))
        return total.hexdigest()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"rows of a sparse matrix have no {name!r}. Take some of them, as a dense tensor: rows[:1000]"
        )


def by_rows(matrix: Any, name: str) -> Any:
    """Return a matrix compressed by rows, each value stored once; the caller's own is left as it is.

    Raises:
        DataError, ShapeError: as :class:`SparseRows`.
    """
    if matrix.ndim != 2:
        raise ShapeError(f"{name} is a sparse array of shape {matrix.shape}, wanted rows and columns: (N, d).")
    if matrix.dtype.kind not in NUMERIC:
        raise DataError(f"{name} is a sparse matrix of {matrix.dtype}, wanted real numbers.")
    if 0 in matrix.shape:
        raise DataError(f"{name} is empty: shape {matrix.shape}. Check the selection or file that it comes from.")
    if matrix.format != "csr":
        warnings.warn(
            f"{name}: a sparse matrix of format {matrix.format} is copied, compressed by rows (x.tocsr() does it once for all)",
            DataConversionWarning,
            stacklevel=3,
        )
    found = matrix.tocsr()
    try:
        found.check_format(full_check=True)  # scipy trusts indices, and reads memory beyond the matrix by wrong ones
    except ValueError as error:
        raise DataError(f"{name} is damaged: {error}. Write or build it again.") from error
    if not found.has_canonical_format:
        wide = np.int64 if found.dtype.kind in "iu" and found.dtype.itemsize < 8 else found.dtype  # for what adds up
        found = found.astype(wide, copy=True)
        found.sum_duplicates()
    return found
