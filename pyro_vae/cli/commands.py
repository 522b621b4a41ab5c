"""Commands of `pyro-vae` that train (`demo`, `train`), and on the machine and the registry (`selftest`, `parts`)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import App, Parameter

from pyro_vae.common.flagged import format_log_px
from pyro_vae.common.plain_text import plain
from pyro_vae.common.processes import asked_of, joined
from pyro_vae.errors import UsageError
from pyro_vae.runs import folder
from pyro_vae.runs.bracket_run import bracket_run
from pyro_vae.runs.config import Config
from pyro_vae.runs.ensemble_folder import name_of
from pyro_vae.runs.registry import TABLES
from pyro_vae.runs.report.page import write_report
from pyro_vae.runs.report.seeds import write_seeds_report
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_ensemble import train_ensemble
from pyro_vae.runs.train_run import MINUTES, train_run
from pyro_vae.training.tensorboard_tracker import TensorBoardTracker
from pyro_vae.training.tracker import Tracker

from .ensemble_tables import report_seeds
from .tables import format_agreement, markdown_table, print_parts, report

app = App(
    name="pyro-vae",
    help="Variational autoencoders as Pyro programs, with log-likelihoods one can trust.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # main reports it, with what was kept
)
app.meta.suppress_keyboard_interrupt = False
app.register_install_completion_command(help="Have the shell complete commands and options (bash, zsh, fish).")
DEMO = Config(
    data="digits", binarization="dynamic", hidden=(128,), latent_dim=8,
    objective="iwae", objective_options={"particles": "8"}, epochs=80, batch_size=64, learning_rate=2e-3,
)  # fmt: skip

RunFolder = Annotated[Path, Parameter(help="Run folder.")]
DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder with MNIST/raw and FashionMNIST/raw, else $PYRO_VAE_DATA; or with the run's data file, if it has "
        "moved (or that file)."
    ),
]
NewRows = Annotated[
    Path | None,
    Parameter(
        help="File of new rows, in place of the run's own: columns are found by name, categories have the codes of training. "
        "Or the run's own data file, if it has moved."
    ),
]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, or auto (CUDA where there is one).")]
Samples = Annotated[int, Parameter(help="K: importance samples a row.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="As JSON.")]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace the run that the folder holds.")]


@app.command
def demo(*, run: Path = Path("runs/demo"), overwrite: Overwrite = False, num_samples: Samples = 5000) -> None:
    """Trains a VAE on bundled digits in under a minute: log p(x) by two methods, between two ends, and pictures."""
    is_demo = (run / "config.json").is_file() and folder.read_config(run).get("made_by") == "demo"
    with one_thread():  # on networks so small, threads wait for each other more than they help
        evidence = train_run(
            DEMO, run, overwrite=overwrite or is_demo, device="cpu", num_samples=num_samples, made_by="demo"
        )
        annealed, ends = bracket_run(run)
    write_report(run)  # again: with the bracket
    report(evidence, run)
    print(f"annealed: log p(x) {format_log_px(annealed)}; {format_agreement(evidence, annealed)}\n{ends}")


@app.command
def train(
    *,
    config: Config = Config(),  # noqa: B008 (frozen)
    run: Path | None = None,
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=())] = (),
    resume: Path | None = None,
    fork: Path | None = None,
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
    download: Annotated[bool, Parameter(negative=(), help="Fetch missing image files into the data folder.")] = False,
    device: Device = "auto",
    num_samples: Samples = 1000,
    checkpoint_minutes: float = MINUTES,
    tracker: Literal["tensorboard"] | None = None,
) -> None:
    """Trains a VAE, scores the test rows and draws the pictures, into a run folder; or goes on with a run.

    On several processes: torchrun --nproc-per-node 2 -m pyro_vae -- train --shards 8 ..., with the bits of one.

    Parameters
    ----------
    run
        Folder to make.
    seeds
        Train several members at once: so many, from --seed on, or the seeds listed. RUN then holds a run folder for each
        (seed0, seed1 ...), and log p(x) has its error over seeds beside the others.
    resume
        Folder of a run that was interrupted, killed or diverged: goes on from its newest whole checkpoint.
    fork
        With --resume: folder to make for a run of its own, that begins with that one's state, under other options.
    checkpoint_minutes
        Between saves of the whole state.
    tracker
        What follows the training, into RUN/tensorboard (of --seeds into that of each member): `tensorboard --logdir RUN`.
    """
    if (run is None) == (resume is None):
        raise UsageError("say --run FOLDER for a new run, or --resume FOLDER to go on with one (--fork NEW beside it)")
    if fork is not None and resume is None:
        raise UsageError("--fork NEW goes with --resume FOLDER")
    if seeds and asked_of(os.environ).world > 1:
        raise UsageError(
            "--seeds trains its members in one process: without torchrun, or one seed after the other with it"
        )
    if seeds:
        if run is None:
            raise UsageError(
                "--seeds trains a new ensemble: say --run FOLDER; members have no checkpoints to --resume from"
            )
        told: dict[str, Any] = {"overwrite": overwrite, "data_dir": data_dir, "download": download, "device": device}
        told |= {"trackers": lambda seed: trackers_of(tracker, run / name_of(seed))}
        report_seeds(train_ensemble(config, seeds_of(seeds, config.seed), run, num_samples=num_samples, **told), run)
        print(plain(f"report:     {write_seeds_report(run)}"))
        return
    common: dict[str, Any] = {"data_dir": data_dir, "device": device}
    common |= {"num_samples": num_samples, "minutes": checkpoint_minutes}
    common |= {"trackers": trackers_of(tracker, fork or resume or run)}
    with joined(device) as here:
        if resume is not None:
            trained, evidence = fork or resume, resume_run(resume, config, fork=fork, **common)
        elif run is not None:
            trained, evidence = run, train_run(config, run, overwrite=overwrite, download=download, **common)
        if here.leads:
            report(evidence, trained)


def trackers_of(name: str | None, run: Path | None) -> list[Tracker]:
    """Make the tracker that is asked for by name, of the run in a folder."""
    return [] if name is None or run is None else [TensorBoardTracker(run / folder.BOARD)]


def seeds_of(given: tuple[int, ...], first: int) -> list[int]:
    """Read --seeds: one number counts them, from the config's own on; several are the seeds themselves.

    Example:
        >>> seeds_of((3,), 5), seeds_of((0, 3, 7), 5)
        ([5, 6, 7], [0, 3, 7])
    """
    if len(given) > 1:
        return list(given)
    if given[0] < 1:
        raise UsageError(f"--seeds {given[0]}: an ensemble has at least one member; --seeds 8 trains eight")
    return list(range(first, first + given[0]))


@app.command(name="selftest")
def selftest_command() -> None:
    """Checks this machine within a minute: exact oracle, kill and resume, full disk, damaged files, GPU against CPU."""
    from pyro_vae.runs.selftest import selftest

    selftest()


@app.command
def parts(*, markdown: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Lists what --model, --prior, --likelihood, --posterior, --objective, --gradient and --kl can name, and their options.

    Parameters
    ----------
    markdown
        As Markdown, the tables of docs/parts.md.
    """
    for role in TABLES:
        print(markdown_table(role)) if markdown else print_parts(role)


def print_json(value: Any) -> None:
    """Print plain names and numbers for another program; null in the place of what is no finite number."""
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def finite(value: Any) -> Any:
    """Put None in the place of numbers that are not finite, which JSON has not.

    Example:
        >>> finite({"a": [float("nan"), 1.5], "b": float("inf")})
        {'a': [None, 1.5], 'b': None}
    """
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
