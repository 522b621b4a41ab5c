"""Which rows of a run's data are scored: those of a split, by its name, or its first; or all rows of another file."""

from __future__ import annotations

from pyro_vae.data import Data, Split
from pyro_vae.errors import UsageError

from .evaluations import SPLITS, is_new
from .load import Run
from .new_rows import new_split


def rows_of(data: Data, split: str, rows: int | None = None) -> Split:
    """Return one split, by name, or its first rows."""
    if split not in SPLITS and not is_new(split):
        raise UsageError(f"no split {split!r}; take one of {', '.join(SPLITS)}")
    if split == "train" and data.transform is not None:
        raise UsageError(
            "training rows are grey under dynamic binarization and have no likelihood: score test or validation"
        )
    if split == "train" and data.part is not None:
        raise UsageError(
            f"the {len(data.train):,} training rows are on disk, and a sample of them is not them: score test or validation, "
            "or in Python as many as you mean, log_likelihood(vae.model, vae.guide, Stored(path)[:10_000])"
        )
    chosen: Split = data.test if is_new(split) else getattr(data, split)
    if rows is not None and not 1 <= rows <= len(chosen):
        there = f"there are {len(chosen)} new rows" if is_new(split) else f"the {split} split has {len(chosen)}"
        raise UsageError(f"rows={rows}, but {there}: take 1 to {len(chosen)} of them")
    return chosen[:rows]


def split_asked(run: Run, data: Data, split: str) -> str:
    """Return the split to score: the one asked for, or all rows of data that is not the run's own."""
    if data.digest == run.record["data"].get("digest", data.digest):
        return split
    if split not in ("test", new_split(data)):
        raise UsageError(f"new rows have no {split} split: all are scored; leave --split out, or take --rows")
    return new_split(data)
