"""Omniglot, SVHN, CIFAR-10 and CelebA from the files that torchvision fetches, by their digests; none is unpickled."""

from __future__ import annotations

import io
import os
import pickletools
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.common.digests import check_md5
from pyro_vae.errors import DataError

from .splits import Part, Source, hold_out, shuffle_train
from .user_files import describe

CIFAR_SHAPE = (3, 32, 32)
WHOLE_NUMBERS = ("BININT", "BININT1", "BININT2")  # operations of a pickle
CROP, SIDE = 140, 64  # of CelebA, in pixels
PARTITION = {"0": "train", "1": "validation", "2": "test"}
Paths = tuple[Path, ...]


@dataclass(frozen=True)
class SetFile:
    """A file of a data set: where torchvision puts it, its MD5, and where it is fetched from ("" where no program may)."""

    path: str
    md5: str
    url: str = ""


@dataclass(frozen=True)
class ImageSet:
    """A data set of pictures: its files (or else those of another form), how they are read, and what is told of that."""

    files: tuple[SetFile, ...]
    read: Callable[[Paths], tuple[Part, ...]]
    cut: Callable[..., Any]
    notes: tuple[str, ...]
    other: tuple[SetFile, ...] = ()
    read_other: Callable[[Paths], tuple[Part, ...]] | None = None


def read_image_set(name: str, data_dir: Path, download: bool = False) -> Source:
    """Read a data set by name, ``(N, channels, height, width)`` bytes, or zeros and ones ``(N, 105, 105)`` of Omniglot.

    Args:
        name: "omniglot", "svhn", "cifar10" or "celeba".
        data_dir: the folder that torchvision calls root.
        download: lets torchvision fetch what is missing.

    Raises:
        DataError: files that are missing, or whose MD5 is another; named with both.

    References:
        Human-Level Concept Learning through Probabilistic Program Induction (Lake, Salakhutdinov & Tenenbaum, 2015),
        https://doi.org/10.1126/science.aab3050. Reading Digits in Natural Images (Netzer et al., 2011),
        http://ufldl.stanford.edu/housenumbers. Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009),
        https://www.cs.toronto.edu/~kriz/cifar.html. Deep Learning Face Attributes in the Wild (Liu, Luo, Wang & Tang, 2015),
        https://arxiv.org/abs/1411.7766
    """
    chosen = SETS[name]
    files, read = chosen.files, chosen.read
    if chosen.read_other is not None and lacking(files, data_dir) and not lacking(chosen.other, data_dir):
        files, read = chosen.other, chosen.read_other
    if download:
        fetch(name, lacking(files, data_dir), data_dir)
    if missing := lacking(files, data_dir):
        other = f" (or {', '.join(file.path for file in chosen.other)})" if chosen.other else ""
        raise DataError(
            f"{name}: {len(missing)} of {len(files)} files are missing: {', '.join(file.path for file in missing)}{other}. "
            f"They belong in {data_dir}, as torchvision fetches them. Put them there, name another folder with --data-dir "
            "(data_dir=) or $PYRO_VAE_DATA, or fetch them with --download (download=True)."
        )
    paths = tuple(data_dir / file.path for file in files)
    for path, file in zip(paths, files, strict=True):
        check_md5(path, file.md5)
    parts = read(paths)
    return Source(name, parts, chosen.cut, notes=(*map(describe, parts), *chosen.notes))


def lacking(files: tuple[SetFile, ...], data_dir: Path) -> tuple[SetFile, ...]:
    """Return the files that are not there."""
    return tuple(file for file in files if not (data_dir / file.path).is_file())


def fetch(name: str, files: tuple[SetFile, ...], data_dir: Path) -> None:
    """Download files with torchvision, which compares their digests.

    Raises:
        DataError: it failed, or nobody may fetch them but by hand.
    """
    from torchvision.datasets.utils import download_url

    for file in files:
        folder = data_dir / Path(file.path).parent
        if not file.url:
            raise DataError(
                f"{name}: {file.path} is handed out by a page that asks for a person. Fetch it with a browser, from "
                f"https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and put it into {folder}."
            )
        try:
            download_url(file.url, str(folder), Path(file.path).name, file.md5)
        except Exception as e:  # whatever a network, a disk or a foreign server can raise
            raise DataError(
                f"{name} could not be downloaded into {data_dir} ({' '.join(str(e).split())}). "
                "Fetch the files elsewhere and name their folder with --data-dir (data_dir=) or $PYRO_VAE_DATA."
            ) from e


def read_svhn(paths: Paths) -> tuple[Part, ...]:
    """Read house numbers, digits 0 to 9: their files call a zero 10."""
    from scipy.io import loadmat

    parts = []
    for path in paths:
        arrays = loadmat(path, variable_names=["X", "y"])
        images, y = arrays["X"].transpose(3, 2, 0, 1), arrays["y"].reshape(-1).astype(np.int64)
        parts.append(Part("x", np.ascontiguousarray(images), np.where(y == 10, 0, y)))
    return tuple(parts)


def read_cifar10(paths: Paths) -> tuple[Part, ...]:
    """Read the records of the binary version's archive: a label, then 3 × 32 × 32 bytes."""
    (path,), size = paths, int(np.prod(CIFAR_SHAPE))
    with tarfile.open(path) as archive:
        batches = {Path(m.name).name: archive.extractfile(m) for m in archive.getmembers() if m.name.endswith(".bin")}
        names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        records = [np.frombuffer(batches[n].read(), np.uint8).reshape(-1, 1 + size) for n in names]  # type: ignore[union-attr]
    return of_batches([(r[:, 1:], r[:, 0]) for r in records])


