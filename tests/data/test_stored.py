"""Rows on disk: read as they were written, whatever holds them; a file that is not what was counted is refused."""

import json
import os

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from pyro_vae.data import Stored, as_rows, write_manifest, write_shards
from pyro_vae.data.manifest import open_manifest
from pyro_vae.data.stored import bytes_of
from pyro_vae.errors import DataError, UsageError

X = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)
NUMBERS = torch.tensor([999, 3, 3, 250, 249, 0, 777])


def npy(path, x):
    np.save(path / "x.npy", x)
    return path / "x.npy"


def npz(path, x):
    np.savez(path / "x.npz", y=np.arange(len(x)), x=x)
    return path / "x.npz"


def shards(path, x):
    write_shards(x, path / "shards", rows=250)
    return path / "shards"


def shards_of_npz(path, x):
    for i, part in enumerate(np.array_split(x, 3)):
        np.savez(path / f"part{i}.npz", x=part)
    write_manifest(path)
    return path


def parquet(path, x):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({f"c{i}": x[:, i] for i in range(x.shape[1])}), path / "x.parquet", row_group_size=90)
    return path / "x.parquet"


def parquet_of_lists(path, x):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
    pq.write_table(pa.table({"pixels": rows}), path / "x.parquet", row_group_size=200)
    return path / "x.parquet"


def zarr_array(path, x):
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(str(path / "x.zarr"), shape=x.shape, chunks=(64, 4), dtype=x.dtype)
    array[:] = x
    return path / "x.zarr"


FORMS = (npy, npz, shards, shards_of_npz, parquet, parquet_of_lists, zarr_array)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_rows_are_those_that_were_written(form, tmp_path):
    x = Stored(form(tmp_path, X), memory="20 kB")
    assert x.shape == X.shape and x.dtype == torch.float32
    assert np.array_equal(x[NUMBERS].numpy(), X[NUMBERS.numpy()])
    assert np.array_equal(x[990:].numpy(), X[990:]) and np.array_equal(x[::97].numpy(), X[::97])
    assert np.array_equal(torch.cat(list(x.split(300))).numpy(), X)
    assert x.blocks[0] == 0 and x.blocks[-1] == 1000 and (np.diff(x.blocks) > 0).all()
    assert np.diff(x.blocks).max() <= x.window


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "<f2", "?"])
def test_any_real_dtype_is_read_and_held_in_the_smaller_width(dtype, tmp_path):
    rows = (X[:, :2] > 0.5).astype(dtype) if dtype == "?" else np.abs(X * 20).astype(dtype)
    x = Stored(npy(tmp_path, rows))
    assert x.dtype == torch.float32 and np.array_equal(x[:].numpy(), rows.astype("<f4"))
    assert x.held_dtype.itemsize == min(rows.dtype.itemsize, 4)
    assert np.array_equal(x.head(3), rows[:3])


def test_a_column_of_labels_and_rows_of_one_number(tmp_path):
    assert Stored(npz(tmp_path, X), key="y")[5:8].tolist() == [5, 6, 7]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": X[:, 0], "label": np.arange(1000)}), tmp_path / "x.parquet")
    assert Stored(tmp_path / "x.parquet", key="label").shape == (1000,)


BY_COLUMNS = {
    "array": lambda x: np.asfortranarray(x),
    "tensor": lambda x: torch.from_numpy(x.T.copy()).T,
    "parts, as of a data frame": lambda x: (np.asfortranarray(part) for part in np.array_split(x, 3)),
    "one part": lambda x: iter([np.asfortranarray(x)]),
    "images": lambda x: np.asfortranarray(x.reshape(-1, 2, 3)),
}


@pytest.mark.parametrize("rows", [4, None])
@pytest.mark.parametrize("form", BY_COLUMNS)
def test_rows_that_lie_by_columns_are_written_by_rows(form, rows, tmp_path):
    x = np.arange(54, dtype=np.float32).reshape(9, 6)
    write_shards(BY_COLUMNS[form](x), tmp_path / "rows", rows)
    assert np.array_equal(Stored(tmp_path / "rows")[:].numpy().reshape(9, 6), x)


def test_rows_that_are_held_out_are_passed_over(tmp_path):
    gone = np.array([0, 1, 249, 250, 600, 999])
    x, left = Stored(shards(tmp_path, X), memory="20 kB").without(gone), np.delete(X, gone, axis=0)
    assert len(x) == 994 and np.array_equal(x[:].numpy(), left) and np.array_equal(x[[-1]].numpy(), left[[-1]])
    assert np.array_equal(x[torch.tensor([0, 993, 246, 247])].numpy(), left[[0, 993, 246, 247]])
    assert x.bounds[-1] == 994 and x.digest != Stored(x.path, memory="20 kB").digest


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-8])


