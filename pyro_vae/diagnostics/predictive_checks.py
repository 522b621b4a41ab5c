r"""Predictive checks, posterior and prior: compare data drawn from the model with the data, in chosen statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_nats
from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import UsageError
from pyro_vae.evidence.imputation import Particles, check_gaps, mapped
from pyro_vae.programs.data_map import DataMap, data_map_of_few
from pyro_vae.programs.masks import kept_entries
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem, rows_of
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.row_coupling import warn_of_guide
from pyro_vae.programs.rows_of_set import AroundRows
from pyro_vae.programs.simulate import draw
from pyro_vae.programs.sites import Program, Site, observed_sites
from pyro_vae.programs.structured import refuse_structure
from pyro_vae.programs.unconditioned import Unconditioned, undone
from pyro_vae.programs.valid_draws import refuse_nan_draws

from .statistics_of_rows import STATISTICS, Statistic, evaluated, on_replications

RECONSTRUCTION = "log p(x | z)"
EXTREME = 0.025  # beyond all but this share of the replications, on either side


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """One statistic T on the data and on S replications of them, in float64 on the CPU.

    Attributes:
        observed: T(x), ``(1, N)``; or T(x, z) of each draw, ``(S, N)``. N is 1 for a statistic of all rows together.
        replicated: T(x_rep), ``(S, N)``.
    """

    observed: Tensor
    replicated: Tensor

    @property
    def p_rows(self) -> Tensor:
        """P(T(x_rep) ≥ T(x)) for each row, ``(N,)``."""
        return (self.replicated >= self.observed).double().mean(0)

    @property
    def p(self) -> float:
        """P(T(x_rep) ≥ T(x)) for the mean of T over all rows."""
        return (self.replicated.mean(1) >= self.observed.mean(1)).double().mean().item()

    @property
    def mc_se(self) -> float:
        """The Monte Carlo standard error of `p`: √(p (1 − p) / S)."""
        return (self.p * (1 - self.p) / len(self.replicated)) ** 0.5

    @property
    def extreme_rows(self) -> float:
        """The share of rows with P(T(x_rep) ≥ T(x)) or P(T(x_rep) ≤ T(x)) below 0.025."""
        below = (self.replicated <= self.observed).double().mean(0)
        return torch.minimum(self.p_rows, below).lt(EXTREME).double().mean().item()

    @property
    def extreme(self) -> bool:
        """True where the mean of T over all rows is as far out as that."""
        means, observed_mean = self.replicated.mean(1), self.observed.mean(1)
        return min(self.p, (means <= observed_mean).double().mean().item()) < EXTREME


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Statistics of the data beside those of data that the model draws.

    Attributes:
        statistics: a :class:`Discrepancy` each, by name.
        kind: "posterior" or "prior".
        rows, num_draws, seed: N; S, replications of the data; of the draws.

    Example:
        >>> drawn = torch.arange(8.0).unsqueeze(1)
        >>> inside, beyond = Discrepancy(torch.tensor([[4.0]]), drawn), Discrepancy(torch.tensor([[9.0]]), drawn)
        >>> check = PredictiveCheck({"mean": inside, "largest": beyond}, kind="prior", rows=20, num_draws=8, seed=0)
        >>> check.statistics["mean"].p, check.extreme
        (0.5, ('largest',))
    """

    statistics: dict[str, Discrepancy]
    kind: str
    rows: int
    num_draws: int
    seed: int

    @property
    def extreme(self) -> tuple[str, ...]:
        """Names of statistics whose mean over rows is beyond all but 2.5 per cent of the replications, on either side."""
        return tuple(name for name, d in self.statistics.items() if d.extreme)

    def to_dict(self) -> dict[str, Any]:
        """Return plain names and numbers, for JSON and for :func:`~pyro_vae.plots.calibration.predictive_panels`."""
        statistics = {
            name: {
                "observed": d.observed.mean(1).tolist(),
                "replicated": d.replicated.mean(1).tolist(),
                "p": d.p,
                "mc_se": d.mc_se,
                "extreme_rows": d.extreme_rows,
            }
            for name, d in self.statistics.items()
        }
        totals = {"rows": self.rows, "num_draws": self.num_draws, "seed": self.seed}
        return {"kind": self.kind, "statistics": statistics} | totals

    def plot(self) -> Any:
        """Plot each statistic of replications, and of the data (a matplotlib figure)."""
        from pyro_vae.plots.calibration import predictive_panels

        return predictive_panels(self.to_dict())

    def __str__(self) -> str:
        def line(name: str, d: Discrepancy) -> str:
            means = d.replicated.mean(1)
            return (
                f"  {name}: data {d.observed.mean().item():.4g}, model {means.mean().item():.4g} ± "
                f"{means.std(correction=0).item():.2g}, p {d.p:.3f} ± {format_nats(d.mc_se)}, "
                f"{d.extreme_rows:.0%} of rows extreme"
            )

        head = f"{self.kind} predictive check, {counted(self.rows, 'row')}, {counted(self.num_draws, 'replication')}"
        return "\n".join([head, *(line(name, d) for name, d in self.statistics.items())])

    __repr__ = __str__