def read_pickled_cifar10(paths: Paths) -> tuple[Part, ...]:
    """Read the batches of the Python version, which are pickles, without unpickling them."""
    return of_batches([pickled_batch(path) for path in paths])


def pickled_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Find pixels and labels among a pickle's operations, none of which is carried out.

    The pixels are its one text of rows × 3,072 bytes; the labels are the whole numbers that follow the key ``labels``.

    Raises:
        DataError: it has no such.
    """
    data, labels, of_labels = b"", list[int](), False
    for operation, value, _ in pickletools.genops(path.read_bytes()):
        if isinstance(value, str | bytes) and operation.name != "GLOBAL":
            of_labels = value in ("labels", b"labels")
            if len(value) > len(data):
                data = value.encode("latin-1") if isinstance(value, str) else value
        elif of_labels and operation.name in WHOLE_NUMBERS and value is not None:
            labels.append(int(value))
    y, size = np.array(labels, np.int64), int(np.prod(CIFAR_SHAPE))
    if not len(y) or len(data) != len(y) * size:
        raise DataError(f"{path} holds {len(data):,} bytes and {len(y):,} labels, and is no batch of CIFAR-10.")
    return np.frombuffer(data, np.uint8).reshape(-1, size), y


def of_batches(batches: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Part, ...]:
    """Join the training batches; the last one is the test set."""
    (*train, test) = batches
    joined = tuple(np.concatenate(arrays) for arrays in zip(*train, strict=True))
    return tuple(Part("x", x.reshape(-1, *CIFAR_SHAPE), y.astype(np.int64)) for x, y in (joined, test))


def read_omniglot(paths: Paths) -> tuple[Part, ...]:
    """Read the characters of two archives, ink as 1 and paper as 0; labels number the characters of both."""
    parts = []
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".png"))
            x = np.stack([~picture(archive.read(name), "PNG", "1") for name in names]).astype(np.uint8)
        parts.append(Part("x", x, index=np.array(names)))
    characters = [[name.rsplit("/", 1)[0] for name in part.index] for part in parts if part.index is not None]
    classes = tuple(sorted({str(name) for part in characters for name in part}))
    codes = {name: code for code, name in enumerate(classes)}
    return tuple(
        replace(part, y=np.array([codes[name] for name in names]), classes=classes)
        for part, names in zip(parts, characters, strict=True)
    )


def read_celeba(paths: Paths) -> tuple[Part, ...]:
    """Read the aligned faces in their published partition: the middle 140 × 140 pixels, made 64 × 64.

    Raises:
        DataError: they take more memory than the machine has.
    """
    path, partition = paths
    split = dict(line.split() for line in partition.read_text().splitlines() if line.strip())
    needed = len(split) * 3 * SIDE**2 * 9  # bytes, a float32 beside, and another while it is made
    if needed > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
        raise DataError(
            f"celeba takes about {needed / 1e9:.0f} GB of memory, and this machine has {there / 1e9:.0f} GB."
        )
    with zipfile.ZipFile(path) as archive:
        names = {name.rsplit("/", 1)[-1]: name for name in archive.namelist() if name.endswith(".jpg")}
        parts = []
        for key, called in PARTITION.items():
            faces = [name for name in sorted(split) if split[name] == key]
            x = np.stack([face(archive.read(names[name])) for name in faces])
            parts.append(Part(f"x_{called}", x.transpose(0, 3, 1, 2), index=np.array(faces)))
    return tuple(parts)


def face(content: bytes) -> np.ndarray:
    """Return the middle of a picture, made smaller."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        left, top = (image.width - CROP) // 2, (image.height - CROP) // 2
        middle = image.convert("RGB").crop((left, top, left + CROP, top + CROP))
        return np.asarray(middle.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def picture(content: bytes, form: str, mode: str) -> np.ndarray:
    """Decode the pixels of a picture."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=(form,)) as image:
        return np.asarray(image.convert(mode))


_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
_SVHN = "http://ufldl.stanford.edu/housenumbers"
_CIFAR = "cifar-10-batches-py"
_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
TENTH = "validation: the last tenth of the training rows, in the order of the files"

SETS: dict[str, ImageSet] = {
    "omniglot": ImageSet(
        (
            SetFile("omniglot-py/images_background.zip", "68d2efa1b9178cc56df9314c21c6e718",
                    f"{_OMNIGLOT}/images_background.zip"),
            SetFile("omniglot-py/images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811",
                    f"{_OMNIGLOT}/images_evaluation.zip"),
        ),
        read_omniglot, partial(shuffle_train, seed=0),
        ("x: ink is 1, paper 0", "train: a background set; test: the evaluation set, of other alphabets",
         "validation: a tenth of the background set, by a permutation from seed 0, whatever the seed"),
    ),
    "svhn": ImageSet(
        (
            SetFile("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373", f"{_SVHN}/train_32x32.mat"),
            SetFile("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3", f"{_SVHN}/test_32x32.mat"),
        ),
        read_svhn, hold_out, (TENTH,),
    ),
    "cifar10": ImageSet(
        (
            SetFile("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
                    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
        ),
        read_cifar10, hold_out, (TENTH,),
        tuple(SetFile(f"{_CIFAR}/{name}", md5) for name, md5 in _BATCHES.items()), read_pickled_cifar10,
    ),
    "celeba": ImageSet(
        (
            SetFile("celeba/img_align_celeba.zip", "00d2c5bc6d35e252742224ab0c1e8fcb"),
            SetFile("celeba/list_eval_partition.txt", "d32c9cbf5e040fd4025c592c306e6668"),
        ),
        read_celeba, tuple,
        ("x: the middle 140 × 140 pixels, made 64 × 64 (bilinear), as Tolstikhin et al., 2018, https://arxiv.org/abs/1711.01558",
         "split as its partition says"),
    ),
}  # fmt: skip
