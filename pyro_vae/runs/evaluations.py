"""Evaluations in a run folder: a pair of files for each split, rows, method and proposal, and a line of history for each made.

``evidence.json`` and ``.csv`` are of all test rows, by importance sampling from the guide, as training leaves them; others say
what they are of: ``evidence-test-first-5.json``, ``evidence-test-annealing.json``, ``evidence-validation-defensive.json``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import rename, storage
from pyro_vae.common.counted import counted
from pyro_vae.common.digests import sha256
from pyro_vae.common.flagged import is_loose, share_flagged
from pyro_vae.errors import RunFolderError
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal, defensive, widened

from . import folder
from .weights import current_weights

PROPOSALS: dict[str, Proposal] = {"guide": GUIDE, "defensive": defensive(), "widened": widened()}
AGAIN = "pyro-vae evaluate"
METHODS = ("importance", "annealing", "exact")
SPLITS = ("test", "validation", "train")
NEW = "new-"  # rows of another file, and the first 8 digits of their digest
TOLD = ("rows", "num_samples", "num_chains", "seed", "log_px", "log_px_mc_se", "log_px_data_se", "elbo", "rows_flagged")


@dataclass(frozen=True)
class EvaluationName:
    """What an evaluation is of, and how it was made.

    Attributes:
        split: test, validation or train; or new rows (:func:`is_new`).
        rows: the first so many of it; None for all.
        method: importance, annealing or exact.
        proposal: by its name in PROPOSALS.
        num_samples: K, of an evaluation beside which one of more particles stands; None otherwise.
    """

    split: str = "test"
    rows: int | None = None
    method: str = "importance"
    proposal: str = "guide"
    num_samples: int | None = None

    def __str__(self) -> str:
        parts = [
            self.split,
            *([f"first-{self.rows}"] if self.rows else []),
            *([self.method] if self.method != "importance" else []),
            *([self.proposal] if self.proposal != "guide" else []),
            *([f"k{self.num_samples}"] if self.num_samples else []),
        ]
        return "-".join(parts)

    def is_known(self) -> bool:
        """Return whether it names what there is; only then is it part of a file's name."""
        counts = [count for count in (self.rows, self.num_samples) if count is not None]
        whole = all(type(count) is int and count > 0 for count in counts)
        return (
            whole
            and (self.split in SPLITS or is_new(self.split))
            and self.method in METHODS
            and self.proposal in PROPOSALS
        )

    def named(self, word: str) -> str:
        """Return the name of a file of this evaluation: the word alone for all test rows, by importance sampling.

        Example:
            >>> EvaluationName().named("evidence"), EvaluationName(rows=5, method="annealing").named("evidence")
            ('evidence', 'evidence-test-first-5-annealing')
        """
        return word if self == EvaluationName() else f"{word}-{self}"

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> EvaluationName:
        """Read it off what evidence.json holds, in folders of older versions, too."""
        if isinstance(noted := summary.get("evaluation"), dict):
            return cls(**noted)
        *_, last = parts = str(summary.get("split", "test")).split(", ")
        first = last.removeprefix("first ").removesuffix(" rows")
        cut = len(parts) > 1 and last != first and first.isdigit()
        names = {str(proposal): name for name, proposal in PROPOSALS.items()}
        method = "exact" if "how" in summary else "importance"
        proposal = names.get(str(summary.get("proposal", "guide")), "guide")
        return cls(parts[-2] if cut else last, int(first) if cut else None, method, proposal)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation that a folder holds: the stem of its files, and what its JSON says."""

    stem: str
    name: EvaluationName
    summary: dict[str, Any]

    @property
    def rows_of(self) -> tuple[str, int]:
        """Split, and how many rows of it."""
        return self.name.split, self.summary["rows"]

    @property
    def told(self) -> str:
        """Its name; of new rows, which it names by their digest, with the file they were in."""
        split = str(self.summary.get("split"))
        file, of_new, _ = split.partition(", new rows")
        return f"{self.name} ({file}, {counted(self.summary['rows'], 'row')})" if of_new else str(self.name)

    @property
    def loose(self) -> bool:
        """Whether more than a tenth of its rows is flagged."""
        return is_loose(self.summary)

    @property
    def doubt(self) -> tuple[float, bool, int]:
        """Sort key: flagged rows, then an oracle first, then more particles."""
        return share_flagged(self.summary), "how" not in self.summary, -self.summary.get("num_samples", 0)


def evaluations(path: Path) -> list[Evaluation]:
    """List the evaluations of the weights that a run has now, that of all test rows by importance sampling first.

    Those of other weights (training has gone on since, or was cut off before it scored them) are left out. Where the weights
    do not say which they are, the ones that were scored last count.

    Raises:
        RunFolderError: a file of them is damaged.
    """
    found = []
    for file in sorted(path.glob("evidence*.json"), key=lambda file: (len(file.name), file.name)):
        if not (file.stem == "evidence" or file.stem.startswith("evidence-")):
            continue
        found.append(read(file))
    newest = current_weights(path) or newest_weights(path) or next((e.summary.get("weights") for e in found), None)
    return [e for e in found if not is_stale(e.summary, newest)]


def is_stale(summary: Mapping[str, Any], weights: str | None) -> bool:
    """Return whether an evaluation is of other weights than these; False where either does not say."""
    return None not in (weights, summary.get("weights")) and summary["weights"] != weights


def newest_weights(path: Path) -> str | None:
    """Return the digest of the weights that were scored last, by the order of the history; None where it does not say."""
    with suppress(RunFolderError):  # a torn line costs the order, and no number
        lines = folder.read_lines(path / folder.HISTORY)
        return next((line["weights"] for line in reversed(lines) if "weights" in line), None)
    return None


def read(file: Path) -> Evaluation:
    """Read the JSON of one evaluation.

    Raises:
        RunFolderError: it is damaged, or says nothing of its rows.
    """
    summary = folder.read_summary(file)
    try:
        name, counts = EvaluationName.of(summary), [summary.get(key, 0) for key in ("rows_flagged", "num_samples")]
        known = name.is_known() and (
            all(type(count) is int for count in (summary["rows"], *counts)) and summary["rows"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"the evidence {file} cannot be used: {error!r}. Make it again: {AGAIN} {shlex.quote(str(file.parent))}"
        ) from error
    if not known:
        raise RunFolderError(
            f"the evidence {file} cannot be used: it says nothing of its rows. Make it again: {AGAIN} "
            f"{shlex.quote(str(file.parent))}"
        )
    return Evaluation(file.stem, name, summary)


def write(
    path: Path, name: EvaluationName, record: dict[str, Any], table: str, replacing: bool = False
) -> tuple[str, dict[str, Any]]:
    """Write one evaluation, its two files and its line of history; return the stem of the files, and what the JSON holds.

    Nothing else is overwritten: files of another evaluation under its name (of an older version) move to their own, and
    evidence of more particles stays beside it, unless `replacing` it (a training has ended) or it is of other weights.
    """
    before = stored(path, name)
    if before is not None and before.name != name:
        move(path, before)
    elif before is not None and not replacing and before.summary.get("weights", record["weights"]) == record["weights"]:
        count = record.get("num_samples")
        if count is not None and count < before.summary.get("num_samples", 0):
            name = replace(name, num_samples=count)
    stem, now = name.named("evidence"), datetime.now(UTC).isoformat(timespec="milliseconds")
    record = record | {"evaluation": asdict(name), "time": now}
    folder.write_atomic(path / f"{stem}.csv", table)
    folder.write_json(path / f"{stem}.json", record | {folder.CSV: sha256(table.encode())})
    told = {key: record[key] for key in (*TOLD, "weights") if key in record}
    folder.append_line(path / folder.HISTORY, {"time": now, "file": f"{stem}.json", **asdict(name), **told})
    return stem, record


def move(path: Path, evaluation: Evaluation) -> None:
    """Give an evaluation the name of its own; beside one that has that name already, with its number of particles."""
    name = evaluation.name
    if (path / f"{name.named('evidence')}.json").exists():
        name = replace(name, num_samples=evaluation.summary.get("num_samples"))
    with storage(f"cannot rename the evidence of {path}"):
        for file in [path / f"{evaluation.stem}{ending}" for ending in (".csv", ".json")]:
            if file.exists():
                rename(file, f"{name.named('evidence')}{file.suffix}")


def stored(path: Path, name: EvaluationName) -> Evaluation | None:
    """Read what stands under a name; None where nothing does, or nothing that can be read (it is written anew)."""
    file = path / f"{name.named('evidence')}.json"
    try:
        return read(file) if file.is_file() else None
    except RunFolderError:
        return None


def shared(runs: Mapping[str, Sequence[Evaluation]]) -> dict[str, Evaluation]:
    """Choose an evaluation of each run: of rows that all were scored on, test rows and many before others.

    Of several of the same rows, those by one method, with the fewest flagged rows; where no method is common, each run's
    own best, and so for a run that is loose by the common one and not by its own. Where no rows are common, each run's first,
    which whoever compares them refuses.
    """
    of_rows = [{e.rows_of for e in found} for found in runs.values()]
    common = set.intersection(*of_rows)
    if not common:
        return {run: found[0] for run, found in runs.items()}
    split, rows = min(common, key=lambda key: (rank(key[0]), key[0], -key[1]))
    chosen = {run: [e for e in found if e.rows_of == (split, rows)] for run, found in runs.items()}
    by_method = [{(e.name.method, e.name.proposal) for e in found} for found in chosen.values()]
    best = {run: {how: best_of(found, how) for how in by_method[0]} for run, found in chosen.items()}
    own = {run: min(found, key=lambda e: e.doubt) for run, found in chosen.items()}
    if hows := set.intersection(*by_method):
        how = min(sorted(hows), key=lambda how: max(best[run][how].doubt for run in runs))
        own = {run: own[run] if best[run][how].loose and not own[run].loose else best[run][how] for run in runs}
    return own


def rank(split: str) -> int:
    """Return which split comes first: test, then the others, then new rows."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS)


def is_new(split: Any) -> bool:
    """Return whether a split is of rows that a run was not trained on, as a file of their own has them.

    Example:
        >>> is_new("new-1a2b3c4d"), is_new("test"), is_new("new-../../a")
        (True, False, False)
    """
    return isinstance(split, str) and re.fullmatch(r"new-[0-9a-f]{8}", split) is not None


def best_of(found: Sequence[Evaluation], how: tuple[str, str]) -> Evaluation:
    """Return the evaluation by one method and proposal that is least in doubt (any, where there is none by it)."""
    return min([e for e in found if (e.name.method, e.name.proposal) == how] or found, key=lambda e: e.doubt)
