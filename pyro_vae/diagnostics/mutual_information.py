"""I(x; z) from the guide's densities at each row's draws under all rows, and programs run on one random stream for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.programs.masks import present
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.sites import Program, Site

PAIRS = 65_536  # (i, j) at which q(z_i | x_j) is evaluated at a time


def information(problem: Problem, seed: int) -> tuple[Tensor, float]:
    """log q(z_i | x_i) − log 1/n_i Σ_j q(z_i | x_j) for each of the B rows, ``(B,)``, float64 on the CPU; mean of log n_i.

    j runs over the n_i rows that have the same latents at z_i as row i does: all B where none is masked.
    """
    count, terms, limits = len(problem), [], []
    values = {}
    for name, site in seeded_sites(problem, problem.guide, 1, seed).items():
        dim = problem.plates.dim - site["fn"].event_dim
        values[name] = to_rows(as_particles([site["value"].movedim(dim, 1)], dim), dim, count)
    step = max(1, PAIRS // count)
    for start in range(0, count, step):
        some = {name: value[start : start + step] for name, value in values.items()}
        # on one random stream: what the guide draws on the way to its parameters is the same each time
        sites = seeded_sites(problem, problem.guide, min(step, count - start), seed, some)
        log_q, alike = problem.log_prob(sites).to("cpu", torch.float64), same_latents(sites, start, problem.plates)
        log_n = alike.sum(1).double().log()
        terms.append(log_q.diagonal(start) - log_q.masked_fill(~alike, -math.inf).logsumexp(1) + log_n)
        limits.append(log_n)
    return torch.cat(terms), torch.cat(limits).mean().item()


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
