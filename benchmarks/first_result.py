"""The time from the start of a process to its first log-likelihood or ELBO of test rows, with libraries side by side.

    pip install '.[bench]'                           # and scvi-tools, multivae, each in an environment of its own
    python -m benchmarks.first_result                # five processes each, in turn; who is not installed is left out
    python -m benchmarks.first_result --repeats 1

Each script of ``benchmarks/first/`` is what its library's own quickstart or example makes of the same task: digits of 8 x 8
pixels in black and white, one hidden layer of 64 ReLUs, 8 latents, 20 epochs in batches of 100, Adam at 1e-3, then a number for
360 test rows (scvi-tools takes the counts of 0 to 16, MultiVae halves of a digit as modalities, each with networks of its own).
Imports, compilation and data are in the time; the first round of all, in which files come from the disk, is
thrown away. Processes have one thread. Lines are those of code that are neither blank nor a docstring. The numbers themselves
are no contest: an ELBO lies below log p(x).
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SCRIPTS = Path(__file__).parent / "first"
PEERS = {
    "pyro_vae": "pyro-vae",
    "pyro": "pyro-ppl",
    "numpyro": "numpyro",
    "pythae": "pythae",
    "scvi": "scvi-tools",
    "multivae": "multivae",
}
ONE = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}


def installed(package: str) -> str | None:
    """Return the version of a package, if it is there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(script: Path) -> tuple[float, float, str]:
    """Run a script in a process of its own; return seconds on the wall, seconds of CPU, and its number."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script], env=os.environ | ONE, capture_output=True, text=True
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    told = re.findall(r"^(?:ELBO|log p\(x\)).*$", done.stdout, re.M)[-1]
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, told


def lines_of(script: Path) -> int:
    """Count the lines of code of a script."""
    body = re.sub(r'""".*?"""', "", script.read_text(), flags=re.S)
    return sum(bool(line.strip()) for line in body.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    peers = {name: found for name, package in PEERS.items() if (found := installed(package))}
    scripts = {name: SCRIPTS / f"with_{name}.py" for name in peers}
    rounds = [{name: run(script) for name, script in scripts.items()} for _ in range(repeats + 1)][1:]
    print("| | version | CPU s (median; least to most) | wall s | lines | what it prints |\n|---|---|---|---|---|---|")
    for name, found in peers.items():
        walls, cpus, told = zip(*(one[name] for one in rounds), strict=True)
        cpu = f"{statistics.median(cpus):.1f} ({min(cpus):.1f} to {max(cpus):.1f})"
        number, lines = told[-1].partition(" nats")[0], lines_of(scripts[name])
        print(f"| {name} | {found} | {cpu} | {statistics.median(walls):.1f} | {lines} | {number} |")


if __name__ == "__main__":
    main()
