"""Labels of new rows, numbered as those that a run was trained on are: by their names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pyro_vae.data import Split
from pyro_vae.errors import DataError
from pyro_vae.models.classes import MISSING

from .load import Run

HOW = "Leave the labels of new rows out (empty, or a file without them), and log p(x) stays as it is"


def labelled_as(run: Run, rows: Split, train: Split | None, file: Path) -> Split:
    """Give the labels of new rows the numbers that training gave these names; names that it never met come after them.

    A file numbers its own names from 0: alone in it, a class that was 1 in training would be 0, and be compared with
    predictions of another.

    Args:
        run: trained, with labels or without.
        rows: as their file numbers their labels.
        train: the rows that the run was trained on, or none of them, with the names of their classes; None: unknown.
        file: of the new rows, for messages.

    Raises:
        DataError: of a model that is compared with labels: names that training never met, numbers where it met names, or the
            other way round; or the training rows are not there to tell.
    """
    if rows.y is None or bool((rows.y == MISSING).all()):
        return rows
    matter = run.kind.labels
    if train is None:
        if matter and rows.classes:
            raise DataError(
                f"{file}: labels have names, and which number each had in training the training rows would tell, which are not "
                f"there: say where, --data-dir. {HOW}."
            )
        return rows
    if not train.classes or not rows.classes:
        if matter and train.y is not None and (train.classes or rows.classes):
            kinds = ("names", "numbers") if rows.classes else ("numbers", "names")
            raise DataError(f"{file}: labels are {kinds[0]}, and were {kinds[1]} in training: write them alike. {HOW}.")
        return rows
    classes = (*train.classes, *(name for name in rows.classes if name not in train.classes))
    numbers = {name: number for number, name in enumerate(classes)}
    y = torch.tensor([*(numbers[name] for name in rows.classes), MISSING])[
        rows.y
    ]  # -1, which is missing, finds the last
    if matter and bool((unseen := y >= len(train.classes)).any()):
        row = int(unseen.nonzero()[0])
        raise DataError(
            f"{file}, row {int(rows.numbers[row])} (counted from 0): {classes[int(y[row])]!r} is a label that was never seen; "
            f"training had {', '.join(train.classes)}. {HOW}."
        )
    return replace(rows, y=y, classes=classes)
