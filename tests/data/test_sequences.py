"""Padded sequences: one form of all that come in, and lengths and masks that cannot be refused by row."""

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from pyro_vae import pad_sequences
from pyro_vae.errors import DataError, ShapeError, UsageError

ROWS = [torch.arange(6.0).reshape(3, 2), torch.full((1, 2), 7.0), torch.full((2, 2), -1.0)]
LENGTHS = torch.tensor([3, 1, 2])
MASK = torch.arange(3) < LENGTHS[:, None]


def padded(fill=0.0):
    x = torch.full((3, 3, 2), fill)
    for n, row in enumerate(ROWS):
        x[n, : len(row)] = row
    return x


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": ROWS},
        {"x": [row.numpy() for row in ROWS]},
        {"x": pack_sequence(ROWS, enforce_sorted=False)},
        {"x": padded(), "lengths": LENGTHS},
        {"x": padded(torch.nan), "lengths": [3.0, 1.0, 2.0]},
        {"x": padded(-5.0).numpy(), "mask": MASK.numpy()},
        {"x": padded(), "lengths": LENGTHS.numpy(), "mask": MASK},
    ],
    ids=["list", "numpy", "packed", "lengths", "padded_with_nan", "mask", "both"],
)
def test_every_form_comes_out_as_one(arguments):
    x, lengths = pad_sequences(**arguments)
    assert lengths.tolist() == [3, 1, 2] and x.shape == (3, 3, 2)
    for n, row in enumerate(ROWS):
        assert torch.equal(x[n, : len(row)], row)
        assert torch.equal(x[n, len(row) :], row[:1].expand(3 - len(row), 2))


def test_gaps_stay_and_the_callers_array_is_left_as_it_was():
    given = padded(torch.nan)
    given[0, 1, 0] = torch.nan
    before = given.clone()
    x, _ = pad_sequences(given, lengths=LENGTHS)
    assert x.isnan().sum() == 1 and x[0, 1, 0].isnan()
    assert torch.equal(given.nan_to_num(9), before.nan_to_num(9))


def test_single_numbers_a_step():
    x, lengths = pad_sequences([np.array([1, 2]), np.array([3])])
    assert x.tolist() == [[1, 2], [3, 3]] and lengths.tolist() == [2, 1]


HOLE = MASK.clone()
HOLE[1, 2] = True


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"x": [ROWS[0], torch.zeros(0, 2)]}, DataError, r"sequences \[1\] have no step"),
        ({"x": []}, DataError, "no sequences"),
        ({"x": [ROWS[0], torch.zeros(2, 3)]}, ShapeError, r"steps of sequence 1 have shape \(3,\).*\(2,\)"),
        ({"x": padded(), "lengths": [3, 0, 2]}, DataError, r"outside 1..3 in 1 of 3 rows: \[1\].*0 in row 1"),
        ({"x": padded(), "lengths": [3, 1, 4]}, DataError, r"outside 1..3 in 1 of 3 rows: \[2\].*4 in row 2"),
        ({"x": padded(), "lengths": [3, 1.5, 2]}, DataError, "no whole numbers in 1 of 3 rows: 1"),
        ({"x": padded(), "lengths": [3, 1]}, ShapeError, "one for each of 3 rows"),
        ({"x": padded(), "mask": HOLE}, DataError, "holes in 1 of 3 rows: 1 .*first in column 2.*SkipMissing"),
        ({"x": padded(), "mask": MASK & False}, DataError, "outside 1..3 in 3 of 3 rows"),
        ({"x": padded(), "mask": MASK[:, :2]}, ShapeError, r"shape \(3, 2\), wanted \(3, 3\)"),
        ({"x": padded(), "lengths": [3, 2, 2], "mask": MASK}, DataError, "length 2 in row 1, where the mask has 1 steps"),
        ({"x": ROWS, "lengths": LENGTHS}, UsageError, "lengths of its own"),
        ({"x": torch.zeros(3), "lengths": [1, 1, 1]}, ShapeError, r"\(N, T, \*event\)"),
    ],
    ids=[
        "without_steps", "no_rows", "other_shape", "zero", "too_long", "fraction", "too_few", "hole", "empty_mask",
        "mask_shape", "disagree", "twice", "flat",
    ],
)  # fmt: skip
def test_what_is_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        pad_sequences(**arguments)
