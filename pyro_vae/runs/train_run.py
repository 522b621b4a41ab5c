"""Whole training runs in a run folder: checked, trained, scored and drawn. What `pyro-vae train` does, as a function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae.common.environment import versions
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.plain_text import plain
from pyro_vae.common.spread import by_itself, sharing
from pyro_vae.data import Data
from pyro_vae.errors import DivergedError, Interrupted
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.models.classes import MISSING
from pyro_vae.plots import figures
from pyro_vae.training.fit import fit
from pyro_vae.training.optimizers import adam
from pyro_vae.training.schedules import constant, cosine, warmup
from pyro_vae.training.tracker import Tracker, Tracking, check_trackers, tracked
from pyro_vae.training.training_state import FitResult

from . import folder
from .checkpoint import Generation
from .checkpointer import Checkpointer
from .config import Config
from .custom_components import NOTHING, Components
from .data_choices import columns_told
from .end_of_training import draw_figures
from .evaluate_run import evaluate_opened
from .evaluation_options import EvaluationOptions
from .evaluations import SPLITS
from .few_steps import tell_few_steps
from .kinds.kind import Batch
from .registry import objective_of
from .replacement import create
from .several_processes import agree_on_run, led
from .training_job import TrainingJob, prepare, training_rows
from .weights import save_model

CURVE_ROWS, CURVE_SAMPLES = 400, 500  # of the log p(x) that is followed during training
MINUTES = 5.0  # between checkpoints
BAD_STEPS = 5  # in a row, before training stops


@suggest_keywords
def train_run(
    config: Config,
    path: Path | str,
    *,
    components: Components = NOTHING,
    overwrite: bool = False,
    data_dir: Path | None = None,
    download: bool = False,
    device: str = "auto",
    num_samples: int = 1000,
    minutes: float = MINUTES,
    trackers: Sequence[Tracker] = (),
    made_by: str = "train",
) -> dict[str, Any]:
    """Train, evaluate on the test rows, draw the pictures; return what evidence.json holds.

    The data is loaded and checked before the folder is touched. The whole state is saved before the first step, every few
    `minutes`, at SIGINT and SIGTERM, and at the end; :func:`~pyro_vae.runs.resume_run.resume_run` goes on from there.

    `components` are parts of one's own, by the names that the config uses (:mod:`pyro_vae.runs.custom_components`):
    ``train_run(Config(prior="mine"), "runs/a", components={"mine": MyPrior})``; :func:`~pyro_vae.load_run` takes the same.
    `trackers` are told of the options, of each epoch, and of what came of it (:class:`~pyro_vae.Tracker`).

    Processes that torchrun started, within :func:`~pyro_vae.common.processes.joined`, train one run with ``Config(shards=S)``;
    all score it, and return the evidence; rank 0 writes.

    Raises:
        Interrupted, Terminated, DivergedError: the folder holds the best weights, the metrics and the state so far.
        BusyError: another process writes to the folder.
        StorageError: a folder that cannot be written to; what was saved stays.
    """
    path = Path(path)
    check_trackers(trackers)
    if sharing().leads:
        folder.check_free(path, overwrite)  # before the data is read, which may take long
    job = prepare(config, path, components, data_dir, download, device)
    agree_on_run(job.config, job.data, path)
    if sharing().leads:
        folder.make(path)
    with led(path, lambda: create(path, describe(job.config, job.data, made_by, path), overwrite)):
        return carry_out(job, job.checkpointer(minutes), num_samples, trackers=trackers)


def carry_out(
    job: TrainingJob,
    checkpointer: Checkpointer,
    num_samples: int,
    resume: Generation | None = None,
    fork: bool = False,
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any]:
    """Train, or go on; then score and draw. For whoever holds the folder's lock, and those who train with it."""
    leads = sharing().leads
    with tracked(trackers if leads else (), job.config.to_dict()) as tracking:
        curve = Curve(job.vae, job.validation, job.config.epochs, job.path, tracking)
        try:
            with checkpointer.listening():
                run = train(job, curve, checkpointer, resume, fork)
        except (Interrupted, DivergedError) as error:
            if leads:
                save_model(
                    job.path, job.vae, len(error.result.history) if isinstance(error.result, FitResult) else None
                )
            raise
        evidence = finish(job, checkpointer, run, num_samples, resume is not None)
        if leads:
            tracking.end(evidence, sorted((job.path / "figures").glob("*.png")))
    return evidence


