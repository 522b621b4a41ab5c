"""pyro_vae.data: what comes in, what is refused and how it is said, splits, binarization, files."""

import gzip
import math
import os
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, fit, normal
from pyro_vae.data import arrays as row_module
from pyro_vae.data import as_rows, binarize, check_grey, load, same_rows, static_binarization
from pyro_vae.errors import DataConversionWarning, DataError, ShapeError, SupportError, UsageError
from tests.helpers.environment import ROOT

SHARED = Path(os.environ.get("PYRO_VAE_DATA") or ROOT.parent / "shared/data")
FILES = [f"{p}-{c}-ubyte" for p in ("train", "t10k") for c in ("images-idx3", "labels-idx1")]
SIZES = [47_040_016, 60_008, 7_840_016, 10_008]
needs_mnist = pytest.mark.skipif(
    not all((SHARED / f"MNIST/raw/{file}.gz").is_file() for file in FILES),
    reason="no MNIST (.gz) in $PYRO_VAE_DATA or the sibling folder shared/data",
)


# rows


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int64, np.uint8, np.uint16, np.bool_, np.longdouble, ">f8"]
)
def test_other_dtypes_are_copied_with_a_warning(dtype):
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(dtype)
    before = array.copy()
    with pytest.warns(
        DataConversionWarning, match=r"^x: converted from numpy \w+ to torch.float32 \(a copy; your array"
    ):
        rows = as_rows(array)
    rows += 7
    assert rows.dtype == torch.float32
    assert array.dtype == before.dtype and (array == before).all()


def test_float32_passes_silently_in_any_layout():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    fixed = array.copy()
    fixed.flags.writeable = False
    for x in (array, array[:, ::2], array[::-1], array.T, np.asfortranarray(array), fixed, array.astype(">f4")):
        assert torch.equal(as_rows(x), torch.tensor(x.tolist()))


def test_read_only_arrays_are_not_aliased():
    array = np.zeros((3, 2), np.float32)
    array.flags.writeable = False
    as_rows(array).add_(1)
    assert (array == 0).all()


def test_tensors_keep_a_floating_dtype_and_lose_their_graph():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = torch.ones(3, 2, dtype=dtype, requires_grad=True)
        assert as_rows(x).dtype == dtype and not as_rows(x).requires_grad and x.requires_grad
    with pytest.warns(DataConversionWarning, match=r"from torch.int64 to torch.float32 \(a copy; your tensor"):
        assert as_rows(torch.ones(3, 2, dtype=torch.int64)).dtype == torch.float32
    with pytest.warns(DataConversionWarning, match="y: converted from torch.float64 to torch.float32"):
        as_rows(torch.ones(3, 2, dtype=torch.float64), name="y", dtype=torch.float32)


def test_a_dtype_asked_for_and_there_is_silent():
    assert as_rows(np.ones((2, 2)), dtype=torch.float64).dtype == torch.float64
    assert as_rows(np.ones(2, np.int64), dtype=torch.int64).dtype == torch.int64
    assert as_rows(np.ones((2, 2), bool), dtype=torch.bool).dtype == torch.bool
    assert as_rows(torch.ones(2, 2), device="cpu").device.type == "cpu"


