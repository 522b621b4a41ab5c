r"""log p(x_t | x_1, …, x_{t−1}) of state-space models by particle filters, and log p(x) by their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_bound, is_loose, why_loose
from pyro_vae.common.given import whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import UsageError
from pyro_vae.evidence.annealing.result import student
from pyro_vae.evidence.estimate import LogPx, RowEstimates, data_se, digest_of_rows, format_nats, mean_se
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.reach import check_reach

from .filtering import Cloud, beside, clouds
from .steps import StateSpace, Steps, check_roles, repeat, validated

BLOCK = 32  # sequences at a time: each has noise of its own block, whatever the others are
LOW_ESS = 10  # particles that count
Proposal = Literal["guide", "prior"]


@dataclass(frozen=True, eq=False, repr=False)
class Filtered(RowEstimates):
    """What a particle filter makes of N sequences of T steps: R filters of K particles each, pooled; in nats.

    NaN stands where a sequence has no such step.

    Attributes:
        log_px, mc_se: log p(x_n), ``(N,)`` in float64, with its Monte Carlo error: of R independent unbiased
            estimates of p(x), widened as Student's t of R − 1 degrees is.
        one_step, one_step_se: log p(x_t | x_1, …, x_{t−1}), ``(N, T)``; their sum over t is log_px.
        mean, mean_se: filtering means E[z_t | x_1, …, x_t], ``(N, T, *event)``.
        ess: least effective sample size of a filter's K particles at each step, ``(N, T)``.
        runs_ess: effective sample size of the R estimates of p(x), ``(N,)``.
        lengths: of the sequences, ``(N,)``.
        measure, method, num_particles, num_runs, seed: what it is a density of, and how it was computed.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import StateSpaceModel, particle_filter
        >>> walk = StateSpaceModel(
        ...     initial=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        ...     transition=lambda z: dist.Normal(0.9 * z, 0.5).to_event(1),
        ...     likelihood=lambda z: dist.Normal(z, 1.0).to_event(1),
        ...     encoder=lambda x, lengths=None: x,
        ...     posterior=lambda z, h: dist.Normal(0.7 * z + 0.2 * h, 0.5).to_event(1),
        ... )
        >>> filtered = particle_filter(walk, torch.zeros(1, 3, 1), num_particles=100)
        >>> filtered.one_step.shape, filtered.mean.shape, torch.allclose(filtered.one_step.sum(1), filtered.log_px)
        (torch.Size([1, 3]), torch.Size([1, 3, 1]), True)
    """

    log_px: Tensor
    mc_se: Tensor
    one_step: Tensor
    one_step_se: Tensor
    mean: Tensor
    mean_se: Tensor
    ess: Tensor
    runs_ess: Tensor
    lengths: Tensor
    measure: str | None
    method: str
    num_particles: int
    num_runs: int
    seed: int
    row_ids: RowIds | None = None

    @property
    def flagged(self) -> Tensor:
        """Numbers of the rows not to believe: few particles count at some step, or few of the runs' estimates."""
        return too_few(self.ess.nan_to_num(math.inf).amin(1), self.runs_ess, self.num_runs).nonzero().flatten()

    def difference(self, other: LogPx) -> tuple[float, float]:
        """Return the mean over rows of log p(x) minus another estimate's, with its Monte Carlo error.

        The chain rule has both be log p(x): one that is off by several errors is wrong, or has weights without a variance.
        """
        error = (self.mc_se.square() + other.mc_se.square()).sum().sqrt() / len(self)
        return (self.log_px - other.log_px).mean().item(), error.item()

    def summary(self) -> dict[str, Any]:
        """Average over rows, with errors, and log p(x) / T: nats per step."""
        steps = self.lengths.sum().item()
        return {
            "log_px": self.log_px.mean().item(),
            "log_px_mc_se": mean_se(self.mc_se),
            "log_px_data_se": data_se(self.log_px),
            "log_px_per_step": self.log_px.sum().item() / steps,
            "steps": steps,
            "rows_flagged": len(self.flagged),
            "least_ess": self.ess.nan_to_num(math.inf).min().item(),
            "rows": len(self),
            "num_particles": self.num_particles,
            "num_runs": self.num_runs,
            "seed": self.seed,
            "method": self.method,
            "measure": self.measure,
            **digest_of_rows(self.row_ids),
            "unit": "nats per row, higher is better",
        }

    def __str__(self) -> str:
        s = self.summary()
        about = f"{counted(len(self), 'sequence')}, {s['steps']} steps; {self.num_runs} runs of {self.num_particles} particles"
        if is_loose(s):
            return f"log p(x) {format_bound(s)} nats per row ({why_loose(s)}; {self.method}, {about})"
        errors = f"± {format_nats(s['log_px_mc_se'])} (Monte Carlo) ± {format_nats(s['log_px_data_se'])} (data)"
        return (
            f"log p(x) {s['log_px']:.3f} {errors} nats per row, {s['log_px_per_step']:.4f} per step ({self.method}, {about}; "
            f"{counted(s['rows_flagged'], 'row')} flagged)"
        )


