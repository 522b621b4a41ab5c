r"""Aggregate posterior q(z) = 1/N Σ_n q(z | x_n) over all N rows, exact: every draw under every row's posterior."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.common.progress import tracked
from pyro_vae.errors import ProgramError
from pyro_vae.programs.masked_latents import refuse_masked
from pyro_vae.programs.masks import present
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.row_reads import RowReads
from pyro_vae.programs.sites import Site, latent_sites, observed_sites, sum_terms
from pyro_vae.programs.units import univariate
from pyro_vae.programs.wide_scoring import wide_log_prob
from pyro_vae.programs.wrapped import base_name

from .drawn_sites import Drawn
from .latent_usage import of_sites
from .mutual_information import as_particles, seeded_sites, to_rows

CELLS = 2**18  # (draw, row, unit) log-probabilities held at a time
PROBES = 64  # rows that the form of the programs is read off at first
PRIOR_PROBES = 16  # values of z at which the prior is compared between rows
ROWS = 2048  # (row, value) pairs at a time, for that
Values = dict[str, Tensor]
Scorer = Callable[[Values], Tensor]


@dataclass(frozen=True)
class PosteriorForm:
    """Factorisation of q(z | x) and p(z)."""

    dims: dict[str, int]  # of each site, that of its draws that runs over rows
    fixed: bool  # no site of the guide depends on draws of another
    q_product: bool  # q(z | x) is a product over units
    p_product: bool  # and so is p(z)
    why: str | None  # names what is no product; None where both are


def form_of(problem: Problem) -> PosteriorForm:
    """Read the form of a pair off a few draws of rows from all over."""
    some = spread(problem, PROBES)
    q, p = some.draw(8)
    if any(present(site) is not None for sites in (q, p) for site in latent_sites(sites).values()):
        for part in problem.split(PROBES):  # the numbers of the rows that lack a latent
            refuse_masks(part, *part.draw(1))
    dims = {name: problem.plates.dim - site["fn"].event_dim for name, site in q.items()}
    check_shared(problem, q, dims)
    return of_sites_drawn(q, p, dims)


def common_form(forms: list[PosteriorForm]) -> PosteriorForm:
    """Return what holds of all of these rows: a product where each is one."""
    fixed, q_product, p_product = (all(getattr(f, name) for f in forms) for name in ("fixed", "q_product", "p_product"))
    why = [f.why for f in forms if f.q_product == q_product and f.p_product == p_product and f.why]
    return PosteriorForm(forms[0].dims, fixed, q_product, p_product, why[0] if why else None)


def spread(problem: Problem, count: int) -> Problem:
    """Return the problem of up to `count` of the rows, evenly spread: sorted rows differ at their ends; all, if all or none."""
    if problem.own_rows:
        return problem
    index = torch.linspace(0, len(problem) - 1, min(count, len(problem)), device=problem.device).round().long()
    return problem.at(index)


def of_sites_drawn(q: Sites, p: Sites, dims: dict[str, int]) -> PosteriorForm:
    """Return the form of these rows' distributions, at these draws."""
    fixed, q_why = factorisation("q(z | x)", q, q, dims)
    _, p_why = factorisation("p(z)", {name: p[name] for name in q}, q, dims)
    return PosteriorForm(dims, fixed, q_why is None, q_why is None and p_why is None, q_why or p_why)


def refuse_masks(problem: Problem, q: Sites, p: Sites) -> None:
    """Refuse latents that are masked in some of these rows."""
    why = (
        ": rows differ in the latents that they have, so these have no one q(z). Decompose rows of one mask, without it, or "
        "see latents(...), whose KL and I(x; z) are given the mask."
    )
    refuse_masked(q, problem, why)
    refuse_masked({name: p[name] for name in q}, problem, why)


def factorisation(
    what: str, sites: dict[str, Site], drawn_by: dict[str, Site], dims: dict[str, int]
) -> tuple[bool, str | None]:
    """Return whether no site depends on draws of another, and why the sites are no product over units, if they are none."""
    for name, site in sites.items():
        value = drawn_by[name]["value"]
        log_prob = site["fn"].log_prob(first_of(value, dims[name]).expand_as(value))
        if not torch.equal(log_prob, log_prob[:1].expand_as(log_prob)):
            return False, f"{what} is no product: site {name!r} depends on draws of another"
    for name, site in sites.items():
        if univariate(site["fn"]) is None:
            return (
                True,
                f"{what} is no product of one-dimensional distributions: site {name!r} is a {base_name(site['fn'])}",
            )
    return True, None


def first_of(value: Tensor, dim: int) -> Tensor:
    """Return the draw of the first particle and row, dimensions kept."""
    return value.narrow(0, 0, 1).narrow(dim, 0, 1)


