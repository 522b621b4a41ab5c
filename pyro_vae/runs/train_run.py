"""Whole training runs in a run folder: checked, trained, scored and drawn. What `pyro-vae train` does, as a function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyro_vae.common.device import resolve_device
from pyro_vae.common.digests import digest_of
from pyro_vae.common.environment import versions
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.plain_text import plain
from pyro_vae.common.random import seeded
from pyro_vae.common.spread import by_itself, sharing
from pyro_vae.data import Data, Split, binarize
from pyro_vae.errors import DivergedError, Interrupted, SupportError, UsageError
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.likelihoods.registry import fitting
from pyro_vae.models.classes import MISSING
from pyro_vae.objectives.bound_objective import Bound
from pyro_vae.plots import figures
from pyro_vae.programs.summed_out import as_enumerated
from pyro_vae.programs.support import FITTING, check_support
from pyro_vae.training.engines.autotune import check_autotune
from pyro_vae.training.engines.choose import resolve
from pyro_vae.training.fit import fit
from pyro_vae.training.optimizers import adam
from pyro_vae.training.preflight import check_training
from pyro_vae.training.schedules import constant, cosine, warmup
from pyro_vae.training.shard_checks import check_shards, resolve_shards
from pyro_vae.training.step import Step
from pyro_vae.training.tracker import Tracker, Tracking, check_trackers, tracked
from pyro_vae.training.training_state import FitResult, TrainingOptions

from . import folder
from .build_limits import within_machine
from .checkpoint import Generation
from .checkpointer import Checkpointer
from .config import Config
from .custom_components import NOTHING, Components
from .data_choices import check_blocks, choices_told, columns_outside, columns_told, decided
from .end_of_training import draw_figures
from .evaluate_run import evaluate_opened
from .evaluation_options import EvaluationOptions
from .evaluations import SPLITS
from .few_steps import tell_few_steps
from .kinds.kind import Batch, ModelKind
from .load import Run, load_data
from .registry import build, kind_of, objective_of, resolved
from .replacement import create
from .several_processes import agree_on_run, led
from .weights import save_model

CURVE_ROWS, CURVE_SAMPLES = 400, 500  # of the log p(x) that is followed during training
MINUTES = 5.0  # between checkpoints
BAD_STEPS = 5  # in a row, before training stops
FEW = 8  # rows, on which it is seen what is marked


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


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """A training that has been checked and has not begun."""

    config: Config
    path: Path
    components: Components
    data: Data
    vae: Any
    place: torch.device

    @property
    def kind(self) -> ModelKind:
        """Of the model."""
        return kind_of(self.config)

    @property
    def validation(self) -> Batch:
        """Rows to choose by."""
        return self.kind.rows(self.data.validation, self.data.shape)

    def opened(self) -> Run:
        """Return the run as whoever loads it has it, with the weights of now."""
        record = {"data": {"shape": list(self.data.shape), "columns": columns_told(self.data.columns)}}
        return Run(self.path, self.config, record, self.vae.eval(), self.components)

    def checkpointer(self, minutes: float, spent: float = 0.0, **more: Any) -> Checkpointer:
        """Return what saves its state, in its folder."""
        about = {"versions": versions(), "config": digest_of(self.config.to_dict()), "data": self.data.digest, **more}
        return Checkpointer(
            self.path, minutes=minutes, about=about, how=f"pyro-vae train --resume {self.path}", spent=spent
        )


def prepare(
    config: Config,
    path: Path,
    components: Components,
    data_dir: Path | None,
    download: bool,
    device: str,
    digest: str | None = None,
    *,
    limits: Callable[[int], AbstractContextManager[None]] | None = None,
) -> TrainingJob:
    """Load the data and build the model of a config, and check them; nothing is written.

    With a `digest`, of the data that a run was trained on, a table is read as it was then, if it has that digest so. A config
    of a run's folder is built within `limits`, given the bytes that the data accounts for; one of one's own within what the
    machine holds, unless `components` make parts of it, by code that would run twice.
    """
    first, target = resolved(config, components), resolve_device(device)  # what does not go together is refused first
    data = load_data(first, data_dir, download, digest)
    check_stored(first, data)
    columns_told(data.columns)  # what a run's folder has no room for is refused before it is made
    given, config = config, decided(config, data, components)
    if digest is None:  # a run that goes on has the blocks that were found then
        check_blocks(given, data)
    for note in (*data.notes, *choices_told(given, config, data)) if sharing().leads else ():
        print(f"note: {plain(note)}", file=sys.stderr)
    if limits is None and not components:
        limits = lambda _: within_machine(target)  # noqa: E731
    if limits is not None:  # without the rows, as fitting their marginals takes far more steps than a model has parts
        with seeded(config.seed), limits(8 * data.sample.x.nbytes):
            build(config, data.shape, components=components)
    with seeded(config.seed):
        vae = build(config, data.shape, data.sample.x, components).to(target)
        check_splits(config, vae, data, target)
        check_first(config, vae, data, target)
    return TrainingJob(config, path, components, data, vae, target)


def check_stored(config: Config, data: Data) -> None:
    """Refuse rows on disk for a kind of model that takes more of them than x as it is."""
    if data.part is None:
        return
    rows = training_rows(config, data.part, data.shape)
    if len(rows) != 1 or rows[0].shape != data.part.x.shape:
        raise UsageError(
            f"--model {config.model} takes labels or lengths beside x, which rows on disk do not have: train it on a file that "
            "fits into memory, or in Python, fit(vae, Stored(path), Stored(path, key))."
        )


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


def check_splits(config: Config, vae: Any, data: Data, device: torch.device) -> None:
    """Check that every row is inside the likelihood's support; rows are numbered as in the file that they come from."""
    for name in SPLITS[::-1]:
        part = drawn(data, name)
        args = tuple(a.to(device) for a in training_rows(config, part, data.shape))
        pair = as_trained(config, (vae.model, vae.guide), args)
        try:
            check_support(*pair, *args, numbers=part.numbers.tolist())
        except SupportError as error:
            if named := columns_outside(config, data, part):
                raise SupportError(f"{data.name}, {name} rows: {named}") from error
            fit = ", ".join(fitting(torch.cat([drawn(data, name).x for name in SPLITS]))) or "none"
            raise SupportError(
                f"{data.name}, {name} rows: {str(error).removesuffix(FITTING)} Families that fit this data: {fit}."
            ) from None


