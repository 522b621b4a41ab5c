"""Which rows a number is of: the same digest for the same values, however they are held, and another for any others."""

import numpy as np
import pytest
import torch

from pyro_vae.common.csv_columns import write_columns
from pyro_vae.data import row_ids
from pyro_vae.data.row_ids import RowIds, row_digests
from pyro_vae.errors import DataError

X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
C = np.arange(40)


class Frame:
    """What a DataFrame has of what is asked of it."""

    def __init__(self, values, index):
        self.values, self.index = values, index

    def to_numpy(self):
        return self.values

    __array__ = to_numpy


class Items:
    """A data set that hands out rows by number."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i]


SAME = {
    "tensor": torch.from_numpy(X),
    "float64": X.astype(np.float64),
    "images": X.reshape(40, 1, 2, 3),
    "list": X.tolist(),
    "fortran": np.asfortranarray(X),
    "frame": Frame(X, range(40)),
    "items": Items(),
    "dict": {"a": X[:, :2], "b": X[:, 2:]},
    "big-endian": X.astype(">f4"),
}


@pytest.mark.parametrize("kind", SAME)
def test_equal_values_have_equal_digests_however_they_are_held(kind):
    assert torch.equal(RowIds.of(SAME[kind]).x, RowIds.of(X).x)


def test_bytes_and_floats_of_the_same_values_are_the_same_rows():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4), np.uint8)
    assert torch.equal(RowIds.of(pixels).x, RowIds.of(torch.from_numpy(pixels).float()).x)


def test_zeros_have_no_sign_and_nan_is_one_value():
    a, b = torch.tensor([[0.0, torch.nan]]), torch.tensor([[-0.0, -torch.nan]])
    assert RowIds.of(a).difference(RowIds.of(b)) is None
    assert "x differs in 1 of 1 row" in RowIds.of(a).difference(RowIds.of(torch.zeros(1, 2)))


OTHERS = {
    "permuted": (X[::-1], "the same rows in another order"),
    "repeated": (X[[0, *range(39)]], "x differs in 39 of 40 rows, first in row 1"),
    "one": (np.concatenate([X[:7], X[7:8] + 1, X[8:]]), "x differs in 1 of 40 rows, first in row 7"),
    "rolled": (np.roll(X, 1, axis=1), "x differs in 40 of 40 rows"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_rows_are_told_apart(kind):
    other, how = OTHERS[kind]
    assert how in RowIds.of(X).difference(RowIds.of(other))


def test_contexts_count_where_both_have_some():
    plain, with_c, other_c = RowIds.of(X), RowIds.of(X, C), RowIds.of(X, C[::-1])
    assert "the context" in with_c.difference(RowIds.of(X, C + 1)) and "another order" in with_c.difference(other_c)
    assert plain.difference(with_c) is None and with_c.difference(plain) is None
    assert len({plain.digest, with_c.digest, other_c.digest}) == 3


def test_the_digest_does_not_hang_on_chunks(monkeypatch):
    whole = row_digests([X])
    monkeypatch.setattr(row_ids, "AT_ONCE", 7)
    assert torch.equal(row_digests([X]), whole)


def test_a_frame_knows_its_index_and_parts_join_to_the_whole():
    ids = RowIds.of(Frame(X, [f"s{i}" for i in range(40)]), C)
    assert ids.index[:2] == ("s0", "s1")
    again = RowIds.joined([ids[:13], ids[13:]])
    assert again.digest == ids.digest and again.index == ids.index
    assert RowIds.joined([ids[:13], None]) is None and RowIds.joined([]) is None


def test_a_table_brings_them_back():
    ids = RowIds.of(X, C).at(RowIds(source=torch.arange(40).flip(0), index=tuple("ab" * 20), label=tuple("xy" * 20)))
    text = write_columns(ids.columns())
    again = RowIds.from_csv(text)
    assert again.digest == ids.digest and again.columns() == ids.columns()
    assert RowIds.from_csv("row,log_px\n0,1.0\n") is None
    with pytest.raises(DataError, match="not told from others"):
        RowIds.from_csv(text.replace(ids.columns()["row_digest"][3], "zebra"))