BROKEN = {
    "missing": (lambda f: (f / "00002.npy").unlink(), "00002.npy is missing"),
    "truncated": (lambda f: truncate(f / "00001.npy"), "00001.npy has .* bytes, and was counted with"),
    "damaged": (lambda f: damage(f / "00001.npy"), "00001.npy is damaged"),
    "not counted": (lambda f: np.save(f / "00009.npy", X[:3]), "'00009.npy', whose rows manifest.json does not count"),
    "no manifest": (lambda f: (f / "manifest.json").write_text("{}"), "no manifest of shards"),
    "another folder": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text().replace("00001.npy", "../x.npy")),
        "no file beside it",
    ),
    "other count": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"rows": 1000', '"rows": 1')
        ),
        "counts 1 rows",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_shards_that_are_not_what_was_counted_are_refused(case, tmp_path):
    folder = shards(tmp_path, X)
    breaking, message = BROKEN[case]
    breaking(folder)
    with pytest.raises(DataError, match=message):
        Stored(folder)


def test_a_copy_is_read_once_and_known_and_a_check_reads_what_nobody_touched(tmp_path):
    folder = shards(tmp_path, X)
    digest = Stored(folder).digest
    os.utime(folder / "00003.npy", ns=(1, 1))  # as of a copy
    assert Stored(folder).digest == digest
    entry = json.loads((folder / "manifest.json").read_text())["files"][1]
    damage(folder / "00001.npy")
    os.utime(folder / "00001.npy", ns=(entry["modified"], entry["modified"]))
    Stored(folder)  # its size and time are those of before
    with pytest.raises(DataError, match=r"00001\.npy is damaged"):
        open_manifest(folder, check=True)


def unlike_shape(path):
    np.save(path / "a.npy", X), np.save(path / "b.npy", X[:, :3])


def unlike_dtype(path):
    np.save(path / "a.npy", X), np.save(path / "b.npy", X.astype(np.float64))


