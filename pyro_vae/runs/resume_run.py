"""Resume a run that was interrupted, killed, or diverged: to the same bits, or, forked, under another config."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pyro_vae.common.atomic_write import folder_in, sweep
from pyro_vae.common.counted import counted
from pyro_vae.common.digests import digest_of
from pyro_vae.common.environment import versions
from pyro_vae.common.exchange import agree
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.common.plain_text import plain
from pyro_vae.common.safe_read import MIB, Layout, check_seal
from pyro_vae.common.spread import by_itself, sharing
from pyro_vae.errors import CheckpointError, RunFolderError, UsageError
from pyro_vae.training.checkpoint_state import format_differences
from pyro_vae.training.serialize import unpack
from pyro_vae.training.tracker import Tracker, check_trackers

from . import folder
from .build_limits import bounded_build
from .checkpoint import Checkpoints, Generation
from .checkpointer import Checkpointer
from .config import Config
from .custom_components import NOTHING, Components
from .end_of_training import draw_figures
from .load import previous
from .replacement import create, settle
from .run_figures import PICTURES
from .several_processes import agree_on_run, led
from .summary_fields import check_printable
from .train_run import MINUTES, carry_out, describe
from .training_job import TrainingJob, prepare
from .weights import MODEL, Weights


@suggest_keywords
def resume_run(
    path: Path | str,
    config: Config | None = None,
    *,
    fork: Path | str | None = None,
    components: Components = NOTHING,
    data_dir: Path | None = None,
    device: str = "auto",
    num_samples: int = 1000,
    minutes: float = MINUTES,
    trackers: Sequence[Tracker] = (),
) -> dict[str, Any]:
    """Continue a run's training from its newest whole checkpoint, score and draw it; return the content of evidence.json.

    On the same device and versions, weights, optimizer and metrics are the same to the bit as without the interruption, on
    any number of processes that its shards can be shared by. A run that was trained already is scored, if it was not.

    Args:
        path: the run's folder.
        config: another than the run's own needs a fork.
        fork: a folder for a run of its own, that begins with this one's state, under `config` or on data that has changed.
        components, data_dir, device, num_samples, minutes, trackers: as for :func:`~pyro_vae.runs.train_run.train_run`.

    Raises:
        CheckpointError: config or data differ (the message has a table), or no checkpoint can be trusted.
        RunFolderError: no run, or a damaged one.
        BusyError: another process writes to the folder.
    """
    path = Path(path)
    check_trackers(trackers)
    record = folder.read_config(path)
    check_seal(record, path / "config.json")
    try:
        config = Config.of_run(record["config"]) if config is None else config
    except UsageError as error:
        raise RunFolderError(f"{path / 'config.json'} cannot be used: {error}") from error
    if fork is not None and sharing().leads:
        folder.check_free(Path(fork))  # before the data is read
    digest = None if fork else record["data"]["digest"]
    limits = partial(bounded_build, layout_on_disk(path))
    job = prepare(
        config, path if fork is None else Path(fork), components, data_dir, False, device, digest, limits=limits
    )
    agree_on_run(job.config, job.data, job.path)
    leads = sharing().leads
    if fork is None:
        check_same(record, job)
        if leads:
            folder.make(path)
            folder.check_own(path)
        with led(path, lambda: tidy(path)):
            return continue_run(job, num_samples, minutes, trackers, record.get("forked_from"))
    saved = newest(job, path)
    check_fork(job, path, record, saved)
    if leads:
        folder.check_free(job.path)
        folder.make(job.path)

    def begin() -> None:
        own = describe(job.config, job.data, record.get("made_by", "train"), job.path)
        create(job.path, own | {"forked_from": str(path.resolve())})
        write_metrics(job.path, saved)

    with led(job.path, begin):
        checkpointer = job.checkpointer(minutes, resumed={"from": str(path), "exact": False})
        return carry_out(job, checkpointer, num_samples, resume=saved, fork=True, trackers=trackers)


def layout_on_disk(path: Path) -> Layout | None:
    """Return the layout of the weights that a run holds; None of a run that has not begun, and holds none."""
    held = os.path.lexists(path / MODEL) or Checkpoints(path).numbers()
    return Weights.of(path).layout if held else None


def check_fork(job: TrainingJob, path: Path, record: Mapping[str, Any], saved: Generation | None) -> None:
    """Refuse a fork that could not begin with the state of its run, or would train nothing, before its folder is made.

    Raises:
        CheckpointError: no checkpoint, or one of other networks; says which options differ.
        UsageError: as many epochs as the run has made, or fewer.
    """
    if saved is None:
        raise CheckpointError(
            f"{path} has no checkpoint that a fork could begin with (members of an ensemble have none): train a new run, "
            "pyro-vae train --run NEW_FOLDER ..."
        )
    then, now = Config.of_run(record["config"]).to_dict(), job.config.to_dict()
    ours, theirs = job.vae.state_dict(), saved.groups["model"]
    same = ours.keys() & theirs.keys()
    if same and (same != ours.keys() or any(ours[name].shape != theirs[name].shape for name in same)):
        changed = {key: (then.get(key), now.get(key)) for key in then | now if then.get(key) != now.get(key)}
        raise CheckpointError(
            f"the networks of {path} are others than those of the fork, which begins with its weights:\n"
            f"{format_differences(changed)}\nLeave what makes other networks as it was, or train a new run, pyro-vae train "
            "--run NEW_FOLDER ..."
        )
    made = len(history_of(saved))
    if made >= job.config.epochs:
        raise UsageError(
            f"--epochs {job.config.epochs}: {path} has made {counted(made, 'epoch')} already, which count, so "
            "that nothing would be "
            f"trained. Say how many it shall be in all, such as --epochs {2 * made}"
        )


def continue_run(
    job: TrainingJob, num_samples: int, minutes: float, trackers: Sequence[Tracker], forked_from: Any = None
) -> dict[str, Any]:
    """Resume without a fork, under the folder's lock."""
    path, leads = job.path, sharing().leads
    saved = newest(job, path)
    if sharing().world > 1:  # once all have read it, it may be discarded
        agree("the newest checkpoint", None if saved is None else saved.number)
    if saved is None:
        check_not_begun(path, forked_from)
        if leads:
            folder.remove(path / folder.DIVERGENCE)
            note = "the run has no checkpoint, so it had not begun: training starts from the beginning."
            print(f"note: {note}", file=sys.stderr)
        checkpointer = job.checkpointer(minutes)
    elif saved.manifest.get("finished") and (evidence := of_whole_run(path)):
        if leads:
            print(f"note: {path} is a whole run already; its evidence is from before.", file=sys.stderr)
            with by_itself():
                draw_what_is_missing(job, saved, evidence)
        return evidence
    else:
        spent = float(saved.manifest.get("seconds", 0.0))
        checkpointer = job.checkpointer(minutes, spent, resumed=resumed(saved.manifest))
        if leads:
            checkpointer.checkpoints.discard(saved.number)
    if leads:
        write_metrics(path, saved)
    return carry_out(job, checkpointer, num_samples, resume=saved, trackers=trackers)


