"""Columns that single precision takes for others are refused of rows on disk and sparse rows, as of those in memory."""

import numpy as np
import pytest
import scipy.sparse as sp

from pyro_vae.data import load, sparse_data
from pyro_vae.errors import DataError

DRAW = np.random.default_rng(0)
COLUMNS = {
    "seconds": (1.7e9 + DRAW.random(300), "single precision would move a value"),
    "days": (20_000 + 1e-3 * DRAW.random(300), "single precision would move a value"),
    "identities": (2**53 - DRAW.permutation(300), "different ones for one"),
    "times": (DRAW.random(300), ""),
    "large": (1e9 * DRAW.random(300), ""),
    "amounts": (2.0**40 * DRAW.integers(0, 9, 300), ""),
}


@pytest.mark.parametrize("form", ["in memory", "on disk", "sparse"])
@pytest.mark.parametrize("case", COLUMNS)
def test_numbers_that_single_precision_takes_for_others_are_refused(case, form, tmp_path):
    column, message = COLUMNS[case]
    x = np.column_stack([DRAW.normal(size=300), column])
    path = tmp_path / ("x.npz" if form == "sparse" else "x.npy")
    sp.save_npz(path, sp.csr_matrix(x)) if form == "sparse" else np.save(path, x)
    memory = "1 MB" if form == "on disk" else None
    if not message:
        assert load(path, memory=memory, verbose=False).shape == (2,)
        return
    with pytest.raises(DataError, match=rf"x\[:, 1\].* {message}"):
        load(path, memory=memory, verbose=False)


def test_two_numbers_that_are_taken_for_one_are_found_among_all_rows_or_those_looked_at_are_told(tmp_path, monkeypatch):
    x = np.column_stack([DRAW.normal(size=300), 2.0**30 * np.arange(1, 301)])
    x[[17, 18], 1] = 2.0**25, 2.0**25 + 1  # neighbours, of which a sample has one at most
    sp.save_npz(tmp_path / "x.npz", sp.csr_matrix(x))
    with pytest.raises(DataError, match=r"x\[:, 1\].* different ones for one"):
        load(tmp_path / "x.npz", verbose=False)
    monkeypatch.setattr(sparse_data, "JUDGED", 10)
    np.save(tmp_path / "x.npy", x)
    for path, memory in ((tmp_path / "x.npz", None), (tmp_path / "x.npy", "1 MB")):
        *_, last = load(path, memory=memory, verbose=False).notes
        assert "single precision tells the numbers of a column apart is judged by these alone" in last
        single = x[:, :1].astype(np.float32)
        sp.save_npz(path, sp.csr_matrix(single)) if path.suffix == ".npz" else np.save(path, single)
        assert "single precision" not in " ".join(load(path, memory=memory, verbose=False).notes)
