"""The rows of a training: converted to what the programs take, and where batches of them are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import whole
from pyro_vae.data.arrays import batch_of, read_once
from pyro_vae.data.structures import is_structure
from pyro_vae.errors import UsageError
from pyro_vae.programs.arguments import argument_dtypes
from pyro_vae.programs.pair import like_parameters
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import tensors_as

from .batch_source import BatchSource, TrainingData, Transform, choose_batch_source, conversion_device
from .stored_source import StoredSource, stored_parts


@dataclass(frozen=True, eq=False)
class RowOptions:
    """Which rows beside x and contexts, and what batches are made of them: the arguments of `fit` of these names."""

    validation: tuple[Any, ...] | None  # as :func:`parts_of` has it
    batch_size: int | None
    transform: Transform | None
    drop_last: bool
    missing: bool
    on_disk: bool = True  # rows that are stored stay there


def training_data(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    options: RowOptions,
    device: torch.device | None,
    aggressive: bool = False,
) -> TrainingData:
    """Convert x, contexts and validation rows to what the pair takes, and choose where they stay while it is trained.

    Args:
        args: x and contexts, each with N rows.
        device: where the pair is; None where it has no parameters yet.
        aggressive: whether batches are taken outside of the order, too.

    Raises:
        DataError, ShapeError: rows that cannot be used.
        UsageError: a batch size that the rows do not allow, or rows on disk for an aggressive encoder.
    """
    x, *context = [read_once(a) for a in args]
    convert = partial(
        batch_of,
        like=like_parameters(model, guide),
        missing=options.missing,
        dtypes=argument_dtypes(model, guide, x, *context, device=device),
        on_disk=options.on_disk,
    )
    rows = convert(x, *context, device=conversion_device(x, device))
    train, source = batches_of(rows, device or rows[0].device, aggressive)
    validation = None
    if options.validation is not None:
        parts = tensors_as(model, *options.validation)
        validation = convert(*parts, name="validation x", device=device)
    size = resolve_batch_size(options.batch_size, len(train[0]))
    return TrainingData(train, source, size, validation, options.transform, options.drop_last)


def batches_of(
    rows: tuple[Tensor, ...], device: torch.device, aggressive: bool
) -> tuple[tuple[Tensor, ...], BatchSource]:
    """Return where rows stay, and what makes batches of them: of rows on disk a window at a time."""
    if not stored_parts(rows):
        return choose_batch_source(rows, device)
    if aggressive:
        raise UsageError(
            "aggressive= takes further batches of random rows between two of the order, for which a disk is too slow: leave it "
            "out with rows on disk, or take rows into memory (x[:10_000])."
        )
    if not stored_parts(rows[:1]):
        raise UsageError("a context is on disk, and x is not: give x as Stored, too, or the context as an array.")
    return rows, StoredSource(rows, device)


def parts_of(validation: Any, given: int) -> tuple[Any, ...] | None:
    """Return x and contexts of validation rows: a tuple, unless it is itself the structure of an x that comes alone.

    Args:
        validation: as it is passed to `fit`, None if there is none.
        given: the number of x and contexts, each of which may be a structure of several tensors.
    """
    if validation is None:
        return None
    alone = given == 1 and is_structure(validation)
    return validation if isinstance(validation, tuple) and not alone else (validation,)


def resolve_batch_size(batch_size: int | None, rows: int) -> int:
    """Check the batch size that was asked for against the rows that there are; min(128, N) if none was."""
    if batch_size is None:
        return min(128, rows)
    batch_size = whole("batch_size", batch_size)
    if not 1 <= batch_size <= rows:
        what = f"batch_size={batch_size} with {rows} training rows"
        raise UsageError(f"{what}: choose 1 to {rows} ({rows} is full-batch).")
    return batch_size
