"""The 8×8 digits that come with scikit-learn, read from their file."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

FILE = ("datasets", "data", "digits.csv.gz")  # within the package: 64 cells and the class, a line each


def digits_of_file() -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(N, 8, 8)`` and classes as scikit-learn's ``load_digits`` does, from its file alone where that is found.

    To import scikit-learn takes more than a second, as long as all else that a small run does before it trains.

    Example:
        >>> images, classes = digits_of_file()
        >>> images.shape, int(images.max()), classes[:3].tolist()
        ((1797, 8, 8), 16, [0, 1, 2])
    """
    spec = importlib.util.find_spec("sklearn")  # which finds a package, and runs none of it
    folders = [] if spec is None else spec.submodule_search_locations or []
    file = next((Path(f, *FILE) for f in folders if Path(f, *FILE).is_file()), None)
    if file is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.images, digits.target
    with gzip.open(file, "rt", encoding="utf-8") as text:
        rows = np.loadtxt(text, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)