def finish(
    job: TrainingJob, checkpointer: Checkpointer, run: FitResult, num_samples: int, resumed: bool
) -> dict[str, Any]:
    """Save the model of a training that has ended, score and draw it; of several processes all score, and rank 0 writes."""
    path, seconds = job.path, checkpointer.seconds
    if sharing().leads:
        save_model(path, job.vae, len(run.history))
    points = [{"epoch": r["epoch"], **r["evidence"]} for r in run.history if "evidence" in r]
    opened = job.opened()
    about: dict[str, Any] = {"best_epoch": run.best_epoch, "epochs": len(run.history), "stopped": run.stopped}
    about |= {"seconds": round(seconds, 1), "engine": run.engine.splitlines(), "metrics": folder.metrics_digest(path)}
    if before := checkpointer.checkpoints.about.get("resumed"):
        about["resumed"] = before | {"exact": before["exact"] and run.exact}
    options = EvaluationOptions(num_samples=num_samples, resume=resumed)
    evidence = evaluate_opened(opened, job.data, options, training=about, wait=True)
    if sharing().leads:
        with by_itself():
            draw_figures(opened, job.data, run.history, points, evidence["floor"]["log_px"])
    return evidence


def train(
    job: TrainingJob, curve: Curve, checkpointer: Checkpointer, resume: Generation | None, fork: bool
) -> FitResult:
    """`fit`, as the config says."""
    config, data = job.config, job.data
    schedule = {"constant": constant, "cosine": cosine}[config.schedule]
    objective = objective_of(config, len(data.train))
    tell_few_steps(config, len(data.train))
    names = ("epochs", "drop_last", "shards", "patience", "seed", "engine", "precision", "autotune")
    as_configured = {name: getattr(config, name) for name in names}
    return fit(
        objective.pair(job.vae),
        *training_rows(config, data.train, data.shape),
        validation=validation_of(job),
        objective=objective.elbo,
        optimizer=adam(config.learning_rate),
        batch_size=min(config.batch_size, len(data.train)),
        schedule=warmup(schedule, config.warmup),
        transform=data.transform,
        device=job.place,
        scheduled=objective.scheduled,
        on_epoch=curve,
        bad_steps=BAD_STEPS,
        callbacks=[checkpointer],
        resume=resume,
        fork=fork,
        **as_configured,
    )


def validation_of(job: TrainingJob) -> Any:
    """Return what `fit` validates on: as many arguments as it trains on; the labels of a classifier count as missing."""
    rows, trained = job.validation, training_rows(job.config, job.data.train, job.data.shape)
    absent = tuple(torch.full((len(rows[0]),), MISSING) for _ in trained[len(rows) :])
    together = (*rows, *absent)
    return together if len(together) > 1 else together[0]


class Curve:
    """Called after each epoch: writes its record, at a few epochs with log p(x) of validation rows, and tells the trackers."""

    def __init__(self, vae: Any, rows: Batch, epochs: int, path: Path, tracking: Tracking) -> None:
        self.vae, self.rows, self.path, self.tracking = vae, tuple(a[:CURVE_ROWS] for a in rows), path, tracking
        self.epochs = set(figures.thin(epochs))

    def __call__(self, record: dict[str, Any]) -> None:
        if record["epoch"] in self.epochs:
            pair = self.vae.model, self.vae.guide
            evidence = log_likelihood(*pair, *self.rows, num_samples=CURVE_SAMPLES, verbose=False)
            record["evidence"] = evidence.summary()  # in the history, too, where a tracker stops the training here
        if sharing().leads:
            folder.append_line(self.path / "metrics.jsonl", record)
        self.tracking.epoch(record)


def describe(config: Config, data: Data, made_by: str, path: Path) -> dict[str, Any]:
    """Return what config.json holds."""
    rows = {name: len(getattr(data, name)) for name in SPLITS}
    about: dict[str, Any] = {
        "name": plain(data.name),
        "shape": list(data.shape),
        "digest": data.digest,
        "policy": data.policy,
    }
    about |= {"rows": rows, "notes": list(map(plain, data.notes)), "columns": columns_told(data.columns)}
    about |= {"beside": os.path.relpath(config.data, path)} if Path(config.data).is_file() else {}
    head: dict[str, Any] = {"schema": folder.SCHEMA, "made_by": made_by, "versions": versions()}
    return head | {"config": config.to_dict(), "data": about}
