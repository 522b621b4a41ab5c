"""Whether cost is linear in the steps of a sequence and in the levels of a hierarchy: `python -m benchmarks.linear_cost`.

A deep Markov model (4 latents, networks of 32, a backward GRU of 32; 64 sequences a batch) of T steps, and a top-down hierarchy
of binary rows (16 latents a level, networks of 64, 64 columns; 64 rows a batch) of L levels: CPU milliseconds a training step
of `fit`, by the engine that is named, the seconds until its first step, where a trace is made, and CPU microseconds a particle
of `log_likelihood`. Sizes take turns; medians over blocks. A line a + b T is fitted to each, relative errors weighed alike, and
what is printed is its largest relative error, and the exponent of the last doubling: 1 is proportional, more is worse.

    python -m benchmarks.linear_cost --blocks 3 --out results/benchmarks/linear_cost
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.common.environment import machine

from .turns import FitInTurns

STEPS, LEVELS = (4, 8, 16, 32, 64, 128), (1, 2, 4, 8, 16)
ROWS, BATCH, SCORED, PARTICLES = 256, 64, 32, 64
Made = tuple[Any, Tensor]
Costs = dict[int, dict[str, float]]


def normal_net(inputs: int, outputs: int, hidden: int) -> pv.Conditional:
    return pv.Conditional(pv.MLP(inputs, 2 * outputs, (hidden,)), pv.normal)


def sequences(steps: int) -> Made:
    """Make a deep Markov model, and sequences of so many steps of it."""
    z, width = 4, 32
    model = pv.StateSpaceModel(
        initial=pv.StandardNormal(z),
        transition=normal_net(z, z, width),
        likelihood=normal_net(z, 3, width),
        encoder=pv.BackwardGRU(3, width),
        posterior=normal_net(z + width, z, width),
    )
    return model, torch.randn(ROWS, steps, 3)


def hierarchies(levels: int) -> Made:
    """Make a top-down hierarchy of so many levels, and binary rows."""
    z, x, width = 16, 64, 64
    between, top = [normal_net(z, z, width) for _ in range(levels - 1)], pv.StandardNormal(z)
    down = [normal_net(x + z, z, width) for _ in range(levels - 1)]
    model = pv.HierarchicalVAE(
        priors=[*between, top],
        likelihood=pv.Conditional(pv.MLP(z, x, (width,)), pv.bernoulli),
        posterior=pv.TopDown(*down, normal_net(x, z, width)),
    )
    return model, torch.bernoulli(torch.full((ROWS, x), 0.3))


AXES: dict[str, tuple[str, Callable[[int], Made], tuple[int, ...]]] = {
    "steps of a sequence": ("T", sequences, STEPS),
    "levels of a hierarchy": ("L", hierarchies, LEVELS),
}


def cpu_seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def costs(made: Mapping[int, Made], blocks: int, engine: str) -> Costs:
    """Milliseconds a step, seconds until the first, and microseconds a particle, by size."""
    runs = {size: FitInTurns(model, x, BATCH, None, engine=engine) for size, (model, x) in made.items()}
    first = {size: cpu_seconds(partial(run, 1)) for size, run in runs.items()}
    taken: dict[int, list[float]] = {size: [] for size in runs}
    for _ in range(blocks):
        for size, run in runs.items():
            taken[size].append(seconds_a_step(run))
    for run in runs.values():
        run.close()
    return {
        size: {"first": first[size], "step": 1e3 * median(taken[size]), "particle": 1e6 * particle(*made[size], blocks)}
        for size in runs
    }


def seconds_a_step(run: FitInTurns, steps: int = 12) -> float:
    """CPU seconds a step."""
    start = time.process_time()
    made = run(steps)
    return (time.process_time() - start) / made


def particle(model: Any, x: Tensor, blocks: int) -> float:
    """CPU seconds that one particle of one row takes in log p(x)."""
    score = partial(pv.log_likelihood, model.model, model.guide, x[:SCORED], num_samples=PARTICLES, verbose=False)
    score()
    return median(cpu_seconds(score) for _ in range(min(blocks, 3))) / (SCORED * PARTICLES)


def line(sizes: list[int], values: list[float]) -> tuple[float, float, float, float]:
    """a and b of a + b T, fitted to relative errors; the largest of these; and the exponent of the last doubling.

    Example:
        >>> [round(v, 3) for v in line([1, 2, 4], [3.0, 5.0, 9.0])]
        [1.0, 2.0, 0.0, 0.848]
    """
    y = torch.tensor(values, dtype=torch.float64)
    design = torch.stack([torch.ones_like(y), torch.tensor(sizes, dtype=torch.float64)], 1) / y[:, None]
    a, b = torch.linalg.lstsq(design, torch.ones_like(y)[:, None]).solution[:, 0]
    off = (design @ torch.stack([a, b]) - 1).abs().max()
    exponent = math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])
    return a.item(), b.item(), off.item(), exponent


WHAT = {"step": "ms a step", "first": "s until the first step", "particle": "µs a particle of log p(x)"}


def table(title: str, letter: str, found: Costs) -> str:
    """Format the costs of an axis, each with its line."""
    sizes = list(found)
    head = (
        f"| {title} | {' | '.join(f'{letter} = {size}' for size in sizes)} | a + b {letter} | off by | last doubling |"
    )
    lines = [head, f"|---|{'--:|' * len(sizes)}---|--:|--:|"]
    for key, what in WHAT.items():
        values = [found[size][key] for size in sizes]
        a, b, off, exponent = line(sizes, values)
        cells = " | ".join(f"{value:.3g}" for value in values)
        lines.append(f"| {what} | {cells} | {a:.3g} + {b:.3g} {letter} | {off:.0%} | {letter}^{exponent:.2f} |")
    return "\n".join(lines)


PAGE = """# Cost by steps and by levels

CPU time, medians of {blocks} blocks that take turns; 64 rows a batch, engine {engine}; `{command}`:
torch {torch}, {machine}. "Off by" is the largest relative error of the line, "last doubling" the exponent between the last two
sizes: 1 is proportional; what a is of all makes it less, and what grows faster than a line more.

{tables}
"""


def main(blocks: int, engine: str, few: int | None, out: Path | None, only: str = "") -> dict[str, Costs]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found, tables = {}, []
    for title, (letter, make, sizes) in AXES.items():
        if only not in title:
            continue
        found[title] = costs({size: make(size) for size in sizes[:few]}, blocks, engine)
        tables.append(table(title, letter, found[title]))
        print(tables[-1], flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
        command = f"python -m benchmarks.linear_cost --blocks {blocks} --engine {engine} --out {out}"
        command += f" --only {only}" if only else ""
        page = PAGE.format(
            blocks=blocks, engine=engine, command=command, torch=torch.__version__.split("+")[0],
            machine=machine(torch.device("cpu")), tables="\n\n".join(tables),
        )  # fmt: skip
        out.with_suffix(".md").write_text(page, encoding="utf-8")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linear_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--engine", default="trace")
    parser.add_argument("--few", type=int, help="how many sizes of each, from the smallest")
    parser.add_argument("--only", default="", help="the axis whose name holds this word: steps, levels")
    parser.add_argument("--out", type=Path, help="name of the page and of the JSON file, without their endings")
    options = parser.parse_args()
    main(options.blocks, options.engine, options.few, options.out, options.only)
