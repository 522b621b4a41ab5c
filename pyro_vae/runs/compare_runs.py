"""Saved runs compared: read from their folders, and refused where their numbers are not of the same thing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyro_vae.common.flagged import format_share, share_flagged
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.safe_read import check_seal
from pyro_vae.data.datasets import NAMES
from pyro_vae.data.mixed import shown
from pyro_vae.errors import DataError, RunFolderError, UsageError
from pyro_vae.evidence.annealing.saved import AnnealedRows, from_csv
from pyro_vae.evidence.compare import MIXED, compare
from pyro_vae.evidence.comparison import Comparison
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.plots import figures
from pyro_vae.programs.support import support_of_site
from pyro_vae.programs.wrapped import bare

from . import folder
from .build_limits import bounded_build
from .config import Config
from .evaluations import AGAIN, Evaluation, evaluations, shared
from .load import FAULTS, check_still
from .progress import format_unfinished
from .registry import kind_of, likelihood_of

NEEDED = ("log_px", "log_px_mc_se", "log_px_data_se", "rows", "method", "measure")
WHY = {  # what two runs must have in common, in the order in which it is looked at
    "columns": "log p(x) of more columns, or of others, is of another x. Give both the same --columns.",
    "data": "Log-likelihoods of different data have no difference. Train both on the same file, with its columns taken alike.",
    "shuffle of the data": "The same file was split by different seeds: the rows differ. Train both with the same --data-seed.",
    "values": "Numbers under one binarization or scaling are not comparable with numbers under another.",
    "kind of log p(x)": "A log probability and a log density differ in units: one is at most 0, the other moves with the "
    "scale of x. Give both a likelihood of one kind.",
    "split": "Score both alike: pyro-vae evaluate RUN --split NAME.",
    "rows": "Score both alike: pyro-vae evaluate RUN --rows N.",
}


@dataclass(frozen=True)
class ScoredRun:
    """A run with the evidence that its folder holds; `common` is what it must share with whom it is compared, as in WHY."""

    path: Path
    evidence: Evidence | Exact | AnnealedRows
    common: dict[str, Any]
    seconds: float | None
    active_units: int | None
    machine: str
    unfinished: str | None = None


@suggest_keywords
def compare_runs(
    paths: Sequence[str | Path],
    components: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    rows: int | None = None,
    method: str | None = None,
) -> Comparison:
    """:func:`~pyro_vae.evidence.compare.compare` of saved runs, by the names of their folders; seconds are of training.

    Reads config.json and evidence; no model is built and no data loaded. Of the evaluations that the folders hold it takes
    those of the same rows, all test rows before others, and of these the method that all have with the fewest flagged rows;
    of a run that is loose by that one, its own best, if that is not. The notes name them, and what was passed over. Active
    units are those that metrics.jsonl counted on validation rows at the epoch whose weights were kept, where it has them.

    Args:
        paths: of run folders, each with the evidence that `pyro-vae train` and `pyro-vae evaluate` leave there.
        components: likelihoods of the caller's own, by the names that the runs were trained with.
        split, rows, method: only evaluations of this split, of so many rows, by this method (importance, annealing, exact).

    Raises:
        UsageError: fewer than two runs, or one of them twice.
        RunFolderError: a folder that is no run, is damaged, or holds no evidence.
        DataError: runs on other data, another shuffle of it, other binarization, another split, other rows, or whose
            likelihoods have densities with respect to different measures (masses and densities).
    """
    named = name_all([Path(path) for path in paths])
    wanted = {"split": split, "rows": rows, "method": method}
    scores = {name: scored(path, wanted) for name, path in named.items()}
    found = shared(scores) if named else {}
    runs = {name: read(path, components or {}, found[name]) for name, path in named.items()}
    check_common(runs)
    of_each = {key: {n: getattr(r, key) for n, r in runs.items()} for key in ("evidence", "seconds", "active_units")}
    comparison = compare(of_each.pop("evidence"), **of_each)
    machines = " and ".join(sorted({run.machine for run in runs.values()}))
    notes = [f"{name}: {run.unfinished}." for name, run in runs.items() if run.unfinished]
    notes += other_rows(scores, found) + other_methods(scores, found)
    notes += [f"next: {AGAIN} {runs[m.name].path} --method annealing" for m in comparison.models if m.loose]
    # of which columns each has a density is known here
    of_rows = tuple(note for note in comparison.notes if note != MIXED)
    notes += [f"seconds are of training; scored on {machines}."]
    if any(run.active_units is not None for run in runs.values()):
        notes.append("active units are of the epoch kept, on (at most 500) validation rows: Var_x(E[z | x]) > 0.01.")
    return replace(comparison, notes=(*of_rows, *notes))


def other_rows(scores: Mapping[str, Sequence[Evaluation]], chosen: Mapping[str, Evaluation]) -> list[str]:
    """Note which other rows all runs were scored on, too."""
    common = set.intersection(*({e.rows_of for e in found} for found in scores.values()))
    others = sorted(common - {e.rows_of for e in chosen.values()})
    listed = ", ".join(f"--split {split} --rows {rows}" for split, rows in others)
    return [f"all were scored on other rows, too: {listed}."] if others else []


def other_methods(scores: Mapping[str, Sequence[Evaluation]], chosen: Mapping[str, Evaluation]) -> list[str]:
    """Note which runs are compared by another method or proposal than others, and which have an evaluation less in doubt."""
    hows = {run: (e.name.method, e.name.proposal) for run, e in chosen.items()}
    notes = []
    if len(set(hows.values())) > 1:
        told = ", ".join(f"{run} by {chosen[run].stem}" for run in chosen)
        notes.append(f"{told}: there is none by one method and proposal, of all, with few rows flagged.")
    for run, e in chosen.items():
        least = min([other for other in scores[run] if other.rows_of == e.rows_of], key=lambda other: other.doubt)
        if least.doubt[0] < e.doubt[0]:
            flagged = [format_share(share_flagged(each.summary)) for each in (e, least)]
            notes.append(
                f"{run}: {e.stem} is taken, as all have one by this method ({flagged[0]} of rows flagged), though {least.stem} "
                f"is there ({flagged[1]}). Score the others so, too."
            )
    return notes


def name_all(paths: Sequence[Path]) -> dict[str, Path]:
    """Name each run by its folder, or by its whole path where two folders share a name."""
    resolved = [path.resolve() for path in paths]
    if twice := [path for i, path in enumerate(paths) if resolved[i] in resolved[:i]]:
        raise UsageError(f"{twice[0]} is named twice: a run has no difference to itself")
    short = [path.name for path in resolved]
    return {n if short.count(n) == 1 else str(p): p for n, p in zip(short, paths, strict=True)}


def scored(path: Path, wanted: Mapping[str, Any]) -> list[Evaluation]:
    """List a run's evaluations, of what is wanted."""
    folder.read_config(path)
    if not (found := evaluations(path)):
        why = "has no evidence.json: it was never scored"
        if (path / "evidence.json").exists():
            why = "has no evidence of the weights it has now: evidence.json is of weights that it has no longer"
        raise RunFolderError(f"{path} {why}. Make it: {AGAIN} {path}")
    for key, value in wanted.items():
        kept = [e for e in found if value in (None, e.summary["rows"] if key == "rows" else getattr(e.name, key))]
        if not kept:
            there = ", ".join(e.told for e in found)
            raise RunFolderError(
                f"{path} has no evaluation with {key} {value!r}, only {there}. Make it: {AGAIN} {path}"
            )
        found = kept
    return found


