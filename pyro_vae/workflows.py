"""Whole runs: train, evaluate and use a model in a run folder. What the command line does, as functions."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data, Split, binarize, load
from pyro_vae.errors import DivergedError, Interrupted, PyroVAEError, RunFolderError, SupportError, UsageError
from pyro_vae.evaluate.importance import log_likelihood
from pyro_vae.infer.check_training import check_training
from pyro_vae.infer.support import check_support
from pyro_vae.keeping import Keeper
from pyro_vae.models.vae import VAE
from pyro_vae.parts.fitting import fitting
from pyro_vae.pictures import draw_figures
from pyro_vae.report import figures
from pyro_vae.rescoring import log_px_in_blocks
from pyro_vae.runs import folder
from pyro_vae.runs.checkpoint import Generation
from pyro_vae.runs.components import NOTHING, Components
from pyro_vae.runs.config import Config
from pyro_vae.runs.frugal import frugal
from pyro_vae.runs.lock import locked
from pyro_vae.runs.marginal import floor
from pyro_vae.runs.registry import build, check_names, likelihood_of, objective_of, resolved, unregistered
from pyro_vae.runs.safe import check_seal, digest_of, sha256
from pyro_vae.seeding import seeded
from pyro_vae.train.fit import fit, resolve_device
from pyro_vae.train.loop import Fit
from pyro_vae.train.schedules import constant, cosine, warmup
from pyro_vae.train.step import adam

SPLITS = ("test", "validation", "train")
CURVE_ROWS, CURVE_SAMPLES = 400, 200  # of the log p(x) that is followed during training
MINUTES = 5.0  # between checkpoints
BAD_STEPS = 5  # in a row, before training stops
FAULTS = (PyroVAEError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, MemoryError)


@dataclass(frozen=True)
class Run:
    """A run opened from its folder: what it was told, what it learned, and on what."""

    path: Path
    config: Config
    record: dict[str, Any]
    vae: VAE
    components: Components = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(self.record["data"]["shape"])

    @property
    def evidence(self) -> dict[str, Any]:
        """What evidence.json holds: log p(x) and its errors; nothing before the run is scored."""
        return previous(self.path)


def load_run(
    path: Path | str, components: Components = NOTHING, device: str = "cpu", *, allow_nonfinite: bool = False
) -> Run:
    """The model of a run folder, rebuilt from the folder alone, and from parts of one's own if it was trained with such.

    Of a run that is still training, or was killed, it is the best model so far, from the newest checkpoint that is whole.

    Args:
        path: the folder.
        components: name to part, as :func:`train_run` had them (:mod:`pyro_vae.runs.components`); a config holds names only,
            and nothing in a folder is ever imported or executed.
        device: where to put the model.
        allow_nonfinite: hand out a model with NaN or infinite weights, which is refused otherwise.

    Returns:
        A :class:`Run`: its ``vae``, ``config``, ``record`` and ``evidence``.

    Raises:
        RunFolderError: the folder, its config or its weights are missing, damaged or of something else, or it needs a part
            that is neither registered nor among the components.
        UsageError: a component with the name of a registered part.
    """
    path = Path(path)
    record = folder.read_config(path)
    check_names(components)
    source = folder.Weights.of(path)
    try:
        config = Config.from_dict(record["config"])
        if unknown := unregistered(config, components):
            raise UsageError(say_unknown(unknown))
        config = resolved(config, components)
        with seeded(0), frugal(source.layout):
            vae = build(config, tuple(record["data"]["shape"]), components=components)
    except FAULTS as error:
        raise RunFolderError(f"{path / 'config.json'} cannot be used: {' '.join(str(error).split())[:500]}") from error
    source.fill(vae, allow_nonfinite)
    check_seal(record, path / "config.json")
    return Run(path, config, record, vae.to(resolve_device(device)).eval(), components)


open_run = load_run  # as the command line calls it


def say_unknown(unknown: list[tuple[str, str]]) -> str:
    """Which parts a run needs, and how to give them."""
    named = " and ".join(f"the {role} {name!r}" for role, name in unknown)
    given = ", ".join(f"{name!r}: ..." for _, name in unknown)
    what = "which is no registered part" if len(unknown) == 1 else "which are no registered parts"
    return f"the run uses {named}, {what}. Pass load_run(path, components={{{given}}}), in Python."


def open_data(run: Run, data_dir: Path | None = None) -> Data:
    """The data a run was trained on.

    Raises:
        RunFolderError: it is no longer the same.
    """
    config = run.config
    data = load(config.data, data_dir=data_dir, binarization=config.binarization, seed=config.data_seed)
    if data.digest != run.record["data"]["digest"]:
        raise RunFolderError(
            f"the data of {run.path} has changed: {config.data} had digest {run.record['data']['digest'][:12]}… when it was "
            f"trained, and has {data.digest[:12]}… now. Restore the data, or train again."
        )
    return data


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
    made_by: str = "train",
) -> dict[str, Any]:
    """Trains, evaluates on the test rows, draws the pictures; returns what evidence.json holds.

    The data is loaded and checked before the folder is touched. The whole state is saved before the first step, every few
    `minutes`, at SIGINT and SIGTERM, and at the end; :func:`~pyro_vae.resuming.resume_run` goes on from there.

    `components` are parts of one's own, by the names that the config uses (:mod:`pyro_vae.runs.components`):
    ``train_run(Config(prior="mine"), "runs/a", components={"mine": MyPrior})``; :func:`load_run` takes the same.

    Raises:
        Interrupted, Terminated, DivergedError: the folder holds the best weights, the metrics and the state so far.
        BusyError: another process writes to the folder.
        StorageError: a folder that cannot be written to; what was saved stays.
    """
    path = Path(path)
    job = prepare(config, path, components, data_dir, download, device)
    folder.check_free(path, overwrite)
    folder.make(path)
    with locked(path):
        folder.create(path, overwrite)
        folder.write_json(path / "config.json", describe(job.config, job.data, made_by))
        return carry_out(job, job.keeper(minutes), num_samples=num_samples)


@dataclass(frozen=True, eq=False)
class Job:
    """A training that has been checked and has not begun."""

    config: Config
    path: Path
    components: Components
    data: Data
    vae: VAE
    place: torch.device

    def keeper(self, minutes: float, spent: float = 0.0, **more: Any) -> Keeper:
        """Of its state, in its folder."""
        about = {"versions": versions(), "config": digest_of(self.config.to_dict()), "data": self.data.digest, **more}
        return Keeper(self.path, minutes=minutes, about=about, how=f"pyro-vae train --resume {self.path}", spent=spent)


def prepare(
    config: Config, path: Path, components: Components, data_dir: Path | None, download: bool, device: str
) -> Job:
    """The data and the model of a config, checked; nothing is written."""
    config, place = resolved(config, components), resolve_device(device)
    data = load(
        config.data, data_dir=data_dir, download=download, binarization=config.binarization, seed=config.data_seed
    )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)
    with seeded(config.seed):
        vae = build(config, data.shape, data.train.x, components).to(place)
        check_splits(vae, data, place)
        check_first(config, vae, data, place)
    return Job(config, path, components, data, vae, place)


def carry_out(
    job: Job, keeper: Keeper, *, num_samples: int, resume: Generation | None = None, fork: bool = False
) -> dict[str, Any]:
    """Trains, or goes on; then scores and draws. For whoever holds the folder's lock."""
    path, vae = job.path, job.vae
    curve = Curve(vae, job.data.validation.x, job.config.epochs, path)
    try:
        with keeper.listening():
            run = train(job, curve, keeper, resume, fork)
    except (Interrupted, DivergedError):
        folder.save_model(path, vae)
        raise
    seconds = keeper.seconds
    folder.save_model(path, vae)
    curve.points = [{"epoch": r["epoch"], **r["evidence"]} for r in run.history if "evidence" in r]
    opened = Run(path, job.config, {}, vae.eval(), job.components)
    said = training(run, seconds) | {
        k: keeper.checkpoints.about[k] for k in ("resumed",) if k in keeper.checkpoints.about
    }
    evidence = score(opened, job.data, "test", num_samples=num_samples, training=said, wait=True)
    draw_figures(path, vae, job.data, run, curve.points, evidence["floor"]["log_px"])
    return evidence


