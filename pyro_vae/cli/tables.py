"""Tables on the command line: evidence with its errors, and the parts that it can name."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_bound, format_gap, format_log_px, format_nats, is_loose, why_loose
from pyro_vae.common.plain_text import plain
from pyro_vae.common.spec import REQUIRED
from pyro_vae.runs.registry import TABLES, names, options_for
from pyro_vae.runs.told import cautions, format_measure, next_command

PART_COLUMNS = ("name", "formula", "support", "options", "reference")


def part_rows(role: str) -> list[tuple[str, ...]]:
    """Return one row a part, in the columns of PART_COLUMNS."""
    rows: list[tuple[str, ...]] = []
    for name in names(role):
        spec = TABLES[role][name]
        options = {k: "needed" if v is REQUIRED else v for k, v in options_for(role, name).items()}
        listed = ", ".join(f"{k.replace('_', '-')}={v}" for k, v in options.items())
        rows.append((name, spec.formula, spec.support, listed, spec.reference))
    return rows


def markdown_table(role: str) -> str:
    """Format the parts of a role as a Markdown table."""
    head = f"| `--{role}` | {' | '.join(PART_COLUMNS[1:])} |\n|{'---|' * len(PART_COLUMNS)}\n"
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in part_rows(role)]
    return head + "".join(f"| `{row[0]}` | {' | '.join(row[1:])} |\n" for row in escaped)


def print_parts(role: str) -> None:
    """Print the parts of a role as a table on the terminal."""
    table = Table(title=f"--{role} NAME  (options: --{role}.OPTION VALUE)", title_justify="left")
    for column in PART_COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in part_rows(role):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table, markup=False)


def report(evidence: dict[str, Any], run: Path, out: Path | None = None) -> None:
    """Print log p(x) with its errors, measure and health, and where the files of the run are, or, beside it, of this evidence.

    Where more than a tenth of the rows is flagged there is no ±, but the bound, why it is loose, and what to run next.
    """
    title = f"{evidence['split']} ({counted(evidence['rows'], 'row')}); nats per row, higher is better"
    columns = scores(evidence)
    table = Table(title=Text(title), min_width=len(title))  # a Text, as brackets in a name are no markup
    for heading, *_ in columns:
        table.add_column(heading, justify="right" if heading else "left")
    for cells in list(zip(*columns, strict=True))[1:]:
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(
        plain(f"values: {evidence['policy']}\nfloor: {evidence['floor']['model']}, exact\n{format_measure(evidence)}")
    )
    for line in cautions(evidence):
        print(line)
    if is_loose(evidence):
        print(plain(f"log p(x) {format_log_px(evidence)}\nnext: {next_command(evidence, run, out)}"))
    page = run / "report.html"
    print(
        plain(f"{'run folder' if out is None else 'written to'}: {out or run}\npictures:   {(out or run) / 'figures'}")
    )
    if out is None and page.is_file():
        print(plain(f"report:     {page}"))


def scores(evidence: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return heading, VAE and floor, column by column; an oracle and annealing have no ELBO."""
    base = evidence["floor"]
    shown = [("", "VAE", "floor"), *errors(evidence)]
    if "elbo" in evidence:
        shown.append(("ELBO", format_elbo(evidence), ""))
        shown.append(("gap", format_gap(evidence), ""))
    if "ess_median" in evidence:
        of = evidence.get("num_samples", evidence.get("num_chains"))
        digits = 0 if "num_samples" in evidence else 1
        ess = f"{evidence['ess_median']:.{digits}f} ({evidence['ess_min']:.1f}) of {of}"
        shown.append(("ESS median (least)", ess, ""))
    return [
        (heading, vae, format_number(base, "log_px") if heading == "log p(x)" else floor)
        for heading, vae, floor in shown
    ]


def format_elbo(evidence: dict[str, Any]) -> str:
    """Format the ELBO and its Monte Carlo error, without ± beside a log p(x) that has none."""
    spread = format_number(evidence, "elbo_mc_se")
    error = f"(s.e. {spread})" if is_loose(evidence) else f"± {spread}"
    return f"{format_number(evidence, 'elbo')} {error}"


def errors(evidence: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the columns of log p(x) and its errors; of a loose one, those of the floor alone."""
    spread = format_number(evidence["floor"], "log_px_data_se")
    if is_loose(evidence):
        return [("log p(x)", format_bound(evidence), ""), ("data s.e.", "loose", spread)]
    exact = "how" in evidence
    error = f"{evidence['log_px_mc_se']:.1e}" if exact else format_number(evidence, "log_px_mc_se")
    return [
        ("log p(x)", format_number(evidence, "log_px"), ""),
        ("± numerical" if exact else "± Monte Carlo", error, "exact"),
        ("± data", format_number(evidence, "log_px_data_se"), spread),
    ]


def format_number(source: dict[str, Any], key: str) -> str:
    return format_nats(source.get(key))


def format_agreement(sampled: dict[str, Any], annealed: dict[str, Any]) -> str:
    """Format whether importance sampling and annealing of the same rows agree within their Monte Carlo errors."""
    difference = annealed["log_px"] - sampled["log_px"]
    doubted = [s for s in (sampled, annealed) if is_loose(s)]
    if doubted:
        why = f"{why_loose(doubted[0])} in {doubted[0]['method']}"
        return f"annealing − importance sampling: {difference:+.2f} nats; {why}"
    error = math.hypot(sampled["log_px_mc_se"], annealed["log_px_mc_se"])
    agree = (
        "they agree" if abs(difference) <= 2 * error else "they differ: both are lower bounds, and the higher is nearer"
    )
    return f"annealing − importance sampling: {difference:+.4f} ± {format_nats(error, 4)} nats (Monte Carlo): {agree}"
