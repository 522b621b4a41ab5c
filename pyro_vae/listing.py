"""What the command line prints: evidence with its errors, and the parts that it can name."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pyro_vae.evaluate.evidence import LOW_ESS
from pyro_vae.runs.registry import TABLES, names, options_for

PART_COLUMNS = ("name", "formula", "support", "options", "reference")


def part_rows(role: str) -> list[tuple[str, ...]]:
    """One row a part, in the columns of PART_COLUMNS."""
    rows: list[tuple[str, ...]] = []
    for name in names(role):
        spec = TABLES[role][name]
        options = {k: "needed" if v is inspect.Parameter.empty else v for k, v in options_for(role, name).items()}
        listed = ", ".join(f"{k.replace('_', '-')}={v}" for k, v in options.items())
        rows.append((name, spec.formula, spec.support, listed, spec.reference))
    return rows


def markdown_table(role: str) -> str:
    """The parts of a role as a Markdown table."""
    head = f"| `--{role}` | {' | '.join(PART_COLUMNS[1:])} |\n|{'---|' * len(PART_COLUMNS)}\n"
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in part_rows(role)]
    return head + "".join(f"| `{row[0]}` | {' | '.join(row[1:])} |\n" for row in escaped)


def print_parts(role: str) -> None:
    """The parts of a role as a table on the terminal."""
    table = Table(title=f"--{role} NAME  (options: --{role}.OPTION VALUE)", title_justify="left")
    for column in PART_COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in part_rows(role):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table, markup=False)


def report(evidence: dict[str, Any], run: Path) -> None:
    """The numbers with their errors and health, and where the rest is."""
    table = Table(
        title=f"{evidence['split']} ({evidence['rows']} rows, {evidence['policy']}); nats per row, higher is better"
    )
    for column in ("", "log p(x)", "± Monte Carlo", "± data", "ELBO", "gap", "ESS median (least)"):
        table.add_column(column, justify="right" if column else "left")

    def number(key: str, source: dict[str, Any] = evidence) -> str:
        return "unknown" if source.get(key) is None else f"{source[key]:.3f}"

    ess = f"{evidence['ess_median']:.0f} ({evidence['ess_min']:.1f}) of {evidence['num_samples']}"
    elbo = f"{number('elbo')} ± {number('elbo_mc_se')}"
    table.add_row("VAE", number("log_px"), number("log_px_mc_se"), number("log_px_data_se"), elbo, number("gap"), ess)
    base = evidence["floor"]
    table.add_row("floor", number("log_px", base), "exact", number("log_px_data_se", base), "", "", "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"floor: {base['model']}, exact")
    if low := evidence["rows_of_low_ess"]:
        print(
            f"{low} of {evidence['rows']} rows have an ESS below {LOW_ESS}: their log p(x) is a lower bound that more samples "
            "would raise, and its Monte Carlo error is not to be believed for them."
        )
    print(f"run folder: {run}\npictures:   {run / 'figures'}")