def check_not_begun(path: Path, forked_from: Any) -> None:
    """Refuse to train a run without checkpoints from the beginning, if it was to begin elsewhere, or has weights.

    Raises:
        CheckpointError: says how to go on.
    """
    quoted = shlex.quote(str(path))
    if isinstance(forked_from, str):
        raise CheckpointError(
            f"{path} was to begin with the state of {plain(forked_from)}, and ended before that was saved: remove the folder, "
            f"and fork again, pyro-vae train --resume {shlex.quote(plain(forked_from))} --fork {quoted} ..."
        )
    if os.path.lexists(path / MODEL):
        raise CheckpointError(
            f"{path} holds weights, and no checkpoint to go on from (members of an ensemble have none): score it as it is, "
            f"pyro-vae evaluate {quoted}, or train it anew, pyro-vae train --run {quoted} --overwrite ..."
        )


def tidy(path: Path) -> None:
    """Settle what a kill has left in a run's folder."""
    settle(path)
    with no_links_below(path):
        sweep(path)
        sweep(folder_in(path, "figures"))


def of_whole_run(path: Path) -> dict[str, Any]:
    """Read the evidence that ended the training; nothing where there is none, or only of weights from before its end."""
    evidence = previous(path) if (path / "evidence.json").is_file() and (path / MODEL).is_file() else {}
    training = evidence.get("training")
    if not isinstance(training, dict) or "unfinished" in training:
        return {}
    check_printable(evidence, path / "evidence.json")
    return evidence


