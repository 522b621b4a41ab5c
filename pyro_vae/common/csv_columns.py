"""Columns of numbers as CSV, to the last bit."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_vae.errors import DataError


def write_columns(columns: Mapping[str, Tensor | Sequence[str]]) -> str:
    """Format one line a row: its number, and the columns, floats with all their digits, texts as they are."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", *columns])
    cells = (map(repr, c.tolist()) if isinstance(c, Tensor) else c for c in columns.values())
    writer.writerows([i, *line] for i, line in enumerate(zip(*cells, strict=True)))
    return out.getvalue()


def read_columns(text: str, needed: Sequence[str], welcome: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read what :func:`write_columns` wrote, in float64: the columns `needed`, and those of `welcome` that are there.

    Raises:
        DataError: a column is missing, a row is out of order, or a cell is no number.

    Example:
        >>> read_columns(write_columns({"log_px": torch.tensor([-1.5, -0.5])}), ["log_px"])["log_px"].tolist()
        [-1.5, -0.5]
    """
    lines = list(csv.DictReader(io.StringIO(text)))
    if not lines or (missing := [name for name in ("row", *needed) if name not in lines[0]]):
        raise DataError(f"no evidence: {f'the column {missing[0]!r} is missing' if lines else 'there are no rows'}")
    if [line["row"] for line in lines] != [str(i) for i in range(len(lines))]:
        raise DataError(f"no evidence: its {len(lines)} rows are not numbered 0 to {len(lines) - 1} in order")
    names = [*needed, *(name for name in welcome if name in lines[0])]
    try:
        table = torch.tensor([[float(line[name]) for name in names] for line in lines], dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"no evidence: a cell is no number ({error})") from error
    return dict(zip(names, table.unbind(1), strict=True))
