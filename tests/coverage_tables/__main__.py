"""Print how often standard errors cover: `python -m tests.coverage_tables > results/coverage.md`.

Options: cases (`-c data,paired`), repetitions (`-r 200`), the seed of the first (`-s 0`), no narrow guides (`-n`).
"""

from __future__ import annotations

import argparse
import sys
import time

import pyro
import torch
from torch import Tensor

from pyro_vae import log_likelihood
from pyro_vae.common.environment import machine

from .cases import CASES, Errors
from .gaussian import A_LITTLE, NARROW, WIDE, Gaussian, NarrowCounts

Z = 1.96
SETS = {
    "all thirty narrow guides": NARROW,
    "all that are a little narrow": A_LITTLE,
    "all that are wide enough": WIDE,
}
TURNS = 4  # evaluations by each narrow guide, on other rows and noise: all rows of one pass, or none


def covered(errors: Errors) -> tuple[float, float, float, float]:
    """Share that is reliable; the coverage of these; its standard error over repetitions; the coverage of all."""
    inside, reliable = (errors.z.abs() <= Z).double(), errors.reliable.double()
    good = (inside * reliable).sum(1)
    coverage = (good.sum() / reliable.sum()).item()
    off = good - coverage * reliable.sum(1)  # rows of one repetition may share noise
    return reliable.mean().item(), coverage, (off.square().sum().sqrt() / reliable.sum()).item(), inside.mean().item()


def line(name: str, repetitions: int, seed: int) -> str:
    case = CASES[name]
    share, coverage, error, everything = covered(case.run(case.times * repetitions, seed))
    shown = "–" if share == 0 else f"{coverage:.3f} ± {error:.3f}"
    return f"| {case.error} | {case.what} | {share:.0%} | {shown} | {everything:.3f} |"


def narrow_table(num_samples: int, rows: int, seed: int, turns: int) -> str:
    """Thirty narrow guides, some that are a little so, some wide enough: coverage of what k̂ lets pass, and of what is left."""
    lines = []
    for of, pairs in SETS.items():
        passed, left = [], []
        for name, pair in pairs.items():
            found = [judged(pair, num_samples, rows, seed + turn) for turn in range(turns)]
            inside, steady, reliable = map(torch.cat, zip(*found, strict=True))
            cells = [f"{m.double().mean():.0%} | {format_share(inside[m])}" for m in (steady, reliable)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
            passed.append(inside[steady])
            left.append(inside[reliable])
        cells = [f"{len(t)} rows | {format_share(t)}" for t in map(torch.cat, (passed, left))]
        lines.append(f"| **{of}** | {' | '.join(cells)} |")
    return GUIDES.format(k=num_samples, rows=rows, turns=turns, lines="\n".join(lines))


def judged(pair: Gaussian | NarrowCounts, num_samples: int, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one evaluation: rows whose interval holds the exact log p(x), those that k̂ lets pass, those called reliable."""
    x = pair.rows(rows, seed + 1)
    evidence = log_likelihood(pair.model, pair.guide, x, num_samples=num_samples, seed=seed, verbose=False)
    inside = (evidence.log_px - pair.log_px(x)).abs() <= Z * evidence.mc_se + 1e-9
    return inside, evidence.steady, evidence.reliable


def format_share(inside: Tensor) -> str:
    return f"{inside.double().mean():.3f}" if len(inside) else "–"


def page(cases: list[str], repetitions: int, seed: int, narrow: bool) -> str:
    """The whole page."""
    start, lines = time.process_time(), []
    for name in cases:
        lines.append(line(name, repetitions, seed))
        print(lines[-1], file=sys.stderr, flush=True)
    guides = "".join(narrow_table(k, rows, seed, TURNS) for k, rows in ((1000, 400), (5000, 200)) if narrow)
    table = "\n".join(lines)
    return PAGE.format(
        repetitions=repetitions, seed=seed, torch=torch.__version__.split("+")[0], pyro=pyro.__version__,
        machine=machine(torch.device("cpu")), binomial=(0.95 * 0.05 / repetitions) ** 0.5, table=table,
        more=5 * repetitions, less=(0.95 * 0.05 / (5 * repetitions)) ** 0.5,
        minutes=(time.process_time() - start) / 60,
    ) + (NARROW_PAGE + guides if narrow else "")  # fmt: skip


PAGE = """# Coverage of every standard error that is printed

How often estimate ± 1.96 standard errors holds what it estimates, over {repetitions} repetitions against closed forms,
{more} of data, paired and decomposition. Of {repetitions} of one number the share is known to ± {binomial:.3f} (binomial),
of {more} to ± {less:.3f}; where each has 20 rows, to the ± given.

Written by `python -m tests.coverage_tables -s {seed} > results/coverage.md`: torch {torch}, pyro {pyro},
{machine}, {minutes:.0f} minutes of one core, in one run.

| error | of | called reliable | covers, where reliable | covers, all |
|---|---|--:|--:|--:|
{table}

"Reliable" is what the result says: no row flagged, and, of a mean of log p̂, `bias_matters` not set. The mean of 60 fresh rows
is that of 60 exponential numbers (log p(x) of two Gaussian dimensions), of which sd / √N, right as it is, covers 0.933.
"""
NARROW_PAGE = """
## Guides that are too narrow

k̂ is made of the weights that were drawn. A guide that is too narrow does not draw the large ones, and the rows whose k̂ looks
good are those where fewest came. `log_likelihood` looks at some rows a second time, by draws of the posterior, for a twentieth
of the cost. At scale x 0.7 the variance of the weights is infinite (k = 1 - 0.7² > 1/2), at 0.8 it is not.
"""
GUIDES = """
K = {k}, {turns} evaluations of {rows} rows each:

| guide | k̂ passes | covers | reliable | covers |
|---|--:|--:|--:|--:|
{lines}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage_tables", description=__doc__)
    parser.add_argument("-c", "--cases", default=",".join(CASES))
    parser.add_argument("-r", "--repetitions", type=int, default=200)
    parser.add_argument("-s", "--seed", type=int, default=0)
    parser.add_argument("-n", "--no-narrow", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    narrow, cases = not options.no_narrow, options.cases.split(",")
    sys.stdout.write(page(cases, options.repetitions, options.seed, narrow))


if __name__ == "__main__":
    main()
