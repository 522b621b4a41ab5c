"""What a report knows of a run: read from its folder, without its model and its data, and no number computed anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyro_vae.common.safe_read import check_seal
from pyro_vae.errors import RunFolderError, UsageError
from pyro_vae.runs import folder
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluations import Evaluation, evaluations, is_stale, shared
from pyro_vae.runs.gaps_run import GAPS
from pyro_vae.runs.progress import unfinished
from pyro_vae.runs.summary_fields import check_printable
from pyro_vae.runs.weights import current_weights

BRACKET = "bracket.json"
PARTS = ("gap", "approximation", "amortisation")  # of gaps.json


@dataclass(frozen=True, eq=False)
class RunFacts:
    """A run as its folder tells it.

    Attributes:
        path, record, config: the folder, its config.json, and the config in it.
        found: its evaluations of the weights that it has now.
        main: the one whose number heads the report: of the most test rows, by the method with the fewest flagged rows, as
            ``pyro-vae compare`` chooses; None where there is none.
        stale: whether the folder holds evaluations of other weights only.
        history: its epochs; none of another training's.
        unfinished: how far a training is that has not ended.
        diverged: whether the training ended at a step that was not finite.
        bracket: what ``bracket.json`` holds, of these weights; None where it was not run.
        gaps: what ``gaps.json`` holds, likewise.
    """

    path: Path
    record: dict[str, Any]
    config: Config
    found: tuple[Evaluation, ...]
    main: Evaluation | None
    stale: bool
    history: tuple[dict[str, Any], ...]
    unfinished: Mapping[str, int] | None
    diverged: bool
    bracket: dict[str, Any] | None
    gaps: dict[str, Any] | None

    @property
    def summary(self) -> dict[str, Any]:
        """What the JSON of the main evaluation says; empty without one."""
        return {} if self.main is None else self.main.summary

    @property
    def training(self) -> dict[str, Any]:
        """What is told of the training; empty where nothing is."""
        told = [e.summary.get("training") for e in self.found]
        return next((training for training in told if isinstance(training, dict)), {})

    def shows(self, picture: str) -> bool:
        """Return whether a picture in figures/, by its name, is of the weights of now.

        Those of a training are, where it has ended and was scored; a bracket's and a gap's are of the numbers beside them.
        """
        if not self.training or self.unfinished or self.diverged:
            return False
        return getattr(self, picture) is not None if picture in ("bracket", "gaps") else True

    @property
    def best(self) -> dict[str, Any]:
        """The record of the epoch whose weights were kept, or the last; empty without any."""
        kept = [line for line in self.history if line.get("epoch") == self.training.get("best_epoch")]
        return kept[0] if kept else self.history[-1] if self.history else {}

    @property
    def points(self) -> list[dict[str, Any]]:
        """log p(x) as it was followed during training, epoch by epoch."""
        return [{"epoch": r["epoch"], **r["evidence"]} for r in self.history if isinstance(r.get("evidence"), dict)]


def read_facts(path: Path) -> RunFacts:
    """Read a run's folder.

    Raises:
        RunFolderError: it is no run, or is damaged.
    """
    record = folder.read_config(path)
    check_seal(record, path / "config.json")
    try:
        config = Config.of_run(record["config"])
    except UsageError as error:
        raise RunFolderError(f"{path / 'config.json'} cannot be used: {error}") from error
    found = tuple(evaluations(path))
    for evaluation in found:
        check_printable(evaluation.summary, path / f"{evaluation.stem}.json")
    so_far = unfinished(path, config.epochs)
    ended = any(is_of_whole_training(e) for e in found)
    facts = RunFacts(
        path, record, config, found,
        main=shared({"run": found})["run"] if found else None,
        stale=not found and any(path.glob("evidence*.json")),
        history=(),
        unfinished=so_far,
        diverged=(path / folder.DIVERGENCE).is_dir() and not ended,
        bracket=read_bracket(path),
        gaps=read_gaps(path),
    )  # fmt: skip
    return replace(facts, history=history_of(path, facts.training))


def is_of_whole_training(evaluation: Evaluation) -> bool:
    """Return whether an evaluation says that the training had ended."""
    training = evaluation.summary.get("training")
    return isinstance(training, dict) and "unfinished" not in training


def history_of(path: Path, training: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Read metrics.jsonl; nothing where it is of another training than was scored."""
    lines = folder.read_lines(path / "metrics.jsonl")
    if lines and "metrics" in training and training["metrics"] != folder.metrics_digest(path):
        return ()
    needed = ("epoch", "elbo", "train_elbo")
    return tuple(line for line in lines if all(type(line.get(key)) in (int, float) for key in needed))


def read_bracket(path: Path) -> dict[str, Any] | None:
    """Read what a bracket of the run's weights said; None where there is none of them."""
    ends = of_these_weights(path, BRACKET)
    numbers = ("lower", "upper", "gap", "importance", "annealing")
    return ends if ends and all(is_number(ends.get(key)) for key in numbers) else None


def read_gaps(path: Path) -> dict[str, Any] | None:
    """Read what a split of the gap said of the run's weights; None where there is none of them."""
    found = of_these_weights(path, GAPS)
    if not found or type(found.get("rows_flagged")) is not int or not isinstance(found.get("of_gap"), dict):
        return None
    split = found["of_gap"] | {"rows": found["rows"], "rows_flagged": found["rows_flagged"]}
    parts = [split.get(name) for name in PARTS]
    whole = all(
        isinstance(part, dict)
        and is_number(part.get("value"))
        and all(part.get(key) is None or is_number(part[key]) for key in ("mc_se", "data_se"))
        for part in parts
    )
    return split if whole else None


def of_these_weights(path: Path, name: str) -> dict[str, Any] | None:
    """Read a file of a run that says which weights it is of, and how many rows; None where it is of others, or not there."""
    if not (path / name).is_file():
        return None
    found = folder.read_summary(path / name)
    whole = type(found.get("rows")) is int and found["rows"] > 0
    return found if whole and not is_stale(found, current_weights(path)) else None


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no truth value."""
    return type(value) in (int, float)
