"""I(x; z) from the guide's densities at each row's draws under all rows, and programs run on one random stream for it.

What is here runs programs as they are: in :func:`~pyro_vae.programs.pair.quiet`, which its callers have entered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from pyro_vae.common.parts_of_rows import IN_TURN, PartsOfRows
from pyro_vae.common.random import seeded
from pyro_vae.errors import ProgramError
from pyro_vae.programs.masks import mask_of_site, present
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.proposal_guide import as_written
from pyro_vae.programs.sites import Program, Site

PAIRS = 65_536  # (i, j) at which q(z_i | x_j) is evaluated at a time
PARENTS = 8  # draws of the other sites, over which the density of one is a mean


def information(problem: Problem, seed: int, over: PartsOfRows = IN_TURN) -> tuple[Tensor, float]:
    """log q(z_i | x_i) − log 1/n_i Σ_j q(z_i | x_j) for each of the B rows, ``(B,)``, float64 on the CPU; mean of log n_i.

    j runs over the n_i rows that have the same latents at z_i as row i does: all B where none is masked; i `over` parts.
    """
    # on one random stream: what the guide draws on the way to its parameters is the same each time
    drawn = drawn_sites(problem, seed)
    return contrasted(problem, values_of_rows(problem, drawn), [(seed, 1)], over, one_of_rows(problem, drawn))


def information_of_sites(problem: Problem, seed: int) -> dict[str, Tensor]:
    r"""log f(z_i, x_i) − log 1/n_i Σ_j f(z_i, x_j) for each site alone, ``(B,)`` each: in expectation at most I(x; z_l).

    f(z, x_j) = 1/S Σ_s q(z | z'_s, x_j) over S draws z' ~ q(z' | x_j) of the sites that the guide draws before it, S = 1 for
    the first of them. They know nothing of z_i, so whatever f is the bound holds (Poole et al., 2019); it is the tighter, the
    closer f comes to q(z | x_j).
    """
    found: dict[str, Tensor] = {}
    for name, value in values_of_rows(problem, drawn_sites(problem, seed)).items():
        streams = [(seed, 2, s) for s in range(PARENTS if found else 1)]
        found[name], _ = contrasted(problem, {name: value}, streams)
    return found


def drawn_sites(problem: Problem, seed: int) -> Sites:
    """Draw z_i of every row i."""
    with seeded(seed, 1, device=problem.device):
        return problem.sites(problem.guide, 1)


def one_of_rows(problem: Problem, drawn: Sites) -> Sites | None:
    """Return the guide's one latent site, if its q(z | x_j) is known from a single draw, for any z; None where it is not.

    A guide that draws nothing else has the same q(z | x_j) for each particle, if it runs under a plate of them (which was
    probed); it needs no other run. Where a mask may leave out z, the run tells which.
    """
    guide, vectorizing = problem.guide, problem.vectorizing
    if len(drawn) != 1 or vectorizing.guide != "plate" or vectorizing.random_guide or guide is not as_written(guide):
        return None
    (site,) = drawn.values()
    return drawn if mask_of_site(site) is True else None


def contrasts_of_rows(problem: Problem) -> Tensor:
    """Draw z_i of every row i, and contrast them, ``(B,)``, as in :func:`information`, where one draw shows all."""
    drawn = problem.sites(problem.guide, 1)
    if (known := one_of_rows(problem, drawn)) is None:
        raise ProgramError("q(z | x_j) at other rows' draws takes a run of the guide")
    return contrasts(problem, values_of_rows(problem, drawn), 0, len(problem), [()], known)["terms"]


def of_particles(known: Sites, some: Mapping[str, Tensor], particles: int) -> Sites:
    """Give a site, drawn once, so many particles with these values, as a run on them would show it."""
    (name, site), *_ = known.items()
    fn = site["fn"].expand((particles, *site["fn"].batch_shape[1:]))
    return {name: {**site, "fn": fn, "value": some[name], "is_observed": True}}


def values_of_rows(problem: Problem, drawn: Sites) -> dict[str, Tensor]:
    """Line up what was drawn for each row as particles that all rows share."""
    values = {}
    for name, site in drawn.items():
        dim = problem.plates.dim - site["fn"].event_dim
        values[name] = to_rows(as_particles([site["value"].movedim(dim, 1)], dim), dim, len(problem))
    return values


def contrasted(
    problem: Problem,
    values: Mapping[str, Tensor],
    streams: Sequence[tuple[int, ...]],
    over: PartsOfRows = IN_TURN,
    known: Sites | None = None,
) -> tuple[Tensor, float]:
    """log f(z_i, x_i) − log 1/n_i Σ_j f(z_i, x_j), and the mean of log n_i; f is the guide's density of these sites, averaged.

    Sites without values are drawn, from one of the streams each time. Nothing is run where the guide's sites are `known`.
    """
    count = len(problem)
    step = over.size(count, max(1, PAIRS // count))

    def part(i: int) -> dict[str, Tensor]:
        some = {name: value[i * step : (i + 1) * step] for name, value in values.items()}
        return contrasts(problem, some, i * step, min(step, count - i * step), streams, known)

    parts = over(len(range(0, count, step)), part, problem.device)
    terms, log_n = (torch.cat([part[name] for part in parts]) for name in ("terms", "log_n"))
    return terms, log_n.mean().item()


def contrasts(
    problem: Problem,
    some: Mapping[str, Tensor],
    start: int,
    particles: int,
    streams: Sequence[tuple[int, ...]],
    known: Sites | None,
) -> dict[str, Tensor]:
    """Contrast the draws of some rows, from `start` on, with all rows: the terms, and log n_i."""
    log_f, masks = [], list[Tensor]()
    for stream in streams:
        if known is None:
            with seeded(*stream, device=problem.device):
                every = problem.sites(problem.guide, particles, some)
            sites = {name: every[name] for name in some}
        else:
            sites = of_particles(known, some, particles)
        log_f.append(problem.log_prob(sites).to("cpu", torch.float64))
        masks += same_latents(sites, start, problem.plates)
    log_q = log_f[0] if len(streams) == 1 else torch.stack(log_f).logsumexp(0) - math.log(len(streams))
    if not masks:
        log_n = torch.full((particles,), len(problem), dtype=torch.float64).log()
        return {"terms": log_q.diagonal(start) - log_q.logsumexp(1) + log_n, "log_n": log_n}
    alike = torch.stack(masks).all(0)
    log_n = alike.sum(1).double().log()
    terms = log_q.diagonal(start) - log_q.masked_fill(~alike, -math.inf).logsumexp(1) + log_n
    return {"terms": terms, "log_n": log_n}


def same_latents(sites: Sites, start: int, plates: Plates) -> Iterator[Tensor]:
    """Yield which rows j have the latents at z_i that row i = start + d has, for draws d of one row each: ``(D, B)``.

    Of each site that is masked; nothing where none is.
    """
    for site in sites.values():
        if (where := present(site)) is not None:
            has = plates.by_unit(where, site["fn"].event_dim).cpu()
            own = has[torch.arange(len(has)), start + torch.arange(len(has))]
            yield (has == own.unsqueeze(1)).all(-1)


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
