"""A training step's time, ours and elsewhere, interleaved in one process.

    pip install '.[bench]'                 # NumPyro and pythae; who is not installed is left out
    python -m benchmarks                   # all sizes and kinds, to results/benchmarks/
    python -m benchmarks --quick           # a small case, in seconds: whether the harness runs

Peers: stock Pyro SVI (as it comes; validation off; one fused torch optimizer), PyTorch by hand (Adam; fused; compiled),
NumPyro's compiled loop, pythae's trainer; and our engines. A ratio is a peer's time over that of our fastest engine, within
a block, median over blocks. On a busy machine look at the CPU times, or wait.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two small cases, few blocks, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a block")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--peers", default="", help="peers whose name holds one of these, by commas (ours stay)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'}")
    from .report import table, write  # torch reads its threads when it is imported
    from .run import benchmark

    results = benchmark(options)
    write(results, options.out)
    print(table(results))


if __name__ == "__main__":
    main()
