"""Writes the table of results/README.md from the runs beside it: `python results/table.py`."""

import json
import re
from pathlib import Path
from typing import Any

from pyro_vae.common.flagged import format_bound, is_loose, why_loose

HERE = Path(__file__).parent
COLUMNS = [
    "run",
    "method",
    "log p(x)",
    "± Monte Carlo",
    "± data",
    "ELBO",
    "gap",
    "floor",
    "K",
    "rows",
    "seed: training, evaluation",
]
COLUMNS += ["ESS median (least)", "trained", "machine"]
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"


def number(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def mean(e: dict[str, Any]) -> list[str]:
    """log p(x) with its two errors; where more than a tenth of the rows is flagged the bound, and why it has none."""
    elbo, error = (number(e.get(key)) for key in ("elbo", "elbo_mc_se"))
    if is_loose(e):
        return [f"{format_bound(e)} ({why_loose(e)})", "", "", f"{elbo} (s.e. {error})"]
    errors = [number(e["log_px_mc_se"]), number(e["log_px_data_se"])]
    return [number(e["log_px"]), *errors, f"{elbo} ± {error}" if "elbo" in e else ""]


def row(path: Path) -> str:
    """One evaluation in a line; all of it from its evidence.json and config.json."""
    e, config = (json.loads(file.read_text()) for file in (path, path.parent / "config.json"))
    t = e["training"]
    cells = [
        f"[{path.parent.name}]({path.parent.name}/{path.name})",
        e.get("method", "importance sampling"),
        *mean(e),
        number(e["gap"]) if "gap" in e else "",
        number(e["floor"]["log_px"]),
        str(e["num_samples"]) if "num_samples" in e else f"{e['num_chains']} chains",
        f"{e['rows']} ({e['split']})",
        f"{config['config']['seed']}, {e['seed']}",
        f"{e['ess_median']:.0f} ({e['ess_min']:.1f})",
        f"{t['epochs']} epochs, {t['seconds'] / 60:.1f} min",
        e["machine"],
    ]
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    return HEAD + "".join(row(p) for p in sorted(HERE.glob("*/evidence*.json"), key=lambda p: (p.parent, len(p.name))))


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(re.sub(r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: m[1] + table() + m[2], text, flags=re.S))


if __name__ == "__main__":
    main()
