"""Whether a program's density of a row moves with the latents of others, or of other particles, where these are far away.

What seldom acts (``if (z > 3).any()``, ``(z > 4).sum()``) couples rows and particles that nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import ProgramError

from .determinism import differing
from .mixing import may_mix
from .row_coupling import LOOP, Scores, first_coupled, of_rows, rows_at, scores_of_part, with_indices
from .row_reads import RowReads
from .sites import Program, Site, latent_sites, sample_sites, with_values
from .unconstrained import bijection, support_of
from .vectorize import Mode, ParticleDistribution, particle_of, without_rows

SHIFTS = (3.0, -3.0, 8.0, -8.0)  # on the real line, in units of the largest draw there, or of 1
CODES = 16  # values of a discrete latent, at most, that other rows are set to
FAR = 3  # particles: the first row's latents are drawn, and far away in two of them


@dataclass(frozen=True)
class FarLatents:
    """One row beside copies of the next, whose latents are far away: the rows, and `FAR` particles of their latents."""

    problem: Any
    draws: poutine.Trace

    def scores(self, program: Program, mode: Mode = "loop") -> Scores:
        """log-probabilities of a program's sites, ``(FAR, N)`` by site, in a way of running particles."""
        tried = replace(self.problem, vectorizing=replace(LOOP, model=mode, guide=mode))
        return of_rows(tried, program, tried.trace(program, FAR, self.draws))

    def first_moved(self, program: Program) -> tuple[str, Tensor, Tensor] | None:
        """Find a site where the first row has another log-probability alone: its name, that beside the others, and alone."""
        beside = self.scores(program)
        for k in range(FAR):
            part = torch.zeros(1, dtype=torch.int64)
            alone = scores_of_part(self.problem, particle_of(self.draws, k, FAR), part, program)
            if found := first_coupled({name: term[k : k + 1, :1] for name, term in beside.items()}, alone):
                again = self.scores(program)
                return found[:3] if all(torch.equal(term, again[name]) for name, term in beside.items()) else None
        return None


def far_latents(problem: Any, draws: poutine.Trace, particles: int, program: Program) -> FarLatents | None:
    """Move latents far away, where a program may ask of all rows or particles what shows in those alone; None where it cannot.

    A program that computes with latents entry by entry, or mixes them whatever they are, cannot be of this kind. So only
    where a value that was computed from latents leaves torch (``if (z > 3).any()``, ``z.max().item()``), or comes to an
    operator that may mix (``(z > 4).sum()``), are there rows whose latents are far up and down.

    Args:
        problem: of two rows.
        draws: latents of them, ``(K, ..., 2, ...)``.
        particles: K.
        program: the model or the guide.
    """
    one, at = replace(problem, vectorizing=LOOP), particle_of(draws, 0, particles)
    latents = {name: site for name, site in latent_sites(sample_sites(at)).items() if site["value"].dim()}
    try:
        if not asks_latents(one, program, at, latents):
            return None
    except Exception:  # a program that does not run while it is watched: it is scored as it runs
        return None
    dim = problem.plates.dim
    values = {name: list(far_values(site, dim)) for name, site in latents.items()}
    values = {name: each for name, each in values.items() if each}
    most = max(map(len, values.values()), default=0)
    for chosen in (
        [range(most), *([i] for i in range(most))] if most else []
    ):  # of all, or of those that the program takes
        moved = {n: with_far_rows(latents[n], each, chosen, dim) for n, each in values.items()}
        still = {n: v for n, v in ((n, still_rows(s, chosen, dim)) for n, s in latents.items()) if n not in moved}
        rows = torch.tensor([0, *[1] * len(chosen)])
        far = FarLatents(rows_at(one, rows), without_rows(with_values(at, moved | still), problem.plates))
        with suppress(Exception):  # a check of the program's own, that refuses such latents
            far.scores(program)
            return far
    return None


def why_latents_are_coupled(far: FarLatents | None, program: Program, role: str) -> str | None:
    """Say why a program is refused whose density of a row is another where a latent of a row beside it is far away."""
    try:
        found = far.first_moved(program) if far is not None else None
    except Exception:  # it does not run on one row: that it says itself, where it is asked to
        return None
    return coupled_by_latents(role, *found) if found else None