def drawn(data: Data, name: str) -> Split:
    """Return the rows of a split, binarized once where training binarizes them."""
    part: Split = data.sample if name == "train" else getattr(data, name)
    grey = name == "train" and data.transform is not None
    return replace(part, x=binarize(part.x, torch.Generator().manual_seed(0))) if grey else part


def training_rows(config: Config, part: Split, shape: tuple[int, ...]) -> Batch:
    """Return what the programs are trained on, of rows of the training split, or of others as if they were."""
    return kind_of(config).train_rows(part, shape, config)


def as_trained(config: Config, pair: tuple[Any, Any], args: Batch) -> tuple[Any, Any]:
    """Return the pair as `fit` trains it: what it marks for enumeration is summed over, in a bound of log weights."""
    if not isinstance(objective_of(config, 1).elbo, Bound):
        return pair
    return as_enumerated(*pair, tuple(a[:FEW] for a in args))


def check_first(config: Config, vae: Any, data: Data, device: torch.device) -> None:
    """Check what `fit` will check, while no folder is touched yet."""
    size = min(config.batch_size, len(data.train))
    objective = objective_of(config, len(data.train))
    resolve(config.engine, 1, device)
    check_autotune(config.autotune, config.engine, config.shards, device)
    rows = training_rows(config, drawn(data, "train"), data.shape)
    first = tuple(a[:size].to(device) for a in rows)
    pair = as_trained(config, objective.pair(vae), first)
    check_training(*pair, objective.elbo, lambda n: tuple(a[:n] for a in first), size)
    step = Step(*pair, objective.elbo, adam(config.learning_rate))
    step.shards = resolve_shards(config.shards, size, config.seed)
    check_shards(step, first, TrainingOptions(scheduled=objective.scheduled))


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