def check_splits(vae: VAE, data: Data, place: torch.device) -> None:
    """Every row inside the likelihood's support; rows are numbered as in the file that they come from."""
    for name in SPLITS[::-1]:
        try:
            check_support(
                vae.model, vae.guide, drawn(data, name).to(place), numbers=getattr(data, name).numbers.tolist()
            )
        except SupportError as error:
            fit = ", ".join(fitting(torch.cat([drawn(data, name) for name in SPLITS]))) or "none"
            raise SupportError(f"{data.name}, {name} rows: {error} Families that fit this data: {fit}.") from None


def drawn(data: Data, name: str, rows: int | None = None) -> Tensor:
    """The (first) rows of a split, binarized once where training binarizes them."""
    x: Tensor = getattr(data, name).x[:rows]
    grey = name == "train" and data.transform is not None
    return binarize(x, torch.Generator().manual_seed(0)) if grey else x


def check_first(config: Config, vae: VAE, data: Data, place: torch.device) -> None:
    """What `fit` will check, while no folder is touched yet."""
    size = min(config.batch_size, len(data.train))
    objective = objective_of(config, len(data.train))
    check_training(*objective.pair(vae), objective.elbo, lambda n: (drawn(data, "train", n).to(place),), size)


def train(job: Job, curve: Curve, keeper: Keeper, resume: Generation | None, fork: bool) -> Fit:
    """`fit`, as the config says."""
    config, data = job.config, job.data
    schedule = {"constant": constant, "cosine": cosine}[config.schedule]
    objective = objective_of(config, len(data.train))
    return fit(
        objective.pair(job.vae),
        data.train.x,
        validation=data.validation.x,
        objective=objective.elbo,
        optimizer=adam(config.learning_rate),
        epochs=config.epochs,
        batch_size=min(config.batch_size, len(data.train)),
        schedule=warmup(schedule, config.warmup),
        patience=config.patience,
        transform=data.transform,
        device=job.place,
        seed=config.seed,
        on_step=objective.on_step,
        on_epoch=curve,
        bad_steps=BAD_STEPS,
        keeper=keeper,
        resume=resume,
        fork=fork,
    )


