"""pyro_vae.data: what comes in, what is refused and how it is said, splits, binarization, files."""

import bz2
import gzip
import lzma
import math
import pickle
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, fit, normal
from pyro_vae.data import arrays as row_module
from pyro_vae.data import as_rows, load
from pyro_vae.data.table_layout import TableOptions
from pyro_vae.errors import DataError, ShapeError, SupportError
from tests.helpers.children import printed_by
from tests.helpers.data import lay_out

FILES = [f"{p}-{c}-ubyte" for p in ("train", "t10k") for c in ("images-idx3", "labels-idx1")]
SIZES = [47_040_016, 60_008, 7_840_016, 10_008]


# own files


def test_npy(tmp_path):
    x = np.random.default_rng(1).normal(size=(25, 4))
    np.save(tmp_path / "rows.npy", x)
    data, again, other = (load(tmp_path / "rows.npy", seed=seed) for seed in (0, 0, 1))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [21, 2, 2]
    assert data.name == "rows.npy" and data.shape == (4,) and data.policy == "values as given" and data.train.y is None
    assert "x: converted from numpy float64 to torch.float32" in data.notes
    every = torch.cat([data.train.x, data.validation.x, data.test.x])
    assert torch.equal(every.sort(0).values, torch.tensor(x, dtype=torch.float32).sort(0).values)
    assert torch.equal(data.train.x, again.train.x) and not torch.equal(data.train.x, other.train.x)
    assert data.digest == other.digest


def test_images_are_flattened_and_their_shape_is_kept(tmp_path):
    for event, shape in (((), (1,)), ((6,), (6,)), ((2, 3), (1, 2, 3)), ((3, 2, 4), (3, 2, 4))):
        x = np.arange(3 * int(np.prod(event)), dtype=np.float32).reshape(3, *event)
        np.save(tmp_path / "x.npy", x)
        data = load(str(tmp_path / "x.npy"))
        assert data.shape == shape and data.train.x.shape == (1, int(np.prod(shape)))
        assert data.train.x.flatten().tolist() in x.reshape(3, -1).tolist()
    np.save(tmp_path / "x.npy", np.ones((3, 1, 1, 1, 1)))
    with pytest.raises(ShapeError, match=r"\(3, 1, 1, 1, 1\)"):
        load(tmp_path / "x.npy")


def test_bytes_stay_as_they_are_and_are_not_binarized(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.uint8).reshape(10, 4))
    assert load(tmp_path / "x.npy").train.x.max() > 1
    for binarization in ("static", "dynamic"):
        with pytest.raises(SupportError, match=r"10 of 10 rows.*divide 0..255 pixels by 255"):
            load(tmp_path / "x.npy", binarization=binarization)
    np.save(tmp_path / "grey.npy", np.full((10, 4), 0.5, np.float32))
    assert set(load(tmp_path / "grey.npy", binarization="static").train.x.unique().tolist()) == {0.0, 1.0}


def test_npz(tmp_path):
    x, y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10, dtype=np.int32)
    np.savez(tmp_path / "one.npz", rows=x)
    assert load(tmp_path / "one.npz").train.y is None
    np.savez_compressed(tmp_path / "two.npz", x=x, y=y, z=y)
    data = load(tmp_path / "two.npz")
    assert data.train.y.dtype == torch.int64 and torch.equal(data.train.x[:, 0], 2.0 * data.train.y)
    assert "not read: z" in data.notes
    np.savez(tmp_path / "two.npz", x=x, y=y[:4])
    with pytest.raises(ShapeError, match="x has 10 rows, y has 4"):
        load(tmp_path / "two.npz")
    np.savez(tmp_path / "open.npz", a=x, b=y)
    with pytest.raises(DataError, match=r"\['a', 'b'\], and none of them is x"):
        load(tmp_path / "open.npz")


