"""MNIST's files: found, checked, and never half read."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.data import load
from pyro_vae.errors import DataError, UsageError
from tests.helpers.data import lay_out
from tests.helpers.environment import ROOT

SHARED = Path(os.environ.get("PYRO_VAE_DATA") or ROOT.parent / "shared/data")
FILES = [f"{p}-{c}-ubyte" for p in ("train", "t10k") for c in ("images-idx3", "labels-idx1")]
SIZES = [47_040_016, 60_008, 7_840_016, 10_008]
needs_mnist = pytest.mark.skipif(
    not all((SHARED / f"MNIST/raw/{file}.gz").is_file() for file in FILES),
    reason="no MNIST (.gz) in $PYRO_VAE_DATA or the sibling folder shared/data",
)


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