class Curve:
    """Called after each epoch: writes its record, and at a few epochs estimates log p(x) on validation rows."""

    def __init__(self, vae: VAE, x: Tensor, epochs: int, path: Path) -> None:
        self.vae, self.x, self.path = vae, x[:CURVE_ROWS], path
        self.epochs = set(figures.thin(epochs))
        self.points: list[dict[str, Any]] = []

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        extra = {}
        if record["epoch"] in self.epochs:
            evidence = log_likelihood(
                self.vae.model, self.vae.guide, self.x, num_samples=CURVE_SAMPLES, verbose=False
            ).summary()
            extra = {"evidence": evidence}
            self.points.append({"epoch": record["epoch"], **evidence})
        folder.append_line(self.path / "metrics.jsonl", record | extra)
        return extra


def describe(config: Config, data: Data, made_by: str) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "schema": folder.SCHEMA,
        "made_by": made_by,
        "versions": versions(),
        "config": config.to_dict(),
        "data": {
            "name": data.name,
            "shape": list(data.shape),
            "digest": data.digest,
            "policy": data.policy,
            "rows": {name: len(getattr(data, name)) for name in SPLITS},
            "notes": list(data.notes),
        },
    }


def versions() -> dict[str, str]:
    """What the numbers of a run may depend on."""
    packages = ("pyro-vae", "torch", "pyro-ppl")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def machine(place: torch.device) -> str:
    """Where a number was made."""
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"CPU ({platform.machine()}), {cores} cores, {torch.get_num_threads()} threads"


