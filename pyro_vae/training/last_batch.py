"""The shorter last batch of an epoch, run before training: batch statistics of one row, for one, do not exist."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pyro_vae.common.counted import counted
from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError
from pyro_vae.programs.buffers import buffers_restored
from pyro_vae.programs.pair import modes_restored, without_validation
from pyro_vae.programs.sites import trace_pair

from .batch_source import Batch, TrainingData
from .metrics import EpochMetrics
from .shuffle import FIXED
from .step import Step

SMALL = 2  # rows, from which batch statistics exist


def check_last_batch(step: Step, modules: list[nn.Module], data: TrainingData, metrics: EpochMetrics) -> None:
    """Run the programs in training mode on as many rows as the last batch of an epoch has, if it is shorter.

    Raises:
        UsageError: they raise or give no finite log-probability there, and do on a whole batch; or batches are of one row.
    """
    whole = data.batch_size
    last = data.rows_per_epoch % whole or (whole if whole < SMALL else 0)
    if not last or not (why := failure(step, modules, metrics.first(last), metrics.seed)):
        return
    if last < whole and failure(step, modules, metrics.first(whole), metrics.seed):
        return  # the first step shows it
    raise UsageError(describe(len(data.train[0]), whole, last, why))


def describe(rows: int, whole: int, last: int, why: str) -> str:
    """Say which batch fails, why, and what to do."""
    failing = f"the programs do not run on it in training mode: {why}."
    if rows < SMALL:
        return (
            f"there is 1 training row, and {failing} Train on more rows, or leave batch statistics out of the networks."
        )
    if whole < SMALL:
        return f"batch_size=1: a batch has 1 row, and {failing} Take batch_size={SMALL} or more."
    other = next((b for b in range(whole - 1, 1, -1) if rows % b == 0 or rows % b > last), rows)
    return (
        f"the last batch of an epoch has {counted(last, 'row')} ({rows} in batches of {whole}), and {failing} Take "
        f"drop_last=True, which leaves it out (other rows each epoch), or another batch_size, such as {other}."
    )


def failure(step: Step, modules: list[nn.Module], batch: Batch, seed: int) -> str:
    """Describe what goes wrong on a batch in training mode, buffers and generators restored; "" where nothing does."""
    try:
        with (
            training_mode(modules),
            buffers_restored(*modules),
            seeded(seed, FIXED, device=batch[0].device),
            torch.no_grad(),
            without_validation(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            q, p = trace_pair(step.model, step.guide, *batch)
            bad = [n for n, s in (q | p).items() if not s["fn"].log_prob(s["value"]).isfinite().all()]
    except Exception as error:  # the user's own
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(".")
    return f"the log-probability of site {bad[0]!r} is not finite" if bad else ""


@contextmanager
def training_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Put modules into training mode, as an epoch does, and restore their modes after."""
    with modes_restored(modules):
        for module in modules:
            module.train()
        yield
