"""How many rows there are: what files say, what the caller knows, and what nobody can tell from a Zarr array alone."""

import json

import numpy as np
import pytest
import torch

from pyro_vae import fit
from pyro_vae.data import Stored, write_manifest, write_shards
from pyro_vae.errors import DataError, UsageError
from tests.helpers.small import small_vae

from .test_stored import FORMS, X, npy, zarr_array


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_every_kind_of_file_knows_its_rows_and_another_number_is_refused(form, tmp_path):
    path = form(tmp_path, X)
    assert len(Stored(path)) == len(Stored(path, num_rows=1000)) == len(Stored(path, num_rows=np.int64(1000))) == 1000
    for wrong in (999, 1001):
        with pytest.raises(DataError, match=rf"1,000 rows.* num_rows={wrong:,}"):
            Stored(path, num_rows=wrong)


@pytest.mark.parametrize("number", [0, -3, 2.5, True, "7"])
def test_a_number_of_rows_is_a_whole_one(number, tmp_path):
    with pytest.raises(UsageError, match="num_rows must be"):
        Stored(npy(tmp_path, X), num_rows=number)
    with pytest.raises(UsageError, match="num_rows must be"):
        write_shards(iter([X]), tmp_path / "new", num_rows=number)


def made_for(path, rows, written, **more):
    """A Zarr array made for more rows than were written."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w")
    for name, width in (("x", (6,)), ("y", ())):
        array = group.create_array(name, shape=(rows, *width), chunks=(64, *width), dtype="f4", **more)
        for part in written:
            array[part] = X[part] if width else np.arange(1.0, 1001.0)[part]
    return path


@pytest.mark.parametrize(
    ("written", "more"),
    [
        ([slice(0, 640)], {}),
        ([slice(64, 1000)], {}),  # none at the beginning
        ([slice(0, 300), slice(400, 1000)], {}),  # nor in the middle
        ([slice(0, 640)], {"shards": (128, 6)}),
        ([slice(0, 640)], {"zarr_format": 2}),
    ],
    ids=["end", "beginning", "middle", "sharded", "format-2"],
)
def test_rows_that_nobody_wrote_are_asked_for(written, more, tmp_path):
    """They would read as rows of zeros."""
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "x.zarr"
    array = zarr.create_array(str(path), shape=X.shape, chunks=(64, 6), dtype="f4", **more)
    for part in written:
        array[part] = X[part]
    with pytest.raises(DataError, match=r"was made for 1,000 rows, and .* chunks are not there: .*num_rows=\.\.\."):
        Stored(path)
    last = written[-1].stop
    rows = Stored(path, num_rows=last, memory="20 kB")
    assert rows.shape == (last, 6) and rows.blocks[-1] == last
    assert np.array_equal(rows[written[-1]].numpy(), X[written[-1]])
    with pytest.raises(DataError, match="num_rows=1,001 are more"):
        Stored(path, num_rows=1001)
    assert rows.digest != Stored(path, num_rows=last - 1).digest


def test_rows_of_the_fill_value_alone_are_rows_if_the_caller_says_so(tmp_path):
    zeros = np.vstack([X[:64], np.zeros((64, 6), np.float32)])
    path = zarr_array(tmp_path, zeros)  # of which zarr writes no chunk that is all zeros
    with pytest.raises(DataError, match="or they hold 0"):
        Stored(path)
    assert np.array_equal(Stored(path, num_rows=128)[:].numpy(), zeros)


def test_arrays_of_a_group_have_their_own_and_train_together(tmp_path):
    path = made_for(tmp_path / "both.zarr", 2000, [slice(0, 100)])
    with pytest.raises(DataError, match="made for 2,000 rows"):
        Stored(path, "x")
    x, y = (Stored(path, key, num_rows=100) for key in "xy")
    assert y[:].tolist() == list(range(1, 101)) and torch.equal(x[:], torch.from_numpy(X[:100]))
    a, b = small_vae(seed=0), small_vae(seed=0)
    binary = (X[:100] > 0).astype(np.float32)
    write_shards(iter([binary[:30], binary[30:]]), tmp_path / "rows", rows=40, num_rows=100)
    on_disk = fit(a, Stored(tmp_path / "rows", num_rows=100), epochs=1, batch_size=100, verbose=False)
    in_memory = fit(b, torch.from_numpy(binary), epochs=1, batch_size=100, verbose=False)
    assert on_disk.history[0]["elbo"] == pytest.approx(in_memory.history[0]["elbo"], abs=1e-4)


def test_a_stream_that_ends_early_or_goes_on_leaves_no_data_set(tmp_path):
    def stream(parts):
        for part in range(parts):
            yield X[10 * part : 10 * part + 10]

    told = write_shards(stream(3), tmp_path / "right", rows=7, num_rows=30)
    assert told["rows"] == len(Stored(tmp_path / "right", num_rows=30)) == 30
    with pytest.raises(DataError, match=r"num_rows=31, and x has ended after 30 rows\. .* has no manifest"):
        write_shards(stream(3), tmp_path / "short", rows=7, num_rows=31)
    with pytest.raises(DataError, match=r"num_rows=29, and x goes on: 30 rows have come"):
        write_shards(stream(100), tmp_path / "long", rows=10, num_rows=29)
    for name in ("short", "long"):
        with pytest.raises(DataError):
            Stored(tmp_path / name)
    assert write_shards(X, tmp_path / "array", num_rows=1000)["rows"] == 1000
    with pytest.raises(DataError, match="goes on"):
        write_shards(X, tmp_path / "other", num_rows=10)


def test_a_manifest_that_does_not_count_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", X)
    write_manifest(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for change in ({"rows": None}, {"rows": 999}):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(DataError, match="counts"):
            Stored(tmp_path)