@suggest_keywords
def particle_filter(
    vae: StateSpace,
    x: Any,
    *c: Any,
    num_particles: int = 500,
    num_runs: int = 16,
    proposal: Proposal = "guide",
    missing: bool = False,
    seed: int = 0,
) -> Filtered:
    r"""log p(x_t | x_1, …, x_{t−1}) at each step, log p(x) = Σ_t of them, and E[z_t | x_1, …, x_t].

    K particles follow z_1, z_2, …: each step draws z_t, weighs by α = p(z_t | z_{t−1}) p(x_t | z_t) / q(z_t), and resamples
    where few particles count; p̂(x_t | x_<t) = Σ_k w_k α_k. Their product over t is an unbiased estimate of p(x), its
    relative variance grows as T, where that of importance sampling of whole paths grows as e^T. Both estimate one number:
    :meth:`Filtered.difference` says how far they are apart. R filters give the error. Cost: each role on R · K · T rows.

    Args:
        vae: a :class:`~pyro_vae.StateSpaceModel`, or what has its roles, model and guide.
        x, *c: data ``(N, T, *event)``; lengths ``(N,)``, if sequences are ragged; other contexts after them.
        num_particles, num_runs: K, and R, at least 2.
        proposal: z_t from the "guide", q(z_t | z_{t−1}, h_t), or from the "prior", p(z_t | z_{t−1}): the bootstrap filter.
            A guide that looks ahead is as right: the steps' targets do not depend on the proposal.
        missing: x may hold NaN, for what was not observed.
        seed: of all draws.

    Raises:
        DataError, ShapeError, SupportError: as :func:`~pyro_vae.log_likelihood`; lengths that x does not have.
        ProgramError: as there; programs that are not those of the roles; NaN weights, with their step; a guide that proposes,
            and never draws some of what p(x, z) allows.
        UsageError: fewer than 1 particle or 2 runs, another proposal.

    References:
        Novel approach to nonlinear/non-Gaussian Bayesian state estimation (Gordon, Salmond & Smith, 1993),
        https://doi.org/10.1049/ip-f-2.1993.0015
        Feynman-Kac Formulae (Del Moral, 2004), Proposition 7.4.1: the product is unbiased,
        https://doi.org/10.1007/978-1-4684-9393-1

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_vae import StateSpaceModel
        >>> walk = StateSpaceModel(
        ...     initial=lambda: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        ...     transition=lambda z: dist.Normal(0.9 * z, 0.5).to_event(1),
        ...     likelihood=lambda z: dist.Normal(z, 1.0).to_event(1),
        ...     encoder=lambda x, lengths=None: x,
        ...     posterior=lambda z, h: dist.Normal(0.7 * z + 0.2 * h, 0.5).to_event(1),
        ... )
        >>> filtered = particle_filter(walk, torch.zeros(1, 3, 1), num_particles=2000)   # Kalman: -3.5810
        >>> bool((filtered.log_px + 3.5810).abs() < 4 * filtered.mc_se + 1e-4)
        True
    """
    problem = checked_problem(vae, x, c, FilterOptions(num_particles, num_runs, proposal, missing, seed))
    parts = []
    for i, some in enumerate(problem.split(BLOCK)):
        with some.quiet(seed, i, 2), validated():
            parts.append(pooled(Pool.of(vae, some, num_runs, proposal == "guide"), num_particles))
    joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    about = f"{'guided' if proposal == 'guide' else 'bootstrap'} particle filter"
    result = Filtered(
        **joined, measure=problem.measure, method=about, num_particles=num_particles, num_runs=num_runs, seed=seed
    )
    return replace(result, row_ids=RowIds.of(x, *c))


@dataclass(frozen=True)
class FilterOptions:
    """How a filter is run; refuses numbers and proposals that there are not."""

    num_particles: int
    num_runs: int
    proposal: str
    missing: bool
    seed: int

    def __post_init__(self) -> None:
        whole("num_particles", self.num_particles, 1)
        whole("num_runs", self.num_runs, 2)
        if self.proposal not in ("guide", "prior"):
            raise UsageError(f"proposal must be 'guide' or 'prior', got {self.proposal!r}")


def checked_problem(vae: StateSpace, x: Any, c: Sequence[Any], options: FilterOptions) -> Problem:
    """Check a filter's rows, its programs, and that these are the roles'."""
    if absent := [role for role in StateSpace.__annotations__ if not callable(getattr(vae, role, None))]:
        raise UsageError(
            f"a {type(vae).__name__} has no {absent[0]}: wanted a StateSpaceModel, or an object with "
            f"{', '.join(StateSpace.__annotations__)}"
        )
    problem = Problem.of(vae.model, vae.guide, x, *c, seed=options.seed, missing=options.missing)
    with problem.quiet(options.seed, 0, 1):
        for some in problem.split(BLOCK):
            check_roles(vae, some)
        if options.proposal == "guide":
            check_reach(problem, otherwise="take proposal='prior', which does")
    return problem


