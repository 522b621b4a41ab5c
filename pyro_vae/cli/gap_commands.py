"""Commands of `pyro-vae` that look into log p(x) − ELBO of a run: `bracket`, between two ends, and `gaps`, by what costs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.common.flagged import format_log_px
from pyro_vae.common.plain_text import plain
from pyro_vae.common.processes import joined
from pyro_vae.common.spread import by_itself
from pyro_vae.errors import UsageError
from pyro_vae.runs.bracket_run import CHAINS, TEMPERATURES, bracket_run
from pyro_vae.runs.ensemble_folder import is_ensemble
from pyro_vae.runs.evaluation_options import CHUNK as PAIRS
from pyro_vae.runs.gaps_run import CHUNK, ROWS, STEPS, gaps_run
from pyro_vae.runs.report.page import write_report

from .commands import DataDir, Device, RunFolder, app


@app.command
def bracket(
    run: RunFolder,
    /,
    *,
    rows: int | None = None,
    num_temperatures: int = TEMPERATURES,
    num_chains: int = CHAINS,
    chunk_size: int = PAIRS,
    data_dir: DataDir = None,
    device: Device = "cpu",
) -> None:
    """Bounds log p(x) of test rows from below, by annealing and importance sampling, and from above, in reverse.

    Parameters
    ----------
    rows
        The first so many test rows; all by default.
    num_temperatures
        Between the guide and the posterior: more bring the ends together.
    num_chains
        Of each row.
    chunk_size
        (row, chain) pairs at a time, on a random stream of their own: what processes share. Fewer than the chains cut these.
    """
    of_one_seed(run, "bracket")
    with joined(device) as here:
        annealed, ends = bracket_run(
            run, rows=rows, num_temperatures=num_temperatures, num_chains=num_chains, chunk_size=chunk_size,
            data_dir=data_dir, device=device,
        )  # fmt: skip
        if here.leads:
            print_and_report(f"annealed: log p(x) {format_log_px(annealed)}\n{ends}", run, data_dir)


@app.command
def gaps(
    run: RunFolder,
    /,
    *,
    rows: int = ROWS,
    steps: int = STEPS,
    chunk_size: int = CHUNK,
    data_dir: DataDir = None,
    device: Device = "cpu",
) -> None:
    """Splits log p(x) − ELBO of test rows into what the family of q(z | x) costs and what its network does.

    Parameters
    ----------
    rows
        The first so many test rows, each of which is fitted by itself.
    steps
        Of that fit.
    chunk_size
        64 times the rows that are fitted at a time, on a random stream of their own: what processes share.
    """
    of_one_seed(run, "gaps")
    with joined(device) as here:
        found = gaps_run(run, rows=rows, steps=steps, chunk_size=chunk_size, data_dir=data_dir, device=device)
        if here.leads:
            print_and_report(found, run, data_dir)


def print_and_report(found: Any, run: Path, data_dir: Path | None) -> None:
    """Write a run's report with what was found in it, by this process alone; print both."""
    with by_itself():
        page = write_report(run, data_dir=data_dir)
    print(plain(f"{found}\nreport: {page}"))


def of_one_seed(run: Path, command: str) -> None:
    """Refuse a run of several seeds, whose members are runs."""
    if is_ensemble(run):
        raise UsageError(f"{command} is of a run of one seed: take its members one by one, such as {run}/seed0")
