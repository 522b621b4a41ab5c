"""Folders of data; and less of a data set."""

import os

import numpy as np
import sklearn.datasets
from sklearn.utils import Bunch

FILES = [f"{p}-{c}-ubyte" for p in ("train", "t10k") for c in ("images-idx3", "labels-idx1")]
SIZES = [47_040_016, 60_008, 7_840_016, 10_008]


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


def few_digits(patch, rows=300):
    """Have ``digits`` be its first rows: of a training that a test starts, and in which no number is that of all rows."""
    whole = sklearn.datasets.load_digits()
    few = Bunch(images=whole.images[:rows], target=whole.target[:rows])
    patch.setattr(sklearn.datasets, "load_digits", lambda: few)
