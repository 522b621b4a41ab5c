"""log p(x) of the rows of a run, by any method; what an interruption leaves stays in the folder, to go on from."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from torch import Tensor

from pyro_vae.common.digests import sha256, tensor_digest
from pyro_vae.common.environment import machine, versions
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.data import Data, Split
from pyro_vae.errors import Interrupted, UnreliableError, UsageError
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.evidence.importance.proposals import GUIDE, Proposal, defensive, widened
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.log_likelihood import log_likelihood
from pyro_vae.models.standardize import log_scale
from pyro_vae.models.vae import VAE

from . import folder
from .custom_components import NOTHING, Components
from .load import Run, load_run, open_data
from .lock import locked
from .marginal_baseline import floor
from .particle_cache import ParticleCache
from .registry import likelihood_of
from .run_figures import draw_khat

SPLITS = ("test", "validation", "train")
Method = Literal["importance", "auto", "exact"]
ProposalName = Literal["guide", "defensive", "widened"]
PROPOSALS: dict[str, Proposal] = {"guide": GUIDE, "defensive": defensive(), "widened": widened()}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is computed in an evaluation, and how.

    Parameters
    ----------
    split
        test, validation or train.
    rows
        Score only the first so many rows.
    method
        auto: exact where the model allows it (closed form, enumeration, quadrature), else importance sampling.
    proposal
        What the samples are drawn from: the guide, a tenth of them from the prior, or the guide with its scales times 1.5.
    num_samples
        K: importance samples a row.
    target_se
        Double K, up to --max-samples, as a pilot run says it takes for a Monte Carlo error of at most this in every row (nats).
    max_samples
        K at most under --target-se; rows that it does not suffice for are flagged.
    seed
        Of the importance samples.
    resume
        Go on from the samples that an earlier evaluation left in the folder (an interrupted one does), and keep them.
    strict
        Exit 5, once all is written, if a row's estimate is not to be believed.
    """

    split: str = "test"
    rows: int | None = None
    method: Method = "importance"
    proposal: ProposalName = "guide"
    num_samples: int = 5000
    target_se: float | None = None
    max_samples: int = 100_000
    seed: int = 0
    resume: Annotated[bool, Parameter(negative=())] = False
    strict: Annotated[bool, Parameter(negative=())] = False


