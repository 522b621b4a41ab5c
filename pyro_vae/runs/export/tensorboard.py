"""A run that was trained without TensorBoard, as a folder that it shows: from metrics.jsonl, evidence and figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import renamed_when_whole
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.plain_text import is_utf8
from pyro_vae.errors import RunFolderError, UsageError
from pyro_vae.runs import folder
from pyro_vae.runs.report.facts import RunFacts, read_facts
from pyro_vae.runs.report.page import usable
from pyro_vae.runs.summary_fields import check_fields
from pyro_vae.training.tensorboard_tracker import TensorBoardTracker
from pyro_vae.training.tracker import tracked

from .new_folder import check_new

LAST = 2**31  # epoch that is believed


def export_tensorboard(path: Path | str, to: Path | str) -> Path:
    """Write a run as TensorBoard's event file, in a new folder; return where it is.

    It holds what :class:`~pyro_vae.TensorBoardTracker` would have written as the run was trained: its options, the numbers of
    each epoch, log p(x) with both errors or as a bare bound, the pictures. No model is built.

    Raises:
        UsageError: the name of `to` is no UTF-8.
        RunFolderError: no run, a damaged one, one without a record of its epochs; `to` holds something.
        MissingExtraError: tensorboard is not installed.
        StorageError: it cannot be written.
    """
    path, to = Path(path), Path(to)
    if not is_utf8(str(to.absolute())):
        raise UsageError(f"{to} is no UTF-8, which TensorBoard wants of a folder's name: name another")
    with usable(path):
        facts = read_facts(path)
        records = list(records_of(facts))
    target, pictures = check_new(to), path / "figures"
    drawn = sorted(pictures.glob("*.png")) if pictures.is_dir() and not pictures.is_symlink() else []
    drawn = [picture for picture in drawn if facts.shows(picture.stem)]
    with renamed_when_whole(target, "exported") as (place, name), usable(path), no_links_below(path):
        temporary = place.path / name
        tracker = TensorBoardTracker(temporary)
        temporary.mkdir()
        with tracked([tracker], facts.config.to_dict()) as tracking:  # ends, and closes its file, at an error, too
            for record in records:
                tracking.epoch(record)
            tracking.end(facts.summary, drawn)
    return to


def records_of(facts: RunFacts) -> Iterator[dict[str, Any]]:
    """Read the records of the epochs, as metrics.jsonl has them.

    Raises:
        RunFolderError: there are none, they are of another training than was scored, or hold what a record does not.
    """
    file = facts.path / "metrics.jsonl"
    lines = folder.read_lines(file)
    if not lines:
        raise RunFolderError(f"{file} holds no epoch: the run has not trained one yet")
    if facts.training.get("metrics", folder.metrics_digest(facts.path)) != folder.metrics_digest(facts.path):
        raise RunFolderError(f"{file} is of another training than the evidence beside it: evaluate the run again")
    for number, line in enumerate(lines, 1):
        epoch, evidence = line.get("epoch"), line.get("evidence", {})
        if type(epoch) is not int or not 0 <= epoch < LAST or not isinstance(evidence, dict):
            raise RunFolderError(f"{file}, line {number}, is no record of an epoch")
        check_fields(evidence, file)
        yield line
