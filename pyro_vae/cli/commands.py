"""What `pyro-vae` can do, a function each: `demo`, `train`, `evaluate`, `compare`, `sample`, `encode`, `replay` and others."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from cyclopts import App, Parameter
from rich.console import Console

from pyro_vae.errors import UsageError
from pyro_vae.models.usage import encode as encode_rows
from pyro_vae.models.usage import interpolate as interpolate_rows
from pyro_vae.models.usage import reconstruct as reconstruct_rows
from pyro_vae.models.usage import sample as draw_samples
from pyro_vae.plots import figures, latents
from pyro_vae.runs import folder
from pyro_vae.runs.compare_runs import compare_runs, forest, put
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run, rows_of
from pyro_vae.runs.load import Run, load_run, open_data
from pyro_vae.runs.registry import TABLES
from pyro_vae.runs.replay_divergence import replay_step
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import MINUTES, train_run

from .tables import markdown_table, print_parts, report

app = App(
    name="pyro-vae",
    help="Variational autoencoders as Pyro programs, with log-likelihoods one can trust.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # main reports it, with what was kept
)
app.meta.suppress_keyboard_interrupt = False
DEMO = Config(
    data="digits",
    hidden=(128, 128),
    latent_dim=10,
    objective="mean_field_elbo",
    epochs=150,
    batch_size=64,
    learning_rate=2e-3,
)

DataDir = Annotated[Path | None, Parameter(help="Folder with MNIST/raw and FashionMNIST/raw; else $PYRO_VAE_DATA.")]
Device = Annotated[str, Parameter(help="cpu, cuda, cuda:1, or auto (CUDA where there is one).")]
Samples = Annotated[int, Parameter(help="K: importance samples a row.")]
Overwrite = Annotated[bool, Parameter(negative=(), help="Replace the run that the folder holds.")]


@app.command
def demo(*, run: Path = Path("runs/demo"), overwrite: Overwrite = False, num_samples: Samples = 5000) -> None:
    """Trains a VAE on bundled digits in under a minute: log p(x) with error bars, and pictures."""
    again = (run / "config.json").is_file() and folder.read_config(run).get("made_by") == "demo"
    replace = overwrite or again
    with one_thread():
        evidence = train_run(DEMO, run, overwrite=replace, device="cpu", num_samples=num_samples, made_by="demo")
    report(evidence, run)


@app.command
def train(
    *,
    config: Config = Config(),  # noqa: B008 (frozen)
    run: Path | None = None,
    resume: Path | None = None,
    fork: Path | None = None,
    overwrite: Overwrite = False,
    data_dir: DataDir = None,
    download: Annotated[bool, Parameter(negative=(), help="Fetch missing image files into the data folder.")] = False,
    device: Device = "auto",
    num_samples: Samples = 1000,
    checkpoint_minutes: float = MINUTES,
) -> None:
    """Trains a VAE, scores the test rows and draws the pictures, into a run folder; or goes on with a run.

    Parameters
    ----------
    run
        Folder to make.
    resume
        Folder of a run that was interrupted, killed or diverged: goes on from its newest whole checkpoint.
    fork
        With --resume: folder to make for a run of its own, that begins with that one's state, under other options.
    checkpoint_minutes
        Between saves of the whole state.
    """
    if (run is None) == (resume is None):
        raise UsageError("say --run FOLDER for a new run, or --resume FOLDER to go on with one (--fork NEW beside it)")
    if fork is not None and resume is None:
        raise UsageError("--fork NEW goes with --resume FOLDER")
    common: dict[str, Any] = {
        "data_dir": data_dir,
        "device": device,
        "num_samples": num_samples,
        "minutes": checkpoint_minutes,
    }
    if resume is not None:
        report(resume_run(resume, config, fork=fork, **common), fork or resume)
    elif run is not None:
        report(train_run(config, run, overwrite=overwrite, download=download, **common), run)


@app.command
def replay(run: Path, /, *, device: Device = "cpu") -> None:
    """Runs the step again at which a run diverged, from its folder alone: same weights, batch and noise; site by site.

    Parameters
    ----------
    run
        Run folder with a folder `divergence`.
    """
    print(replay_step(run, device=device))


@app.command(name="selftest")
def selftest_command() -> None:
    """Checks this machine within a minute: exact oracle, kill and resume, full disk, damaged files, GPU against CPU."""
    from pyro_vae.runs.selftest import selftest

    selftest()


@app.command
def evaluate(
    run: Path,
    /,
    *,
    split: str = "test",
    rows: int | None = None,
    method: Literal["importance", "auto", "exact"] = "importance",
    num_samples: Samples = 5000,
    target_se: float | None = None,
    max_samples: int = 100_000,
    proposal: Literal["guide", "defensive", "widened"] = "guide",
    resume: Annotated[bool, Parameter(negative=())] = False,
    strict: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Scores a run: log p(x) by importance sampling or exactly, from its folder alone.

    Parameters
    ----------
    run
        Run folder.
    split
        test, validation or train.
    rows
        Score only the first so many rows.
    method
        auto: exact where the model allows it (closed form, enumeration, quadrature), else importance sampling.
    target_se
        Double K, up to --max-samples, until the Monte Carlo error of every row is at most this (nats).
    max_samples
        K at most under --target-se; rows that it does not suffice for are flagged.
    proposal
        What the samples are drawn from: the guide, a tenth of them from the prior, or the guide with its scales times 1.5.
    resume
        Go on from the samples that an earlier evaluation left in the folder (an interrupted one does), and keep them.
    strict
        Exit 5, once all is written, if a row's estimate is not to be believed.
    seed
        Of the importance samples.
    """
    evidence = evaluate_run(
        run,
        split=split,
        rows=rows,
        method=method,
        num_samples=num_samples,
        target_se=target_se,
        max_samples=max_samples,
        proposal=proposal,
        resume=resume,
        strict=strict,
        seed=seed,
        data_dir=data_dir,
        device=device,
    )
    report(evidence, run)