def test_the_default_dtype_is_followed():
    torch.set_default_dtype(torch.float64)
    try:
        assert as_rows(np.ones((2, 2))).dtype == torch.float64
        assert as_rows(np.ones((2, 2), np.float32)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_lists_and_frames():
    assert as_rows([[1, 2], [3, 4]]).dtype == torch.float32
    assert as_rows(([True, False],), dtype=torch.float64).dtype == torch.float64

    class Frame:
        def to_numpy(self):
            return np.eye(2, dtype=np.float32)

    assert torch.equal(as_rows(Frame()), torch.eye(2))


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.array([["a", "b"]]), DataError, r"x \(a ndarray\) has dtype <U1, wanted real numbers"),
        (np.array([[1, None]]), DataError, "dtype object"),
        (np.ones((2, 2), complex), DataError, "dtype complex128"),
        (torch.ones(2, 2, dtype=torch.complex64), DataError, "torch.complex64"),
        (torch.eye(2).to_sparse(), DataError, "to_dense"),
        (np.array(["2020-01-01"], "M8[D]"), DataError, "datetime64"),
        (
            np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], [[0, 0], [0, 1]]),
            DataError,
            "masked entries in 1 of 2 rows: 1 ",
        ),
        (None, DataError, "NoneType"),
        ("rows.npy", DataError, "a str"),
        ([[1, 2], [3]], DataError, "cannot be read as one array"),
        (3.0, ShapeError, "single number"),
        (torch.tensor(3.0), ShapeError, "single number"),
        (np.ones((0, 64), np.float32), DataError, r"x is empty: shape \(0, 64\).* no rows"),
        (torch.ones(5, 0), DataError, r"x is empty: shape \(5, 0\).* no columns"),
        ([], DataError, r"x is empty: shape \(0,\)"),
    ],
)
def test_what_is_no_data_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        as_rows(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_non_finite_rows_are_named(bad, kind):
    x = [[0.0, 0.0, 0.0] for _ in range(20)]
    for row in range(4, 18, 2):
        x[row][2] = bad
    with pytest.raises(DataError, match=r"in 7 of 20 rows: 4, 6, 8, 10, 12, \.\.\. .*row 4 first in column 2\)\. Drop"):
        as_rows(kind(x))
    with pytest.raises(DataError):
        as_rows(kind(x), dtype=torch.int64)


def test_what_a_conversion_would_make_infinite_is_named():
    with pytest.raises(DataError, match=r"once converted from torch.float64 to torch.float32 in 1 of 2 rows: 1 "):
        as_rows(np.array([[1.0], [1e300]]))


def test_same_rows():
    same_rows(torch.ones(5, 2), torch.ones(5), torch.ones(5, 3))
    with pytest.raises(ShapeError, match=r"x has 5 rows, context 1 has 4 \(shape \(4, 2\)\)"):
        same_rows(torch.ones(5, 2), torch.ones(5), torch.ones(4, 2))
    with pytest.raises(ShapeError, match="context 0 has none"):
        same_rows(torch.ones(5, 2), torch.tensor(1.0))


# binarization


def test_binarize_has_the_mean_of_a_bernoulli():
    """20,000 draws of each of 11 values: within 4 standard errors, SE = sqrt(x (1 − x) / 20,000) <= 0.0036."""
    x, n = torch.linspace(0, 1, 11), 20_000
    draws = binarize(x.expand(n, -1), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert ((draws.mean(0) - x).abs() <= 4 * (x * (1 - x) / n).sqrt()).all()


def test_binarize_takes_ends_as_certain_and_keeps_what_is_missing():
    ends = binarize(torch.tensor([0.0, 1.0, math.nan]).repeat(100_000, 1), torch.Generator().manual_seed(0))
    assert torch.equal(ends[:, :2], torch.tensor([0.0, 1.0]).repeat(100_000, 1))
    assert not ends[:, 0].signbit().any() and ends[:, 2].isnan().all()


def test_binarize_draws_from_the_generator_and_keeps_the_dtype():
    x = torch.full((100, 8), 0.5, dtype=torch.float64)
    state = torch.get_rng_state()
    first, again = (binarize(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == x.dtype and torch.equal(first, again)
    assert not torch.equal(binarize(x), binarize(x))


def test_static_binarization_is_fixed_by_its_seed():
    x = torch.full((100, 8), 0.5)
    state = torch.get_rng_state()
    assert torch.equal(static_binarization(x, 1), static_binarization(x, 1))
    assert not torch.equal(static_binarization(x, 1), static_binarization(x, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [-0.1, 1.5, 255.0, float("nan")])
def test_grey_is_checked(bad):
    x = torch.full((10, 3), 0.5)
    assert check_grey(x) is x
    x[7, 1] = bad
    for refuses in (check_grey, lambda x: static_binarization(x, 0)):
        with pytest.raises(SupportError, match=r"1 of 10 rows: 7 .* first in column 1\).*divide 0..255 pixels by 255"):
            refuses(x)


# digits


def test_digits():
    data = load("digits")
    splits = (data.train, data.validation, data.test)
    assert [len(s) for s in splits] == [1437, 180, 180] and data.shape == (1, 8, 8)
    for s in splits:
        assert s.x.dtype == torch.float32 and s.x.shape == (len(s), 64)
        assert s.y.dtype == torch.int64 and s.y.min() == 0 and s.y.max() == 9
        assert s.x.min() == 0 and s.x.max() == 16 and torch.equal(s.x, s.x.round())
    assert (data.name, data.policy, data.transform) == ("digits", "counts 0..16", None)
    assert not any("converted" in note for note in data.notes)  # nothing that a newcomer would have to know


def test_the_digits_split_is_disjoint_complete_and_fixed():
    from sklearn.datasets import load_digits

    a, b = load("digits", seed=0), load("digits", seed=5)
    for s in ("train", "validation", "test"):
        assert torch.equal(getattr(a, s).x, getattr(b, s).x) and torch.equal(getattr(a, s).y, getattr(b, s).y)
    digits = load_digits()
    order = np.random.default_rng(0).permutation(1797)
    for s, rows in (("train", order[:1437]), ("validation", order[1437:1617]), ("test", order[1617:])):
        assert (getattr(a, s).x.numpy() == digits.data[rows]).all()
        assert (getattr(a, s).y.numpy() == digits.target[rows]).all()


def test_the_digest_is_of_the_data_not_of_what_was_made_of_it(tmp_path):
    digests = {load("digits", binarization=b, seed=s).digest for b in ("none", "static", "dynamic") for s in (0, 1)}
    assert len(digests) == 1 and len(digests.pop()) == 64
    x = np.ones((10, 4), np.float32)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", x.reshape(10, 2, 2))
    np.save(tmp_path / "c.npy", 2 * x)
    assert len({load(tmp_path / f"{name}.npy").digest for name in "abc"}) == 3


def test_digits_static():
    data, again = load("digits", binarization="static"), load("digits", binarization="static")
    other = load("digits", binarization="static", seed=1)
    assert data.policy == "static binarization, once, seed 0" and data.transform is None
    for s in ("train", "validation", "test"):
        x = getattr(data, s).x
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(x, getattr(again, s).x) and not torch.equal(x, getattr(other, s).x)


def test_digits_dynamic():
    data, counts = load("digits", binarization="dynamic"), load("digits")
    assert torch.equal(data.train.x, counts.train.x / 16)
    for s in ("validation", "test"):
        assert set(getattr(data, s).x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(getattr(data, s).x, getattr(load("digits", binarization="static"), s).x)
    batch = data.transform(data.train.x[:5], torch.Generator().manual_seed(0))
    assert set(batch.unique().tolist()) == {0.0, 1.0}
    assert data.policy.startswith("dynamic binarization: train redrawn each epoch") and data.policy.endswith("seed 0")


def test_held_out_draws_differ_between_splits():
    """One generator, not one seed for each split: the same uniforms would tie the draws of test and validation."""
    data, grey = load("digits", binarization="static"), load("digits")
    same = (grey.test.x > 0) & (grey.test.x < 16) & (grey.test.x == grey.validation.x)
    assert (data.test.x != data.validation.x)[same].any()


# names and options


@pytest.mark.parametrize(
    "name, close", [("digit", "digits"), ("MNIST", "mnist"), ("fashion-mnist", "fashion_mnist"), ("rows.pkl", "")]
)
def test_unknown_names(name, close):
    with pytest.raises(UsageError, match=f"no data set '{name}'.*{close}.*digits, mnist, fashion_mnist, or the path"):
        load(name)


def test_unusable_options():
    with pytest.raises(UsageError, match="none, static, dynamic"):
        load("digits", binarization="sometimes")
    with pytest.raises(UsageError, match="seed -1"):
        load("digits", seed=-1)


def test_importing_brings_in_neither_torchvision_nor_sklearn():
    code = "import sys, pyro_vae.data; print({'torchvision', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


# MNIST


def lay_out(folder, sizes=SIZES, name="MNIST"):
    """Files of MNIST's sizes and headers without its content (sparse, so that they take no room)."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for file, size in zip(FILES, sizes, strict=True):
        rows = 60_000 if file.startswith("train") else 10_000
        header = (2051, rows, 28, 28) if "images" in file else (2049, rows)
        (raw / file).write_bytes(np.array(header, ">u4").tobytes())
        os.truncate(raw / file, size)
    return raw


def test_no_folder_named(monkeypatch):
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    with pytest.raises(UsageError, match=r"--data-dir .*\$PYRO_VAE_DATA.*--download"):
        load("mnist")


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_missing_files_are_listed(tmp_path, monkeypatch, name, folder):
    with pytest.raises(DataError, match=f"{name}: 4 of 4 files.*{', '.join(FILES)}.*{folder}.*--data-dir.*--download"):
        load(name, data_dir=tmp_path / "nowhere")
    (lay_out(tmp_path, name=folder) / FILES[1]).unlink()
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"1 of 4 files are missing: {FILES[1]} "):
        load(name)


@pytest.mark.parametrize("file", range(4))
@pytest.mark.parametrize("change, what", [(-1, "truncated"), (1, "too long")])
def test_wrong_sizes(tmp_path, file, change, what):
    sizes = [size + change * (i == file) for i, size in enumerate(SIZES)]
    lay_out(tmp_path, sizes)
    wanted = f"{FILES[file]} is {what}: {SIZES[file] + change:,} bytes, wanted {SIZES[file]:,}"
    with pytest.raises(DataError, match=wanted):
        load("mnist", data_dir=tmp_path)


def test_another_kind_of_file(tmp_path):
    raw = lay_out(tmp_path)
    with (raw / FILES[0]).open("r+b") as f:
        f.write(b"GIF8")
    with pytest.raises(DataError, match=f"{FILES[0]} does not start as that file does"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    "cut, message",
    [
        (lambda b: b[: len(b) // 2], r"t10k-labels-idx1-ubyte.gz is truncated: [\d,]+ bytes unpacked, wanted 10,008"),
        (lambda b: b[:-4], "checksum is missing"),
        (lambda b: b"no gzip file", "is damaged"),
        (lambda b: b[:-8] + bytes(8), "is damaged"),
        (lambda b: gzip.compress(bytes(20_000)), "too long"),
    ],
)
def test_a_damaged_gz_is_named(tmp_path, cut, message):
    raw = lay_out(tmp_path)
    labels = np.random.default_rng(0).integers(10, size=10_008, dtype=np.uint8).tobytes()
    (raw / FILES[3]).unlink()
    (raw / f"{FILES[3]}.gz").write_bytes(cut(gzip.compress(labels)))
    with pytest.raises(DataError, match=message):
        load("mnist", data_dir=tmp_path)


def test_a_failed_download_says_so(tmp_path, monkeypatch, capsys):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"mnist could not be downloaded into .*--data-dir"):
        load("mnist", data_dir=tmp_path, download=True)


@needs_mnist
def test_mnist_unpacked_and_compressed(tmp_path):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for file in FILES:
        (raw / file).write_bytes(gzip.decompress((SHARED / f"MNIST/raw/{file}.gz").read_bytes()))
    plain, packed = load("mnist", data_dir=tmp_path), load("mnist", data_dir=SHARED)
    assert plain.digest == packed.digest
    for data in (plain, packed):
        assert [len(s) for s in (data.train, data.validation, data.test)] == [59_600, 400, 10_000]
        assert data.shape == (1, 28, 28) and data.train.x.shape == (59_600, 784) and data.train.x.dtype == torch.float32
        assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9] and data.test.y[:5].tolist() == [7, 2, 1, 0, 4]
        assert data.test.x.min() == 0 and data.test.x.max() == 1
        assert data.policy == "grey pixels in [0, 1], not binarized"
    assert torch.equal(plain.validation.x, packed.validation.x) and torch.equal(plain.test.x, packed.test.x)
    assert torch.equal(plain.validation.y, packed.validation.y)


@needs_mnist
def test_an_old_processed_folder_is_not_read(tmp_path):
    """torchvision prefers its old pickles where it finds them; here they are never opened."""
    (tmp_path / "MNIST/processed").mkdir(parents=True)
    for file in ("training.pt", "test.pt"):
        (tmp_path / "MNIST/processed" / file).write_bytes(b"not even a pickle")
    (tmp_path / "MNIST/raw").symlink_to(SHARED / "MNIST/raw")
    assert load("mnist", data_dir=tmp_path).test.y[0] == 7


@pytest.mark.skipif(not (SHARED / "FashionMNIST/raw").is_dir(), reason="no Fashion-MNIST in shared/data")
def test_fashion_mnist_dynamic():
    data = load("fashion_mnist", data_dir=SHARED, binarization="dynamic")
    assert data.name == "fashion_mnist" and data.train.y[0] == 9 and data.test.y[0] == 9
    assert len(data.train.x[:100].unique()) > 100 and set(data.test.x.unique().tolist()) == {0.0, 1.0}


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
    for path in (tmp_path / "none.npy", tmp_path / "none.csv", tmp_path / "folder.npy"):
        with pytest.raises(DataError, match="no file"):
            load(path)


@pytest.mark.parametrize("rows", [1, 2])
def test_too_few_rows(tmp_path, rows):
    np.save(tmp_path / "x.npy", np.ones((rows, 2)))
    with pytest.raises(DataError, match=f"{rows} rows are too few.*at least 3"):
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
    labelled = load(path)
    assert labelled.train.y.dtype == torch.int64 and torch.equal(labelled.train.x[:, 0], 2.0 * labelled.train.y + 1)


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n3,four\n", r"row 1 \(counted from 0; line 3 of the file\), column 1: 'four' is no number"),
        ("1,b\n3,4\n", "row 0 .*line 1 .*column 1: 'b'"),
        ("1,2\n,4\n3,4\n5,6\n", "x has NaN or infinite values in 1 of 4 rows: 1 .*--missing"),
        ("1,2\n1_0,4\n", "'1_0' is no number"),
        ("1;2\n3;4\n", "'3;4' is no number"),
        ("1,2\n3,4,5\n", "row 1 .*line 2 .*: 3 cells, wanted 2"),
        ("a,b\n1,2\n3\n", "row 1 .*line 3 .*: 1 cells, wanted 2"),
        ("1,2\n3,nan\n5,6\n", "NaN or infinite values in 1 of 3 rows: 1 .* column 1"),
        ("", "no row of numbers"),
        ("a,b\n", "no row of numbers"),
        ("y\n1\n2\n3\n", "no columns"),
        ("a\x00,1\n", "is no number|cannot be read"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.csv")


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
    assert peak < held.nbytes / 10 and copied.shape == (19_999, 64)
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


def peak_growth(code, *arguments):
    """GiB by which the memory of a child of its own grows while it runs some code, and what the code prints."""
    start = "import resource, sys\npeak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
    wrapped = f"{start}from pyro_vae.data import load\nbefore = peak()\n{code}\nprint(peak() - before)"
    run = subprocess.run(
        [sys.executable, "-c", wrapped, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    *said, grown = run.stdout.splitlines()
    return float(grown), "\n".join(said)


LOADING = """
try:
    load(sys.argv[1], data_dir=sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("packed", [False, True])
def test_an_mnist_file_of_3_gib_is_not_read_into_memory(tmp_path, packed):
    raw = lay_out(tmp_path)
    (raw / FILES[1]).unlink()  # so that the files are read with numpy, this one out of its .gz
    (raw / f"{FILES[1]}.gz").write_bytes(gzip.compress(bytes(60_008)))
    name = f"{FILES[1]}.gz" if packed else FILES[0]
    with (raw / name).open("ab") as file:
        file.truncate(3 * 2**30)
    grown, said = peak_growth(LOADING, "mnist", tmp_path)
    assert said.startswith(f"DataError {raw}") and (packed or "too long: 3,221,225,472 bytes" in said)
    assert grown < 0.5


def test_a_csv_file_of_3_gib_of_zeros_is_not_read_into_memory(tmp_path):
    with (tmp_path / "x.csv").open("wb") as file:
        file.truncate(3 * 2**30)
    grown, said = peak_growth(LOADING, tmp_path / "x.csv", tmp_path)
    assert "DataError" in said and "x.csv cannot be read" in said and "a line has more than" in said
    assert grown < 1
