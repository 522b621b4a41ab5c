"""What trains a run: its data and its model, built and checked before any folder is touched."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pyro_vae.common.device import resolve_device
from pyro_vae.common.digests import digest_of
from pyro_vae.common.environment import versions
from pyro_vae.common.plain_text import plain
from pyro_vae.common.random import seeded
from pyro_vae.common.spread import sharing
from pyro_vae.data import Data, Split, binarize
from pyro_vae.errors import SupportError, UsageError
from pyro_vae.likelihoods.registry import fitting
from pyro_vae.objectives.bound_objective import Bound
from pyro_vae.programs.summed_out import as_enumerated
from pyro_vae.programs.support import FITTING, check_support
from pyro_vae.training.engines.autotune import check_autotune
from pyro_vae.training.engines.choose import resolve
from pyro_vae.training.optimizers import adam
from pyro_vae.training.preflight import check_training
from pyro_vae.training.shard_checks import check_shards, resolve_shards
from pyro_vae.training.step import Step
from pyro_vae.training.training_state import TrainingOptions

from .build_limits import within_machine
from .checkpointer import Checkpointer
from .config import Config
from .custom_components import Components
from .data_choices import check_blocks, choices_told, columns_outside, columns_told, decided
from .evaluations import SPLITS
from .kinds.kind import Batch, ModelKind
from .load import Run, load_data
from .registry import build, kind_of, objective_of, resolved

FEW = 8  # rows, on which it is seen what is marked


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
            self.path,
            minutes=minutes,
            about=about,
            how=f"pyro-vae train --resume {shlex.quote(str(self.path))}",
            spent=spent,
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