def check_shared(problem: Problem, q: dict[str, Site], dims: dict[str, int]) -> None:
    """Refuse a prior that gives one z another density in another row; at draws for rows from all over, in every row.

    Where p(z) is seen to be computed without x and contexts, that is proof enough.
    """
    draws = {name: site["value"][:1].movedim(dims[name], 1) for name, site in q.items()}
    count = min(v.shape[1] for v in draws.values())
    chosen = torch.linspace(0, count - 1, min(PRIOR_PROBES, count), device=problem.device).round().long()
    given = {name: as_particles([v[:, chosen]], dims[name]) for name, v in draws.items()}
    reference = None
    for some in problem.split(ROWS // PRIOR_PROBES):
        at = {name: to_rows(v, dims[name], len(some)) for name, v in given.items()}
        with RowReads(some.args) as reads:
            p = seeded_sites(some, some.model, len(chosen), 0, at)
            terms = some.score({name: p[name] for name in q})
        if not reads.derived(terms):
            return
        log_p = sum_terms(terms)
        reference = log_p[:, :1] if reference is None else reference
        if not torch.allclose(log_p, reference.expand_as(log_p), rtol=1e-4, atol=1e-4):
            raise ProgramError(
                "the prior is not the same for every row (it depends on a context, or on x), so there is no p(z) to set "
                "q(z) against. Decompose the rows of one context at a time, or see latents(...) for the KL alone."
            )


@dataclass(frozen=True)
class Chunk:
    """Draws of n rows, ``(S, n, …)`` by site, and their terms ``(S, n)``, those of p(z) ``(S, n, units)`` in float64."""

    values: Values
    reconstruction: Tensor
    log_qx: Tensor
    log_p: Tensor
    sites: dict[str, Drawn]
    form: PosteriorForm


def scored(problem: Problem, num_samples: int, form: PosteriorForm) -> Chunk:
    """Draw S times for each of some rows, and score the draws; look at all rows' form, where `form` was read off a few."""
    q, p = problem.draw(num_samples)
    refuse_masks(problem, q, p)
    plates = problem.plates
    return Chunk(
        {name: site["value"].movedim(plates.dim - site["fn"].event_dim, 1) for name, site in q.items()},
        problem.log_prob(observed_sites(p)).to("cpu", torch.float64),
        unit_log_probs(q, {name: site["value"] for name, site in q.items()}, plates).sum(-1).cpu(),
        unit_log_probs({name: p[name] for name in q}, {name: q[name]["value"] for name in q}, plates).cpu(),
        of_sites(q, p, plates, {}),
        of_sites_drawn(q, p, form.dims),
    )


def unit_log_probs(sites: dict[str, Site], values: Values, plates: Plates) -> Tensor:
    """Units' log-probabilities of all sites, ``(draws, n, units)`` in float64; a site that is no product is one unit."""
    terms = []
    for name, site in sites.items():
        base, fn = univariate(site["fn"]), site["fn"]
        log_prob = wide_log_prob(base or fn, values[name], name=name)
        terms.append(plates.by_unit(log_prob, 0 if base is None else fn.event_dim).double())
    return torch.cat(terms, -1)


def posteriors(problem: Problem, form: PosteriorForm, seed: int) -> Scorer:
    """Return a scorer of any draws, log q(z_u | x_m) for some rows: ``(draws, n, units)``."""
    # of a hierarchy the guide runs on every block of draws
    fixed = problem.sites(problem.guide) if form.fixed else None

    def of(z: Values) -> Tensor:
        given = {name: to_rows(v, form.dims[name], len(problem)) for name, v in z.items()}
        sites = fixed or seeded_sites(problem, problem.guide, len(next(iter(z.values()))), seed, given)
        return unit_log_probs(sites, given, problem.plates)

    return of


def aggregate(
    mixture: list[Scorer], z: Values, rows: int, block: int, split: bool, verbose: bool
) -> tuple[Tensor, Tensor | None]:
    """Return log q(z) = log 1/N Σ_m q(z | x_m) of all draws, ``(S · N,)``, and log q(z_u), ``(S · N, units)``."""
    draws = len(next(iter(z.values())))
    width = sum(v[0].numel() for v in z.values())
    step = max(1, CELLS // (block * width))
    joint, units = [], []
    for start in tracked(range(0, draws, step), "aggregate posterior", verbose):
        z_block = {name: v[start : start + step] for name, v in z.items()}
        log_q, log_u = (torch.tensor(-math.inf, dtype=torch.float64),) * 2
        for log_qx in mixture:
            each = log_qx(z_block)
            log_q = torch.logaddexp(log_q, each.sum(-1).logsumexp(1).cpu())
            if split:
                log_u = torch.logaddexp(log_u, each.logsumexp(1).cpu())
        joint.append(log_q - math.log(rows))
        units.append(log_u - math.log(rows))
    return torch.cat(joint), torch.cat(units) if split else None
