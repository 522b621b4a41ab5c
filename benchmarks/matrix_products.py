"""Products of matrices by torch's own `mm` and by oneDNN, interleaved: which should be whose (`common/matrix_products`).

    python -m benchmarks.matrix_products --threads 2

Prints milliseconds by oneDNN, and the median ratio of torch's time over it: of x wᵀ (a layer), g w (the gradient of its input)
and gᵀ x (of its weights), float32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from pyro_vae.common.matrix_products import linear

LAYERS = [(784, 400), (20, 400), (400, 784), (784, 2000), (2000, 784)]
BATCHES = (20, 128, 1024)
SECONDS, BLOCKS = 0.05, 11


def timed(run: Callable[[], object]) -> float:
    """Milliseconds of a call, over about SECONDS."""
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        run()
        calls += 1
    return 1e3 * (time.perf_counter() - start) / calls


def compared(torchs: Callable[[], object], onednns: Callable[[], object]) -> str:
    """The median over blocks of oneDNN's time, and of torch's over it."""
    pairs = [(timed(torchs), timed(onednns)) for _ in range(BLOCKS)]
    return f"{median(b for _, b in pairs):.3f} | {median(a / b for a, b in pairs):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix_products", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    by = linear()
    print(
        "| layer | batch | x wᵀ, ms | ratio | g w, ms | ratio | gᵀ x, ms | ratio |\n|---|---|---|---|---|---|---|---|"
    )
    for k, n in LAYERS:
        for batch in BATCHES:
            x, w, g = torch.randn(batch, k), torch.randn(n, k), torch.randn(batch, n)
            cells = [
                compared(lambda x=x, w=w: x @ w.T, lambda x=x, w=w: by(x, w)),  # type: ignore[misc]
                compared(lambda g=g, w=w: g @ w, lambda g=g, w=w: by(g, w.T)),  # type: ignore[misc]
                compared(lambda g=g, x=x: g.T @ x, lambda g=g, x=x: by(g.T, x.T)),  # type: ignore[misc]
            ]
            print(f"| {k}-{n} | {batch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
