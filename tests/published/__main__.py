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
from .ways import ARROW

MARKS = {
    "right": "✓", "by a way": "→", "no answer": "·", "refused": "–", "unnamed": "?", "WRONG": "✗", "raw": "!", "oracle": "o",
}  # fmt: skip


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


def ways(cells: dict[tuple[str, str], Cell]) -> str:
    """The ways that were followed, and in how many cells."""
    chosen = {key: cell.detail for key, cell in cells.items() if cell.verdict == "by a way"}
    followed = {key: detail.split(": ", 1)[0].rsplit(" × ", 1) for key, detail in chosen.items()}
    said = [
        (key, f"{', then '.join(program.split(ARROW)[1:]) or 'the same programs'} | {instead(key[1], function)}")
        for key, (program, function) in followed.items()
    ]
    return tallied(said, "| cells | pair | function | such as |\n|--:|---|---|---|")


def instead(asked: str, taken: str) -> str:
    return "the same" if asked == taken else f"{taken.replace('_', ' ')}"


def reasons(cells: dict[tuple[str, str], Cell]) -> str:
    """Why functions have no answer, and in how many cells."""
    said = [(key, cell.detail.split("; ", 1)[0]) for key, cell in cells.items() if cell.verdict == "no answer"]
    return tallied(said, "| cells | why | such as |\n|--:|---|---|")


def tallied(said: list[tuple[tuple[str, str], str]], head: str) -> str:
    """Count what is said, most frequent first, with where it is said first."""
    count = Counter(words for _, words in said)
    where = {words: key for key, words in reversed(said)}
    return "\n".join([head, *(f"| {n} | {words} | {' × '.join(where[words])} |" for words, n in count.most_common())])


def counted(cells: dict[tuple[str, str], Cell], names: tuple[str, ...]) -> list[str]:
    """How many cells of some programs have each verdict."""
    count = Counter(cell.verdict for (program, _), cell in cells.items() if program in names)
    return [str(count[verdict]) for verdict in ("right", "by a way", "no answer", "refused")]


def page(cells: dict[tuple[str, str], Cell], programs: list[str], functions: list[str]) -> str:
    """The whole page."""
    counts = Counter(cell.verdict for cell in cells.values())
    total = ", ".join(f"{counts[v]} {word}" for v, word in LEGEND.items() if counts[v] or v != "oracle")
    recipes = "\n".join(f"| {p} | {RECIPES[p].after} |" for p in programs)
    kinds = "\n".join(
        f"| {kind} | {', '.join(names)} | {' | '.join(counted(cells, names))} |"
        for kind, names in [*KINDS.items(), ALL]
    )
    return f"""# Published programs, every public function

{len(programs)} programs, written afresh after public recipes, × {len(functions)} functions: {total}.

Written by `python -m tests.published > results/published.md`: seed {SEED}, torch {torch.__version__.split("+")[0]}, pyro
{pyro.__version__}, CPU. A number is right where it equals a plain trace of one row at a time, at the same latents, to rounding,
or lies within 5 standard errors of the closed form, or of importance sampling by plain traces. ✓ right; → refused, and the way
that the refusal names, followed as a user would follow it, is right by the same oracle; · refused, and there is no answer, by
what the recipe declares or a plain trace shows, whatever the refusal says; – refused, naming the site and a way on (or one that
takes more than 40 s); ? refused in words that do not; ✗ a wrong number; ! an exception from outside the package's errors.

{table(cells, programs, functions)}

## Hierarchies, sequences, discrete sites, modalities, global parameters

| kind | programs | ✓ | → | · | – |
|---|---|--:|--:|--:|--:|
{kinds}

## What the refusals say that end there

{refusals(cells)}

## The ways that were followed

{ways(cells)}

## Why there is no answer

{reasons(cells)}

## The programs

| program | after |
|---|---|
{recipes}
"""


KINDS = {
    "hierarchies": ("def", "ladder", "nested-plates", "nested-flattened"),
    "sequences": ("dmm", "lds", "hmm", "hmm-drawn", "packed-rnn", "recurrent-decoder"),
    "discrete beside continuous": (
        "scanvi-labelled", "scanvi", "zero-inflated", "lda", "lda-enumerated", "m2-labelled", "m2-drawn", "m2-enumerated",
        "gmvae", "air", "experts",
    ),
    "modalities": ("multimodal", "cevae"),
    "global parameters": ("def-global", "lda-global", "hmm-global", "gp-across", "bayesian-regression"),
}  # fmt: skip
ALL = "all of these", tuple(name for names in KINDS.values() for name in names)
LEGEND = {
    "right": "right", "by a way": "right by a way that the refusal names", "no answer": "without an answer",
    "refused": "refused by name", "unnamed": "refused without a name or a way on", "WRONG": "wrong",
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
        if c.verdict not in ("right", "by a way", "no answer", "refused")
    ]
    if options.faults:
        with open(options.faults, "w", encoding="utf-8") as out:
            print(*faults, sep="\n", file=out)
    else:
        print(*faults, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