def read(path: Path, components: Mapping[str, Any], evaluation: Evaluation) -> ScoredRun:
    """Read an evaluation of a run folder, and what it is evidence of."""
    record, stem = folder.read_config(path), evaluation.stem
    again = f"Make it again: {AGAIN} {path}"
    if not (path / f"{stem}.csv").is_file():
        raise RunFolderError(f"{path} has no {stem}.csv: it was never scored. Make it: {AGAIN} {path}")
    summary, text = folder.read_evidence(path, stem)
    try:
        evidence = evidence_of(text, summary)
        seconds, active_units = training_of(path, summary)
        of_one = len(evidence) == summary["rows"] and math.isclose(evidence.log_px.mean(), summary["log_px"])
        split = summary["split"].removeprefix(f"{record['data']['name']}, ").split(", ")[0]
        unfinished = format_unfinished(summary.get("training"))
    except (DataError, KeyError, TypeError, AttributeError, OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"the evidence of {path} cannot be used: {error!r}. {again}") from error
    if not of_one:
        raise RunFolderError(f"{stem}.json and {stem}.csv of {path} are of different evaluations. {again}")
    try:
        with bounded_build(None):  # as many elements as a row has, which a config may say anything of
            common = common_of(record, components) | {"split": split, "rows": len(evidence)}
    except FAULTS as error:
        raise RunFolderError(f"{path / 'config.json'} cannot be used: {error}") from error
    check_seal(record, path / "config.json")
    check_still(path, record)
    return ScoredRun(path, evidence, common, seconds, active_units, str(summary.get("machine")), unfinished)


