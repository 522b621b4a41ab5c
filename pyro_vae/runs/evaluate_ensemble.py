"""Scores and compares runs of several seeds, as :mod:`pyro_vae.runs.train_ensemble` leaves them, and loads their members.

``RUN/seeds.json`` (``seeds-test-first-5.json`` …) holds what an evaluation of all said, with the error over seeds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae.common.environment import versions
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.data import Data
from pyro_vae.ensembles.ensemble import Ensemble
from pyro_vae.errors import UsageError
from pyro_vae.evidence.over_seeds import SeedComparison, SeedEvidence, compare_seeds
from pyro_vae.training.training_state import FitResult

from . import compare_runs, evaluations, folder
from .custom_components import NOTHING, Components
from .ensemble_folder import counted, digest_of_members, name_of, read_list
from .evaluate_run import evaluate_opened
from .evaluation_options import EvaluationOptions
from .evaluations import EvaluationName
from .load import Run, load_run, open_data
from .several_processes import done_by_rank_0, led


@suggest_keywords
def load_ensemble(path: Path | str, components: Components = NOTHING, device: str = "cpu") -> Ensemble:
    """Rebuild the members of a run of several seeds, from their folders alone; of the results their history is there.

    Args:
        path: the folder that ``pyro-vae train --seeds`` left.
        components, device: as for :func:`~pyro_vae.load_run`, of each member.

    Returns:
        An :class:`~pyro_vae.Ensemble`: a model a seed, in the order of the seeds.

    Raises:
        RunFolderError: the folder or a member is missing, damaged or of something else.
    """
    path, results = Path(path), []
    with no_links_below(path):
        listed = read_list(path)
        runs = [load_run(path / name_of(seed), components, device) for seed in listed["seeds"]]
        for run in runs:
            training = run.evidence.get("training") or {}
            history = folder.read_lines(run.path / "metrics.jsonl")
            engine = "\n".join(training.get("engine", ()))
            results.append(
                FitResult(history, training.get("best_epoch", 0), training.get("stopped", ""), engine=engine)
            )
    diverged = {int(seed): why for seed, why in listed["diverged"].items()}
    return Ensemble([run.vae for run in runs], tuple(listed["seeds"]), results, diverged)


def evaluate_ensemble(
    path: Path | str, options: EvaluationOptions, data_dir: Path | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Score each member, as :func:`~pyro_vae.evaluate_run` does, member i under ``seed + i``; return the summary of all.

    Raises:
        RunFolderError: a member is missing or damaged, or all have diverged.
        UsageError, DataError, Interrupted, UnreliableError, DeviceError: as :func:`~pyro_vae.evaluate_run`.
    """
    path, names = Path(path), dict[int, EvaluationName]()
    everyone = read_list(path)["seeds"]
    with no_links_below(path):
        for seed, (run, data) in opened_members(path, data_dir, device).items():
            own = replace(options, seed=options.seed + everyone.index(seed))
            result = evaluate_opened(run, data, own)
            names[seed] = EvaluationName(**result["evaluation"])
        with led(path, lambda: None, folder.EVALUATION_LOCK, wait=True):
            return done_by_rank_0(lambda: summarize(path, names), "the summary of the members")


def opened_members(path: Path, data_dir: Path | None, device: str) -> dict[int, tuple[Run, Data]]:
    """Open all members that count, and their data, before any is scored: a broken one costs no scoring of the others."""
    runs = {seed: load_run(path / name_of(seed), device=device) for seed in counted(path)}
    opened = dict[int, tuple[Run, Data]]()
    for seed, run in runs.items():
        before = next(reversed(opened.values()), None)
        opened[seed] = run, before[1] if before and same_data(before[0], run) else open_data(run, data_dir)
    return opened


def same_data(one: Run, other: Run) -> bool:
    """Return whether two members are of the same data, taken alike, so that it is read once for both."""
    configs = [replace(run.config, seed=0) for run in (one, other)]
    return configs[0] == configs[1] and one.record["data"] == other.record["data"]


def summarize(path: Path, names: dict[int, EvaluationName]) -> dict[str, Any]:
    """Put together one evaluation of each member, and write what all say."""
    evidence, split, weights = evidence_of(path, names)
    record = evidence.summary() | {"split": split, "weights": weights, "versions": versions()}
    record["left_out"] = {str(seed): why for seed, why in record["left_out"].items()}
    folder.write_json(path / f"{next(iter(names.values())).named('seeds')}.json", record)
    return record


def evidence_of(path: Path, names: dict[int, EvaluationName]) -> tuple[SeedEvidence, str, str]:
    """Read an evaluation of each member; return the evidence, what rows it is of, and the digest of all weights."""
    scored, splits, weights = [], set(), dict[int, str | None]()
    for seed, name in names.items():
        file = path / name_of(seed) / f"{name.named('evidence')}.json"
        evaluation = evaluations.read(file)
        scored.append(compare_runs.read(file.parent, NOTHING, evaluation).evidence)
        splits.add(str(evaluation.summary["split"]))
        weights[seed] = evaluation.summary.get("weights")
    left_out = {int(seed): why for seed, why in read_list(path)["diverged"].items()}
    evidence = SeedEvidence(tuple(scored), tuple(names), left_out)
    return evidence, " and ".join(sorted(splits)), digest_of_members(weights)


def compare_ensembles(
    first: Path, second: Path, *, split: str | None = None, rows: int | None = None, method: str | None = None
) -> SeedComparison:
    """Compare two runs of several seeds on the rows that all members were scored on, by the evaluations in their folders.

    Raises:
        RunFolderError, DataError, UsageError: as :func:`~pyro_vae.compare_runs`.
    """
    if first.resolve() == second.resolve():
        raise UsageError(f"{second} is named twice: a run has no difference to itself")
    wanted = {"split": split, "rows": rows, "method": method}
    folders = {f"{i}/{seed}": path / name_of(seed) for i, path in enumerate((first, second)) for seed in counted(path)}
    with no_links_below(first), no_links_below(second):
        scores = {name: compare_runs.scored(path, wanted) for name, path in folders.items()}
        chosen = evaluations.shared(scores)
        all_of = {str(folders[name]): found for name, found in scores.items()}
        notes = compare_runs.other_methods(all_of, {str(folders[name]): e for name, e in chosen.items()})
        runs = {name: compare_runs.read(folders[name], NOTHING, found) for name, found in chosen.items()}
    compare_runs.check_common(runs)
    sides = []
    for i, path in enumerate((first, second)):
        mine = {name.partition("/")[2]: run.evidence for name, run in runs.items() if name.startswith(f"{i}/")}
        left_out = {int(seed): why for seed, why in read_list(path)["diverged"].items()}
        sides.append(SeedEvidence(tuple(mine.values()), tuple(map(int, mine)), left_out))
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    comparison = compare_seeds(sides[0], sides[1], names)
    return replace(comparison, notes=(*comparison.notes, *notes))
