"""A run of several seeds: a folder with one ordinary run folder for each member, and ensemble.json, which names them.

``RUN/seed0``, ``RUN/seed1`` … are runs like any other, and every command works on them; ``RUN/ensemble.json`` lists them, and
``RUN/seeds.json`` (``seeds-test-first-5.json`` …) holds what an evaluation of all said, with the error over seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import folder_in
from pyro_vae.common.environment import versions
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.spread import sharing
from pyro_vae.data import Data
from pyro_vae.ensembles.ensemble import Ensemble
from pyro_vae.ensembles.fit_ensemble import fit_ensemble
from pyro_vae.ensembles.members import check_seeds
from pyro_vae.errors import StorageError, UsageError
from pyro_vae.evidence.over_seeds import SeedComparison, SeedEvidence, compare_seeds
from pyro_vae.training.optimizers import adam
from pyro_vae.training.schedules import constant, cosine, warmup
from pyro_vae.training.tracker import Tracker, Tracking
from pyro_vae.training.training_state import FitResult

from . import compare_runs, evaluations, folder
from .config import Config
from .custom_components import NOTHING, Components
from .ensemble_folder import (
    check_free,
    clear,
    counted,
    digest_of_members,
    is_ensemble,
    members_locked,
    name_of,
    note_diverged,
    read_list,
    write_list,
)
from .evaluate_run import evaluate_opened
from .evaluation_options import EvaluationOptions
from .evaluations import EvaluationName
from .load import Run, load_run, open_data
from .lock import locked
from .member_trackers import all_tracked, end_all, no_trackers, trackers_of
from .registry import build, objective_of
from .replacement import create, replace_run, settle
from .several_processes import done_by_rank_0, led
from .train_run import describe, validation_of
from .training_job import TrainingJob, prepare, training_rows
from .weights import save_model

NAMES = ("epochs", "drop_last", "patience")  # of a config, that fit_ensemble takes as they are
ENGINES = {"graph": "compile"}  # members trained together are not recorded as CUDA graphs


def check_for_several(config: Config) -> None:
    """Refuse what one training alone can do, and several at once cannot.

    Raises:
        UsageError: names the option.
    """
    if config.shards != 1:
        raise UsageError(
            f"several seeds are trained in one process: leave shards={config.shards} out, or train one by one"
        )
    if (here := sharing()).world > 1:
        raise UsageError(
            f"several seeds are trained in one process, and here are {here.world}: have rank 0 alone do it, within "
            "pyro_vae.common.spread.by_itself()"
        )
    if config.precision != "float32":
        raise UsageError(
            f"several seeds are trained in float32: leave precision={config.precision} out, or train one by one"
        )
    if config.autotune:
        raise UsageError("several seeds are trained by the library's kernels: leave autotune out, or train one by one")


@suggest_keywords
def train_ensemble(
    config: Config,
    seeds: Sequence[int],
    path: Path | str,
    *,
    components: Components = NOTHING,
    overwrite: bool = False,
    data_dir: Path | None = None,
    download: bool = False,
    device: str = "auto",
    num_samples: int = 1000,
    trackers: Callable[[int], Sequence[Tracker]] = no_trackers,
    made_by: str = "train",
) -> dict[str, Any]:
    """Train the model of a config under several seeds at once, score all on the test rows; return what seeds.json holds.

    Each member's folder is that of ``pyro-vae train --seed``: config, metrics, weights, evidence. There are no checkpoints: an
    interruption, or an error of a tracker, leaves each member's best weights. The config's own seed gives way to the member's.

    `trackers` makes those of a member, of its seed: each member is a training of its own to them, as
    ``trackers=lambda seed: [TensorBoardTracker(f"boards/seed{seed}")]``. A member that diverges ends with nothing.

    Raises:
        UsageError: no seeds, or one twice; trackers that are none.
        RunFolderError: the folder holds something already (an ensemble gives way to `overwrite`).
        Interrupted, Terminated, DivergedError: the folders hold the best weights so far; DivergedError if all members diverged.
        BusyError: another process writes to the folder.
    """
    path, seeds = Path(path), check_seeds(seeds)
    check_for_several(config)
    made = {seed: trackers_of(trackers, seed) for seed in seeds}
    check_free(path, overwrite)  # before the data is read, which may take long
    first = prepare(replace(config, seed=seeds[0]), path / name_of(seeds[0]), components, data_dir, download, device)
    refuse_stored(first.data)
    folder.make(path)
    with no_links_below(path), locked(path):
        jobs = [member_job(first, seed, path) for seed in seeds]
        with members_locked(path):
            if not (is_ensemble(path) and replace_run(path, lambda new: write_list(new, seeds, made_by, {}))):
                clear(path)
                write_list(path, seeds, made_by, {})
        with folders_locked(jobs):
            for job in jobs:
                create(job.path, describe(job.config, job.data, made_by, job.path))
            settle(path)
            with all_tracked(jobs, made) as tracking:
                seconds, ensemble = trained(jobs, tracking)
                write_list(path, seeds, made_by, ensemble.diverged)
                for job in jobs:
                    save_model(job.path, job.vae)
                scored = {seed: dict[str, Any]() for seed in seeds}
                for i, (job, result) in enumerate(zip(jobs, ensemble.results, strict=True)):
                    if job.config.seed not in ensemble.diverged:
                        scored[job.config.seed] = score(job, result, seconds / len(jobs), num_samples, i)
                summary = summarize(path, {seed: EvaluationName() for seed in counted(path)})
                end_all(tracking, scored)  # when all is saved: an error of a tracker costs no number
        return summary


def member_job(first: TrainingJob, seed: int, path: Path) -> TrainingJob:
    """Make the training of another seed, of the same data; its model is built when all are."""
    return replace(first, config=replace(first.config, seed=seed), path=path / name_of(seed))


@contextmanager
def folders_locked(jobs: Sequence[TrainingJob]) -> Iterator[None]:
    """Make the members' folders in that of the whole, and lock them for one writer."""
    with ExitStack() as stack:
        for job in jobs:
            folder_in(job.path.parent, job.path.name)
            stack.enter_context(locked(job.path))
        yield