def kinds(path):
    np.save(path / "a.npy", X), np.savez(path / "b.npz", x=X)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (unlike_shape, r"b.npy holds rows of shape \(3,\)"),
        (unlike_dtype, "b.npy .* float64"),
        (kinds, "of several kinds"),
    ],
    ids=["shape", "dtype", "kinds"],
)
def test_shards_are_alike(write, message, tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        write_manifest(tmp_path)


def objects(path):
    np.save(path / "x.npy", np.array([{"a": 1}, None]), allow_pickle=True)


def compressed(path):
    np.savez_compressed(path / "x.npz", x=X)


REFUSED = {
    "pickle": (objects, "x.npy", "pickles are never loaded"),
    "compressed": (compressed, "x.npz", "'x' is compressed"),
    "fortran": (lambda p: np.save(p / "x.npy", np.asfortranarray(X)), "x.npy", "Fortran order"),
    "text": (lambda p: np.save(p / "x.npy", np.array(["a", "b"])), "x.npy", "wanted real numbers"),
    "complex": (lambda p: np.save(p / "x.npy", X + 1j), "x.npy", "wanted real numbers"),
    "empty": (lambda p: np.save(p / "x.npy", X[:0]), "x.npy", "holds no rows"),
    "cut off": (lambda p: (np.save(p / "x.npy", X), truncate(p / "x.npy")), "x.npy", "truncated"),
    "not numpy": (lambda p: (p / "x.npy").write_bytes(b"hello" * 99), "x.npy", "no numpy file|magic"),
    "none": (lambda p: None, "x.npy", "no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_without_rows_to_read_by_number_are_refused(case, tmp_path):
    write, name, message = REFUSED[case]
    write(tmp_path)
    with pytest.raises(DataError, match=message):
        Stored(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", [npy, shards, parquet, zarr_array], ids=lambda f: f.__name__)
def test_a_row_that_is_not_finite_is_named_by_file_and_row(form, value, tmp_path):
    bad = X.copy()
    bad[777, 4] = value
    x = Stored(form(tmp_path, bad), memory="20 kB")
    name, row = ("00003.npy", 27) if form is shards else (x.path.name, 777)
    with pytest.raises(DataError, match=rf"{name}, row {row}.*column 4"):
        list(x.chunks())
    assert len(x[:777]) == 777
    assert x.without(np.array([777]))[:].isfinite().all()
    if np.isnan(value):
        assert Stored(x.path, missing=True)[777].isnan().sum() == 1


def test_what_float32_cannot_hold_is_refused(tmp_path):
    wide = X.astype(np.float64)
    wide[5, 1] = 1e300
    with pytest.raises(DataError, match="row 5"):
        Stored(npy(tmp_path, wide))[:10]


def test_a_file_that_changes_is_not_read_on(tmp_path):
    path = npy(tmp_path, X)
    x = Stored(path)
    np.save(path, X + 1)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="has changed since it was opened"):
        x[:3]


def test_without_a_manifest_a_digest_goes_by_size_time_and_samples(tmp_path):
    path = npy(tmp_path, X)
    digest = Stored(path).digest
    assert Stored(path).digest == digest
    damage(path)
    assert Stored(path).digest != digest


def test_rows_larger_than_the_memory_are_not_taken_as_a_whole(tmp_path):
    path = npy(tmp_path, X)
    with pytest.raises(DataError, match="as a whole"):
        as_rows(Stored(path, memory="20 kB"))
    assert np.array_equal(as_rows(Stored(path)).numpy(), X)


def test_a_row_group_larger_than_the_window_is_refused(tmp_path):
    with pytest.raises(DataError, match="are read as a whole"):
        Stored(parquet(tmp_path, X), memory="1 kB")


def test_shards_are_written_of_a_stream_of_arrays(tmp_path):
    manifest = write_shards(iter(np.array_split(X, 7)), tmp_path / "s", rows=300)
    assert [entry["rows"] for entry in manifest["files"]] == [300, 300, 300, 100]
    assert np.array_equal(Stored(tmp_path / "s")[:].numpy(), X)
    with pytest.raises(UsageError, match="holds something already"):
        write_shards(X, tmp_path / "s")


@pytest.mark.parametrize("given", ["", "-1", "2 apples", "0", True, "1e3"])
def test_a_memory_that_is_no_amount_is_refused(given):
    with pytest.raises(UsageError, match="no amount"):
        bytes_of(given)


def test_shards_have_the_same_columns_in_the_same_order(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [3.0, 4.0]}), tmp_path / "0.parquet")
    for other in ({"b": [3.0], "a": [1.0]}, {"a": [1.0], "c": [3.0]}):
        pq.write_table(pa.table(other), tmp_path / "1.parquet")
        with pytest.raises(DataError, match=r"1\.parquet has the columns '[bc]' \(number . of 2\)"):
            write_manifest(tmp_path)


@pytest.mark.parametrize("name", [None, "patient"])
def test_the_index_that_pandas_wrote_is_no_column(name, tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    index = pd.Index(np.arange(1000)[::-1], name=name)
    pd.DataFrame(X, index=index, columns=[f"c{i}" for i in range(X.shape[1])]).to_parquet(tmp_path / "x.parquet")
    assert np.array_equal(Stored(tmp_path / "x.parquet")[:].numpy(), X)


def test_empty_places_in_lists_are_nan_or_refused_by_row(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    def written(dtype, *rows):
        pq.write_table(pa.table({"x": pa.array(rows, pa.list_(dtype, 2))}), tmp_path / "x.parquet")
        return Stored(tmp_path / "x.parquet", missing=True)

    found = written(pa.float32(), [1, 2], None, [None, 3])[:].numpy()
    assert np.array_equal(found, np.array([[1, 2], [np.nan, np.nan], [np.nan, 3]], np.float32), equal_nan=True)
    with pytest.raises(DataError, match=r"row 2 .*'x' has an empty place"):
        written(pa.int64(), [1, 2], [3, 4], [5, None])[:]
    with pytest.raises(DataError, match=r"row 1 .*'x' of whole numbers has an empty cell"):
        written(pa.int64(), [1, 2], None)[:]


@pytest.mark.parametrize("case", ["sparse", "bfloat16", "numbers", "unlike", "number"])
def test_shards_are_written_of_rows_or_refused(case, tmp_path):
    x = {
        "sparse": sp.csr_matrix(X),
        "bfloat16": torch.from_numpy(X[:, :2]).bfloat16(),
        "numbers": iter([1.0, 2.0]),
        "unlike": iter([X, X[:, :3]]),
        "number": np.float32(3),
    }[case]
    if case in ("sparse", "bfloat16"):
        wanted = X if case == "sparse" else x.float().numpy()
        write_shards(x, tmp_path / "f", rows=300)
        assert np.array_equal(Stored(tmp_path / "f")[:].numpy(), wanted)
        return
    with pytest.raises(DataError, match=r"array \d .*has shape|a single number"):
        write_shards(x, tmp_path / "f")
