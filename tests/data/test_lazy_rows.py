"""Rows that are not in memory are asked for as those of a tensor are, or not at all."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyro_vae.data import Stored
from pyro_vae.data.sparse import SparseRows
from pyro_vae.errors import UsageError

X = torch.arange(60.0).view(20, 3)


@pytest.fixture(params=["stored", "sparse", "some held out"])
def rows(request, tmp_path):
    if request.param == "sparse":
        return SparseRows(sp.csr_matrix(X.numpy()))
    if request.param == "stored":
        np.save(tmp_path / "x.npy", X.numpy())
        return Stored(tmp_path / "x.npy")
    more = np.insert(X.numpy(), [0, 7, 7, 20], -1, axis=0)
    np.save(tmp_path / "x.npy", more)
    return Stored(tmp_path / "x.npy").without(np.flatnonzero(more[:, 0] == -1))


@pytest.mark.parametrize(
    "asked",
    [3, -1, np.int64(4), torch.tensor(5), slice(2, 9, 3), slice(None, None, 7), [], [-1, 0, 3, 3], [-20], X[:, 0] > 20,
     (X[:, 0] > 20).numpy(), [True] * 19 + [False], torch.tensor([19, 2]), np.array([7, 6], np.int32)],
    ids=str,
)  # fmt: skip
def test_rows_are_those_of_a_tensor(rows, asked):
    of_tensor = torch.as_tensor(asked, dtype=torch.int64) if isinstance(asked, list) and not asked else asked
    assert torch.equal(rows[asked], X[of_tensor])


@pytest.mark.parametrize(
    "asked",
    [(slice(None), 0), [0.5, 1.0], [[0, 1]], [True] * 19, "x", None, torch.ones(20, dtype=torch.uint8)],
    ids=str,
)
def test_what_asks_for_no_rows_is_refused(rows, asked):
    with pytest.raises(UsageError, match="asked for by a number, a slice, a list of numbers or a mask of all 20 rows"):
        rows[asked]


@pytest.mark.parametrize("asked", [20, -21, [0, 20], [-21], torch.tensor([20])], ids=str)
def test_rows_that_are_not_there_are_refused(rows, asked):
    with pytest.raises(IndexError):
        rows[asked]