@dataclass(frozen=True)
class Pool:
    """R filters of N sequences each, as one of M = R · N sequences."""

    steps: Steps
    runs: int

    @classmethod
    def of(cls, vae: StateSpace, problem: Problem, runs: int, guided: bool) -> Pool:
        """Copy the steps of each sequence for so many runs."""
        steps = Steps.of(vae, problem.args, guided)
        copies = [repeat(t, runs) for t in (steps.x, steps.lengths, *steps.c)]
        h = None if steps.h is None else repeat(steps.h, runs)
        return cls(Steps(vae, copies[0], copies[1], tuple(copies[2:]), h), runs)

    @property
    def rows(self) -> int:
        """N, sequences."""
        return len(self.steps) // self.runs

    def by_run(self, values: Tensor) -> Tensor:
        """``(M, ...)`` as ``(R, N, ...)``."""
        return values.reshape(self.runs, self.rows, *values.shape[1:])

    def error(self, by_run: Tensor) -> Tensor:
        """Return the standard error of the mean over runs, ``(N, ...)``, widened as Student's t of R − 1 degrees is."""
        return by_run.std(0) / self.runs**0.5 * student(self.runs - 1)

    def there(self, t: int) -> Tensor:
        """Return whether each sequence has this step, ``(N,)``."""
        return self.steps.there(t)[: self.rows]


def pooled(pool: Pool, particles: int) -> dict[str, Tensor]:
    """Run R filters over some sequences, and pool what they estimate of each step."""
    log_z = torch.zeros(pool.runs, pool.rows, dtype=torch.float64, device=pool.steps.x.device)
    columns: dict[str, list[Tensor]] = {}
    for t, cloud in enumerate(clouds(pool.steps, particles)):
        before, log_z = log_z, log_z + pool.by_run(cloud.log_increment)
        for name, column in step_estimates(pool, cloud, before, log_z).items():
            absent = ~pool.there(t).reshape(-1, *[1] * (column.dim() - 1))
            columns.setdefault(name, []).append(column.masked_fill(absent, math.nan))
    by_step = {name: torch.stack(each, 1) for name, each in columns.items()}
    log_px, weights = log_mean(log_z)
    lengths = pool.steps.lengths[: pool.rows]
    runs_ess = ess_of_runs(weights)
    return {"log_px": log_px, "mc_se": pool.error(weights), "lengths": lengths, "runs_ess": runs_ess, **by_step}


def step_estimates(pool: Pool, cloud: Cloud, before: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Pool one step of R filters, whose estimates of log p(x_1, …, x_{t−1}) and log p(x_1, …, x_t) are given, ``(R, N)``."""
    (log_before, share_before), (log_after, share) = log_mean(before), log_mean(after)
    weights = beside(cloud.log_weights.exp(), cloud.z)
    means = pool.by_run((weights * cloud.z.double()).sum(0))
    shares = share.reshape(*share.shape, *[1] * (means.dim() - 2))
    mean = (shares * means).mean(0)
    return {
        "one_step": log_after - log_before,
        "one_step_se": pool.error(share - share_before),  # of a ratio, to first order
        "mean": mean,
        "mean_se": pool.error(shares * (means - mean)),
        "ess": pool.by_run(cloud.ess).amin(0),
    }


def least_ess_at(pool: Pool, t: int, cloud: Cloud) -> Tensor:
    """Return the least effective sample size of R filters at a step, ``(N,)``; infinite where a sequence has no such step."""
    return pool.by_run(cloud.ess).amin(0).masked_fill(~pool.there(t), math.inf)


def too_few(least_ess: Tensor, runs_ess: Tensor, runs: int) -> Tensor:
    """Mark rows of which few particles count at some step of a filter, or few of the R filters, or none, ``(N,)``.

    Where one filter outweighs the others all that is pooled is its own, and their spread about it is 0.
    """
    return (least_ess < LOW_ESS) | (runs_ess < runs / 2) | runs_ess.isinf()


def ess_of_runs(shares: Tensor) -> Tensor:
    """Return the effective sample size of R estimates of p(x), ``(N,)``, from each over their mean, ``(R, N)``; ∞ for zeros."""
    return len(shares) / shares.square().mean(0)


def log_mean(log_z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the mean over runs, ``(N,)``, and each run's estimate over that mean, ``(R, N)``."""
    mean = log_z.logsumexp(0) - math.log(len(log_z))
    return mean, (log_z - torch.where(mean.isinf(), 0.0, mean)).exp()
