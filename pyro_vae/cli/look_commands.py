"""Commands of `pyro-vae` that only look: `show`, one run in a terminal, and `runs`, those of a folder; both with --json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_nats
from pyro_vae.common.plain_text import plain
from pyro_vae.runs.list_runs import list_runs, summary_of

from .commands import Json, app, print_json

WIDTH = 80  # of a table that is printed into a file or a pipe


@app.command
def show(
    run: Annotated[Path, Parameter(help="Run folder, of one seed or several.")], /, *, as_json: Json = False
) -> None:
    """Shows a run: what was asked, log p(x) with its errors, whether to trust it, and what to run next."""
    about = summary_of(run)
    if as_json:
        print_json(about)
        return
    table = Table(show_header=False, box=None, pad_edge=False, title=Text(plain(run)), title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines_of(about):
        table.add_row(name, Text(plain(value)))
    console().print(table)


def lines_of(about: dict[str, Any]) -> list[tuple[str, str]]:
    """List what is shown of a run."""
    lines = [("verdict", f"{about['verdict']}: {about['why']}")] if "verdict" in about else []
    means = "numerical" if "exact" in str(about.get("evaluation")).split("-") else "Monte Carlo"
    errors = f" (± {means} ± data)" if about["kind"] == "run" and "±" in about["log_px_text"] else ""
    rows = f" nats a row{errors}, on {counted(about['rows'], 'row')}" if about.get("rows") else ""
    lines.append(("log p(x)", f"{about['log_px_text']}{rows}"))
    if about.get("floor") is not None:
        lines.append(("floor", f"{about['floor']:.3f}"))
    if about.get("elbo") is not None:
        lines.append(("ELBO", f"{about['elbo']:.3f} (Monte Carlo error {format_nats(about.get('elbo_mc_se'))})"))
    others = [
        f"{e['told']}: {e['log_px_text']}" for e in about.get("evaluations", []) if e["name"] != about["evaluation"]
    ]
    lines += [("also", other) for other in others]
    lines += list(about["asked"].items())
    if about["kind"] == "ensemble":
        lines.append(("members", ", ".join(Path(m).name for m in about["members"])))
        lines += [("left out", f"seed {seed}: {why}") for seed, why in about["diverged"].items()]
    if about.get("seconds") is not None:
        lines.append(("trained", f"{counted(about['epochs'], 'epoch')} in {about['seconds']:g} s"))
    lines += [("date", about["date"] or "unknown")]
    return lines + ([("next", about["next"])] if "next" in about else [])


@app.command
def runs(
    folder: Annotated[Path, Parameter(help="Folder with run folders in it.")] = Path("runs"),
    /,
    *,
    as_json: Json = False,
) -> None:
    """Lists the runs in a folder: log p(x) with its errors, whether it is to be trusted, data, model and date."""
    listed = list_runs(folder)
    if as_json:
        print_json(listed)
        return
    if not listed:
        print(plain(f"there is no run in {folder}"))
        return
    table = Table(
        title=Text(plain(f"{folder}: log p(x) ± Monte Carlo (or numerical) ± data, nats a row")),
        title_justify="left",
    )
    for heading in ("run", "log p(x)", "verdict", "data", "date"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "date")
    for about in listed:
        name = str(Path(about["run"]).relative_to(folder))
        cells = [about.get(key) or "" for key in ("log_px_text", "verdict", "data", "date")]
        cells = ["cannot be read", about["error"][:200], "", ""] if "error" in about else cells
        table.add_row(*(Text(plain(cell)) for cell in (name if name != "." else str(folder), *cells)))
    console().print(table)


def console() -> Console:
    """Return where tables go: as wide as the terminal, or 80 columns."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)