def draw_what_is_missing(job: TrainingJob, saved: Generation, evidence: Mapping[str, Any]) -> None:
    """Draw the figures of a whole run again, where it was killed before all were there."""
    if all((job.path / "figures" / f"{name}.png").is_file() for name in PICTURES):
        return
    Weights.of(job.path).fill(job.vae)
    history = history_of(saved)
    points = [{"epoch": r["epoch"], **r["evidence"]} for r in history if "evidence" in r]
    draw_figures(job.opened(), job.data, history, points, evidence["floor"]["log_px"])


def newest(job: TrainingJob, path: Path) -> Generation | None:
    """Read the newest checkpoint of a run, as large as one of this model can be."""
    return Checkpointer(path).newest(limit=16 * sum(t.nbytes for t in job.vae.state_dict().values()) + 64 * MIB)


def resumed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Count the resumptions, and note whether all were under the same libraries; print a note where this one is not."""
    then = manifest.get("versions") or {}
    # training compares torch itself, with device and threads
    now = {k: v for k, v in versions().items() if k != "torch"}
    changed = {k: (then.get(k), v) for k, v in now.items() if then.get(k) != v}
    if changed and sharing().leads:
        print(f"note: the run goes on, but not bit-exact:\n{format_differences(changed)}", file=sys.stderr)
    before = manifest.get("resumed") or {}
    return {"times": before.get("times", 0) + 1, "exact": before.get("exact", True) and not changed}


def check_same(record: Mapping[str, Any], job: TrainingJob) -> None:
    """Refuse a config and data that are not those of the run."""
    then, now = Config.of_run(record["config"]).to_dict(), job.config.to_dict()  # an older run lacks newer options
    pairs = {key: (then.get(key), now.get(key)) for key in (then | now)}
    changed = {key: pair for key, pair in pairs.items() if digest_of(pair[0]) != digest_of(pair[1])}
    if record["data"]["digest"] != job.data.digest:
        changed["data (SHA-256)"] = (record["data"]["digest"][:16] + "…", job.data.digest[:16] + "…")
    if changed:
        raise CheckpointError(
            f"{job.path} cannot be gone on with, as this is another run:\n{format_differences(changed)}\nChange it back, or "
            f"make a run of its own that begins with this one's state: pyro-vae train --resume {shlex.quote(str(job.path))} "
            "--fork NEW_FOLDER ..."
        )


def write_metrics(path: Path, saved: Generation | None) -> None:
    """Restore metrics.jsonl as it was at the checkpoint: the epochs that are trained again write their lines again."""
    history = [] if saved is None else history_of(saved)
    if history or (path / "metrics.jsonl").exists():
        folder.write_lines(path / "metrics.jsonl", history)


def history_of(saved: Generation) -> list[dict[str, Any]]:
    """Read the records of the epochs that a checkpoint holds.

    Raises:
        CheckpointError: it holds none that can be used.
    """
    try:
        history = unpack(saved.head["plain"], saved.groups["optimizer"])["fit"]["history"]
        return [dict(record) for record in history]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint's state cannot be used: {error!r}") from error
