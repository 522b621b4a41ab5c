"""log p(x) of the rows of a run, by any method; what an interruption leaves stays in the folder, to go on from."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pyro_vae.common.counted import counted
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.environment import machine, versions
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.plain_text import plain
from pyro_vae.common.spread import sharing
from pyro_vae.data import Data, Split
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import DeviceLostError, Interrupted, ProcessesError, SupportError, UnreliableError, UsageError
from pyro_vae.evidence.annealing import saved
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.result import Annealed
from pyro_vae.evidence.exact.result import Exact
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.log_likelihood import log_likelihood

from . import evaluations, folder
from .current_run import as_it_is_now, check_same_weights
from .custom_components import NOTHING, Components
from .data_choices import columns_outside
from .ensemble_folder import is_ensemble
from .evaluation_options import CHUNK, EvaluationOptions, Method, ProposalName, check_used
from .evaluations import PROPOSALS, EvaluationName, is_new
from .floor_of_run import floor_of
from .kinds.kind import Batch
from .load import Run, load_run
from .marginal_baseline import below_floor
from .new_rows import open_rows
from .particle_cache import ParticleCache
from .progress import unfinished
from .rows_to_score import rows_of, split_asked
from .run_figures import draw_khat
from .several_processes import agree_on_scoring, done_by_rank_0, led

Estimate = Evidence | Exact | Annealed
LEAPFROGS = 5  # of a transition: on trained decoders ten cost twice as much and reach the same value


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
    num_chains: int = 16,
    num_temperatures: int = 100,
    chunk_size: int = CHUNK,
    seed: int = 0,
    noise: Literal["block", "row"] = "block",
    resume: bool = False,
    strict: bool = False,
    data: Path | str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Score a run: log p(x) on a split of its data, or of new rows, written into its folder, and returned.

    All test rows by importance sampling from the guide are evidence.json and evidence.csv; any other split, rows, method or
    proposal has files of its own (:mod:`pyro_vae.runs.evaluations`), so that a look overwrites nothing.

    Args:
        path: the run's folder.
        components: parts of the caller's own, as for :func:`~pyro_vae.load_run`.
        split, rows, method, proposal, num_samples, target_se, max_samples, num_chains, num_temperatures, chunk_size, seed,
            noise, resume, strict: as for :class:`EvaluationOptions`; what is computed, as for
            :func:`~pyro_vae.log_likelihood` and :func:`~pyro_vae.ais`.
        data: a file of new rows, all of which are scored: columns are found by name, with the codes of training; or the run's
            own data file, wherever it lies.
        data_dir: where image data sets lie, or the run's own data file, if it has moved.
        device: where to compute.
        out: a folder for what is written, in place of the run's own, which may then be read-only.

    Raises:
        RunFolderError: the run or its data are not what they were; `out` holds a run, or evaluations of another.
        BusyError: another process scores the same run.
        StorageError, DeviceMemoryError: the disk is full; a row is too large for the device.
        UnreliableError: under `strict`, rows are flagged.
        UsageError, CheckpointError, DataError, Interrupted: as :func:`log_px_of`.
    """
    options = EvaluationOptions(
        split=split, rows=rows, method=method, proposal=proposal, num_samples=num_samples, target_se=target_se,
        max_samples=max_samples, num_chains=num_chains, num_temperatures=num_temperatures, chunk_size=chunk_size, seed=seed,
        noise=noise, resume=resume, strict=strict,
    )  # fmt: skip
    run = load_run(path, components, device)
    rows_from = open_rows(run, None if data is None else Path(data), data_dir)
    return evaluate_opened(run, rows_from, options, out=out)


def evaluate_opened(
    run: Run,
    data: Data,
    options: EvaluationOptions,
    *,
    training: dict[str, Any] | None = None,
    wait: bool = False,
    out: Path | str | None = None,
) -> dict[str, Any]:
    """Score an opened run, on the data that it was trained on; one process at a time, or several that torchrun started.

    The weights are those that the folder has once it is locked: where training has ended since the run was opened, they are
    loaded anew. Where they change while they are scored, a note says so, and no reader takes the numbers for the new ones'.

    Args:
        training: what evidence.json shall tell of the training; None leaves what it told before.
        wait: for another process that scores the run, in place of an error.
        out: a folder for what is written, in place of the run's.
    """
    options = replace(options, split=split_asked(run, data, options.split))
    into, leads = run.path if out is None else Path(out), sharing().leads
    if leads:
        folder.check_own(into if out is None else folder.make_beside(into))
    with led(into, lambda: None, folder.EVALUATION_LOCK, wait):
        run = run if training is not None else as_it_is_now(run)
        rows, start = rows_of(data, options.split, options.rows), time.perf_counter()
        name, weights = name_of(options, len(rows_of(data, options.split))), tensor_digest(run.vae.state_dict())
        agree_on_scoring(weights, data, asdict(options))
        if out is not None and leads:
            folder.claim(into, run.path, run.record, weights)
        digests = {"weights": weights, "data": data.digest, "split": options.split}
        file = into / f"particles-{name}.safetensors"
        cache = ParticleCache(file, digests, strict=training is None)
        with columns_named(run, data, rows):
            evidence = placed(log_px_of(run.vae, run.rows(rows), cache, options), rows)

        def record() -> dict[str, Any]:
            """Write what came of it."""
            keep = options.resume and training is None  # kept to go on from again; a training ends here
            if keep and isinstance(evidence, Evidence):
                cache.write(evidence)
            seconds = time.perf_counter() - start
            if training is None:
                check_same_weights(run, weights)
            result = record_evaluation(run, data, options, evidence, seconds, training, into)
            if not keep and (cache.written or options.resume):
                cache.forget()  # what another evaluation left stays
            return result

        result = done_by_rank_0(record, "the writing of the evidence")
        if options.strict and isinstance(evidence, Evidence) and len(evidence.flagged):
            raise UnreliableError(evidence.why_flagged(), evidence)
    return result