def refuse_stored(data: Data) -> None:
    """Refuse rows on disk, of which each member would read its own windows."""
    if data.part is not None:
        raise UsageError(
            "--seeds trains members side by side on rows in memory, and these are on disk, or sparse: train one seed at a time"
        )


def trained(jobs: list[TrainingJob], tracking: Mapping[int, Tracking]) -> tuple[float, Ensemble]:
    """Train all members, their models left in the jobs; return the seconds that it took, and the ensemble."""
    config, data, start = jobs[0].config, jobs[0].data, time.perf_counter()
    objective = objective_of(config, len(data.train))
    schedule = {"constant": constant, "cosine": cosine}[config.schedule]
    models: dict[int, Any] = {}

    def make(seed: int) -> Any:
        own = replace(config, seed=seed)
        models[seed] = build(own, data.shape, data.train.x, jobs[0].components).to(jobs[0].place)
        return objective.pair(models[seed])

    try:
        ensemble = fit_ensemble(
            make,
            *training_rows(config, data.train, data.shape),
            seeds=[job.config.seed for job in jobs],
            validation=validation_of(jobs[0]),
            objective=objective.elbo,
            optimizer=adam(config.learning_rate),
            batch_size=min(config.batch_size, len(data.train)),
            schedule=warmup(schedule, config.warmup),
            transform=data.transform,
            device=jobs[0].place,
            scheduled=objective.scheduled,
            on_epoch=Metrics(jobs, tracking),
            engine=ENGINES.get(config.engine, config.engine),
            **{name: getattr(config, name) for name in NAMES},
        )
    except (Exception, KeyboardInterrupt) as error:  # Ctrl-C, divergence, a tracker's own error, a full disk
        save_unfinished(jobs, models, error)
        note_diverged(jobs[0].path.parent, error)
        raise
    for i, job in enumerate(jobs):
        jobs[i] = replace(job, vae=models[job.config.seed])
    return time.perf_counter() - start, ensemble


def save_unfinished(jobs: Sequence[TrainingJob], models: Mapping[int, Any], error: BaseException) -> None:
    """Save the best weights so far of all members, if all were made, as an error that is not ours to hide is on its way."""
    if len(models) < len(jobs):
        return
    try:
        for job in jobs:
            save_model(job.path, models[job.config.seed])
    except StorageError as failure:
        error.add_note(f"the members' weights could not be saved: {failure}")
    else:
        error.add_note(f"each member's best weights so far are saved in {jobs[0].path.parent}")


class Metrics:
    """Called after each epoch of a member: writes its record into its folder, and tells its trackers."""

    def __init__(self, jobs: Sequence[TrainingJob], tracking: Mapping[int, Tracking]) -> None:
        self.paths, self.tracking = {job.config.seed: job.path for job in jobs}, tracking

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in record.items() if name != "seed"}
        folder.append_line(self.paths[record["seed"]] / "metrics.jsonl", own)
        self.tracking[record["seed"]].epoch(own)
        return {}


def score(job: TrainingJob, result: FitResult, seconds: float, num_samples: int, index: int) -> dict[str, Any]:
    """Score a trained member on the test rows; the particles of each are under a seed of their own."""
    about = {"best_epoch": result.best_epoch, "epochs": len(result.history), "stopped": result.stopped}
    about |= {"seconds": round(seconds, 1), "engine": result.engine.splitlines()}
    options = EvaluationOptions(num_samples=num_samples, seed=index)
    return evaluate_opened(job.opened(), job.data, options, training=about, wait=True)


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
