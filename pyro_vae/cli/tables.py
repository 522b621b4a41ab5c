"""Tables on the command line: evidence with its errors, and the parts that it can name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pyro_vae.common.spec import REQUIRED
from pyro_vae.evidence.importance.result import LEAST, LOW_ESS
from pyro_vae.programs.measure import dominating
from pyro_vae.runs.registry import TABLES, names, options_for

MEASURES = {"counting": "a log probability", "Lebesgue": "a log density, which moves with the scale of x"}
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


def report(evidence: dict[str, Any], run: Path) -> None:
    """Print log p(x) with its errors, measure and health, and where the files of the run are."""
    title = f"{evidence['split']} ({evidence['rows']} rows, {evidence['policy']}); nats per row, higher is better"
    columns = scores(evidence)
    table = Table(title=title, min_width=len(title))
    for heading, *_ in columns:
        table.add_column(heading, justify="right" if heading else "left")
    for cells in list(zip(*columns, strict=True))[1:]:
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"floor: {evidence['floor']['model']}, exact\n{format_measure(evidence)}")
    for line in cautions(evidence):
        print(line)
    print(f"run folder: {run}\npictures:   {run / 'figures'}")


def scores(evidence: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return heading, VAE and floor, column by column; an oracle has no ELBO and no weights."""
    base, sampled = evidence["floor"], "elbo" in evidence
    error = format_number(evidence, "log_px_mc_se") if sampled else f"{evidence['log_px_mc_se']:.1e}"
    shown = [
        ("", "VAE", "floor"),
        ("log p(x)", format_number(evidence, "log_px"), format_number(base, "log_px")),
        ("± Monte Carlo" if sampled else "± numerical", error, "exact"),
        ("± data", format_number(evidence, "log_px_data_se"), format_number(base, "log_px_data_se")),
    ]
    if sampled:
        ess = f"{evidence['ess_median']:.0f} ({evidence['ess_min']:.1f}) of {evidence['num_samples']}"
        shown += [
            ("ELBO", f"{format_number(evidence, 'elbo')} ± {format_number(evidence, 'elbo_mc_se')}", ""),
            ("gap", format_number(evidence, "gap"), ""),
            ("ESS median (least)", ess, ""),
        ]
    return shown


def format_number(source: dict[str, Any], key: str) -> str:
    return "unknown" if source.get(key) is None else f"{source[key]:.3f}"


def format_measure(evidence: dict[str, Any]) -> str:
    """Format method and measure, and the number in bits."""
    how = evidence["how"] if "how" in evidence else f"from the {evidence['proposal']}"
    kind = MEASURES.get(
        dominating(evidence["measure"]), "a log density in some columns of x, a log probability in others"
    )
    bits = f"{evidence['bits_per_dim']:.4f} bits for each of {evidence['elements']} elements (lower is better)"
    return f"measure: {evidence['measure']}, {kind}; {bits}\nmethod: {evidence['method']}, {how}"


def cautions(evidence: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each reason to doubt the number."""
    rows = evidence["rows"]
    if low := evidence.get("rows_of_low_ess"):
        yield (
            f"{low} of {rows} rows have an ESS below {LOW_ESS}: their log p(x) is a lower bound that more samples "
            "would raise, and its Monte Carlo error is not to be believed for them."
        )
    if flagged := evidence.get("rows_flagged"):
        why = "their error is above what was asked for" if "how" in evidence else why_flagged(evidence)
        yield f"{flagged} of {rows} rows are flagged, not to be believed: {why}."


def why_flagged(evidence: dict[str, Any]) -> str:
    """Explain why rows by importance sampling are flagged."""
    few = evidence["num_samples"] < LEAST
    reason = f"k̂ takes {LEAST} samples" if few else f"k̂ is above {evidence['khat_threshold']:.2f}"
    if evidence.get("rows_too_narrow"):
        reason += ", or the proposal too narrow for its own draws to tell"
    target = evidence["target_se"]
    return reason if target is None else f"{reason}, or the Monte Carlo error above {target:g}"
