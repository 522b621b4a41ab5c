"""log p(x) of the rows of a run, by any method; what an interruption leaves stays in the folder, to go on from."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data import Data, Split
from pyro_vae.digests import sha256, tensor_digest
from pyro_vae.errors import Interrupted, UnreliableError, UsageError
from pyro_vae.evaluate.evidence import Evidence
from pyro_vae.evaluate.exact import Exact
from pyro_vae.evaluate.likelihood import log_likelihood
from pyro_vae.evaluate.proposals import GUIDE, Proposal, defensive, widened
from pyro_vae.models.vae import VAE
from pyro_vae.opening import Run, load_run, open_data, previous
from pyro_vae.particles import Kept
from pyro_vae.pictures import draw_khat
from pyro_vae.runs import folder
from pyro_vae.runs.components import NOTHING, Components
from pyro_vae.runs.config import Config
from pyro_vae.runs.lock import locked
from pyro_vae.runs.marginal import floor
from pyro_vae.runs.registry import likelihood_of

SPLITS = ("test", "validation", "train")
PROPOSALS: dict[str, Proposal] = {"guide": GUIDE, "defensive": defensive(), "widened": widened()}


def log_px_of(
    vae: VAE,
    x: Tensor,
    kept: Kept,
    *,
    method: str = "importance",
    proposal: str = "guide",
    resume: bool = False,
    **options: Any,
) -> Evidence | Exact:
    """log p(x) of some rows of a saved run.

    Args:
        vae: of the run.
        x: the rows.
        kept: the file for the sums of particles, written every few seconds and at an interruption.
        method: of :func:`~pyro_vae.log_likelihood`; an exact one takes none of what follows.
        proposal: a name of PROPOSALS.
        resume: go on from what `kept` holds, if it is there.
        **options: of importance sampling.

    Raises:
        UsageError: no such proposal; particles of another seed or proposal, or of other rows, in `kept`.
        CheckpointError: the particles in `kept` are of other weights or data.
        RunFolderError, DataError: `kept` is damaged.
        Interrupted, Terminated: Ctrl-C, SIGTERM.
    """
    if proposal not in PROPOSALS:
        raise UsageError(f"no proposal {proposal!r}; take one of {', '.join(PROPOSALS)}")
    if method == "exact":
        return log_likelihood(vae.model, vae.guide, x, method=method)
    options |= {"method": method, "proposal": PROPOSALS[proposal], "resume": kept.read() if resume else None}
    try:
        return log_likelihood(vae.model, vae.guide, x, on_block=kept.take, **options)
    except Interrupted as error:
        raise type(error)(f"interrupted: {kept.rest(error.result)}", error.result) from None


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
    **options: Any,
) -> dict[str, Any]:
    """log p(x) of a run on a split of its data; written to evidence.json and evidence.csv, and returned.

    `options` are those of :func:`log_px_of`: ``method="auto"``, ``proposal="defensive"``, ``target_se=0.01``,
    ``max_samples``; ``resume=True``, which goes on from the particles that an earlier evaluation left in the folder (an
    interrupted or killed one does), adds what is missing, and keeps all for the next time; and ``strict=True``, an error,
    once all is written, if a row is flagged.

    Raises:
        RunFolderError: the run or its data are not what they were.
        BusyError: another process scores the same run.
        StorageError, DeviceMemoryError: the disk is full; a row is too large for the device.
        UnreliableError: under `strict`, rows are flagged.
    """
    run = load_run(path, components, device)
    return score(run, open_data(run, data_dir), split, rows=rows, num_samples=num_samples, seed=seed, **options)


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
    **options: Any,
) -> dict[str, Any]:
    """Evidence on a split beside the floor on the same rows, with all that the numbers depend on; by one process at a time."""
    folder.check_own(run.path)
    with locked(run.path, folder.EVALUATION_LOCK, wait):
        return scored(run, data, split, rows, training, num_samples=num_samples, seed=seed, **options)


def scored(
    run: Run,
    data: Data,
    split: str,
    rows: int | None,
    training: dict[str, Any] | None,
    *,
    resume: bool = False,
    keep: bool | None = None,
    strict: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """As :func:`score`, for whoever holds the evaluation's lock. `keep`: the particles stay; None is as `resume`."""
    keep = resume if keep is None else keep
    x = rows_of(data, split).x
    if rows is not None and not 1 <= rows <= len(x):
        raise UsageError(f"rows={rows}, but the {split} split has 1 to {len(x)}")
    x = x[:rows]
    start = time.perf_counter()
    of = {"weights": tensor_digest(run.vae.state_dict()), "data": data.digest, "split": split}
    kept = Kept(folder.particles(run.path, split), of, strict=training is None)
    evidence = log_px_of(run.vae, x, kept, resume=resume, **options)
    if keep and isinstance(evidence, Evidence):
        kept.write(evidence)
    seconds = time.perf_counter() - start
    train_rows = data.train.x if data.transform is None else data.train.x.double()  # grey means are the Bernoulli's own
    family, features = likelihood_of(run.config, x.shape[1], run.components)
    baseline = floor(run.config.likelihood, family, features, train_rows, x)
    result = evidence.summary() | {
        "bits_per_dim": evidence.bits_per_dim(x[0].numel()).mean().item(),
        "elements": x[0].numel(),
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
    if not keep and (kept.written or resume):
        kept.forget()  # what another evaluation left stays
    draw_khat(run.path, evidence, x, data.shape)
    if strict and isinstance(evidence, Evidence) and len(evidence.flagged):
        raise UnreliableError(evidence.why_flagged(), evidence)
    return result


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