@suggest_keywords
def posterior_predictive_check(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    site: str | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 200,
    num_particles: int | None = None,
    seed: int = 0,
    chunk_size: int = 8192,
) -> PredictiveCheck:
    r"""p = P(T(x_rep) ≥ T(x)),  x_rep ~ p(x | z), z ~ q(z | x): for each row, and for the mean of T over all rows.

    Beside the statistics given, T = log p(x | z), of the same z on both sides: does the model draw rows as probable as the
    data are?

    These p-values are not frequentist ones. x is used twice, to find z and to be compared: under a true model they are not
    uniform but crowd around ½, for a T that z can fit more than for others. So a p near 0 or 1 says that the model misses T,
    and one near ½ says little; they are not to be corrected for their number, averaged into a test, or compared between
    models (a model that overfits its rows does well). And they are of model *and* guide: a q that is too narrow makes
    replications too alike; `num_particles` takes most of that away. :func:`prior_predictive_check` uses x once.

    P counts ties as ≥: of a discrete T, such as a share of zeros, p may be 1 with nothing wrong, and is then not called
    extreme.

    What a mask of the model leaves out (``poutine.mask``, ``.mask()`` on the distribution) is not compared: x_rep holds there
    what x holds. So do its gaps: T is handed NaN where x is NaN; the statistics that come along take what is there.

    Args:
        model, guide, x, *context: as for :func:`~pyro_vae.log_likelihood`; the model observes each entry of x once, unchanged,
            as for :func:`~pyro_vae.programs.simulate.simulate`. NaN is a gap, where the likelihood leaves it out.
        site: the observed site whose data is compared, in place of x: T is of what that site observes, ``(rows, *entries)``,
            and log p(x | z) is its term alone. A modality of a :class:`~pyro_vae.MultimodalVAE`, say.
        statistics: name to function ``(rows, *event) -> (rows,)``; or ``-> ()``, a statistic of all rows together, for which
            all S replications of the data are held in memory. None is mean, standard deviation, share of zeros and max
            of each row (``STATISTICS``).
        num_draws: S.
        num_particles: K; z is then drawn from K particles of q by their weights p(x, z) / q(z | x), which comes closer to
            the posterior than q itself; S of them with replacement, so K should be some times S. None takes z ~ q.
        seed: of all draws.
        chunk_size: (row, particle) pairs run at a time, one row's at least.

    Raises:
        ShapeError: a statistic that returns neither one number a row nor one in all (it is named).
        DataError: a statistic that is NaN.
        SupportError, ProgramError: as :func:`~pyro_vae.log_likelihood`; a model that cannot be simulated, or that scores what
            it puts in the place of gaps; with `num_particles`, a guide that never draws some of what p(x, z) allows.

    References:
        Posterior Predictive Assessment of Model Fitness via Realized Discrepancies (Gelman, Meng & Stern, 1996),
        https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n41/j6n41.htm
        P Values for Composite Null Models (Bayarri & Berger, 2000), https://doi.org/10.1080/01621459.2000.10474309

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.diagnostics.predictive_checks import posterior_predictive_check
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(z.unsqueeze(-1)).expand((*z.shape, 5)).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Gamma(2.0 + x.sum(-1), 6.0))
        >>> x = torch.tensor([[0.0, 0, 0, 0, 9]]).expand(20, 5)   # more zeros than a Poisson has
        >>> posterior_predictive_check(model, guide, x).extreme
        ('standard deviation', 'share of zeros', 'max', 'log p(x | z)')
    """
    check_whole(num_draws=num_draws, num_particles=num_particles, chunk_size=chunk_size, seed=seed)
    draws = num_particles or num_draws
    if min(num_draws, draws, chunk_size) < 1:
        raise UsageError(
            f"num_draws, num_particles and chunk_size must be 1 or more, got {num_draws}, {num_particles} and {chunk_size}"
        )
    chosen = STATISTICS if statistics is None else statistics
    refuse_structure(x, "a predictive check")
    args = rows_of(model, guide, x, *context, missing=True)
    if site is None:
        observed = {name: evaluated(name, t, args[0]) for name, t in chosen.items()}
    with quiet(model, guide, seed=seed, device=args[0].device):
        problem = Problem.checked(model, guide, *args)
    warn_of_guide(problem, "its draws, of which data are replicated,")
    if num_particles is not None:  # weights would leave out, in silence, what the guide never draws
        with problem.quiet(seed):
            check_reach(problem, otherwise="take z from it as it is, num_particles=None")
    known = mapped(problem, seed, chunk_size, partial(check_replicable, site=site))
    if site is not None:
        observed = {name: evaluated(name, t, known.of_site(site, args)) for name, t in chosen.items()}
    by_row = {name: t for name, t in chosen.items() if observed[name].dim() == 1}
    values: dict[str, list[Tensor]] = {name: [] for name in chosen}
    data, log_p = [], []
    for i, some in enumerate(problem.split(chunk_size // max(draws, num_draws))):
        with some.quiet(seed, i):
            particles = Particles(some, draws, known, site)
            again, *terms = replications(particles, num_draws, resample=num_particles is not None)
        for name, t in by_row.items():
            values[name].append(on_replications(name, t, again, of_all=False))
        data += [again] if len(by_row) < len(chosen) else []  # all rows have to be there for a statistic of all
        log_p.append([term.double().cpu() for term in terms])
    for name in (name for name in chosen if name not in by_row):
        values[name] = [on_replications(name, chosen[name], torch.cat(data, 1), of_all=True)]
    checks = {name: Discrepancy(observed[name].reshape(1, -1), torch.cat(values[name], 1)) for name in chosen}
    checks[RECONSTRUCTION] = Discrepancy(*(torch.cat(blocks, 1) for blocks in zip(*log_p, strict=True)))
    return PredictiveCheck(checks, "posterior", len(problem), num_draws, seed)


@suggest_keywords
def prior_predictive_check(
    model: Program,
    x: Any,
    *context: Any,
    site: str | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    num_draws: int = 200,
    seed: int = 0,
    chunk_size: int = 8192,
) -> PredictiveCheck:
    r"""p = P(T(x_rep) ≥ T(x)),  x_rep ~ p(x | z), z ~ p(z): as :func:`posterior_predictive_check`, without the guide.

    Given the model's parameters, x is used once: the p-values of continuous T are uniform if the model is true (of training
    rows, that the parameters have seen, nearly). They ask whether the model generates rows like these at all, not whether it
    reconstructs these.

    Args:
        model, x, *context, site, statistics: as for :func:`posterior_predictive_check`.
        num_draws: S, data sets drawn.
        seed: of all draws.
        chunk_size: rows drawn at a time, N at least.

    Raises:
        ShapeError, DataError: a statistic of another shape, or NaN.
        ProgramError: a model that cannot be simulated.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro_vae.diagnostics.predictive_checks import prior_predictive_check
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x), 4]).to_event(1), obs=x)
        >>> prior_predictive_check(model, 1 + torch.randn(50, 4)).extreme
        ('mean', 'max')
    """
    check_whole(num_draws=num_draws, chunk_size=chunk_size, seed=seed)
    if min(num_draws, chunk_size) < 1:
        raise UsageError(f"num_draws and chunk_size must be 1 or more, got {num_draws} and {chunk_size}")
    chosen = STATISTICS if statistics is None else statistics
    refuse_structure(x, "a predictive check")
    args = rows_of(model, None, x, *context, missing=True)
    rows = len(args[0])
    with quiet(model):
        known = data_map_of_few(model, args, seed)
        data = args[0] if site is None else known.of_site(site, args)
        shape, gaps = data.shape, data.isnan()
        observed = {name: evaluated(name, t, data) for name, t in chosen.items()}
        values: dict[str, list[Tensor]] = {name: [] for name in chosen}
        side_by_side = 1 if isinstance(model, AroundRows) else max(1, chunk_size // rows)  # a data set comes alone
        for i, start in enumerate(range(0, num_draws, side_by_side)):
            times = min(side_by_side, num_draws - start)
            repeated = tuple(a.repeat(times, *[1] * (a.dim() - 1)) for a in args)
            drawn = draw(model, repeated, seed, i, known=known).args
            again = (drawn[0] if site is None else known.of_site(site, drawn)).reshape(times, *shape)
            again = with_gaps(again, gaps)
            for name, t in chosen.items():
                values[name].append(on_replications(name, t, again, observed[name].dim() == 0))
    checks = {name: Discrepancy(observed[name].reshape(1, -1), torch.cat(values[name])) for name in chosen}
    return PredictiveCheck(checks, "prior", rows, num_draws, seed)


def check_replicable(problem: Problem, known: DataMap, run: Unconditioned, site: str | None = None) -> None:
    """Refuse, by site, a model that cannot be simulated, and gaps that its likelihood does not leave out."""
    known.check_draws(run)
    check_gaps(problem, known, run, site)


def replications(particles: Particles, draws: int, resample: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x_rep ``(S, n, *event)``, with log p(x | z) and log p(x_rep | z), ``(S, n)``, for z of q or resampled by weight.

    What masks of the model leave out stays in x_rep as it is in x, and so do gaps (NaN). All of one site alone, if the
    particles are asked for that.
    """
    problem, known, chosen = particles.problem, particles.known, particles.site
    log_p = problem.log_prob(of_site(observed_sites(particles.sites), chosen))
    z = {name: site["value"] for name, site in particles.latents.items()}
    if resample:
        numbers, z = particles.resampled(draws)
        log_p = log_p.gather(0, numbers)
    drawn = problem.sites(undone(problem.model), draws, z)
    sites = {name: drawn[name] for name in known.sites}
    for name, site in sites.items():
        refuse_nan_draws(name, site, problem.first)
    kept = {name: kept_entries(site) for name, site in sites.items()}
    filled = known.fill(problem.args, {name: site["value"] for name, site in sites.items()}, kept, (draws,))
    again = tuple(with_gaps(new, old.isnan()) for new, old in zip(filled, problem.args, strict=True))
    for name, site in sites.items():
        site["value"] = known.observation(name, again, (draws,)).reshape(site["value"].shape).to(site["value"])
    data = again[0] if chosen is None else known.of_site(chosen, again, (draws,))
    return data, log_p, problem.log_prob(of_site(sites, chosen))


def of_site(sites: Mapping[str, Site], name: str | None) -> dict[str, Site]:
    """Return one of the sites, or all for no name."""
    return dict(sites) if name is None else {name: sites[name]}


def with_gaps(x: Tensor, gaps: Tensor) -> Tensor:
    """Return x with NaN at gaps."""
    return x.masked_fill(gaps, torch.nan) if gaps.any() else x  # whole numbers hold no NaN, and have no gaps