@suggest_keywords
def evaluate_run(
    path: Path | str,
    *,
    components: Components = NOTHING,
    split: str = "test",
    rows: int | None = None,
    method: Method = "importance",
    proposal: ProposalName = "guide",
    num_samples: int = 5000,
    target_se: float | None = None,
    max_samples: int = 100_000,
    seed: int = 0,
    resume: bool = False,
    strict: bool = False,
    data_dir: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Score a run: log p(x) on a split of its data, written to evidence.json and evidence.csv, and returned.

    Args:
        path: the run's folder.
        components: parts of the caller's own, as for :func:`~pyro_vae.load_run`.
        split, rows, method, proposal, num_samples, target_se, max_samples, seed, resume, strict: as for
            :class:`EvaluationOptions`; what is computed, as for :func:`~pyro_vae.log_likelihood`.
        data_dir: where image data sets lie.
        device: where to compute.

    Raises:
        RunFolderError: the run or its data are not what they were.
        BusyError: another process scores the same run.
        StorageError, DeviceMemoryError: the disk is full; a row is too large for the device.
        UnreliableError: under `strict`, rows are flagged.
        UsageError, CheckpointError, DataError, Interrupted: as :func:`log_px_of`.
    """
    run = load_run(path, components, device)
    options = EvaluationOptions(
        split=split, rows=rows, method=method, proposal=proposal, num_samples=num_samples, target_se=target_se,
        max_samples=max_samples, seed=seed, resume=resume, strict=strict,
    )  # fmt: skip
    return evaluate_opened(run, open_data(run, data_dir), options)


def evaluate_opened(
    run: Run, data: Data, options: EvaluationOptions, *, training: dict[str, Any] | None = None, wait: bool = False
) -> dict[str, Any]:
    """Score an opened run, on the data that it was trained on; one process at a time.

    Args:
        training: what evidence.json shall tell of the training; None leaves what it told before.
        wait: for another process that scores the run, in place of an error.
    """
    folder.check_own(run.path)
    with locked(run.path, folder.EVALUATION_LOCK, wait):
        x, start = rows_of(data, options.split, options.rows).x, time.perf_counter()
        digests = {"weights": tensor_digest(run.vae.state_dict()), "data": data.digest, "split": options.split}
        cache = ParticleCache(run.path / f"particles-{options.split}.safetensors", digests, strict=training is None)
        evidence = log_px_of(run.vae, x, cache, options)
        keep = options.resume and training is None  # what goes on is kept to go on from again; a training ends here
        if keep and isinstance(evidence, Evidence):
            cache.write(evidence)
        seconds = time.perf_counter() - start
        result = evidence.summary() | {
            "bits_per_dim": evidence.bits_per_dim(x[0].numel()).mean().item(),
            "elements": x[0].numel(),
            "split": f"{data.name}, {options.split}{f', first {len(x)} rows' if options.rows else ''}",
            "policy": data.policy,
            "floor": floor_of(run, data, x),
            "training": training or run.evidence.get("training"),
            "machine": machine(next(run.vae.parameters()).device),
            "seconds": round(seconds, 1),
            "versions": versions(),
        }
        table = evidence.rows_csv()
        folder.write_atomic(run.path / "evidence.csv", table)
        folder.write_json(run.path / "evidence.json", result | {folder.CSV: sha256(table.encode())})
        if not keep and (cache.written or options.resume):
            cache.forget()  # what another evaluation left stays
        draw_khat(run.path, evidence, x, data.shape)
        if options.strict and isinstance(evidence, Evidence) and len(evidence.flagged):
            raise UnreliableError(evidence.why_flagged(), evidence)
    return result


def log_px_of(vae: VAE, x: Tensor, cache: ParticleCache, options: EvaluationOptions) -> Evidence | Exact:
    """Score some rows of a saved run; sums of particles go to `cache` every few seconds and at an interruption.

    Raises:
        UsageError: no such proposal; particles of another seed or proposal, or of other rows, in `cache`.
        CheckpointError: the particles in `cache` are of other weights or data.
        RunFolderError, DataError: `cache` is damaged.
        Interrupted, Terminated: Ctrl-C, SIGTERM.
    """
    if options.proposal not in PROPOSALS:
        raise UsageError(f"no proposal {options.proposal!r}; take one of {', '.join(PROPOSALS)}")
    if options.method == "exact":
        return log_likelihood(vae.model, vae.guide, x, method="exact")
    try:
        return log_likelihood(
            vae.model, vae.guide, x, method=options.method, proposal=PROPOSALS[options.proposal],
            num_samples=options.num_samples, target_se=options.target_se, max_samples=options.max_samples,
            seed=options.seed, resume=cache.read() if options.resume else None, on_block=cache.update,
        )  # fmt: skip
    except Interrupted as error:
        raise type(error)(f"interrupted: {cache.save_rest(error.result)}", error.result) from None


def floor_of(run: Run, data: Data, x: Tensor) -> dict[str, Any]:
    """Return mean and data error of the floor on the same rows; it is exact, so it has no Monte Carlo error."""
    train_rows = data.train.x if data.transform is None else data.train.x.double()  # grey means are the Bernoulli's own
    family, features = likelihood_of(run.config, x.shape[1], run.components)
    jacobian: Any = 0.0
    if run.config.standardize:  # a fit by gradient starts at scale 1, as networks do
        likelihood: Any = run.vae.likelihood
        loc, scale = likelihood.units.loc.to(x), likelihood.units.scale.to(x)
        jacobian, train_rows, x = log_scale(x, scale).double(), (train_rows - loc) / scale, (x - loc) / scale
    log_px = floor(run.config.likelihood, family, features, train_rows, x) - jacobian
    return {
        "model": f"independent {run.config.likelihood} elements, fitted to the training rows",
        "log_px": log_px.mean().item(),
        "log_px_data_se": log_px.std().item() / len(log_px) ** 0.5 if len(log_px) > 1 else None,
    }


def rows_of(data: Data, split: str, rows: int | None = None) -> Split:
    """Return one split, by name, or its first rows."""
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}; take one of {', '.join(SPLITS)}")
    if split == "train" and data.transform is not None:
        raise UsageError(
            "training rows are grey under dynamic binarization and have no likelihood: score test or validation"
        )
    chosen: Split = getattr(data, split)
    if rows is not None and not 1 <= rows <= len(chosen):
        raise UsageError(f"rows={rows}, but the {split} split has 1 to {len(chosen)}")
    return chosen[:rows]
