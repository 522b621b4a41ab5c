"""Print the table of programs and functions: `python -m tests.published > results/published.md`.

Options: programs (`-p vae,dmm`), functions (`-f fit,ais`), and a file for the cells that are neither right nor refused by
name, one a line (`--faults FILE`; standard error by default).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter

import pyro
import torch

from .cells import FUNCTIONS, SEED, Cell, OracleError, run_cell
from .recipe import RECIPES

MARKS = {"right": "✓", "refused": "–", "unnamed": "?", "WRONG": "✗", "raw": "!", "oracle": "o"}


def judged_cell(program: str, function: str) -> Cell:
    """The cell, or what the oracle says is wrong with itself."""
    try:
        return run_cell(program, function)
    except OracleError as error:
        return Cell("oracle", str(error).strip().splitlines()[-1])


def table(cells: dict[tuple[str, str], Cell], programs: list[str], functions: list[str]) -> str:
    """A row a program, a column a function."""
    lines = [
        f"| program | {' | '.join(f.replace('_', ' ') for f in functions)} |",
        f"|---|{':-:|' * len(functions)}",
    ]
    for program in programs:
        marks = " | ".join(MARKS[cells[program, function].verdict] for function in functions)
        lines.append(f"| {program} | {marks} |")
    return "\n".join(lines)


def refusals(cells: dict[tuple[str, str], Cell]) -> str:
    """What refusals say, names left out, most frequent first."""
    said: Counter[str] = Counter()
    where: dict[str, tuple[str, str]] = {}
    for key, cell in cells.items():
        if cell.verdict == "refused":
            words = re.sub(
                r"'[^']*'|\"[^\"]*\"|\d[\d.e+-]*",
                "…",
                re.split(r"(?<=[a-z)])[.:;] |\n", cell.detail.split(": ", 1)[1])[0],
            )
            said[words] += 1
            where.setdefault(words, key)
    lines = [
        f"| {n} | {words[:160].replace('|', '/')} | {' × '.join(where[words])} |" for words, n in said.most_common()
    ]
    return "\n".join(["| cells | says (names left out) | such as |", "|---|---|---|", *lines])


def page(cells: dict[tuple[str, str], Cell], programs: list[str], functions: list[str]) -> str:
    """The whole page."""
    counts = Counter(cell.verdict for cell in cells.values())
    total = ", ".join(f"{counts[v]} {word}" for v, word in LEGEND.items() if counts[v] or v != "oracle")
    recipes = "\n".join(f"| {p} | {RECIPES[p].after} |" for p in programs)
    return f"""# Published programs, every public function

{len(programs)} programs, written afresh after public recipes, × {len(functions)} functions: {total}.

Written by `python -m tests.published > results/published.md`: seed {SEED}, torch {torch.__version__.split("+")[0]}, pyro
{pyro.__version__}, CPU. A number is right where it equals a plain trace of one row at a time, at the same latents, to rounding,
or lies within 5 standard errors of the closed form, or of importance sampling by plain traces. ✓ right; – refused, naming the
site and a way on; ? refused in words that do not; ✗ a wrong number; ! an exception from outside the package's errors.

{table(cells, programs, functions)}

## What the refusals say

{refusals(cells)}

## The programs

| program | after |
|---|---|
{recipes}
"""


LEGEND = {
    "right": "right", "refused": "refused by name", "unnamed": "refused without a name or a way on", "WRONG": "wrong",
    "raw": "raw exceptions", "oracle": "failures of the oracle",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.published", description=__doc__)
    parser.add_argument("-p", "--programs", default=",".join(RECIPES))
    parser.add_argument("-f", "--functions", default=",".join(FUNCTIONS))
    parser.add_argument("--faults", help="a file for the cells that are neither right nor refused by name")
    options = parser.parse_args()
    programs, functions = options.programs.split(","), options.functions.split(",")
    cells = {(p, f): judged_cell(p, f) for p in programs for f in functions}
    print(page(cells, programs, functions))
    faults = [
        f"{c.verdict}\t{p}\t{f}\t{c.detail[:400]!r}"
        for (p, f), c in cells.items()
        if c.verdict not in ("right", "refused")
    ]
    if options.faults:
        with open(options.faults, "w", encoding="utf-8") as out:
            print(*faults, sep="\n", file=out)
    else:
        print(*faults, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