def training(run: Fit, seconds: float) -> dict[str, Any]:
    """What evidence.json says of the training."""
    return {
        "best_epoch": run.best_epoch,
        "active_units": run.best.get("active_units"),
        "epochs": len(run.history),
        "stopped": run.stopped,
        "seconds": round(seconds, 1),
    }


def evaluate_run(
    path: Path | str,
    *,
    components: Components = NOTHING,
    split: str = "test",
    rows: int | None = None,
    num_samples: int = 5000,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """log p(x) of a run on a split of its data; written to evidence.json and evidence.csv, and returned.

    Interrupted or killed, and called again with the same arguments, it goes on where it was, to the same bits.
    """
    run = load_run(path, components, device)
    return score(run, open_data(run, data_dir), split, rows=rows, num_samples=num_samples, seed=seed)


def score(
    run: Run,
    data: Data,
    split: str,
    *,
    rows: int | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    training: dict[str, Any] | None = None,
    wait: bool = False,
) -> dict[str, Any]:
    """Evidence on a split beside the floor on the same rows, with all that the numbers depend on."""
    with locked(run.path, folder.EVALUATION_LOCK, wait):
        return scored(run, data, split, rows, num_samples, seed, training)


def scored(
    run: Run,
    data: Data,
    split: str,
    rows: int | None,
    num_samples: int,
    seed: int,
    training: dict[str, Any] | None,
) -> dict[str, Any]:
    """As :func:`score`, for whoever holds the evaluation's lock."""
    x = rows_of(data, split).x
    if rows is not None and not 1 <= rows <= len(x):
        raise UsageError(f"rows={rows}, but the {split} split has 1 to {len(x)}")
    x = x[:rows]
    start = time.perf_counter()
    evidence = log_px_in_blocks(run.path, run.vae, x, num_samples=num_samples, seed=seed)
    seconds = time.perf_counter() - start
    train_rows = data.train.x if data.transform is None else data.train.x.double()  # grey means are the Bernoulli's own
    family, width = likelihood_of(run.config, x.shape[1], run.components)
    baseline = floor(run.config.likelihood, family, width * x.shape[1], train_rows, x)
    result = evidence.summary() | {
        "split": f"{data.name}, {split}, first {len(x)} rows" if rows else f"{data.name}, {split}",
        "policy": data.policy,
        "floor": floor_summary(run.config, baseline),
        "training": training or previous(run.path).get("training"),
        "machine": machine(next(run.vae.parameters()).device),
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    table = evidence.rows_csv()
    folder.write_atomic(run.path / "evidence.csv", table)
    folder.write_json(run.path / "evidence.json", result | {folder.CSV: sha256(table.encode())})
    return result


def previous(path: Path) -> dict[str, Any]:
    """The evidence that stands in the folder already."""
    return folder.read_sealed(path / "evidence.json") if (path / "evidence.json").is_file() else {}


def floor_summary(config: Config, log_px: Tensor) -> dict[str, Any]:
    """Mean and data error of the floor; it is exact, so it has no Monte Carlo error."""
    data_se = log_px.std().item() / len(log_px) ** 0.5 if len(log_px) > 1 else None
    return {
        "model": f"independent {config.likelihood} elements, fitted to the training rows",
        "log_px": log_px.mean().item(),
        "log_px_data_se": data_se,
    }


def rows_of(data: Data, split: str) -> Split:
    """One split, by name."""
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}; take one of {', '.join(SPLITS)}")
    if split == "train" and data.transform is not None:
        raise UsageError(
            "training rows are grey under dynamic binarization and have no likelihood: score test or validation"
        )
    return getattr(data, split)
