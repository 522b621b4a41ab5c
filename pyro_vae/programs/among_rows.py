"""Whether a row's density is another beside rows of greater or smaller values: two rows do not tell of a count over all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .determinism import differing, random_density
from .row_coupling import (
    LOOP,
    Scores,
    coupled,
    first_coupled,
    has_rows,
    of_rows,
    rows_at,
    scores_of_part,
    selected,
    with_indices,
)
from .sites import Program, Site, latent_sites, sample_sites, with_values
from .unconstrained import support_of

LOOKED_AT, NUMBERS = 4096, 2**22  # rows at most, and numbers in them, for those of the greatest and least values
NUDGE = 4  # last digits of a latent
ROUNDINGS = 32  # times what these move a log-density, up to which a difference is one of rounding
CHOSEN = 32  # rows that are run together, and then some of them without the others


@dataclass(frozen=True)
class AmongRows:
    """Rows of the greatest and least values of all rows, and others between them, latents of them, and the model there."""

    rows: Tensor  # their numbers
    problem: Any  # of these rows
    draws: poutine.Trace
    modelled: poutine.Trace
    parts: tuple[Tensor, ...]  # of these rows, by number, that are run without the others


def among_rows(problem: Any, drawing: Program) -> AmongRows | None:
    """Choose rows of a problem and draw latents of them; None where it has no such rows, or does not run on them.

    Args:
        problem: of all rows.
        drawing: what draws the latents, the guide or the model.
    """
    x, *_ = problem.args
    if not isinstance(x, Tensor) or x.dim() == 0 or len(x) < 2 or problem.own_rows:
        return None
    try:
        chosen = telling_rows(problem.args)
        some = replace(rows_at(problem, chosen), vectorizing=LOOP)
        drawn = some.trace(drawing, 1)
        modelled = some.trace(some.model, 1, drawn)
        return AmongRows(chosen, some, with_indices(drawn, modelled), modelled, tuple(parts(some.args)))
    except Exception:  # a plate of fixed size, say
        return None


def why_rows_are_coupled(among: AmongRows | None) -> str | None:
    """Say why a model is refused whose densities of a row are others where rows of greater or smaller values are left out.

    Two rows do not tell of a total count, a number of classes or a branch that is read off the greatest value of all rows. Run
    are rows of the greatest and least values and others between them; then parts of these, at the same latents.
    """
    found = found_among_rows(among, among.problem.model) if among else None
    return random_density("model", found) if isinstance(found, str) else coupled(*found) if found else None


def why_guide_reads_rows(among: AmongRows | None) -> str:
    """Say at which site a guide has another density of a row beside other rows; empty where it has none.

    Its weights are right, p(x, z) / q(z | all rows): log p(x) does not move. Its ELBO and its gap are of a row among others.
    """
    found = found_among_rows(among, among.problem.guide) if among else None
    if found is None or isinstance(found, str):  # noise of a guide's own: that is said elsewhere
        return ""
    name, beside, without, row = found
    return (
        f"site {name!r} of the guide has another log-probability for a row when other rows are passed along "
        f"({beside.sum().item():.4g} beside others, {without.sum().item():.4g} without them, row {row})"
    )


def found_among_rows(among: AmongRows, program: Program) -> tuple[str, Tensor, Tensor, int] | str | None:
    """Find a row whose density is another without rows of greater or smaller values: as `first_coupled`; a site of noise."""
    some, draws = among.problem, among.draws
    try:
        once = among.modelled if program is some.model else some.trace(program, 1, draws)
        together, again = (of_rows(some, program, run) for run in (once, some.trace(program, 1, draws)))
        if (site := next(differing(together, again), None)) is not None:  # noise that two rows seldom show
            return site
        for part in among.parts:
            alone = scores_of_part(some, draws, part, program)
            of_all = {name: selected(term, 1, part) for name, term in together.items()}
            if (found := first_coupled(of_all, alone)) is not None:
                name, beside, without, row = found
                if not is_rounding(some, program, draws, together, found, part):
                    return name, beside, without, int(among.rows[part[row]])
    except Exception:  # a program that does not run on part of the rows
        return None
    return None


def is_rounding(
    problem: Any,
    program: Program,
    draws: poutine.Trace,
    scores: Scores,
    found: tuple[str, Tensor, Tensor, int],
    part: Tensor,
) -> bool:
    """Return whether a difference that was found is one that the last digits of the latents make, too.

    A network rounds otherwise in a batch of another size: by far more than half of the digits where a scale is small beside the
    values, as of a posterior of rows that are counted in millions.
    """
    difference = (found[1].sum() - found[2].sum()).abs().item()
    # a density near its top moves with the square of what moves its latent: hence times as far, too
    for digits, times in ((NUDGE, ROUNDINGS), (ROUNDINGS * NUDGE, 1)):
        with suppress(
            Exception
        ):  # latents that the program does not take: what cannot be told is not taken for rounding
            moved = times * moved_by(digits, problem, program, draws, scores, found, part)
            if math.isfinite(moved) and difference <= moved:
                return True
    return False


def moved_by(
    digits: int,
    problem: Any,
    program: Program,
    draws: poutine.Trace,
    scores: Scores,
    found: tuple[str, Tensor, Tensor, int],
    part: Tensor,
) -> float:
    """Return by how much a log-density moves with last digits of the latents; 0 for a site that one run has alone."""
    name, _, _, row = found
    values = {
        latent: nudged(site, digits * torch.finfo(site["value"].dtype).eps)
        for latent, site in latent_sites(sample_sites(draws)).items()
        if site["value"].is_floating_point()
    }
    moved = of_rows(problem, program, problem.trace(program, 1, with_values(draws, values)))
    if name not in scores or name not in moved:
        return 0.0
    return selected((moved[name] - scores[name]).double(), 1, part)[0, row].abs().item()


def nudged(site: Site, part: float) -> Tensor:
    """Move a latent by a part of its largest value, of which one near 0 may be a difference; of each, where it must."""
    value: Tensor = site["value"]
    with suppress(Exception):  # no support that could be asked
        moved = value + part * value.abs().max()
        if support_of(site["fn"]).check(moved).all():
            return moved
    return value * (1 + part)


def telling_rows(args: tuple[Any, ...]) -> Tensor:
    """Number rows of the greatest and least values of each argument, and others at even distances, `CHOSEN` at most."""
    width = max(a[:1].numel() for a in args if has_rows(a, len(args[0])))
    rows = min(len(args[0]), LOOKED_AT, max(CHOSEN, NUMBERS // width))
    ends = [order[[0, -1]] for a in args if has_rows(a, len(args[0])) for order in orders(a[:rows])]
    between = torch.linspace(0, rows - 1, min(rows, CHOSEN)).long()
    found = dict.fromkeys([0, *(n for pair in ends for n in pair.tolist()), *between.tolist()])
    return torch.tensor(sorted(list(found)[:CHOSEN]))


def parts(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """Yield the rows of the lesser half, by their greatest value and by their sum, and of the greater half by their least."""
    seen = set[tuple[int, ...]]()
    for a in args:
        if not has_rows(a, len(args[0])):
            continue
        greatest, least, total = orders(a)
        for part in (greatest[: len(a) // 2], least[-(len(a) // 2) :], total[: len(a) // 2]):
            if (numbers := tuple(part.sort().values.tolist())) not in seen:
                seen.add(numbers)
                yield torch.tensor(numbers)


def orders(a: Tensor) -> list[Tensor]:
    """Sort rows by their greatest value, by their least, and by their sum: three times the numbers of the rows."""
    flat = a.detach().reshape(len(a), -1).nan_to_num()
    return [by.cpu().argsort(stable=True) for by in (flat.amax(1), flat.amin(1), flat.sum(1, dtype=torch.float64))]
