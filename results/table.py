"""Writes the table of results/README.md from the runs beside it: `python results/table.py`."""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
COLUMNS = [
    "run",
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
COLUMNS += ["ESS median (rows below 10)", "trained", "machine"]
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"


def number(value: float | None, digits: int = 3) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"


def row(path: Path) -> str:
    """One run in a line; all of it from its evidence.json and config.json."""
    e, config = (json.loads((path / name).read_text()) for name in ("evidence.json", "config.json"))
    t = e["training"]
    cells = [
        f"[{path.name}]({path.name}/evidence.json)",
        number(e["log_px"]),
        number(e["log_px_mc_se"]),
        number(e["log_px_data_se"]),
        f"{number(e['elbo'])} ± {number(e['elbo_mc_se'])}",
        number(e["gap"]),
        number(e["floor"]["log_px"]),
        str(e["num_samples"]),
        f"{e['rows']} ({e['split']})",
        f"{config['config']['seed']}, {e['seed']}",
        f"{e['ess_median']:.0f} ({e['rows_of_low_ess']})",
        f"{t['epochs']} epochs, {t['seconds'] / 60:.1f} min",
        e["machine"],
    ]
    return "| " + " | ".join(cells) + " |\n"


def table() -> str:
    return HEAD + "".join(row(p.parent) for p in sorted(HERE.glob("*/evidence.json")))


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(re.sub(r"(<!-- table -->\n).*?(<!-- end -->)", lambda m: m[1] + table() + m[2], text, flags=re.S))


if __name__ == "__main__":
    main()
