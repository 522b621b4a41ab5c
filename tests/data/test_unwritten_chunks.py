"""Chunks that nobody has written: of Zarr and HDF5 they are refused by name, where both formats read a fill value."""

import numpy as np
import pytest

from pyro_vae.data import Stored
from pyro_vae.data.sparse_data import read_rows
from pyro_vae.data.unwritten_chunks import refuse_unwritten_datasets
from pyro_vae.errors import DataError

X = np.arange(1, 41, dtype=np.float32).reshape(10, 4)
HOLED = np.where((np.arange(10)[:, None] // 3 == 1) & (np.arange(4) >= 2), 0, X).astype(np.float32)  # chunk 1, 1
FORMS = {"v3": {}, "v2": {"zarr_format": 2}, "shards": {"shards": (6, 4)}}


def zarr_of(path, x, chunks=(3, 2), **more):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(str(path / "x.zarr"), shape=x.shape, chunks=chunks, dtype=x.dtype, **more)
    array[:] = x
    return path / "x.zarr"


@pytest.mark.parametrize("more", FORMS.values(), ids=FORMS)
def test_a_chunk_that_is_not_there_is_refused_and_zeros_that_are_stored_are_zeros(more, tmp_path):
    for name in ("left_out", "stored", "lost"):
        (tmp_path / name).mkdir()
    holed = zarr_of(tmp_path / "left_out", HOLED, **more)  # Zarr leaves out what is 0 all over
    if "shards" in more:  # of which the store does not say what they hold: a read does
        rows = Stored(holed)
        assert np.array_equal(rows[:3].numpy(), X[:3]) and np.array_equal(rows[6:10].numpy(), X[6:])
        for part in (slice(0, 10), slice(2, 4), slice(5, 7)):
            with pytest.raises(DataError, match=r"x\.zarr: chunk 1, 1 .* in rows \d to \d .* fill value 0"):
                rows[part]
    else:
        with pytest.raises(DataError, match=r"1 of its 8 chunks are not there: .* hold 0\.0 alone"):
            Stored(holed)
    assert np.array_equal(Stored(holed, num_rows=10)[:].numpy(), HOLED) or "shards" in more
    written = zarr_of(tmp_path / "stored", HOLED, config={"write_empty_chunks": True}, **more)
    assert np.array_equal(Stored(written)[:].numpy(), HOLED)
    path = zarr_of(tmp_path / "lost", X, **more)
    rows = Stored(path)
    assert np.array_equal(rows[:].numpy(), X)
    next(p for p in sorted(path.rglob("*"), reverse=True) if p.is_file() and p.name[-1:].isdigit()).unlink()
    with pytest.raises(DataError, match="are lost"):
        Stored(path)
    with pytest.raises(DataError, match="is not stored"):
        rows[:]


def test_other_fill_values_are_seen_too_and_nan_stands_for_what_is_missing(tmp_path):
    (tmp_path / "seven").mkdir()
    with pytest.raises(DataError, match=r"hold 7\.0 alone"):
        Stored(zarr_of(tmp_path / "seven", np.where(HOLED == 0, 7, HOLED), fill_value=7))
    gaps = np.where(HOLED == 0, np.nan, HOLED).astype(np.float32)
    path = zarr_of(tmp_path, gaps, fill_value=np.nan)
    assert np.array_equal(Stored(path, missing=True)[:].numpy(), gaps, equal_nan=True)
    with pytest.raises(DataError, match="NaN or infinite"):
        Stored(path)[:]


def test_an_hdf5_data_set_that_is_not_written_is_refused(tmp_path):
    h5py, path = pytest.importorskip("h5py"), tmp_path / "cells.h5ad"
    with h5py.File(path, "w") as file:
        x = file.create_dataset("X", (10, 4), "f4", chunks=(5, 4))
        x[:5] = X[:5]
        file.create_dataset("empty", (0,), "f4")
    with pytest.raises(DataError, match="'X' is not written to its end"):
        read_rows(path)
    with h5py.File(path, "a") as file:
        file["X"][5:] = 0  # zeros that somebody has written
    refuse_unwritten_datasets(path, ("X", "obs", "empty"))
