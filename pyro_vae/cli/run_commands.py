"""Commands of `pyro-vae` on what a run came to: `evaluate`, `compare` and `report`; and `replay`, of one that diverged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from pyro_vae.common.plain_text import plain
from pyro_vae.common.processes import joined
from pyro_vae.errors import UsageError
from pyro_vae.evidence.comparison import Comparison
from pyro_vae.runs.compare_runs import compare_runs, write
from pyro_vae.runs.ensemble_folder import is_ensemble
from pyro_vae.runs.evaluate_ensemble import compare_ensembles, evaluate_ensemble
from pyro_vae.runs.evaluate_run import evaluate_opened
from pyro_vae.runs.evaluation_options import EvaluationOptions
from pyro_vae.runs.load import load_run
from pyro_vae.runs.new_rows import open_rows
from pyro_vae.runs.replay_divergence import replay_step
from pyro_vae.runs.report.page import write_comparison, write_report
from pyro_vae.runs.report.seeds import write_seeds_report

from .commands import DataDir, Device, Json, NewRows, RunFolder, app, print_json
from .ensemble_tables import report_seeds
from .tables import report

DEFAULTS = EvaluationOptions()


@app.command
def evaluate(
    run: RunFolder,
    /,
    *,
    options: EvaluationOptions = DEFAULTS,
    data: NewRows = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    out: Annotated[Path | None, Parameter(help="Folder for what is written; RUN itself by default.")] = None,
    as_json: Json = False,
) -> None:
    """Scores a run (of several seeds, each member): log p(x) by importance sampling or exactly, from its folder alone.

    On several processes: torchrun --nproc-per-node 2 -m pyro_vae -- evaluate RUN ..., with the bits of one.
    """
    if out is not None and is_ensemble(run):
        raise UsageError("--out is of a run of one seed: score members one by one")
    if data is not None and is_ensemble(run):
        raise UsageError(f"--data is of a run of one seed: score members one by one, such as {run}/seed0")
    with joined(device) as here:
        if is_ensemble(run):
            summary = evaluate_ensemble(run, options, data_dir, device)
            tell: Callable[[], Any] = lambda: report_seeds(summary, run)  # noqa: E731
        else:
            opened = load_run(run, device=device)
            summary = evaluate_opened(opened, open_rows(opened, data, data_dir), options, out=out)
            tell = lambda: report(summary, run, out)  # noqa: E731
        if here.leads:
            print_json(summary) if as_json else tell()


@app.command
def compare(
    *runs: Path,
    split: str | None = None,
    rows: int | None = None,
    method: str | None = None,
    csv: Path | None = None,
    latex: Path | None = None,
    figure: Path | None = None,
    as_json: Json = False,
) -> None:
    """Compares runs on the rows that all were scored on: log p(x), and a verdict on each paired difference to the best.

    Of two runs of several seeds each (train --seeds) it compares the means over seeds, with the error over seeds.

    Parameters
    ----------
    runs
        Run folders, two or more.
    split
        Only evaluations of this split; test before others otherwise.
    rows
        Only evaluations of so many rows; the most otherwise.
    method
        Only evaluations by importance, annealing or exact; the one with the fewest flagged rows otherwise.
    csv
        File for the numbers, to the last bit.
    latex
        File for the table, a plain tabular.
    figure
        File for a forest plot of the differences (.png).
    """
    if figure and figure.suffix.lower() != ".png":
        raise UsageError(f"--figure {figure}: pictures are PNG; give the file the ending .png")
    if any(map(is_ensemble, runs)):
        compared = compare_ensembles(*two_ensembles(runs, csv, latex, figure), split=split, rows=rows, method=method)
        print_json(asdict(compared)) if as_json else print(plain(compared))
        return
    comparison = compare_runs(runs, split=split, rows=rows, method=method)
    print_json(comparison.to_dict()) if as_json else print_comparison(comparison)
    for path, content in ((csv, comparison.csv), (latex, comparison.latex), (figure, comparison.plot)):
        if path:
            write(path, content())
            print(plain(path), file=sys.stderr if as_json else sys.stdout)


def print_comparison(comparison: Comparison) -> None:
    """Print the table and its notes."""
    Console(width=None if sys.stdout.isatty() else 160).print(comparison.table())
    for note in comparison.notes:
        print(f"note: {plain(note)}")


def two_ensembles(runs: tuple[Path, ...], *files: Path | None) -> tuple[Path, Path]:
    """Return the two runs of several seeds that are to be compared; refuse others."""
    if len(runs) != 2 or not all(map(is_ensemble, runs)):
        raise UsageError(
            "runs of several seeds are compared two at a time, and with each other; a member is a run like any other, such as "
            f"{next(run for run in runs if is_ensemble(run))}/seed0"
        )
    if any(files):
        raise UsageError("--csv, --latex and --figure are of runs of one seed: leave them out, or compare members")
    return runs[0], runs[1]


@app.command(name="report")
def report_command(
    *runs: Path,
    out: Annotated[Path | None, Parameter(help="File, .html; RUN/report.html by default.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Writes the report of a run, one page of HTML without network or script; of several runs, their paired comparison.

    Its numbers are those of the evaluations in the folder: nothing is scored anew.

    Parameters
    ----------
    runs
        Run folders; of several, --out names the page.
    """
    if not runs:
        raise UsageError("say which run: pyro-vae report RUN [RUN ...]")
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out}: a report is HTML; give the file the ending .html")
    if len(runs) > 1:
        print(plain(write_comparison(runs, out or Path("comparison.html"))))
        return
    if is_ensemble(runs[0]):
        print(plain(write_seeds_report(runs[0], out)))
        return
    print(plain(write_report(runs[0], data_dir=data_dir, out=out)))


@app.command
def replay(
    run: Annotated[Path, Parameter(help="Run folder with a folder `divergence`.")], /, *, device: Device = "cpu"
) -> None:
    """Runs the step again at which a run diverged, from its folder alone: same weights, batch and noise; site by site."""
    print(plain(replay_step(run, device=device)))