def test_npz_that_is_split_already(tmp_path):
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.savez(tmp_path / "s.npz", x_train=x[:5], x_validation=x[5:7], x_test=x[7:], y_test=np.arange(3.5, 6))
    data = load(tmp_path / "s.npz")
    assert torch.equal(torch.cat([data.train.x, data.validation.x, data.test.x]), torch.tensor(x))
    assert data.train.y is None and data.test.y.tolist() == [3.5, 4.5, 5.5]
    np.savez(tmp_path / "s.npz", x_train=x[:5], x_validation=x[5:7], x_test=x[7:, :1])
    with pytest.raises(ShapeError, match="rows differ in shape"):
        load(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", x_train=x[:5], x_validation=x[:0], x_test=x[7:])
    with pytest.raises(DataError, match="x_validation is empty"):
        load(tmp_path / "s.npz")


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "o.npy", np.array([[1, None]], object), allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=np.array([[1, None]], object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps(np.ones((3, 3))))
    for file in ("o.npy", "o.npz", "p.npy"):
        with pytest.raises(DataError, match=r"pickles are never loaded.*Re-save it as a plain numeric array"):
            load(tmp_path / file)


@pytest.mark.parametrize("save, file", [(np.save, "x.npy"), (np.savez, "x.npz"), (np.savez_compressed, "c.npz")])
def test_damaged_numpy_files(tmp_path, save, file):
    path = tmp_path / file
    save(path, np.random.default_rng(0).normal(size=(50, 4)))
    whole = path.read_bytes()
    for n in (0, 5, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(DataError, match=file):
            load(path)


def test_a_damaged_header(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((50, 4)))
    whole = (tmp_path / "x.npy").read_bytes()
    for old, new in ((b"{", b"("), (b"}", b"("), (b"'<f8'", b"'<q9'"), (b"(50, 4)", b"(5\x000,4)"), (b"50", b"99")):
        (tmp_path / "x.npy").write_bytes(whole.replace(old, new, 1))
        with pytest.raises(DataError, match=r"x.npy: damaged or truncated"):
            load(tmp_path / "x.npy")


def test_missing_files_and_folders(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    for path in (tmp_path / "none.npy", tmp_path / "none.csv"):
        with pytest.raises(DataError, match="no file"):
            load(path)
    with pytest.raises(DataError, match=r"folder\.npy is a folder"):
        load(tmp_path / "folder.npy")


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows(tmp_path, rows):
    np.save(tmp_path / "x.npy", np.ones((rows, 2)))
    with pytest.raises(DataError, match=f"{rows} row.* too few.*at least 3"):
        load(tmp_path / "x.npy")


def test_rows_are_named_as_the_file_counts_them(tmp_path):
    x = np.ones((30, 2))
    x[17, 1] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match=r"1 of 30 rows: 17 .* column 1"):
        load(tmp_path / "x.npy")


def test_csv(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,2\n3,4e0\n\n5, 6\n")
    bare = load(path)
    path.write_text("\ufeffa,b\r\n1,2\r\n3,4\r\n5,6\r\n", encoding="utf-8")
    named = load(path)
    assert torch.equal(bare.train.x, named.train.x) and bare.digest == named.digest and named.shape == (2,)
    path.write_text("y,a\n0,1\n1,3\n2,5\n")
    labelled = load(path, table=TableOptions(label="y"))
    assert labelled.train.y.dtype == torch.int64 and torch.equal(labelled.train.x[:, 0], 2.0 * labelled.train.y + 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n3,four\n", r"row 1 \(counted from 0; line 3 of the file\), column 1: 'four' is no number"),
        ("1,b\n3,4\n", "row 0 .*line 1 .*column 1: 'b'"),
        ("1,2\n,4\n3,4\n5,6\n", "x has NaN or infinite values in 1 of 4 rows: 1 .*--missing"),
        ("1,2\n1_0,4\n", "'1_0' is no number"),
        ("1|2,9\n3|4,9\n5|6,9\n", "'1|2' is no number"),
        ("1,2\n3,4,5\n", "row 1 .*line 2 .*: 3 cells, wanted 2"),
        ("a,b\n1,2\n3\n", "row 1 .*line 3 .*: 1 cell, wanted 2"),
        ("1,2\n3,nan\n5,6\n", "NaN or infinite values in 1 of 3 rows: 1 .* column 1"),
        ("", "no row of numbers"),
        ("a,b\n", "no row of numbers"),
        ("a\x00,1\n", "is no number|cannot be read"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.csv")


PACKED = {
    "gzip": (gzip.compress(b"a,b\n1,2\n3,4\n"), "packed by gzip: unpack it"),
    "bzip2": (bz2.compress(b"a,b\n1,2\n3,4\n"), "packed by bzip2: unpack it"),
    "xz": (lzma.compress(b"a,b\n1,2\n3,4\n"), "packed by xz: unpack it"),
    "zip": (b"PK\x03\x04\x14\x00\xff\xff", "a spreadsheet, or packed by zip"),
    "numpy": (b"\x93NUMPY\x01\x00v\x00{", "an array of numpy: call it .npy"),
    "excel": (b"\xd0\xcf\x11\xe0\xa1\xb1", "a spreadsheet: save the sheet"),
    "utf16": ("a,b\n1,2\n".encode("utf-16"), "text in UTF-16: save it as UTF-8"),
    "pickle": (pickle.dumps([1.0]), "a pickle, which is never loaded"),
    "page": (
        b"\n<!DOCTYPE html>\n<html>\n<body>Not found</body>\n</html>\n",
        "a web page .HTML.: download the file itself",
    ),
    "html": (b"<table border='1'>\n<tr>\n<td>1</td>\n</tr>\n</table>\n", "a web page .HTML."),
    "xml": (b"<?xml version='1.0'?>\n<a>\n<b>1</b>\n</a>\n", "a file of XML"),
    "json": (b'{"a":{"0":1.5,"1":2.5},"b":{"0":1,"1":2}}', "JSON: save it as CSV"),
    "json lines": (b'\xef\xbb\xbf{"a":1.5,"b":1}\n{"a":2.5,"b":2}\n', "JSON: save it as CSV"),
    "json list": (b'[\n  {\n    "a": 1.5\n  }\n]\n', "JSON: save it as CSV"),
}


@pytest.mark.parametrize("columns", [None, "auto"])
@pytest.mark.parametrize("packed", PACKED)
def test_a_packed_file_that_is_called_csv_is_told_for_what_it_is(tmp_path, packed, columns):
    content, way = PACKED[packed]
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=way):
        load(tmp_path / "x.csv", table=TableOptions(columns=columns))


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.parquet"])
def test_a_page_is_told_from_an_array(tmp_path, name):
    (tmp_path / name).write_bytes(PACKED["page"][0])
    with pytest.raises(DataError, match=r"a web page \(HTML\)"):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["x.csv", "x.npy"])
def test_a_file_that_may_not_be_read_is_no_full_disk(tmp_path, monkeypatch, name):
    """The command line asked for permission to write, or for another folder."""
    (tmp_path / name).write_text("a,b\n1,2\n")
    usual = Path.open

    def closed(path, *args, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, *args, **options)

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(DataError, match=r"may not be read \(Permission denied\): get permission to read it"):
        load(tmp_path / name)


def test_names_in_brackets_are_names(tmp_path):
    (tmp_path / "x.csv").write_text("<DATE>,[0 to 5),{a}\n" + "1.5,2,3\n2.5,1,7\n" * 5)
    assert [column.name for column in load(tmp_path / "x.csv", verbose=False).columns] == ["<DATE>", "[0 to 5)", "{a}"]


@pytest.mark.parametrize("name", ["x.csv", "x.npy", "x.npz", "x.parquet"])
def test_a_pointer_of_git_lfs_is_told_from_the_file(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(DataError, match=r"pointer of Git LFS .* git lfs pull"):
        load(tmp_path / name)


@pytest.mark.parametrize("columns", [None, "auto"])
def test_a_quote_that_is_not_closed_fills_no_screen(tmp_path, columns):
    (tmp_path / "x.csv").write_text("a,b\n" + "".join(f"{i}.5,{chr(34) * (i == 20)}{i}\n" for i in range(300)))
    with pytest.raises(DataError, match=r"'20' and more lines \(is a quote not closed\?\)") as caught:
        load(tmp_path / "x.csv", table=TableOptions(columns=columns))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("columns", [None, "auto"])
def test_a_title_above_the_names_is_told(tmp_path, columns):
    (tmp_path / "x.csv").write_text("My measurements\na,b\n1,2\n3,4\n5,6\n")
    with pytest.raises(DataError, match="Delete lines above the names"):
        load(tmp_path / "x.csv", table=TableOptions(columns=columns))


def test_whole_numbers_of_hundreds_of_digits_fill_no_screen(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(1.0, 41.0).reshape(-1, 2) * 1e300)
    with pytest.raises(DataError, match=r"up to 3.9e\+301"):
        load(tmp_path / "x.npy")


def test_infinity_is_not_told_as_a_gap(tmp_path):
    x = np.ones((9, 2))
    x[4, 1] = np.inf
    np.save(tmp_path / "x.npy", x)
    for missing in (False, True):
        with pytest.raises(DataError, match="infinity stands for no value that was missed") as caught:
            load(tmp_path / "x.npy", missing=missing)
        assert "To model gaps" not in str(caught.value)
    x[2, 0] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(DataError, match="To model gaps: --missing"):
        load(tmp_path / "x.npy")


def test_two_columns_of_one_name_are_told(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,a\n" + "1.5,2,3\n2.5,1,7\n" * 5)
    data = load(tmp_path / "x.csv", verbose=False)
    assert any("two columns are called 'a'" in note for note in data.notes) and data.columns == ()
    (tmp_path / "x.csv").write_text(",,a\n" + "1,2,3.5\n1,1,7.5\n" * 5)  # as pandas writes an index of two levels
    notes = load(tmp_path / "x.csv", verbose=False).notes
    assert any("two columns are called ''" in note for note in notes) and any(
        "--index '' leaves it" in note for note in notes
    )


def test_csv_of_bytes(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe1,2\n")
    with pytest.raises(DataError, match="UTF-8"):
        load(tmp_path / "x.csv")


def test_a_file_larger_than_what_may_be_copied_trains_from_disk(tmp_path, monkeypatch):
    """Nothing of its size is allocated, the file stays as it is, and the run is that of the array in memory."""
    held = np.random.default_rng(0).random((20_000, 64), dtype=np.float32).round()
    np.save(tmp_path / "x.npy", held)
    before = (tmp_path / "x.npy").read_bytes()
    monkeypatch.setattr(row_module, "AT_ONCE", 10_000)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tracemalloc.start()
    x = as_rows(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    copied = as_rows(mapped[1:])  # a part of a file is copied
    tracemalloc.stop()
    assert peak < held.nbytes / 5 and copied.shape == (19_999, 64)
    assert torch.equal(x, torch.from_numpy(held))
    x[0, 0] = 7.0  # copy-on-write
    assert (tmp_path / "x.npy").read_bytes() == before
    runs = []
    for source in (held, np.load(tmp_path / "x.npy", mmap_mode="r")):
        torch.manual_seed(0)
        vae = VAE(StandardNormal(2), Conditional(MLP(2, 64, (4,)), bernoulli), Conditional(MLP(64, 4, (4,)), normal))
        runs.append(fit(vae, source, epochs=1, batch_size=5000, verbose=False).history[0]["elbo"])
    assert runs[0] == runs[1]


def test_what_is_not_finite_is_found_in_any_chunk(monkeypatch):
    monkeypatch.setattr(row_module, "AT_ONCE", 7)
    x = torch.zeros(10, 3)
    assert as_rows(x) is x or torch.equal(as_rows(x), x)
    x[8, 1] = math.nan
    with pytest.raises(DataError, match=r"1 of 10 rows: 8 \(counted from 0; in row 8 first in column 1\)"):
        as_rows(x)


# files far larger than what they should hold


def peak():
    """GiB that this process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def loading(source, folder):
    """Run in a child: print what loading is refused with, and how much more memory it took."""
    before = peak()
    try:
        load(source, data_dir=folder)
    except Exception as error:
        print(type(error).__name__, error)
    print(peak() - before)


def peak_growth(source, folder):
    """GiB by which the memory of a child grows while it loads a file, and what it prints."""
    *said, grown = printed_by(loading, source, folder).splitlines()
    return float(grown), "\n".join(said)


@pytest.mark.parametrize("packed", [False, True])
def test_an_mnist_file_of_3_gib_is_not_read_into_memory(tmp_path, packed):
    raw = lay_out(tmp_path)
    (raw / FILES[1]).unlink()  # so that the files are read with numpy, this one out of its .gz
    (raw / f"{FILES[1]}.gz").write_bytes(gzip.compress(bytes(60_008)))
    name = f"{FILES[1]}.gz" if packed else FILES[0]
    with (raw / name).open("ab") as file:
        file.truncate(3 * 2**30)
    grown, said = peak_growth("mnist", tmp_path)
    assert said.startswith(f"DataError {raw}") and (packed or "too long: 3,221,225,472 bytes" in said)
    assert grown < 0.5


def test_a_csv_file_of_3_gib_of_zeros_is_not_read_into_memory(tmp_path):
    with (tmp_path / "x.csv").open("wb") as file:
        file.truncate(3 * 2**30)
    grown, said = peak_growth(tmp_path / "x.csv", tmp_path)
    assert "DataError" in said and "x.csv cannot be read" in said and "a line has more than" in said
    assert grown < 1


def test_an_archive_without_one_of_its_splits_is_told_which(tmp_path):
    rows = np.zeros((4, 2), np.float32)
    np.savez(tmp_path / "keras.npz", x_train=rows, x_test=rows)
    with pytest.raises(DataError, match=r"none of them is x \(x_validation of its splits is not there\)"):
        load(tmp_path / "keras.npz", verbose=False)
