"""Sequences of several lengths, as one padded array and its lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import DataError, ShapeError, UsageError

from .arrays import format_rows, real_array


@suggest_keywords
def pad_sequences(x: Any, lengths: Any = None, mask: Any = None) -> tuple[Tensor, Tensor]:
    """Return x padded, ``(N, T, *event)``, and lengths ``(N,)``, of sequences in any form.

    What is beyond a sequence's length repeats its first step, which lies in the likelihood's support as it does; a
    :class:`~pyro_vae.StateSpaceModel` masks it. A gap within a sequence stays NaN.

    Args:
        x: a list of arrays ``(T_n, *event)``; a ``PackedSequence``; or a padded array ``(N, T, *event)``, whatever it is padded
            with, and one of the next two, or both.
        lengths: ``(N,)``, whole numbers from 1 to T.
        mask: ``(N, T)``, true for the steps that are there: the first ones of each row.

    Raises:
        DataError: a sequence without a step, a length above T or no whole number, a mask with a hole, a mask that is of other
            lengths; each with its rows.
        ShapeError: steps of different shapes, as many lengths or rows of a mask as x has not.
        UsageError: lengths or a mask beside a list or a packed sequence, which have their own.

    Example:
        >>> x, lengths = pad_sequences([[1.0, 2.0, 3.0], [4.0]])
        >>> x, lengths
        (tensor([[1., 2., 3.],
                [4., 4., 4.]]), tensor([3, 1]))
        >>> pad_sequences(x, mask=torch.tensor([[True, True, False], [True, False, True]]))
        Traceback (most recent call last):
          ...
        pyro_vae.errors.DataError: the mask has holes in 1 of 2 rows: 1 ...
    """
    own = isinstance(x, PackedSequence | list | tuple)
    if own and (lengths is not None or mask is not None):
        raise UsageError(
            f"a {type(x).__name__} of sequences has lengths of its own: leave out lengths= and mask=, or pad it"
        )
    if isinstance(x, PackedSequence):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
    elif own:
        padded, lengths = joined([as_tensor(row, f"sequence {n}") for n, row in enumerate(x)])
    else:
        padded = as_tensor(x, "x")
        if padded.dim() < 2:
            raise ShapeError(f"wanted x padded, of shape (N, T, *event), got {tuple(padded.shape)}")
        lengths = read_lengths(padded, lengths, mask)
    lengths = lengths.to(padded.device)
    return fill_beyond(padded, lengths), lengths


def fill_beyond(x: Tensor, lengths: Tensor) -> Tensor:
    """Repeat a sequence's first step beyond its length, ``(N, T, *event)``: it lies in the likelihood's support."""
    there = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)
    return torch.where(there.reshape(*there.shape, *[1] * (x.dim() - 2)), x, x[:, :1])


def as_tensor(x: Any, name: str) -> Tensor:
    """Read an array as a tensor; floats keep their width, and lists are of torch's default."""
    if isinstance(x, Tensor):
        return x.detach()
    tensor = torch.from_numpy(np.array(real_array(x, name)))
    return tensor.to(torch.get_default_dtype()) if isinstance(x, list | tuple) else tensor


def joined(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad sequences with zeros to the longest."""
    if not rows:
        raise DataError("no sequences: an empty list")
    if flat := [n for n, row in enumerate(rows) if row.dim() == 0]:
        raise ShapeError(f"sequence {flat[0]} is a single number, wanted steps: an array (T, *event)")
    if empty := [n for n, row in enumerate(rows) if len(row) == 0]:
        raise DataError(f"sequences {empty[:5]} have no step (counted from 0): leave them out, as p of nothing is 1")
    if other := [n for n, row in enumerate(rows) if row.shape[1:] != rows[0].shape[1:]]:
        raise ShapeError(
            f"steps of sequence {other[0]} have shape {tuple(rows[other[0]].shape[1:])}, those of sequence 0 "
            f"{tuple(rows[0].shape[1:])}: give all steps one shape"
        )
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), torch.tensor([len(row) for row in rows])


def read_lengths(x: Tensor, lengths: Any, mask: Any) -> Tensor:
    """Return the lengths that are given, by themselves or as a mask, in agreement."""
    by_mask = None if mask is None else lengths_of_mask(x, as_tensor(np.asarray(mask), "mask").bool())
    if lengths is None:
        return torch.full((len(x),), x.shape[1]) if by_mask is None else by_mask
    given = as_tensor(np.asarray(lengths), "lengths")
    if given.shape != x.shape[:1]:
        raise ShapeError(f"lengths have shape {tuple(given.shape)}, wanted one for each of {len(x)} rows of x")
    if (given != given.round()).any():
        raise DataError(f"lengths are no whole numbers in {format_rows(given != given.round())}")
    given = given.long()
    refuse_lengths(given, x.shape[1])
    if by_mask is not None and not torch.equal(given.cpu(), by_mask.cpu()):
        bad = given.cpu() != by_mask.cpu()
        row = int(bad.nonzero()[0])
        raise DataError(
            f"lengths disagree with the mask in {format_rows(bad)}: length {int(given[row])} in row {row}, where the mask has "
            f"{int(by_mask[row])} steps. Give one of the two."
        )
    return given


def lengths_of_mask(x: Tensor, mask: Tensor) -> Tensor:
    """Return how many steps a mask keeps, which are the first ones of each row."""
    if mask.shape != x.shape[:2]:
        raise ShapeError(
            f"the mask has shape {tuple(mask.shape)}, wanted {tuple(x.shape[:2])}, a flag for each step of x"
        )
    holes = torch.zeros_like(mask)
    holes[:, 1:] = mask[:, 1:] & ~mask[:, :-1]
    if holes.any():
        raise DataError(
            f"the mask has holes in {format_rows(holes)}, and a length has none. Where a step within a sequence was not "
            "observed, let it be NaN in x: SkipMissing(likelihood) takes that."
        )
    lengths = mask.sum(1)
    refuse_lengths(lengths, x.shape[1])
    return lengths


def refuse_lengths(lengths: Tensor, steps: int) -> None:
    """Refuse lengths below 1 and above T, by row."""
    bad = (lengths < 1) | (lengths > steps)
    if bad.any():
        rows = bad.nonzero().flatten()
        raise DataError(
            f"lengths are outside 1..{steps} in {len(rows)} of {len(bad)} rows: {rows[:5].tolist()} (counted from 0; "
            f"{lengths[rows[0]].item()} in row {int(rows[0])}). x has {steps} steps; leave out a sequence without any."
        )


def refuse_packed(x: Any) -> None:
    """Refuse a packed sequence, whose number of steps is another in each batch."""
    if isinstance(x, PackedSequence):
        raise UsageError(
            "x is a PackedSequence, whose steps are another number in each batch. Fix: x, lengths = pad_sequences(x), and "
            "lengths as the first context."
        )
