"""What an evaluation costs on two processes, over half of what it costs on one: `python -m benchmarks.spread`.

    OMP_NUM_THREADS=1 python -m benchmarks.spread                  # a table; --out FILE appends it
    OMP_NUM_THREADS=1 python -m benchmarks.spread --rows 640 --samples 200 --turns 1    # whether it runs

log p(x) of random rows under a 784-400-20 Bernoulli VAE by importance sampling, on W = 1 and 2 processes of one thread each,
in turns. Importing torch and Pyro is not in it, and neither is a first call on 128 rows. On the wall a process waits for the
other, and for whatever else the machine does; of CPU seconds it takes those of the process that took more, which hold the
uneven share of the work and of the exchange, but not the waiting. A ratio is that of W = 2 over half of W = 1 in the same turn;
the median over turns, with the least and the most.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

WIDTHS = (20, 400, 784)


def of_rank(rows: int, samples: int) -> None:
    """Evaluate in this rank; print its seconds, on the wall and of the CPU, and a digest of what came of it."""
    import pyro
    import torch

    from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, log_likelihood, normal
    from pyro_vae.common.digests import tensor_digest
    from pyro_vae.common.exchange import agree
    from pyro_vae.common.processes import joined

    pyro.set_rng_seed(0)
    latents, hidden, pixels = WIDTHS
    posterior = Conditional(MLP(pixels, 2 * latents, (hidden,)), normal)
    vae = VAE(StandardNormal(latents), Conditional(MLP(latents, pixels, (hidden,)), bernoulli), posterior)
    x = torch.bernoulli(torch.full((rows, pixels), 0.3), generator=torch.Generator().manual_seed(0))

    def evaluate(some: Any, count: int) -> Any:
        return log_likelihood(vae.model, vae.guide, some, num_samples=count, engine="eager", verbose=False)

    with joined("cpu"):
        evaluate(x[:128], 10)
        agree("that all are here", True)
        wall, cpu = time.perf_counter(), time.process_time()
        evidence = evaluate(x, samples)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(spent | {"digest": tensor_digest({"log_px": evidence.log_px, "khat": evidence.khat})}))


def run(world: int, rows: int, samples: int) -> list[dict[str, Any]]:
    """Start the ranks, and return what each printed."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.spread", "--rank", "--rows", str(rows), "--samples", str(samples)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(r)}, stdout=subprocess.PIPE, text=True)
        for r in range(world)
    ]
    return [json.loads(rank.communicate()[0]) for rank in ranks]


def ratios(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> dict[str, float]:
    """W = 2 over half of W = 1, of the slowest rank."""
    assert len({rank["digest"] for rank in (*one, *two)}) == 1, "the bits differ"
    slowest = [{clock: max(rank[clock] for rank in ranks) for clock in ("wall", "cpu")} for ranks in (one, two)]
    return {clock: slowest[1][clock] / (slowest[0][clock] / 2) for clock in ("wall", "cpu")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1280)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file to append the table to")
    parser.add_argument("--rank", action="store_true", help="evaluate in this process, as one of those started")
    options = parser.parse_args()
    if options.rank:
        of_rank(options.rows, options.samples)
        return
    turns = []
    for _ in range(options.turns):
        one, two = (run(world, options.rows, options.samples) for world in (1, 2))
        turns.append(({"one": one[0], "two": two}, ratios(one, two)))
        print(json.dumps(turns[-1]), file=sys.stderr, flush=True)
    load = os.getloadavg()[1] if hasattr(os, "getloadavg") else float("nan")
    asked = f"--rows {options.rows} --samples {options.samples} --turns {options.turns}"
    lines = [
        f"{date.today()}: `OMP_NUM_THREADS=1 python -m benchmarks.spread {asked}`, torch {version('torch')}, "
        f"{os.cpu_count()} cores, a load of {load:.1f} over the last five minutes",
        "",
        "| clock | W = 1, s | W = 2 over half of it (least, most) |",
        "|---|---|---|",
    ]
    for clock in ("cpu", "wall"):
        found = sorted(ratio[clock] for _, ratio in turns)
        alone = statistics.median(told["one"][clock] for told, _ in turns)
        lines.append(f"| {clock} | {alone:.1f} | {statistics.median(found):.3f} ({found[0]:.3f}, {found[-1]:.3f}) |")
    table = "\n".join(lines) + "\n"
    print(table)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(table + "\n")


if __name__ == "__main__":
    main()
