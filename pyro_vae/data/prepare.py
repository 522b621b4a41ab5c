"""Arrays as their files hold them, made rows to train on: flat, float32, checked; and the shape of a row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.errors import DataError, ShapeError

from .arrays import GAPS, convert
from .binarize import check_grey
from .columns import check_precision
from .splits import Part, Source, Split

LISTED = 5  # columns, in a message


def format_missing(splits: list[Split], sequences: bool = False) -> str:
    """Format the share of missing values, to follow the policy; empty where none is missing."""
    missing, cells = (sum(f(s.x) for s in splits) for f in (lambda x: int(x.isnan().sum()), Tensor.numel))
    what = "missing, or after the end of a sequence" if sequences else "missing"
    return f", {100 * missing / cells:.1f} % of them {what}: log p of what is observed" if missing else ""


def empty_rows(splits: Sequence[Split]) -> list[str]:
    """Note rows of which nothing is there; the first is numbered as in its file."""
    empty = [(split, split.x.isnan().flatten(1).all(1)) for split in splits if len(split)]
    count, rows = sum(int(rows.sum()) for _, rows in empty), sum(map(len, splits))
    if not count:
        return []
    first = min(int(split.numbers[rows.numpy()].min()) for split, rows in empty if rows.any())
    return [
        f"{count} of {counted(rows, 'row')} {'has' if count == 1 else 'have'} no value at all (first row {first}, "
        "counted from 0): log p "
        "of nothing is 0, whatever the model, and counts in every mean; take such rows out of the file"
    ]


def prepare(part: Part, source: Source, binary: bool, missing: bool) -> tuple[Split, list[str]]:
    """Convert one part to flat float32 rows, its labels to int64 if whole or else float32, and note what was converted."""
    if not missing:
        check_gaps(part)
    x, note = convert(part.x, part.name, torch.float32, missing=missing)
    if (scale := source.scale * (source.grey if binary else 1.0)) != 1.0:
        x = x / scale
    x = x.reshape(len(x), -1)
    if binary:
        check_grey(x, part.name)
    notes = [note] if note else []
    if part.y is None:
        return Split(x, index=part.index), notes
    are_integers, name = part.y.dtype.kind in "biu", part.name.replace("x", "y", 1)
    y, y_note = convert(part.y, name, torch.int64 if are_integers else torch.float32)
    if len(y) != len(x):
        raise ShapeError(f"{part.name} has {counted(len(x), 'row')}, {name} has {len(y)}. Give each row one label.")
    split = Split(x, y, index=part.index, classes=part.classes)
    return split, [*notes, y_note] if y_note and not are_integers else notes


def check_columns(part: Part) -> None:
    """Refuse columns in double precision that single precision takes for others: identities, seconds since 1970."""
    if part.x.ndim == 2 and part.x.dtype.kind in "iuf" and part.x.dtype.itemsize > 4:
        for i, column in enumerate(part.x.T):
            check_precision(part.columns[i].name if part.columns else f"{part.name}[:, {i}]", column)


def check_gaps(part: Part) -> None:
    """Refuse gaps in columns that have names, by name."""
    if not part.columns:
        return
    counts = {c.name: int(n) for c, n in zip(part.columns, np.isnan(part.x).sum(0), strict=True) if n}
    if counts:
        told = ", ".join(f"{name!r} ({count})" for name, count in list(counts.items())[:LISTED])
        rows = int(np.isnan(part.x).any(1).sum())
        more = f" and {len(counts) - LISTED} more columns" if len(counts) > LISTED else ""
        first = int(np.isnan(part.x).any(1).argmax())
        raise DataError(
            f"{part.name} has NaN or infinite values: {rows} of {len(part.x)} rows lack values of {told}{more}, first row "
            f"{first} (counted from 0). {GAPS}"
        )


def event_shape(parts: tuple[Part, ...], sequences: bool = False) -> tuple[int, ...]:
    """Return (channels, height, width) of images, (d,) of tables or (1, T, d) of sequences; it is the same for all parts."""
    shapes = {part.name: part.x.shape[1:] for part in parts}
    first = parts[0].x.shape[1:]
    if any(shape != first for shape in shapes.values()):
        raise ShapeError(f"rows differ in shape: {shapes}. Give training, validation and test the same columns.")
    if len(first) > 3:
        raise ShapeError(
            f"x has shape {parts[0].x.shape}, wanted (N, d), (N, height, width) or (N, channels, height, width). "
            "Flatten what is left into columns."
        )
    if sequences and len(first) == 3 and first[0] == 1:
        raise ShapeError(
            f"x has shape {parts[0].x.shape}: sequences of one step, or of {first[1]} steps? Give an array (N, steps, "
            f"elements): x.reshape({len(parts[0].x)}, 1, -1) has one step, x[:, 0] has {first[1]}."
        )
    return {0: (1,), 1: first, 2: (1, *first), 3: first}[len(first)]
