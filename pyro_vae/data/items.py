"""Read a map-style data set row by row into one array; what goes wrong on the way is named by its index."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vae.errors import DataError

ARRAYS = ("__array__", "__array_interface__", "to_numpy", "__dlpack__")


def is_items(x: Any) -> bool:
    """Return whether x has rows to ask for and is no array: a map-style torch Dataset, or a stream without a length."""
    if isinstance(x, str | bytes | dict | list | tuple) or any(hasattr(x, name) for name in ARRAYS):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def read_items(x: Any, name: str) -> np.ndarray:
    """Read the rows of a map-style data set as one array.

    Raises:
        DataError: a stream or a loader, which has no rows by number; an item that cannot be read, or is not as the first one,
            with its index.

    Example:
        >>> from pyro_vae.data.items import read_items
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
            "torch.stack([row for row in data]); of a DataLoader: torch.cat([batch for batch in loader])."
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
