"""Trains a run of several seeds: a folder with one ordinary run folder for each member, and ensemble.json, which names them.

``RUN/seed0``, ``RUN/seed1`` … are runs like any other, and every command works on them; ``RUN/ensemble.json`` lists them.
What all members say, ``RUN/seeds.json``, is of :mod:`pyro_vae.runs.evaluate_ensemble`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import folder_in
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.spread import sharing
from pyro_vae.data import Data
from pyro_vae.ensembles.ensemble import Ensemble
from pyro_vae.ensembles.fit_ensemble import fit_ensemble
from pyro_vae.ensembles.members import check_seeds
from pyro_vae.errors import StorageError, UsageError
from pyro_vae.training.optimizers import adam
from pyro_vae.training.schedules import constant, cosine, warmup
from pyro_vae.training.tracker import Tracker, Tracking
from pyro_vae.training.training_state import FitResult

from . import folder
from .config import Config
from .custom_components import NOTHING, Components
from .ensemble_folder import check_free, clear, counted, is_ensemble, members_locked, name_of, note_diverged, write_list
from .evaluate_ensemble import summarize
from .evaluate_run import evaluate_opened
from .evaluation_options import EvaluationOptions
from .evaluations import EvaluationName
from .lock import locked
from .member_trackers import all_tracked, end_all, no_trackers, trackers_of
from .registry import build, objective_of
from .replacement import create, replace_run, settle
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
