"""What shards cost: a step of S = 2, 4, 8 in one process over one of S = 1, and what two processes spend on exchange.

    OMP_NUM_THREADS=1 python -m benchmarks.shards                  # a table; --out FILE appends it
    OMP_NUM_THREADS=1 python -m benchmarks.shards --by-hand        # the arithmetic alone, the least that shards can cost
    OMP_NUM_THREADS=1 python -m benchmarks.shards --products       # the weights' gradients alone, as one graph sums them
    OMP_NUM_THREADS=1 python -m benchmarks.shards --exchange       # two processes, over gloo on this machine

The first times steps in CPU seconds of the process, which other work on the machine does not use up, in turns: S = 1, 2, 4,
8, and again; a ratio is the median over turns. The second times, in CPU seconds of rank 0, too, a step, and within it the
exchange of the gradients, their sums, and the copying before and after; waiting for the other process costs none.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

CASES = [(400, 512), (400, 1024), (2000, 512), (2000, 1024)]  # hidden units, rows of a batch
STEPS = 12  # an epoch
SHARDS = (1, 2, 4, 8)
PIXELS, LATENTS = 784, 20


def small_vae(hidden: int) -> Any:
    import pyro

    from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal

    pyro.set_rng_seed(0)
    likelihood = Conditional(MLP(LATENTS, PIXELS, (hidden,)), bernoulli)
    return VAE(StandardNormal(LATENTS), likelihood, Conditional(MLP(PIXELS, 2 * LATENTS, (hidden,)), normal))


def seconds_a_step(hidden: int, batch: int, shards: int, engine: str, clock: Any, epochs: int = 3) -> float:
    """Train some epochs; return the time of a step within an epoch, the fastest epoch's, after the first."""
    import torch

    from pyro_vae import fit

    times: list[float] = []

    def looked_at(done: float) -> float:  # asked once a step
        times.append(clock())
        return 1.0

    x = torch.bernoulli(torch.full((batch * STEPS, PIXELS), 0.3), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"batch_size": batch, "shards": shards, "engine": engine, "schedule": looked_at}
    fit(small_vae(hidden), x, validation=x[:10], epochs=epochs, verbose=False, **options)
    times = times[-epochs * STEPS :]
    per_epoch = [times[i : i + STEPS] for i in range(0, len(times), STEPS)]
    return min((of[-1] - of[2]) / (len(of) - 3) for of in per_epoch[1:])  # an epoch's first step is checked


def costs(engine: str, turns: int, clock: Any) -> list[str]:
    """Time every case; return lines of a table."""
    several = " | ".join(f"S = {shards}" for shards in SHARDS[1:])
    lines = [f"| network ({engine}) | batch | S = 1, ms | {several} |", "|---|---|---|---|---|---|"]
    for hidden, batch in CASES:
        timed = [[seconds_a_step(hidden, batch, shards, engine, clock) for shards in SHARDS] for _ in range(turns)]
        one = statistics.median(of[0] for of in timed)
        ratios = [statistics.median(of[i] / of[0] for of in timed) for i in range(1, len(SHARDS))]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| 784-{hidden}-20 | {batch} | {1e3 * one:.1f} | {cells} |")
        print(lines[-1], file=sys.stderr)
    return lines


def by_hand(turns: int) -> list[str]:
    """Time the arithmetic alone, in plain torch: a batch's gradient, and that of its parts added up."""
    import torch
    from torch import nn

    lines = [
        f"| by hand | batch | S = 1, ms | {' | '.join(f'S = {s}' for s in SHARDS[1:])} |",
        "|---|---|---|---|---|---|",
    ]
    for hidden, batch in (CASES[0], CASES[-1]):
        encoder = nn.Sequential(nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, 2 * LATENTS))
        decoder = nn.Sequential(nn.Linear(LATENTS, hidden), nn.ReLU(), nn.Linear(hidden, PIXELS))
        parameters, x = [*encoder.parameters(), *decoder.parameters()], torch.rand(batch, PIXELS)
        best = dict.fromkeys(SHARDS, float("inf"))
        for shards in SHARDS * (turns + 1):
            start, total = time.process_time(), None
            for part in x.tensor_split(shards):
                logits = decoder(encoder(part)[:, :LATENTS])
                loss = nn.functional.binary_cross_entropy_with_logits(logits, part, reduction="sum")
                gradients = torch.autograd.grad(loss, parameters)
                total = gradients if total is None else [a.add_(b) for a, b in zip(total, gradients, strict=True)]
            best[shards] = min(best[shards], time.process_time() - start)
        cells = " | ".join(f"{best[shards] / best[1]:.2f}" for shards in SHARDS[1:])
        lines.append(f"| 784-{hidden}-20 | {batch} | {1e3 * best[1]:.1f} | {cells} |")
    return lines


