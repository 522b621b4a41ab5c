"""Chunks that nobody has written: of Zarr and HDF5 they are refused by name, where both formats read a fill value."""

import numpy as np
import pytest

from pyro_vae.data import Stored
from pyro_vae.data.row_files import open_rows
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
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_chunk_that_is_not_stored_is_refused_with_its_rows(more, dtype, tmp_path):
    rows = open_rows(zarr_of(tmp_path, HOLED.astype(dtype), **more))  # Zarr leaves out what is 0 all over
    assert np.array_equal(rows.read(0, 3), X[:3]) and np.array_equal(rows.read(6, 10), X[6:])
    for start, stop in ((0, 10), (2, 4), (5, 7)):
        with pytest.raises(DataError, match=r"x\.zarr: chunk 1, 1 .* in rows \d to \d .* fill value 0") as raised:
            rows.read(start, stop)
        assert "'write_empty_chunks': True" in str(raised.value)


def test_zeros_that_are_stored_are_zeros(tmp_path):
    rows = open_rows(zarr_of(tmp_path, HOLED, config={"write_empty_chunks": True}))
    assert np.array_equal(rows.read(0, 10), HOLED)


def test_other_fill_values_are_seen_too_and_nan_stands_for_what_is_missing(tmp_path):
    (tmp_path / "seven").mkdir()
    sevens = np.where(HOLED == 0, 7, HOLED)
    with pytest.raises(DataError, match="fill value 7"):
        open_rows(zarr_of(tmp_path / "seven", sevens, fill_value=7)).read(0, 10)
    gaps = np.where(HOLED == 0, np.nan, HOLED).astype(np.float32)
    path = zarr_of(tmp_path, gaps, fill_value=np.nan)
    assert np.array_equal(Stored(path, missing=True)[:].numpy(), gaps, equal_nan=True)
    with pytest.raises(DataError, match="NaN or infinite"):
        Stored(path)[:]


def test_a_file_that_is_lost_is_refused_through_stored(tmp_path):
    path = zarr_of(tmp_path, X)
    assert np.array_equal(Stored(path)[:].numpy(), X)
    (path / "c" / "2" / "0").unlink()
    with pytest.raises(DataError, match="chunk 2, 0 of the array, in rows 6 to 8"):
        Stored(path)[:]


def test_labels_and_images_have_chunks_of_their_own_dimensions(tmp_path):
    labels = zarr_of(tmp_path, np.array([1, 2, 0, 0, 3], dtype=np.int64), chunks=(2,))
    with pytest.raises(DataError, match=r"chunk 1 of the array, in rows 2 to 3"):
        open_rows(labels).read(0, 5)
    (tmp_path / "images").mkdir()
    images = np.ones((4, 2, 4), np.uint8)
    images[2:, :, :2] = 0
    with pytest.raises(DataError, match=r"chunk 1, 0, 0 of the array, in rows 2 to 3"):
        open_rows(zarr_of(tmp_path / "images", images, chunks=(2, 2, 2))).read(0, 4)


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