def why_far_rows_count(problem: Any, drawing: Program, program: Program, role: str) -> str | None:
    """Say why a program that runs on all its rows only is refused: its first row is another where other latents are far away.

    The first row's latents are as they are drawn, or far away themselves (``(z > 3).all()``).

    Args:
        problem: of all rows.
        drawing: what draws the latents, the guide or the model.
        program: the one that is looked at.
        role: what it is called, "model" or "guide".
    """
    if len(problem.args[0]) < 2:
        return None
    try:
        one, dim = replace(problem, vectorizing=LOOP), problem.plates.dim
        drawn = one.trace(drawing, 1)
        draws = with_indices(drawn, one.trace(one.model, 1, drawn))
        latents = {name: site for name, site in latent_sites(sample_sites(draws)).items() if site["value"].dim()}
        if not asks_latents(one, program, draws, latents):
            return None
        values = {name: each for name, site in latents.items() if (each := list(far_values(site, dim)))}
        own = {name: latents[name]["value"] for name in values}
    except Exception:  # a program that does not run while it is watched: it is scored as it runs
        return None
    for i in range(max(map(len, values.values()), default=0)):
        far = {name: each[i % len(each)] for name, each in values.items()}
        for first in (own, far):
            with suppress(Exception):  # a check of the program's own, that refuses such latents
                still, moved = (
                    first_row_scores(
                        one, program, draws, {n: first_of(first[n], v, dim, latents[n]) for n, v in o.items()}
                    )
                    for o in (own, far)
                )
                if found := first_coupled(moved, still):
                    return coupled_by_latents(role, *found[:3], "where none is")
    return None


def first_row_scores(problem: Any, program: Program, draws: poutine.Trace, values: dict[str, Tensor]) -> Scores:
    """log-probabilities of the first row, ``(1, 1)`` by site, at other latents; none where two runs have different ones."""
    at = with_values(draws, values)
    once, again = (of_rows(problem, program, problem.trace(program, 1, at)) for _ in range(2))
    if next(differing(once, again), None) is not None:
        raise ProgramError("it draws numbers outside of its sites: that is said elsewhere")
    return {name: term[:, :1] for name, term in once.items()}


def first_of(first: Tensor, others: Tensor, row_dim: int, site: Site) -> Tensor:
    """Return the first row of one tensor of values, and the other rows of another."""
    dim = row_dim - site["fn"].event_dim
    return torch.cat([first.narrow(dim, 0, 1), others.narrow(dim, 1, others.shape[dim] - 1)], dim)


def asks_latents(problem: Any, program: Program, at: poutine.Trace, latents: dict[str, Site]) -> bool:
    """Return whether what a program computes from latents may come to other rows, or leaves torch; or a density's in it."""
    with RowReads([site["value"] for site in latents.values()]) as reads:
        trace = problem.trace(program, 1, at)
        mixing = may_mix(reads.operators)
        for site in sample_sites(trace).values():
            with suppress(Exception):  # what cannot be scored is named by whoever scores it
                site["fn"].log_prob(site["value"])
    return mixing or reads.left


def far_values(site: Site, row_dim: int) -> Iterator[Tensor]:
    """Yield values of a latent of two rows that are far away: shifted on the real line, or each of a list."""
    fn, value = site["fn"], site["value"]
    one = fn.parts[0] if isinstance(fn, ParticleDistribution) else fn
    dim = row_dim - fn.event_dim
    if value.dim() < -dim or value.shape[dim] < 2:
        return
    try:
        if not support_of(fn).is_discrete:
            to_support = bijection(fn)
            u = to_support.inv(value)
            yield from (to_support(u + shift * u.abs().max().clamp(min=1)) for shift in SHIFTS)
        elif one.has_enumerate_support:
            yield from (code.expand_as(value).to(value) for code in one.enumerate_support(expand=False)[:CODES])
        else:
            yield from (value + 5, value + 50, torch.zeros_like(value))
    except (NotImplementedError, RuntimeError, ValueError):  # a support without a map from the real line
        return


def with_far_rows(site: Site, values: list[Tensor], chosen: Any, row_dim: int) -> Tensor:
    """Return ``(FAR, ..., 1 + len(chosen), ...)``: other rows have these values; the first its own, and two of them."""
    dim, own = row_dim - site["fn"].event_dim, site["value"]
    first = [own, *(values[chosen[i] % len(values)] for i in (-1, -2 % len(chosen)))]
    others = [values[i % len(values)].narrow(dim, 1, 1) for i in chosen]
    return torch.cat([torch.cat([f.narrow(dim, 0, 1), *others], dim) for f in first])


def still_rows(site: Site, chosen: Any, row_dim: int) -> Tensor:
    """Return the values of a latent that is not moved, as those of as many rows and particles."""
    dim, own = row_dim - site["fn"].event_dim, site["value"]
    if own.dim() >= -dim and own.shape[dim] > 1:
        own = own.index_select(dim, torch.tensor([0, *[1] * len(chosen)], device=own.device))
    return own.expand(FAR, *own.shape[1:])


def coupled_by_latents(role: str, site: str, beside: Tensor, alone: Tensor, otherwise: str = "alone") -> str:
    """Describe a site whose log-probability of a row depends on the latents of other rows."""
    density = "log p(x)" if role == "model" else "log q(z | x)"
    return (
        f"site {site!r} of the {role} has another log-probability for a row when a latent of another row is far away "
        f"({beside.sum().item():.4g} beside it, {alone.sum().item():.4g} {otherwise}): {density} does not split into rows, and "
        f"particles do not either. The {role} asks one number of all of them (`if (z > 3).any()`, z.max(), (z > 4).sum(), "
        "a layer that is quantized as it runs). Fix: decide for each by itself, torch.where(z > 3, one, other), and reduce "
        "over dimensions of events alone (dim=-1)."
    )
