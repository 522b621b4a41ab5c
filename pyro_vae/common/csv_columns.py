"""Columns of numbers as CSV, to the last bit."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError

FORMULA = tuple("=+-@\t\r")  # what a formula begins with, in one spreadsheet or another


def write_columns(columns: Mapping[str, Tensor | Sequence[str]]) -> str:
    """Format one line a row: its number, and the columns, floats with all their digits, texts but for :func:`no_formula`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", *map(no_formula, columns)])
    cells = (map(repr, c.tolist()) if isinstance(c, Tensor) else map(no_formula, c) for c in columns.values())
    writer.writerows([i, *line] for i, line in enumerate(zip(*cells, strict=True)))
    return out.getvalue()


def no_formula(cell: Any) -> Any:
    """Return a cell that no spreadsheet runs: a text that begins as a formula does gets an apostrophe before it.

    Numbers stay as they are. :func:`with_formula` takes it off again.

    Example:
        >>> no_formula("=1+1"), no_formula("-1.5"), no_formula("x=1"), no_formula(-2.0)
        ("'=1+1", '-1.5', 'x=1', -2.0)
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip("'")[:1] in FORMULA and not is_number(cell) else cell


def with_formula(cell: str) -> str:
    """Return the text that :func:`no_formula` wrote."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'")[:1] in FORMULA else cell


def is_number(cell: str) -> bool:
    """Return whether a cell reads as a number (nan and inf do)."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_lines(text: str) -> list[dict[str, str]]:
    """Read the lines of a CSV by its head; cells that are not there are empty.

    Raises:
        DataError: it is none: a cell of more than 128 KiB, say.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(text), restkey="", restval=""))
    except csv.Error as error:
        raise DataError(f"no table: {error}") from error
    return [{head: cell for head, cell in line.items() if isinstance(cell, str)} for line in lines]


def read_columns(text: str, needed: Sequence[str], welcome: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read what :func:`write_columns` wrote, in float64: the columns `needed`, and those of `welcome` that are there.

    Raises:
        DataError: a column is missing, a row is out of order, or a cell is no number.

    Example:
        >>> read_columns(write_columns({"log_px": torch.tensor([-1.5, -0.5])}), ["log_px"])["log_px"].tolist()
        [-1.5, -0.5]
    """
    lines = read_lines(text)
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
