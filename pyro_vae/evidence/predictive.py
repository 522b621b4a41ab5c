r"""Pointwise predictive density of new rows, log p(x_new | X) = log E_q(θ) p(x_new | θ), for models with global parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.flagged import is_loose, why_loose
from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.estimate import data_se, format_nats, known
from pyro_vae.evidence.importance.pareto import pareto_khat, steady_rows
from pyro_vae.programs.data_set import PartOfDataSet
from pyro_vae.programs.determinism import same
from pyro_vae.programs.plates import WITHOUT_SIZE, Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.reach import PRIOR_DRAWS, ROWS, limited
from pyro_vae.programs.row_coupling import coupled
from pyro_vae.programs.score_sites import score_sites
from pyro_vae.programs.shared_sites import SharedSites, shared_sites
from pyro_vae.programs.site_rows import frames_of
from pyro_vae.programs.sites import Program, add, latent_sites
from pyro_vae.programs.unconstrained import SubstituteLatents

STREAM = 19  # of a seed: apart from importance sampling's and annealing's
DRAWS = 2  # of θ, at which the densities of rows are held against those among other rows


@dataclass(frozen=True, eq=False, repr=False)
class PredictiveDensity:
    r"""log p(x_n | X) of N new rows by K draws of θ, and their sum over rows, the ELPD; nats, higher is better.

    All rows share the draws of θ, so their errors do not average out: those of the sum are taken of the sum.

    Attributes:
        log_w: log p(x_n, z_kn | θ_k) − log q(z_kn | x_n), ``(K, N)`` in float64; log p(x_n | θ_k) where rows have no latents.
        seed: of the draws.
        measure: that log p(x) is a density with respect to.

    Example:
        >>> found = PredictiveDensity(torch.tensor([[0.1], [0.3]]).double().log(), 0, "continuous")    # one row, two draws of θ
        >>> found.log_px.exp(), found.relative.flatten()                       # the mean of 0.1 and 0.3, and both over it
        (tensor([0.2000], dtype=torch.float64), tensor([0.5000, 1.5000], dtype=torch.float64))
    """

    log_w: Tensor
    seed: int
    measure: str

    def __len__(self) -> int:
        return self.log_w.shape[1]

    @cached_property
    def log_px(self) -> Tensor:
        """log 1/K Σ_k w_kn, ``(N,)``: log p(x_n | X) if q(θ) is the posterior."""
        return self.log_w.logsumexp(0) - math.log(len(self.log_w))

    @property
    def relative(self) -> Tensor:
        """w_kn over their mean, ``(K, N)``."""
        return (self.log_w - self.log_px).exp()

    @property
    def mc_se(self) -> Tensor:
        """Monte Carlo standard error of each `log_px`, by the delta method, ``(N,)``."""
        return spread_of(self.relative) / len(self.log_w) ** 0.5

    @property
    def khat(self) -> Tensor:
        """Pareto k̂ of each row's weights, ``(N,)``; NaN for fewer than 25 draws."""
        return pareto_khat(self.log_w)

    @property
    def flagged(self) -> Tensor:
        """Numbers of the rows whose error is not to be believed: by k̂, as importance sampling's; all of fewer than 25 draws."""
        counts = torch.full_like(self.log_px, len(self.log_w))
        max_share = (self.log_w.amax(0) - self.log_w.logsumexp(0)).exp()
        return (~steady_rows(self.khat, max_share, counts)).nonzero().flatten()

    @property
    def elpd(self) -> float:
        """Σ_n log p(x_n | X): the expected log predictive density of N rows."""
        return self.log_px.sum().item()

    @property
    def elpd_mc_se(self) -> float | None:
        """Monte Carlo error of the sum: sd over k of Σ_n w_kn / w̄_n, over √K, for rows share θ_k; None for one draw."""
        return known(spread_of(self.relative.sum(1)) / len(self.log_w) ** 0.5)

    @property
    def elpd_data_se(self) -> float | None:
        """√N sd(log p(x_n | X)): how the sum would differ on other N rows; None for one row."""
        error = data_se(self.log_px)
        return None if error is None else error * len(self)

    def summary(self) -> dict[str, Any]:
        """Return the sum and its errors apart, the mean a row, and how many rows are flagged."""
        return {
            "elpd": self.elpd,
            "elpd_mc_se": self.elpd_mc_se,
            "elpd_data_se": self.elpd_data_se,
            "log_px": self.log_px.mean().item(),
            "rows": len(self),
            "rows_flagged": len(self.flagged),
            "num_samples": len(self.log_w),
            "seed": self.seed,
            "measure": self.measure,
            "unit": "nats, higher is better",
        }

    def __str__(self) -> str:
        s = self.summary()
        errors = f"{format_nats(s['elpd_mc_se'])} (Monte Carlo) ± {format_nats(s['elpd_data_se'])} (data)"
        about = (
            f"{s['rows']} rows ({s['rows_flagged']} flagged) | K = {s['num_samples']} draws of the global parameters"
        )
        if is_loose(s):
            return f"ELPD ≥ {s['elpd']:.2f} nats ({why_loose(s)}), ≥ {s['log_px']:.2f} a row | {about} | {s['measure']}"
        return f"ELPD {s['elpd']:.3f} ± {errors} nats, {s['log_px']:.3f} a row | {about} | {s['measure']}"

    __repr__ = __str__


