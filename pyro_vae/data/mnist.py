"""MNIST and its kin from a folder laid out as torchvision does, plain or ``.gz``; every file is checked."""

from __future__ import annotations

import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np

from pyro_vae.common.digests import check_md5
from pyro_vae.errors import DataError

from .splits import Part, Source, hold_out
from .user_files import describe

CLASSES = {  # torchvision's classes, which name their folders too
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
}
MD5 = {  # of packed files, which all are alike but for their values
    "KMNIST": {
        "train-images-idx3-ubyte.gz": "bdb82020997e1d708af4cf47b453dcf7",
        "train-labels-idx1-ubyte.gz": "e144d726b3acfaa3e44228e80efcd344",
        "t10k-images-idx3-ubyte.gz": "5c965bf0a639b31b8f53240b1b52f4d7",
        "t10k-labels-idx1-ubyte.gz": "7320c461ea6c1c855c0b718fb2a4b134",
    }
}
ROWS = {"train": 60_000, "t10k": 10_000}
HEADERS = {
    f"{part}-{content}-ubyte": struct.pack(">4I", 2051, n, 28, 28) if "3" in content else struct.pack(">2I", 2049, n)
    for part, n in ROWS.items()
    for content in ("images-idx3", "labels-idx1")
}


def read_images(name: str, data_dir: Path, download: bool = False) -> Source:
    """Read the 60,000 + 10,000 images ``(N, 28, 28)`` of 0..255 and their labels; the last 400 training images validate.

    Args:
        name: "mnist", "fashion_mnist" or "kmnist".
        data_dir: the folder that holds ``MNIST/raw``, ``FashionMNIST/raw`` or ``KMNIST/raw``.
        download: lets torchvision fetch what is missing.

    Raises:
        DataError: files missing, truncated or damaged, or a download that failed.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016), https://arxiv.org/abs/1509.00519; Deep Learning
        for Classical Japanese Literature (Clanuwat et al., 2018), https://arxiv.org/abs/1812.01718
    """
    folder = data_dir / CLASSES[name] / "raw"
    if download and missing_files(folder):
        fetch(name, data_dir)
    if lacking := missing_files(folder):
        raise DataError(
            f"{name}: {len(lacking)} of 4 files are missing: {', '.join(lacking)} (or the same with .gz). "
            f"They belong in {folder}. Put them there, name another folder with --data-dir (data_dir=) or "
            "$PYRO_VAE_DATA, or fetch them with --download (download=True)."
        )
    parts = tuple(read_part(folder, part, n) for part, n in ROWS.items())
    return Source(
        name=name,
        parts=parts,
        cut=partial(hold_out, rows=400),
        policy="grey pixels in [0, 1], not binarized",
        scale=255.0,
        notes=(*map(describe, parts), "x: divided by 255"),
    )


def missing_files(folder: Path) -> list[str]:
    """Return those of the four files that are there neither plain nor as .gz."""
    return [f for f in HEADERS if not (folder / f).is_file() and not (folder / f"{f}.gz").is_file()]


def fetch(name: str, data_dir: Path) -> None:
    """Download the files with torchvision, unless its old ``processed`` folder is there, whose pickles it would open."""
    import torchvision.datasets

    if (data_dir / CLASSES[name] / "processed").exists():
        return
    try:
        getattr(torchvision.datasets, CLASSES[name])(data_dir, download=True)
    except Exception as e:  # whatever a network, a disk or a foreign archive can raise
        raise DataError(
            f"{name} could not be downloaded into {data_dir} ({' '.join(str(e).split())}). "
            "Fetch the files elsewhere and name their folder with --data-dir (data_dir=) or $PYRO_VAE_DATA."
        ) from e


def read_part(folder: Path, part: str, rows: int) -> Part:
    """Read the images and the labels of "train" or "t10k"."""
    images, labels = (read_idx(folder, f"{part}-{content}-ubyte") for content in ("images-idx3", "labels-idx1"))
    return Part("x", images.reshape(rows, 28, 28), labels)


def read_idx(folder: Path, file: str) -> np.ndarray:
    """Read the values of one IDX file, flat: plain where it is, out of the .gz (in memory) where it is not."""
    path, header = folder / file, HEADERS[file]
    if path.is_file():
        size, content = path.stat().st_size, read_start(path, expected_size(header))
    else:
        path = folder / f"{file}.gz"
        if md5 := MD5.get(folder.parent.name, {}).get(path.name):
            check_md5(path, md5)
        content = gunzip(path, expected_size(header))
        size = len(content)
    check_idx(path, content[: len(header)], header, size)
    return np.frombuffer(content, np.uint8, offset=len(header))


def read_start(path: Path, most: int) -> bytes:
    """Read the first bytes of a file, at most so many: one that is far too long is not read into memory."""
    with path.open("rb") as file:
        return file.read(min(most, path.stat().st_size))


def gunzip(path: Path, size: int) -> bytes:
    """Unpack a .gz, but no more than a byte above `size`: a file of holes would fill the memory."""
    stream = zlib.decompressobj(wbits=31)  # a gzip header, and the largest window
    try:
        content = stream.decompress(read_start(path, 2 * size), size + 1)
    except zlib.error as e:
        raise DataError(f"{path} is damaged ({e}). Delete it and fetch it again.") from e
    if len(content) == size and not stream.eof:
        raise DataError(f"{path} is truncated: its checksum is missing. Delete it and fetch it again.")
    return content


def expected_size(header: bytes) -> int:
    """Return the size of the file with this header: header and one byte for each value."""
    return len(header) + struct.unpack(">I", header[4:8])[0] * (784 if len(header) == 16 else 1)


def check_idx(path: Path, start: bytes, header: bytes, size: int) -> None:
    """Refuse a file of another size, or of another kind."""
    if size != expected_size(header):
        what = "truncated" if size < expected_size(header) else "too long"
        raise DataError(
            f"{path} is {what}: {size:,} bytes{' unpacked' if path.suffix == '.gz' else ''}, wanted "
            f"{expected_size(header):,}. Delete it and fetch it again."
        )
    if start != header:
        raise DataError(f"{path} does not start as that file does. Delete it and fetch it again.")
