"""I(x; z) from the guide's densities at each row's draws under all rows, and programs run on one random stream for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_vae.common.parts_of_rows import IN_TURN, PartsOfRows
from pyro_vae.programs.masks import present
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.sites import Program, Site

PAIRS = 65_536  # (i, j) at which q(z_i | x_j) is evaluated at a time
PARENTS = 8  # draws of the other sites, over which the density of one is a mean


def information(problem: Problem, seed: int, over: PartsOfRows = IN_TURN) -> tuple[Tensor, float]:
    """log q(z_i | x_i) − log 1/n_i Σ_j q(z_i | x_j) for each of the B rows, ``(B,)``, float64 on the CPU; mean of log n_i.

    j runs over the n_i rows that have the same latents at z_i as row i does: all B where none is masked; i `over` parts.
    """
    # on one random stream: what the guide draws on the way to its parameters is the same each time
    return contrasted(problem, values_of_rows(problem, seed), [(seed, 1)], over)


def information_of_sites(problem: Problem, seed: int) -> dict[str, Tensor]:
    r"""log f(z_i, x_i) − log 1/n_i Σ_j f(z_i, x_j) for each site alone, ``(B,)`` each: in expectation at most I(x; z_l).

    f(z, x_j) = 1/S Σ_s q(z | z'_s, x_j) over S draws z' ~ q(z' | x_j) of the sites that the guide draws before it, S = 1 for
    the first of them. They know nothing of z_i, so whatever f is the bound holds (Poole et al., 2019); it is the tighter, the
    closer f comes to q(z | x_j).
    """
    found: dict[str, Tensor] = {}
    for name, value in values_of_rows(problem, seed).items():
        streams = [(seed, 2, s) for s in range(PARENTS if found else 1)]
        found[name], _ = contrasted(problem, {name: value}, streams)
    return found


def values_of_rows(problem: Problem, seed: int) -> dict[str, Tensor]:
    """Draw z_i of every row i, as particles that all rows share."""
    values = {}
    for name, site in seeded_sites(problem, problem.guide, 1, seed).items():
        dim = problem.plates.dim - site["fn"].event_dim
        values[name] = to_rows(as_particles([site["value"].movedim(dim, 1)], dim), dim, len(problem))
    return values


def contrasted(
    problem: Problem, values: Mapping[str, Tensor], streams: Sequence[tuple[int, ...]], over: PartsOfRows = IN_TURN
) -> tuple[Tensor, float]:
    """log f(z_i, x_i) − log 1/n_i Σ_j f(z_i, x_j), and the mean of log n_i; f is the guide's density of these sites, averaged.

    Sites without values are drawn, from one of the streams each time.
    """
    count = len(problem)
    step = over.size(count, max(1, PAIRS // count))

    def part(i: int) -> dict[str, Tensor]:
        some = {name: value[i * step : (i + 1) * step] for name, value in values.items()}
        return contrasts(problem, some, i * step, min(step, count - i * step), streams)

    parts = over(len(range(0, count, step)), part, problem.device)
    terms, log_n = (torch.cat([part[name] for part in parts]) for name in ("terms", "log_n"))
    return terms, log_n.mean().item()


def contrasts(
    problem: Problem, some: Mapping[str, Tensor], start: int, particles: int, streams: Sequence[tuple[int, ...]]
) -> dict[str, Tensor]:
    """Contrast the draws of some rows, from `start` on, with all rows: the terms, and log n_i."""
    log_f, alike = [], torch.ones(particles, len(problem), dtype=torch.bool)
    for stream in streams:
        with problem.quiet(*stream):
            every = problem.sites(problem.guide, particles, some)
        sites = {name: every[name] for name in some}
        log_f.append(problem.log_prob(sites).to("cpu", torch.float64))
        alike &= same_latents(sites, start, problem.plates)
    log_q, log_n = torch.stack(log_f).logsumexp(0) - math.log(len(streams)), alike.sum(1).double().log()
    terms = log_q.diagonal(start) - log_q.masked_fill(~alike, -math.inf).logsumexp(1) + log_n
    return {"terms": terms, "log_n": log_n}


def same_latents(sites: Sites, start: int, plates: Plates) -> Tensor:
    """Return which rows j have the latents at z_i that row i = start + d has, for draws d of one row each: ``(D, B)``."""
    first = next(iter(sites.values()))
    alike = torch.ones(plates.leading(first["value"], first["fn"].event_dim).shape[:2], dtype=torch.bool)
    for site in sites.values():
        if (where := present(site)) is not None:
            has = plates.by_unit(where, site["fn"].event_dim).cpu()
            own = has[torch.arange(len(has)), start + torch.arange(len(has))]
            alike &= (has == own.unsqueeze(1)).all(-1)
    return alike


def seeded_sites(
    problem: Problem, program: Program, particles: int, seed: int, at: Mapping[str, Tensor] | None = None
) -> dict[str, Site]:
    """Run a program on one random stream, its latents drawn from it or at given values; return its sites."""
    with problem.quiet(seed, 1):
        return problem.sites(program, particles, at)


def as_particles(draws: list[Tensor], dim: int) -> Tensor:
    """Line up the draws ``(S, n, …)`` of all rows as particles, of size 1 along the dimension of rows."""
    return torch.cat(draws, 1).flatten(0, 1).unsqueeze(dim)


def to_rows(value: Tensor, dim: int, rows: int) -> Tensor:
    """Give a draw for one row, of size 1 along `dim`, to all rows."""
    shape = list(value.shape)
    shape[dim] = rows
    return value.expand(shape)
