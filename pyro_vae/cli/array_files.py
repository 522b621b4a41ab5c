"""Arrays as files: .npy to the bit, or .csv with a column for each number of a row."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.csv_columns import write_columns
from pyro_vae.data import Column

KINDS = (".npy", ".csv")
EMPTY: Mapping[str, Sequence[str]] = MappingProxyType({})


def check_array_file(hint: Any, path: Path | None) -> None:
    """Refuse the name of a file that is of no kind that can be written, before anything is computed for it."""
    if path is not None and path.suffix.lower() not in KINDS:
        raise ValueError(f"{path}: arrays are written as {' or '.join(KINDS)}; give the file one of these endings")


def array_bytes(
    array: np.ndarray,
    path: Path,
    letter: str,
    known: Mapping[str, Sequence[str]] = EMPTY,
    columns: Sequence[Column] = (),
    drawn: bool = False,
) -> bytes:
    """Write an array as the ending of `path` says; as CSV, columns are `letter` and their number, digits all there.

    Columns of a table have its names; where values are `drawn`, not means, labels stand for their codes.

    What is `known` of the rows (source_row, index, label, draw) stands before the numbers of a CSV; an .npy has no place for
    it.

    Example:
        >>> print(array_bytes(np.array([[0.5, 1.0]]), Path("encoded.csv"), "z", {"source_row": ["7"]}).decode())
        row,source_row,z0,z1
        0,7,0.5,1.0
        <BLANKLINE>
    """
    if path.suffix.lower() == ".csv":
        rows = torch.from_numpy(array).reshape(len(array), -1)
        if len(columns) == rows.shape[1]:
            return write_columns({**known, **of_table(rows, columns, {"row", *known}, drawn)}).encode()
        return write_columns({**known, **{f"{letter}{i}": column for i, column in enumerate(rows.unbind(1))}}).encode()
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def of_table(rows: Tensor, columns: Sequence[Column], taken: set[str], drawn: bool) -> dict[str, Sequence[str]]:
    """Write the columns of a table as texts under their names; one that is called as what stands before gets a mark."""
    written: dict[str, Sequence[str]] = {}
    for column, values in zip(columns, rows.unbind(1), strict=True):
        name = f"x.{column.name}" if column.name in taken else column.name
        name = name if drawn or not column.codes else f"{name} (mean of codes)"
        coded = column if drawn else Column(column.name)
        texts = [coded.text(value) for value in values.tolist()]
        whole = drawn and not column.codes and all(text.endswith(".0") for text in texts if text)
        written[name] = (
            [text.removesuffix(".0") for text in texts] if whole else texts
        )  # counts, as their table has them
    return written
