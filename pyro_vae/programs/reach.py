r"""Reach of a guide: importance sampling leaves out, in silence, what the guide never draws and p(x, z) allows."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from pyro_vae.data.lazy_rows import LazyRows
from pyro_vae.errors import ProgramError, ShapeError

from .log_density import bounded, known_support
from .problem import Problem
from .row_coupling import has_rows
from .sites import Program, Site, latent_sites, sum_terms
from .unconstrained import SubstituteLatents
from .wrapped import bare

PRIOR_DRAWS, ROWS = 32, 16  # of the probe
DEFENSIVE = "score with proposal=defensive(0.1), which reaches all of it"


def check_reach(problem: Problem, guide: Program | None = None, otherwise: str = DEFENSIVE) -> None:
    """Refuse a guide with q(z | x) = 0 at draws of the prior where p(x, z) > 0; the ProgramError names site and row.

    E_q[w] is then less than p(x), and no weight shows it. A guide on a part of the prior's support passes where p(x, z) is 0
    outside (as in the German tank problem). Judged by 32 draws for each of the first 16 rows: what the guide leaves out of
    less than about 1 in 500 of the prior's mass is not seen. Nothing is run on more than one row where all latents of the guide
    live on all real numbers.

    Args:
        guide: as it proposes, the problem's own by default.
        otherwise: another way on than another guide, for the message.
    """
    guide = problem.guide if guide is None else guide
    some = first_rows(problem, ROWS)
    try:
        sites = first_rows(problem, 1).sites(guide)
    except ShapeError:  # parameters of its own for each row: it runs on all of them
        some, sites = problem, problem.sites(guide)
    if any(map(limited, latent_sites(sites).values())):
        probe(some, guide, PRIOR_DRAWS, otherwise)


def first_rows(problem: Problem, rows: int) -> Problem:
    """Return the problem of the first rows, arguments without rows as they are; of all, where there is no telling them."""
    x = problem.args[0] if problem.args else None
    if problem.own_rows or not isinstance(x, Tensor | LazyRows) or not x.dim():
        return problem
    if all(has_rows(a, len(x)) for a in problem.args):
        return problem.few(rows)
    return problem.over(*(a[:rows] if has_rows(a, len(x)) else a for a in problem.args))


def limited(site: Site) -> bool:
    """Return whether a site may leave out values: it is discrete, or its support is narrower than all real numbers."""
    support = known_support(site["fn"], latent=True)
    return bounded(site["fn"]) or bool(support is not None and bare(support).is_discrete)


def probe(problem: Problem, guide: Program, particles: int, otherwise: str) -> None:
    """Draw from the prior, and refuse where the guide has no density and the joint has some."""
    p = problem.sites(problem.model, particles)
    latents = {name: site["value"] for name, site in latent_sites(p).items()}
    joint = sum_terms(problem.score(p, "model"))
    q = latent_sites(problem.sites(guide, particles, SubstituteLatents(latents)))
    for name, log_q in problem.score(q, "guide").items():
        if (missed := (log_q == -math.inf) & (joint > -math.inf)).any():
            raise ProgramError(describe(name, q, latents, missed, problem, otherwise))


def describe(
    name: str,
    q: Mapping[str, Site],
    latents: Mapping[str, Tensor],
    missed: Tensor,
    problem: Problem,
    otherwise: str,
) -> str:
    """Describe what the guide leaves out, and the way out."""
    units = problem.plates.by_unit(latents[name].expand(latents[name].shape), q[name]["fn"].event_dim)
    particle, row = missed.nonzero()[0].tolist()
    value = units[min(particle, len(units) - 1), min(row, units.shape[1] - 1)].flatten()
    shown = ", ".join(f"{v:g}" for v in value[:3].tolist()) + (", …" if len(value) > 3 else "")
    share = missed.double().mean().item()
    return (
        f"site {name!r}: the guide never draws what p(x, z) allows, as {name} = {shown} for row {problem.first + row} "
        f"({share:.0%} of the prior's draws, rows {problem.numbers(missed.any(0))}): importance weights leave it out, and "
        "log p(x) comes out too low. Give the guide the prior's support (LogNormal or Gamma for a positive latent), or "
        f"{otherwise}."
    )
