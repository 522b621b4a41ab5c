"""What all values of a data set are alike: zeros and ones, bytes, counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOOKED_AT = 4096  # rows at a time


def kind_of(arrays: Sequence[np.ndarray]) -> str:
    """Return what all values are alike: "binary", "bytes", or "" for anything else; NaN counts for nothing.

    Example:
        >>> kind_of([np.array([[0, 1]])]), kind_of([np.array([[0.0, 255.0]])]), kind_of([np.array([[0.5, 200.0]])])
        ('binary', 'bytes', '')
    """
    low, high, eight_bits = np.inf, -np.inf, True
    for array in arrays:
        eight_bits = eight_bits and array.dtype == np.uint8
        for start in range(0, len(array), LOOKED_AT):
            values = np.asarray(array[start : start + LOOKED_AT], dtype=np.float64)
            values = values[np.isfinite(values)]
            if not values.size:
                continue
            if (values != np.round(values)).any():
                return ""
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low < 0 or high > 255 or high < low:
        return ""
    return "binary" if high <= 1 else "bytes" if eight_bits or high >= 128 else ""


def kind_of_sparse(stored: np.ndarray) -> str:
    """Return what all values of a sparse matrix are: "binary", zeros and ones; "counts", whole numbers from 0; "" for others.

    Example:
        >>> kind_of_sparse(np.array([1.0, 1.0])), kind_of_sparse(np.array([1.0, 7.0])), kind_of_sparse(np.array([0.5]))
        ('binary', 'counts', '')
    """
    values = stored[np.isfinite(stored)]
    if not len(values) or values.min() < 0 or (values != np.round(values)).any():
        return ""
    return "binary" if values.max() <= 1 else "counts"