@contextmanager
def columns_named(run: Run, data: Data, rows: Split) -> Iterator[None]:
    """Name the columns of a table that have values outside the support of their likelihood, in an error of its rows."""
    try:
        yield
    except SupportError as error:
        if named := columns_outside(run.config, data, rows):
            raise SupportError(f"{plain(data.name)}: {named}") from error
        raise


def record_evaluation(
    run: Run,
    data: Data,
    options: EvaluationOptions,
    evidence: Estimate,
    seconds: float,
    training: dict[str, Any] | None = None,
    into: Path | None = None,
) -> dict[str, Any]:
    """Write evidence of a run's rows, with what it is of, and its picture, into its folder or another, which is locked."""
    into = run.path if into is None else into
    part = rows_of(data, options.split, options.rows)
    x = part.x
    observed = int((~x.isnan()).sum())  # neither missing nor beyond the end of a sequence: what log p(x) is of
    called = run.record.get("data", {}).get("name") or plain(data.name)  # its file may have been renamed since
    called = f"{plain(data.name)}, new rows" if is_new(options.split) else f"{called}, {options.split}"
    name = name_of(options, len(rows_of(data, options.split)))
    result = evidence.summary() | {
        "bits_per_dim": -evidence.log_px.sum().item() / (max(1, observed) * math.log(2)),
        "elements": observed / len(x),
        "split": called + (f", first {counted(len(x), 'row')}" if name.rows else ""),
        "policy": data.policy,
        "floor": floor_of(run, data, x, evidence.log_px),
        "training": training or training_so_far(run),
        "weights": tensor_digest(run.vae.state_dict()),
        "machine": machine(next(run.vae.parameters()).device),
        "seconds": round(seconds, 1),
        "versions": versions(),
        **run.kind.report(run.vae, part, data.shape),
    }
    if warning := below_floor(result["floor"], result):
        member = f"{run.path}: " if is_ensemble(run.path.parent) else ""  # of which several say the same
        print(f"warning: {plain(member + warning)}", file=sys.stderr)
    name = replace(name, method="exact", proposal="guide") if isinstance(evidence, Exact) else name
    table = saved.rows_csv(evidence) if isinstance(evidence, Annealed) else evidence.rows_csv()
    stem, result = evaluations.write(into, name, result, table, replacing=training is not None)
    draw_khat(into, evidence, x, data.shape, stem.replace("evidence", "khat", 1))
    return result


def name_of(options: EvaluationOptions, rows: int) -> EvaluationName:
    """Name what is asked for, of a split of so many rows; "auto" counts as importance sampling until an oracle applies."""
    cut = None if options.rows in (None, rows) else options.rows
    method = "importance" if options.method == "auto" else options.method
    return EvaluationName(options.split, cut, method, options.proposal)


def training_so_far(run: Run) -> dict[str, Any] | None:
    """Return what is known of the training, of one that has not ended how far it is."""
    if so_far := unfinished(run.path, run.config.epochs):
        return {"unfinished": so_far}
    return run.evidence.get("training")


def log_px_of(vae: Any, rows: Batch, cache: ParticleCache, options: EvaluationOptions) -> Estimate:
    """Score some rows of a saved run; sums of particles go to `cache` every few seconds and at an interruption.

    Raises:
        UsageError: a proposal beside a method without any; particles of another seed or proposal, or of other rows, in `cache`.
        CheckpointError: the particles in `cache` are of other weights or data.
        RunFolderError, DataError: `cache` is damaged.
        Interrupted, Terminated: Ctrl-C, SIGTERM.
    """
    check_used(options)
    if options.method == "annealing":
        return annealed(vae, rows, options)
    if options.method == "exact":
        return log_likelihood(vae.model, vae.guide, *rows, method="exact")
    try:
        return log_likelihood(
            vae.model, vae.guide, *rows, method=options.method, proposal=PROPOSALS[options.proposal],
            num_samples=options.num_samples, target_se=options.target_se, max_samples=options.max_samples,
            seed=options.seed, noise=options.noise, resume=cache.read() if options.resume else None, on_block=cache.update,
        )  # fmt: skip
    except Interrupted as error:
        raise type(error)(f"interrupted: {cache.save_rest(error.result)}", error.result) from None
    except (ProcessesError, DeviceLostError) as error:
        raise type(error)(f"{error}; {cache.save_rest(error.result)}", error.result) from error


def placed(evidence: Estimate, rows: Split) -> Estimate:
    """Have evidence know where its rows stand in their file, and their names and labels."""
    return replace(evidence, row_ids=(evidence.row_ids or RowIds()).at(rows.ids))


def annealed(vae: Any, rows: Batch, options: EvaluationOptions) -> Annealed:
    """Anneal from the guide to the posterior of each row."""
    for name in ("proposal", "target_se", "noise", "resume"):
        if getattr(options, name) != getattr(EvaluationOptions(), name):
            flag = name.replace("_", "-")
            raise UsageError(
                f"--method annealing starts chains at the guide and keeps no particles: leave --{flag} out"
            )
    return ais(
        vae.model, vae.guide, *rows, start="guide", num_temperatures=options.num_temperatures, num_chains=options.num_chains,
        leapfrog_steps=LEAPFROGS, seed=options.seed, chunk_size=options.chunk_size,
    )  # fmt: skip