def spread_of(weights: Tensor) -> Tensor:
    """Return the standard deviation over draws; NaN of one draw."""
    return weights.std(0) if len(weights) > 1 else torch.full_like(weights[0], math.nan)


@suggest_keywords
def predictive_density(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    num_samples: int = 1000,
    seed: int = 0,
    chunk_size: int = 262_144,
    missing: bool = False,
) -> PredictiveDensity:
    r"""log p̂(x_n | X) = log 1/K Σ_k p(x_n, z_kn | θ_k) / q(z_kn | x_n),  θ_k ~ q(θ), z_kn ~ q(z | x_n): of new rows.

    For pairs with sites outside the data plate, θ, whose guide q(θ) stands for the posterior p(θ | X) of the rows that it was
    trained on: what comes out is the density of new rows *under q(θ)*. Without latents of rows the ratio is p(x_n | θ_k).
    Changes no parameter, no module's mode and no global random state.

    Args:
        model, guide: Pyro programs with a data plate, and sites outside it.
        x: new rows ``(N, *event)``, and `context` beside it, as for :func:`~pyro_vae.log_likelihood`.
        num_samples: K, draws of θ, the same for all rows.
        seed: of the draws.
        chunk_size: (row, draw) pairs run at a time; another one means other draws.
        missing: x may hold NaN, for what was not observed.

    Raises:
        ProgramError: a pair without such sites, whose rows have a density of their own; a guide that has no density, never
            draws some of what a row's latents may be, or computes q(θ) from the new rows; a model in which a row's density
            moves with the others; a plate of another number of rows.
        SupportError, ShapeError, DataError: rows outside the support, of another shape, or not finite.

    References:
        Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC (Vehtari, Gelman & Gabry, 2017),
        https://arxiv.org/abs/1507.04544

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae import predictive_density
        >>> def model(x):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        >>> def guide(x):                                        # the posterior of some three rows
        ...     pyro.sample("mu", dist.Normal(1.0, 0.5))
        >>> x = torch.tensor([0.0, 2.0])
        >>> new = predictive_density(model, guide, x, num_samples=4000)
        >>> exact = dist.Normal(1.0, 1.25**0.5).log_prob(x)
        >>> bool(((new.log_px - exact).abs() < 4 * new.mc_se).all())
        True
    """
    num_samples = whole("num_samples", num_samples, 1)
    part = PartOfDataSet(model, guide)
    data_set = part.rows(x, *context, missing=missing)
    rows = data_set[0].shape[1]
    problem = Problem.of(part.model, part.guide, *data_set, seed=seed, missing=missing)
    shared = shared_sites(model, guide, lambda n: tuple(a[0, :n] for a in data_set), rows, rows)
    size = max(1, whole("chunk_size", chunk_size, 1) // rows)
    blocks = [min(size, num_samples - start) for start in range(0, num_samples, size)]
    few = problem.over(*(a[:, :ROWS] for a in data_set))
    with problem.quiet(seed, STREAM):
        check_rows_reached(few, shared, min(rows, ROWS))
        check_rows_stand_alone(few, shared, min(rows, ROWS))
    log_w = []
    for i, particles in enumerate(blocks):
        with problem.quiet(seed, STREAM, i):
            log_w.append(row_log_weights(*problem.draw(particles), problem, shared, rows).cpu())
    return PredictiveDensity(torch.cat(log_w).double(), seed, problem.measure)


def check_rows_reached(problem: Problem, shared: SharedSites, rows: int) -> None:
    """Refuse a guide with q(z_n | x_n) = 0 at draws of p(z_n | θ), θ ~ q(θ), where p(x_n, z_n | θ) > 0; names site and row.

    What q(θ) leaves out is another matter: it stands for a posterior, which may leave out much of the prior.
    """
    q = latent_sites(problem.sites(problem.guide, PRIOR_DRAWS))
    of_rows = {name for name, site in q.items() if shared.plate in frames_of(site)}
    if not any(limited(q[name]) for name in of_rows):
        return
    drawn = {name: site["value"] for name, site in q.items() if name not in of_rows}
    p = problem.sites(problem.model, PRIOR_DRAWS, drawn)  # given θ, z is drawn by the prior
    drawn |= {name: site["value"] for name, site in p.items() if name in of_rows}
    again = problem.sites(problem.guide, PRIOR_DRAWS, SubstituteLatents(drawn))
    log_p, log_q = row_log_densities({n: again[n] for n in again if n in q}, p, problem, shared, rows)
    if (missed := (log_q == -math.inf) & (log_p > -math.inf)).any():
        names = ", ".join(map(repr, sorted(of_rows)))
        raise ProgramError(
            f"site {names}: the guide never draws what p(x, z | θ) allows of row {int(missed.any(0).nonzero()[0])} "
            f"({missed.double().mean().item():.0%} of the draws of p(z | θ)): weights leave it out, and the density comes out "
            "too low. Give the guide the prior's support (LogNormal or Gamma for a positive latent)."
        )


def check_rows_stand_alone(problem: Problem, shared: SharedSites, rows: int) -> None:
    """Refuse a q(θ) that reads the new rows, and a model in which a row's density moves with the others; names the site.

    A q(θ | X_new) has seen what it is asked to predict: what comes out is too high, and is no density of a new row.
    """
    q = latent_sites(problem.sites(problem.guide, DRAWS))
    drawn = {name: site["value"] for name, site in q.items()}
    log_p = row_terms(problem.sites(problem.model, DRAWS, drawn), problem, shared, rows)
    for n in dict.fromkeys((0, rows - 1)):
        copies = problem.over(*(a[:, [n] * rows] for a in problem.args))
        again = copies.sites(copies.guide, DRAWS, SubstituteLatents(drawn))
        for name in (name for name, site in q.items() if shared.plate not in frames_of(site)):
            if not same(*(run[name]["fn"].log_prob(run[name]["value"]) for run in (q, again))):
                raise ProgramError(
                    f"site {name!r}: the guide has another density of it where other rows are passed: it computes q(θ) from "
                    "the new rows, so that they are scored by what they say of themselves, which is no density of new rows. "
                    "Fix: a q(θ) of the rows that it was trained on, whatever is passed: lambda *new: guide(*old)."
                )
        terms = row_terms(copies.sites(copies.model, DRAWS, drawn), copies, shared, rows)
        for name, term in log_p.items():
            if not same(here := term[:, n], there := terms[name][:, n]):
                raise ProgramError(coupled(name, here, there, n))


def row_terms(p: Sites, problem: Problem, shared: SharedSites, rows: int) -> dict[str, Tensor]:
    """Return the terms of log p(x_n, z_kn | θ_k) by site, ``(K, N)`` each."""
    sites, plates = in_rows(p, problem, shared, rows)
    return score_sites(sites, plates, program="model", checked=problem.inside)


def row_log_weights(q: Sites, p: Sites, problem: Problem, shared: SharedSites, rows: int) -> Tensor:
    """log p(x_n, z_kn | θ_k) − log q(z_kn | x_n), ``(K, N)``: the terms of sites in the data plate."""
    log_p, log_q = row_log_densities(q, p, problem, shared, rows)
    return log_p if log_q is None else log_p - log_q


def row_log_densities(
    q: Sites, p: Sites, problem: Problem, shared: SharedSites, rows: int
) -> tuple[Tensor, Tensor | None]:
    """log p(x_n, z_kn | θ_k) and log q(z_kn | x_n), ``(K, N)`` each; None where rows have no latents."""
    (of_model, plates), of_guide = in_rows(p, problem, shared, rows), only_in(q, shared)
    terms = score_sites(of_model, plates, program="model", checked=problem.inside)
    densities = score_sites(of_guide, plates, program="guide")
    return add(terms.values()), add(densities.values()) if densities else None


def in_rows(p: Sites, problem: Problem, shared: SharedSites, rows: int) -> tuple[Sites, Plates]:
    """Return the model's sites in the plate over the rows, and its plates as they are nested; refuse rows of its own."""
    of_rows = only_in(p, shared)
    if not of_rows:
        raise ProgramError(
            f"no site of the model lies in a plate over the rows ({shared.plate!r}): they have no density."
        )
    name, frame = next((name, frames_of(site)[shared.plate]) for name, site in of_rows.items())
    if frame.size not in (rows, WITHOUT_SIZE):  # rows of the program's own, whose density would pass for that of these
        raise ProgramError(
            f"site {name!r}: its plate {shared.plate!r} has size {frame.size}, and there are {rows} new rows. Fix: hand the "
            f"data in as x, and have the plate follow it, pyro.plate({shared.plate!r}, len(x))."
        )
    assert frame.dim is not None
    return of_rows, Plates(shared.plate, frame.dim, problem.plates.nesting)


def only_in(sites: Sites, shared: SharedSites) -> Sites:
    """Return the sites in the plate over the rows."""
    return {name: site for name, site in sites.items() if shared.plate in frames_of(site)}
