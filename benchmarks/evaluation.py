"""How much of the machine's matrix-multiplication rate an evaluation reaches: `python -m benchmarks.evaluation`.

log p(x) of a 784-200-200-50 Bernoulli VAE with the tanh that `pyro-vae train` builds, by importance sampling, beside the
decoder's matrix products alone, of the same shapes and as many: the ratio of their CPU times, in interleaved blocks of one
process and one thread. By the programs themselves, as a short evaluation is made; and by a compiled graph, as a long one is
(ten thousand rows at K = 5,000, say): there the time of K is taken off that of 5 K, so that what compiling takes is not in it,
and stands beside it. And the memory that an evaluation keeps, at K and at ten times K.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models.networks import Tanh

WIDTHS = (50, 200, 200, 784)
CHUNK = 4096  # pairs of row and particle at a time, log_likelihood's own
LONG = 5  # times K


def vae() -> pv.VAE:
    def mlp(widths: tuple[int, ...]) -> pv.MLP:
        return pv.MLP(widths[0], widths[-1], hidden=widths[1:-1], activation=Tanh)

    return pv.VAE(
        pv.StandardNormal(WIDTHS[0]),
        pv.Conditional(mlp(WIDTHS), pv.bernoulli),
        pv.Conditional(mlp((*WIDTHS[:0:-1], 2 * WIDTHS[0])), pv.normal),
    )


def products(weights: list[Tensor], pairs: int) -> None:
    """The decoder's matrix products for so many pairs."""
    z = torch.randn(CHUNK, WIDTHS[0])
    for _ in range(pairs // CHUNK):
        h = z
        for w in weights:
            h = h @ w


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def megabytes() -> float:
    """The most that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(rows: int, samples: int, blocks: int, out: Path | None, compiled: bool = True) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = vae(), (torch.rand(rows, WIDTHS[-1]) < 0.3).float()
    weights = [torch.randn(a, b) / a**0.5 for a, b in pairwise(WIDTHS)]

    def evaluate(k: int, engine: str) -> None:
        pv.log_likelihood(model.model, model.guide, x, num_samples=k, engine=engine, verbose=False)

    evaluate(samples, "eager")
    small = megabytes()
    evaluate(10 * samples, "eager")
    grown = megabytes() - small
    pairs, found = rows * samples, {"rows": rows, "samples": samples, "blocks": blocks}
    alone, plain, graph, fixed = [], [], [], []
    if compiled:
        evaluate(samples, "compile")  # torch imports its compiler, and keeps what it made
    for _ in range(blocks):
        alone.append(cpu_seconds(lambda: products(weights, pairs)) / pairs)
        plain.append(cpu_seconds(lambda: evaluate(samples, "eager")) / pairs)
        if compiled:
            short, long = (cpu_seconds(partial(evaluate, k, "compile")) for k in (samples, LONG * samples))
            graph.append((long - short) / ((LONG - 1) * pairs))
            fixed.append(short - graph[-1] * pairs)
    for name, times in {"": plain, "compiled_": graph}.items():
        if not times:
            continue
        ratios = [a / b for a, b in zip(alone, times, strict=True)]
        found |= {
            f"{name}share_of_matmul_rate_median": statistics.median(ratios),
            f"{name}share_least": min(ratios),
            f"{name}share_most": max(ratios),
            f"{name}pairs_per_cpu_second": 1 / statistics.median(times),
        }
    flops = 2 * sum(a * b for a, b in pairwise(WIDTHS))
    if fixed:
        found["seconds_of_tracing_and_compiling_again"] = statistics.median(fixed)
    found |= {
        "matmul_gflops_per_cpu_second": flops / statistics.median(alone) / 1e9,
        "memory_mb_at_k": small,
        "memory_mb_more_at_ten_k": grown,
    }
    print(json.dumps(found, indent=1))
    if out is not None:
        out.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a short form")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    said = parser.parse_args()
    main(*((64, 64, 1) if said.quick else (64, 5000, 9)), said.out, compiled=not said.quick)