def evidence_of(text: str, summary: dict[str, Any]) -> Evidence | Exact | AnnealedRows:
    """Build the evidence from its two files: particles', annealing's, or an exact method's."""
    if "how" in summary:
        return Exact.from_csv(text, **{name: summary[name] for name in ("method", "measure", "how")})
    if "num_chains" in summary:
        return from_csv(text, {name: summary.get(name) for name in (*NEEDED, *summary)})
    optional = {name: summary[name] for name in ("measure", "proposal", "target_se") if name in summary}
    return Evidence.from_csv(text, num_samples=summary["num_samples"], seed=summary["seed"], **optional)


def training_of(path: Path, summary: dict[str, Any]) -> tuple[float | None, int | None]:
    """Read seconds of training and active units, where the folder has them; none of metrics of another training."""
    training, metrics = summary.get("training") or {}, folder.read_lines(path / "metrics.jsonl")
    if metrics and training.get("metrics", made := folder.metrics_digest(path)) != made:
        metrics = []
    best = next((line for line in metrics if line["epoch"] == training.get("best_epoch")), {})
    return training.get("seconds"), best.get("active_units")


def common_of(record: dict[str, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    """Describe what a run's log p(x) is of, under keys of WHY."""
    config, data = Config.of_run(record["config"]), record["data"]
    columns = data.get("columns") or []
    names = [column.get("name", "") for column in columns if isinstance(column, dict)]
    return {
        "columns": names,
        "data": data["digest"],
        "shuffle of the data": None if config.data in NAMES else config.data_seed,
        "values": data["policy"],
        "kind of log p(x)": kind(config, tuple(data["shape"]), components, names),
    }


def kind(config: Config, shape: tuple[int, ...], components: Mapping[str, Any], names: Sequence[str] = ()) -> str:
    """Name the measure that p(x | z) has its density with respect to: counting or Lebesgue, as the family's support says.

    Of columns of both kinds, the ones with a density are named (by number where they have no names): two models of one table
    may have a density of other columns each, and their numbers are then as little alike.
    """
    elements = math.prod(kind_of(config).emission(shape))
    family, features = likelihood_of(config, elements, components)
    support = bare(support_of_site("x", family(torch.zeros(1, features))))
    blocks = zip(getattr(support, "supports", [support]), getattr(support, "widths", [elements]), strict=True)
    discrete = [block.is_discrete for block, width in blocks for _ in range(width)]
    if all(discrete) or not any(discrete):
        return "log probability (counting measure)" if all(discrete) else "log density (Lebesgue measure)"
    named = names if len(names) == len(discrete) else range(len(discrete))
    densities = ", ".join(str(name) for name, counted in zip(named, discrete, strict=True) if not counted)
    return f"log density in the columns {densities}, log probability in the others"


def check_common(runs: dict[str, ScoredRun]) -> None:
    """Refuse runs whose numbers are not of the same thing, by the first thing in which they differ."""
    for first, name in zip(runs, list(runs)[1:], strict=False):
        a, b = runs[first], runs[name]
        for what, why in WHY.items():
            if what == "columns" and not (a.common[what] and b.common[what]):
                continue  # they have no names, or a former version kept none
            if a.common[what] != b.common[what]:
                one, other = told(what, a.common[what], b.common[what])
                raise DataError(
                    f"{first!r} and {name!r} cannot be compared, as their {what} differ: {one} and {other}. {why}"
                )


def told(what: str, one: Any, other: Any) -> tuple[str, str]:
    """Write in which two runs differ: digests by their first signs, columns by those that the other has not."""
    if what == "data":
        return f"{one[:12]}…", f"{other[:12]}…"
    if what != "columns":
        return str(one), str(other)
    only = [[name for name in these if name not in those] for these, those in ((one, other), (other, one))]
    if not any(only):
        return "the same names", "in another order"
    first, second = (f"{shown(names)} beside those of both" if names else "no further one" for names in only)
    return first, second


def write(path: Path, content: Any) -> None:
    """Write text, or a figure as PNG, into a file; make its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.write_atomic(path, content) if isinstance(content, str) else figures.save(content, path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