def products(turns: int) -> list[str]:
    """Time the gradients of the large weights alone: one product of all rows, of each of 8 parts, and these added up."""
    import torch

    from pyro_vae.training.engines.product_sums import by_panels, by_tiles

    head = "| gradient | rows | one product, ms | of 8 parts | added up by panels | by tiles |"
    lines = [head, "|---|---|---|---|---|---|"]
    for batch in (512, 1024):
        for p, q in ((2000, PIXELS), (PIXELS, 2000)):
            a, b, out = torch.rand(8, batch // 8, p), torch.rand(8, batch // 8, q), torch.empty(p, q)

            def each(a: Any = a, b: Any = b, out: Any = out) -> None:
                for x, y in zip(a, b, strict=True):
                    torch.mm(x.T, y, out=out)

            def one(a: Any = a, b: Any = b) -> None:
                a.flatten(0, 1).T @ b.flatten(0, 1)

            def panels(a: Any = a, b: Any = b) -> None:
                by_panels(a, b)

            def tiles(a: Any = a, b: Any = b) -> None:
                by_tiles(a, b)

            best = [float("inf")] * 4
            for _ in range(10 * turns):
                for i, function in enumerate((one, each, panels, tiles)):
                    start = time.process_time()
                    function()
                    best[i] = min(best[i], time.process_time() - start)
            ratios = " | ".join(f"{value / best[0]:.2f}" for value in best[1:])
            lines.append(f"| {p} × {q} | {batch} | {1e3 * best[0]:.1f} | {ratios} |")
    return lines


def exchange_of_rank(hidden: int, batch: int, engine: str) -> None:
    """Train in this rank, and print what a step took and what of it the exchange did."""
    from pyro_vae.common.processes import joined
    from pyro_vae.training import gradient_tree, shards

    parts = {
        "numbers told": (shards, "gather"),
        "gradients laid out": (gradient_tree.SumOverProcesses, "lay_out"),
        "exchanged": (gradient_tree, "exchange"),
        "added": (gradient_tree, "tree_sum"),
        "sums told": (gradient_tree, "gather"),
    }
    spent: dict[str, list[float]] = {name: [] for name in parts}

    def timed(name: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            start = time.process_time()
            result = function(*args)
            spent[name].append(time.process_time() - start)
            return result

        return run

    for name, (place, function) in parts.items():
        setattr(place, function, timed(name, getattr(place, function)))
    with joined("cpu") as here:
        step = seconds_a_step(hidden, batch, 8, engine, time.process_time, epochs=3)
    if here.leads:
        steps = len(spent["gradients laid out"])  # once a step; numbers are told elsewhere, too
        typical = {name: statistics.median(a_step(of, steps)) for name, of in spent.items()}
        said = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in typical.items())
        share = sum(typical.values()) / step
        what = f"784-{hidden}-20, batch {batch}, 2 processes: a step {1e3 * step:.1f} ms of CPU"
        print(f"{what}; {said}; {100 * share:.0f} % of it")


def a_step(times: list[float], steps: int) -> list[float]:
    """Add up the times of as many calls as a step makes."""
    calls = max(1, len(times) // steps)
    return [sum(times[i : i + calls]) for i in range(0, len(times) - calls + 1, calls)]


def exchange(engine: str) -> list[str]:
    """Start two processes for the largest case; return what rank 0 says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "benchmarks.shards", "--rank", "--engine", engine]
    ranks = [
        subprocess.Popen(command, env=common | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    return [out for rank in ranks for out in [rank.communicate()[0].strip()] if out]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--engine", default="trace")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--wall", action="store_true", help="time by the wall clock: of several threads, on a quiet machine"
    )
    parser.add_argument("--exchange", action="store_true", help="two processes")
    parser.add_argument("--by-hand", action="store_true", help="the arithmetic alone, in plain torch")
    parser.add_argument("--products", action="store_true", help="the weights' gradients alone")
    parser.add_argument("--rank", action="store_true", help="be one of them")
    parser.add_argument("--out", type=Path, help="Markdown file that the result is added to")
    options = parser.parse_args()
    if options.rank:
        exchange_of_rank(*CASES[-1], options.engine)
        return
    if options.by_hand or options.products:
        lines = (by_hand if options.by_hand else products)(options.turns)
    else:
        clock = time.perf_counter if options.wall else time.process_time
        lines = exchange(options.engine) if options.exchange else costs(options.engine, options.turns, clock)
    import torch

    from pyro_vae.common.environment import machine

    about = f"`python -m benchmarks.shards {' '.join(sys.argv[1:])}`, {machine(torch.device('cpu'))}, torch {torch.__version__}"
    text = "\n".join([f"{date.today()}: {about}", "", *lines, ""])
    print(text)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}")


if __name__ == "__main__":
    main()
