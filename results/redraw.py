"""Draws pictures of long runs anew from the numbers that they left, as `pyro_vae/plots` draws now; nothing is trained.

    python results/redraw.py

What needs a run's weights (samples, reconstructions, the map of latents, k̂'s rows) is not among them.
"""

import json
import runpy
import sys
from pathlib import Path

from pyro_vae.plots.figures import evidence_curve, save, training_curve

HERE = Path(__file__).parent


def mnist(folder: Path) -> None:
    """The two curves of a training, from the lines of its log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    history = [line for line in lines if "train_elbo" in line]
    points = [line["evidence"] | {"epoch": line["epoch"]} for line in lines if "evidence" in line]
    floor = json.loads((folder / "evidence.json").read_text())["floor"]["log_px"]
    save(training_curve(history, floor), folder / "figures" / "training.png")
    save(evidence_curve(points), folder / "figures" / "evidence.png")


def tabular(folder: Path) -> None:
    """The models of two tables beside their peers."""
    draw = runpy.run_path(str(HERE.parent / "examples" / "tabular.py"))["draw"]
    save(draw(json.loads((folder / "results.json").read_text())), folder / "tabular.png")


def semi_supervised(folder: Path) -> None:
    """How far the classifiers of 600 labels are to be believed."""
    example = runpy.run_path(str(HERE.parent / "examples" / "semi_supervised.py"))
    runs = json.loads((folder / "semi_supervised.json").read_text())
    run = next(run for run in runs if run["labels"] == 600)
    example["draw_reliability"](run, example["Settings"](**run["settings"]), folder)


def benchmarks(folder: Path) -> None:
    """Times of training steps, by case, and how they grow."""
    from benchmarks.report import draw

    draw(json.loads((folder / "benchmarks.json").read_text()), folder)


if __name__ == "__main__":
    mnist(HERE / "mnist")
    tabular(HERE / "tabular")
    semi_supervised(HERE / "semi_supervised")
    sys.path.insert(0, str(HERE.parent))  # benchmarks is no installed package
    for run in (".", "epyc", "xeon"):
        benchmarks(HERE / "benchmarks" / run)
