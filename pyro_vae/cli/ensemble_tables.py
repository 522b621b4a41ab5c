"""Table of a run of several seeds: each member, and the mean with its error over seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_bound, format_nats, format_share, is_loose, share_flagged
from pyro_vae.common.plain_text import plain
from pyro_vae.evidence.over_seeds import format_mean

from .tables import format_elbo, format_number


def report_seeds(evidence: dict[str, Any], run: Path) -> None:
    """Print each member's log p(x), and the mean over members with ± seed, ± Monte Carlo and ± data."""
    title = f"{evidence['split']} ({counted(evidence['rows'], 'row')}); nats per row, higher is better"
    table = Table(title=Text(plain(title)), min_width=len(title))
    for heading in ("", "log p(x)", "± Monte Carlo", "± data", "ELBO", "flagged"):
        table.add_column(heading, justify="right" if heading else "left")
    for member in evidence["members"]:
        table.add_row(*cells(member))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"mean over {counted(len(evidence['seeds']), 'seed')}: log p(x) {format_mean(evidence)}")
    if not is_loose(evidence) and evidence["log_px_seed_sd"] is not None:
        print(f"from seed to seed: sd {format_nats(evidence['log_px_seed_sd'])}, the Monte Carlo part taken off")
    for why in evidence["left_out"].values():
        print(plain(f"left out: {why}"))
    print(plain(f"method: {evidence['method']}; measure: {evidence['measure']}"))
    first = run / f"seed{evidence['seeds'][0]}"
    print(plain(f"run folder: {run}, with a run for each member: {first} …"))


def cells(member: dict[str, Any]) -> list[str]:
    """Return the line of one member; where more than a tenth of its rows is flagged, a bound without ±."""
    flagged = format_share(share_flagged(member))
    elbo = format_elbo(member) if "elbo" in member else ""
    name = f"seed {member['member_seed']}"
    if is_loose(member):
        return [name, format_bound(member), "loose", "loose", elbo, flagged]
    return [name, *(format_number(member, key) for key in ("log_px", "log_px_mc_se", "log_px_data_se")), elbo, flagged]