@app.command
def compare(*runs: Path, csv: Path | None = None, latex: Path | None = None, figure: Path | None = None) -> None:
    """Compares runs on the rows that all were scored on: log p(x), and paired differences to the best with their errors.

    Parameters
    ----------
    runs
        Run folders, two or more.
    csv
        File for the numbers, to the last bit.
    latex
        File for the table, a plain tabular.
    figure
        File for a forest plot of the differences (.png).
    """
    if figure and figure.suffix.lower() != ".png":
        raise UsageError(f"--figure {figure}: pictures are PNG; give the file the ending .png")
    made = compare_runs(runs)
    Console(width=None if sys.stdout.isatty() else 160).print(made.table())
    for note in made.notes:
        print(f"note: {note}")
    for path, content in ((csv, made.csv), (latex, made.latex), (figure, lambda: forest(made))):
        if path:
            put(path, content())
            print(path)


@app.command
def parts(*, markdown: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Lists what --prior, --likelihood, --posterior, --objective, --gradient and --kl can name, with options and reference.

    Parameters
    ----------
    markdown
        As Markdown, the table of the README.
    """
    for role in TABLES:
        print(markdown_table(role)) if markdown else print_parts(role)


@app.command
def sample(run: Path, /, *, num_samples: int = 48, seed: int = 0, mean: bool = False, out: Path | None = None) -> None:
    """Draws x ~ p(x | z), z ~ p(z): an array (.npy) and, for images, a picture beside it.

    Parameters
    ----------
    run
        Run folder.
    num_samples
        How many.
    seed
        The same seed draws the same samples.
    mean
        E[x | z] of each z drawn, in place of a draw of x.
    out
        Array file; RUN/samples.npy by default.
    """
    opened = load_run(run)
    x = draw_samples(opened.vae, num_samples, seed=seed, mean=mean).numpy()
    title = "E[x | z], z ~ p(z)" if mean else "x ~ p(x | z), z ~ p(z)"
    write(opened, x, out, "samples", lambda: figures.sample_grid(x, opened.shape, title=title))


@app.command
def encode(
    run: Path, /, *, split: str = "test", rows: int | None = None, data_dir: DataDir = None, out: Path | None = None
) -> None:
    """Posterior means E[z | x] of a split: an array (.npy), and a map coloured by label.

    Parameters
    ----------
    run
        Run folder.
    split
        test, validation or train.
    rows
        Only the first so many rows.
    out
        Array file; RUN/encoded.npy by default.
    """
    opened, part = open_split(run, split, data_dir)
    z = encode_rows(opened.vae, part.x[:rows]).numpy()
    labels = None if part.y is None else part.y[:rows].numpy()
    write(opened, z, out, "encoded", lambda: latents.latent_map(z, labels))


@app.command
def reconstruct(
    run: Path, /, *, split: str = "test", rows: int = 12, data_dir: DataDir = None, out: Path | None = None
) -> None:
    """E[x | z] at z = E[z | x] for rows of a split: an array (.npy), and a picture beside the originals.

    Parameters
    ----------
    run
        Run folder.
    split
        test, validation or train.
    rows
        The first so many rows.
    out
        Array file; RUN/reconstructed.npy by default.
    """
    opened, part = open_split(run, split, data_dir)
    x = part.x[:rows]
    again = reconstruct_rows(opened.vae, x).numpy()
    pairs = [x.numpy()[:12], again[:12]]
    title = f"{split} rows and their reconstructions"
    write(
        opened, again, out, "reconstructed", lambda: figures.image_grid(pairs, ["x", "E[x | z]"], opened.shape, title)
    )


@app.command
def interpolate(
    run: Path,
    /,
    *,
    start: int = 0,
    end: int = 1,
    steps: int = 10,
    split: str = "test",
    data_dir: DataDir = None,
    out: Path | None = None,
) -> None:
    """E[x | z] along the line between the posterior means of two rows: an array (.npy) and a picture.

    Parameters
    ----------
    run
        Run folder.
    start
        Row to start from.
    end
        Row to end at.
    steps
        Points on the line, ends included.
    split
        test, validation or train.
    out
        Array file; RUN/interpolated.npy by default.
    """
    opened, part = open_split(run, split, data_dir)
    for row in (start, end):
        if not 0 <= row < len(part):
            raise UsageError(f"row {row} is not in the {split} split, which has rows 0 to {len(part) - 1}")
    x = interpolate_rows(opened.vae, part.x[start : start + 1], part.x[end : end + 1], steps=steps)[:, 0].numpy()
    title = f"from {split} row {start} to {end}"
    write(opened, x, out, "interpolated", lambda: figures.sample_grid(x, opened.shape, columns=steps, title=title))


@contextmanager
def one_thread() -> Iterator[None]:
    """On networks as small as the demo's, threads wait for each other more than they help."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def open_split(run: Path, split: str, data_dir: Path | None) -> tuple[Run, Any]:
    """A run and the rows of one split of its data."""
    opened = load_run(run)
    return opened, rows_of(open_data(opened, data_dir), split)


def write(run: Run, array: np.ndarray, out: Path | None, name: str, draw: Any) -> None:
    """An array to `out`, its picture into the run's figures, and a line that says where."""
    target, buffer = out or run.path / f"{name}.npy", io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.write_atomic(target, buffer.getvalue())
    picture = figures.save(draw(), run.path / "figures" / f"{name}.png")
    print(f"{target}  {array.shape}\n{picture}")
