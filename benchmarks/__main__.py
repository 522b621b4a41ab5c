"""The time of a training step, of log p(x) and of ensembles, ours and elsewhere, interleaved in one process.

    pip install '.[bench]'                 # NumPyro and pythae; who is not installed is left out
    python -m benchmarks                   # all sizes and kinds, to results/benchmarks/
    python -m benchmarks --quick           # small cases, in seconds: whether the harness runs
    python -m benchmarks --minutes 20      # fewer blocks, not fewer cases
    python -m benchmarks --device cuda --minutes 4 --out results/benchmarks/cuda

What a GPU that is lent for six minutes would run, from the root of the repository, each command within its minutes:

    python -m benchmarks --device cuda --minutes 3.5 --blocks 5 --seconds 0.1 --out OUT
    python -m benchmarks.agreement --device cuda --minutes 2 --out OUT/agreement.json

The first times everything; the second trains five seeds in float32, TF32 and bfloat16 and compares their test ELBOs.

Peers: stock Pyro SVI (as it comes; validation off; one fused torch optimizer), PyTorch by hand (Adam; fused; compiled; the
whole step, Adam and all, as one compiled function, captured as a CUDA graph on CUDA), NumPyro's compiled loop, pythae's
trainer; and our `fit` itself, epoch after epoch, with its log and without. A ratio is a peer's time over that of our fastest
engine at the same precision, within a block, median over blocks. XLA multiplies in TF32 on a GPU unless told otherwise, so
NumPyro is timed at both there; on a CPU both are float32. On a busy machine look at the CPU times, or wait.

Each run adds a line to history.jsonl in the folder of its results, and history.md shows all of them, slips marked.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small cases, few blocks, nothing compiled")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a block")
    parser.add_argument(
        "--minutes", type=float, help="for all: blocks are cut, down to one, no case is; no growth curves"
    )
    parser.add_argument("--sections", default="steps,evidence,growth", help="which of these, by commas")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--peers", default="", help="peers whose name holds one of these, by commas (ours stay)")
    parser.add_argument("--leave-out", default="", help="whose name holds one of these, by commas (ours, too)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    on_cpu = options.device == "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen={'true' if options.threads > 1 else 'false'}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if on_cpu else "cuda")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the memory is torch's, too
    from .report import table, write  # torch reads its threads when it is imported
    from .run import benchmark

    results = benchmark(options)
    write(results, options.out)
    print(table(results))


if __name__ == "__main__":
    main()
