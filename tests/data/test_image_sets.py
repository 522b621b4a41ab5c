"""Data sets of torchvision by name: files in its formats, read as it reads them; other digests refused; no pickle run."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from pyro_vae.data import image_sets, load, mnist
from pyro_vae.errors import DataError
from tests.helpers.data import lay_out

DRAW = np.random.default_rng(0)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def publish(monkeypatch, folder, name):
    """Take the digests of files that lie there for the published ones."""

    def of(files):
        there = [(f, folder / f.path) for f in files]
        return tuple(dataclasses.replace(f, md5=md5(path)) if path.is_file() else f for f, path in there)

    chosen = image_sets.SETS[name]
    changed = dataclasses.replace(chosen, files=of(chosen.files), other=of(chosen.other))
    monkeypatch.setitem(image_sets.SETS, name, changed)


def together(data):
    return np.concatenate([split.x.numpy() for split in (data.train, data.validation, data.test)])


def make_svhn(folder):
    arrays = {}
    for split, n in (("train", 20), ("test", 5)):
        x, y = DRAW.integers(0, 256, (32, 32, 3, n), np.uint8), DRAW.integers(1, 11, (n, 1))
        y[0] = 10
        savemat(folder / f"{split}_32x32.mat", {"X": x, "y": y.astype(np.uint8)}, do_compression=True)
        arrays[split] = x, y
    return arrays


def test_svhn_is_what_torchvision_reads(tmp_path, monkeypatch):
    arrays = make_svhn(tmp_path)
    publish(monkeypatch, tmp_path, "svhn")
    data = load("svhn", data_dir=tmp_path, verbose=False)
    assert data.shape == (3, 32, 32) and data.kind == "bytes" and list(map(len, (data.train, data.test))) == [18, 5]
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    theirs = torchvision.datasets.SVHN(tmp_path, "train")
    assert (together(data)[:20] == theirs.data.reshape(20, -1)).all()
    assert data.train.y.tolist() + data.validation.y.tolist() == theirs.labels.tolist()
    assert data.test.y[0] == 0 and arrays["test"][1][0] == 10


def python2_batch(x, labels):
    """A batch as Python 2 pickled it: texts of bytes, an array by its reconstructor, labels in pieces."""

    def text(s):
        return b"U" + bytes([len(s)]) + s if len(s) < 256 else b"T" + struct.pack("<i", len(s)) + s

    pieces = [labels[i : i + 3] for i in range(0, len(labels), 3)]
    numbers = b"]q\x05" + b"".join(b"(" + b"".join(b"K" + bytes([y]) for y in piece) + b"e" for piece in pieces)
    state = b"(K\x01" + b"(M" + struct.pack("<H", len(x)) + b"M\x00\x0ctcnumpy\ndtype\nq\x08(U\x02u1K\x00K\x01tRq\x09"
    state += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(x.tobytes()) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x06(cnumpy\nndarray\nq\x07K\x00\x85U\x01btR" + state
    names = b"]q\x0a(" + text(b"one.png") + b"e"
    body = text(b"batch_label") + b"q\x02" + text(b"training batch") + b"q\x03" + text(b"labels") + b"q\x04" + numbers
    return b"\x80\x02}q\x01(" + body + text(b"data") + array + text(b"filenames") + names + b"u."


def make_cifar(folder, form):
    arrays = []
    for i in range(6):
        x, y = DRAW.integers(0, 256, (4, 3072), np.uint8), DRAW.integers(0, 10, 4).astype(np.uint8)
        name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
        arrays.append((name, x, y))
    if form == "binary":
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
            for name, x, y in arrays:
                content = np.concatenate([y[:, None], x], 1).tobytes()
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        (folder / "cifar-10-batches-py").mkdir()
        for name, x, y in arrays:
            content = (
                python2_batch(x, y.tolist()) if form == "python 2" else pickle.dumps({"labels": y.tolist(), "data": x})
            )
            (folder / "cifar-10-batches-py" / name).write_bytes(content)
    return np.concatenate([x for _, x, _ in arrays]), np.concatenate([y for *_, y in arrays])


@pytest.mark.parametrize("form", ["binary", "python 2", "python 3"])
def test_cifar10_of_either_version_and_nothing_is_unpickled(tmp_path, monkeypatch, form):
    x, y = make_cifar(tmp_path, form)
    publish(monkeypatch, tmp_path, "cifar10")
    if form == "python 2":
        entry = pickle.loads((tmp_path / "cifar-10-batches-py/test_batch").read_bytes(), encoding="latin1")
        assert entry["labels"] == y[-4:].tolist() and (entry["data"] == x[-4:]).all(), (
            "it is a pickle as Python 2 wrote it"
        )
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    data = load("cifar10", data_dir=tmp_path, verbose=False)
    assert (together(data) == x).all() and data.shape == (3, 32, 32)
    assert [*data.train.y, *data.validation.y, *data.test.y] == y.tolist()


def png(pixels, mode):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def test_omniglot_is_ink_on_paper(tmp_path, monkeypatch):
    (tmp_path / "omniglot-py").mkdir()
    for which, n in (("background", 20), ("evaluation", 4)):
        with zipfile.ZipFile(tmp_path / f"omniglot-py/images_{which}.zip", "w") as archive:
            for i in range(n):
                pixels = np.full((105, 105), 255, np.uint8)
                pixels[i] = 0
                archive.writestr(f"images_{which}/Greek/character{i // 2:02}/{i:04}_01.png", png(pixels, "1"))
    publish(monkeypatch, tmp_path, "omniglot")
    data = load("omniglot", data_dir=tmp_path, verbose=False)
    assert data.shape == (1, 105, 105) and data.kind == "binary" and (together(data).sum(1) == 105).all()
    assert data.test.y.tolist() == [10, 10, 11, 11] and data.train.y.max() < 10  # characters of no other set
    assert data.test.ids.label[2] == "images_evaluation/Greek/character01"
    assert len(data.validation) == 2 and "ink is 1" in " ".join(data.notes)


def test_celeba_keeps_its_partition(tmp_path, monkeypatch):
    (tmp_path / "celeba").mkdir()
    split = {f"{i:06}.jpg": "0" if i < 5 else "1" if i < 7 else "2" for i in range(1, 10)}
    (tmp_path / "celeba/list_eval_partition.txt").write_text("".join(f"{k} {v}\n" for k, v in split.items()))
    with zipfile.ZipFile(tmp_path / "celeba/img_align_celeba.zip", "w") as archive:
        for i, name in enumerate(split):
            file = io.BytesIO()
            pixels = np.full((218, 178, 3), 20 * i, np.uint8)
            pixels[39:179, 19:159] += 10  # what the crop keeps
            Image.fromarray(pixels).save(file, "JPEG", quality=100)
            archive.writestr(f"img_align_celeba/{name}", file.getvalue())
    publish(monkeypatch, tmp_path, "celeba")
    data = load("celeba", data_dir=tmp_path, verbose=False)
    assert data.shape == (3, 64, 64) and [len(s) for s in (data.train, data.validation, data.test)] == [4, 2, 3]
    inner = together(data).reshape(9, 3, 64, 64)[:, :, 4:-4, 4:-4]
    assert abs(inner - (20 * np.arange(9) + 10)[:, None, None, None]).max() <= 1
    assert data.test.ids.index == ("000007.jpg", "000008.jpg", "000009.jpg")


def test_files_with_another_digest_are_named_and_missing_ones_listed(tmp_path):
    make_svhn(tmp_path)
    with pytest.raises(DataError, match=r"train_32x32.mat is not that file: its MD5 is \w{32}, .* is e26dedcc434d2e"):
        load("svhn", data_dir=tmp_path)
    make_cifar(tmp_path, "python 3")
    with pytest.raises(DataError, match=r"data_batch_1 is not that file"):
        load("cifar10", data_dir=tmp_path)
    with pytest.raises(
        DataError, match=r"omniglot: 2 of 2 files are missing: omniglot-py/images_background.zip.*--download"
    ):
        load("omniglot", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"asks for a person"):
        load("celeba", data_dir=tmp_path, download=True)


def test_kmnist_lies_as_mnist_does_and_another_set_in_its_folder_is_refused(tmp_path):
    raw = lay_out(tmp_path, name="KMNIST")
    train, test = mnist.read_images("kmnist", tmp_path).parts
    assert train.x.shape == (60_000, 28, 28) and len(test.y) == 10_000
    file = raw / "t10k-labels-idx1-ubyte"
    (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz is not that file.* is 7320c461"):
        mnist.read_images("kmnist", tmp_path)
    assert mnist.MD5["KMNIST"] == dict(torchvision.datasets.KMNIST.resources)


def test_digests_are_those_of_torchvision():
    sets, theirs = image_sets.SETS, torchvision.datasets
    assert [f.md5 for f in sets["svhn"].files] == [theirs.SVHN.split_list[s][2] for s in ("train", "test")]
    known = dict([*theirs.CIFAR10.train_list, *theirs.CIFAR10.test_list])
    assert {f.path.split("/")[1]: f.md5 for f in sets["cifar10"].other} == known
    assert [f.md5 for f in sets["omniglot"].files] == list(theirs.Omniglot.zips_md5.values())
    faces = {name: md5 for _, md5, name in theirs.CelebA.file_list}
    assert all(faces[f.path.split("/")[1]] == f.md5 for f in sets["celeba"].files)
