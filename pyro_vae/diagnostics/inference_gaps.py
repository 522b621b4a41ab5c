r"""Inference gaps: log p(x) − ELBO as what the family of q costs (approximation) and what the encoder does (amortisation)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.exchange import text_of
from pyro_vae.common.flagged import format_bound, is_loose, why_loose
from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.data.arrays import read_once
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import UsageError
from pyro_vae.evidence.estimate import LogPx, data_se, mean_se
from pyro_vae.evidence.importance.pareto import LOW_ESS
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.reach import check_reach
from pyro_vae.programs.row_coupling import warn_of_guide
from pyro_vae.programs.same_on_ranks import check_same_on_ranks
from pyro_vae.programs.sites import Program

from .elbo_decomposition import Quantity
from .gaps_of_chunks import MOVED, GapOptions, gaps_of_chunks
from .given_log_px import as_truth, refuse_other_model
from .per_row_optimum import local_sites

TOLERANCE = 0.01  # nats: a row that since the middle of the steps gained less has converged
Number = dict[str, Any]  # the fields of a Quantity, which JSON takes


@dataclass(frozen=True, eq=False)
class Gaps:
    r"""log p(x) − ELBO(q) = [log p(x) − ELBO(q*)] + [ELBO(q*) − ELBO(q)]: made by :func:`gaps`; ``(N,)``, nats, float64.

    Attributes:
        log_px: log p(x_n), as given, or from importance sampling with q*.
        best_elbo: ELBO(q*_n), q*_n the best of the guide's family for row n.
        elbo: ELBO(q(z | x_n)).
        approximation_se, amortisation_se, gap_se, log_px_se: Monte Carlo standard errors (that of a given log p(x) counted
            in); paired, q and q* being drawn from the same noise.
        improvement, improvement_se: ELBO(q*_n) − that in the middle of the steps; its paired Monte Carlo standard error.
        ess: effective sample size of q*'s weights, of `num_samples`.
        reliable: rows whose log p(x) is believed: by k̂ of q*'s weights, or by what gave it; all of bare numbers.
        given: whether log p(x) was given.
        steps, seed: of the optimisation; of all noise.
        num_samples: K, draws a row, none of which q* was fitted on.
        measure: that log p(x) and the ELBO are densities with respect to; "score" for one of no distribution.
        how: an oracle computed the given log p(x); None where there was none.
        moved: sites whose parameters depend on draws of others, or that are flows, to which (to whose base) each row adds an
            offset of its own: amortisation may then be more than is shown, and approximation as much less. Their sum is the
            gap, all the same.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):   # q* is the posterior, N(x / 2, 1/2): this encoder is 0.3 off, which costs 0.3² nats
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2 + 0.3, 0.5**0.5))
        >>> split = gaps(model, guide, torch.tensor([0.0, 1.0, 2.0]), steps=20, num_samples=200)
        >>> bool((split.amortisation > split.approximation).all())          # a better encoder would win more than a richer q
        True
        >>> part = split.mean("amortisation")
        >>> abs(part["value"] - 0.3**2) < 4 * part["mc_se"], split.summary()["rows_not_converged"]
        (True, [])
    """

    log_px: Tensor
    best_elbo: Tensor
    elbo: Tensor
    approximation_se: Tensor
    amortisation_se: Tensor
    gap_se: Tensor
    log_px_se: Tensor
    improvement: Tensor
    improvement_se: Tensor
    ess: Tensor
    reliable: Tensor
    given: bool
    steps: int
    num_samples: int
    seed: int
    measure: str | None = None
    how: str | None = None
    moved: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.log_px)

    @property
    def approximation(self) -> Tensor:
        """log p(x) − ELBO(q*) = KL(q* ‖ p(z | x)): what no encoder can win back."""
        return self.log_px - self.best_elbo

    @property
    def amortisation(self) -> Tensor:
        """ELBO(q*) − ELBO(q): what the encoder loses against fitting each row by itself."""
        return self.best_elbo - self.elbo

    @property
    def gap(self) -> Tensor:
        """log p(x) − ELBO(q)."""
        return self.log_px - self.elbo

    @property
    def converged(self) -> Tensor:
        """Rows that since the middle of the steps gained less than 2 standard errors, or than 0.01 nat."""
        return self.improvement <= (2 * self.improvement_se).clamp_min(TOLERANCE)

    def mean(self, name: str) -> Number:
        """Average an attribute over rows, with Monte Carlo and data errors; None where one row or draw leaves one unknown."""
        values, se = getattr(self, name), getattr(self, f"{name}_se")
        return {"value": values.mean().item(), "mc_se": mean_se(se), "data_se": data_se(values)}

    def summary(self) -> dict[str, Any]:
        """Average over rows, each mean with its Monte Carlo error (more draws shrink it) and its data error (more rows do)."""
        return {
            **{name: self.mean(name) for name in ("log_px", "approximation", "amortisation", "gap")},
            "rows_not_converged": (~self.converged).nonzero().flatten().tolist(),
            "rows_of_low_ess": int((self.ess < LOW_ESS).sum()),
            "rows_flagged": int((~self.reliable).sum()),
            "log_px_from": "given" if self.given else "importance sampling with q*: a lower bound in expectation",
            "rows": len(self),
            **{name: getattr(self, name) for name in ("steps", "num_samples", "seed", "measure")},
            **({} if self.how is None else {"how": self.how}),
            **({"moved_sites": list(self.moved)} if self.moved else {}),
            "unit": "nats per row",
        }

    def plot(self) -> Any:
        """Plot the gap as approximation and amortisation (a matplotlib figure)."""
        from pyro_vae.plots.bars import gap_bars

        return gap_bars({"rows": self.summary()})

    def __str__(self) -> str:
        s = self.summary()
        gap, *parts = (f"{name} {format_part(s, name)}" for name in ("gap", "approximation", "amortisation"))
        unfinished = len(s["rows_not_converged"])
        flagged = f", {s['rows_flagged']} flagged" if s["rows_flagged"] else ""
        return (
            f"{gap} = {' + '.join(parts)} nats ({why_errors(s)}) | {len(self)} rows, {unfinished} not converged "
            f"after {self.steps} steps, {s['rows_of_low_ess']} with ESS below {LOW_ESS} of {self.num_samples}{flagged}"
            f"{why_bounds(self.moved)}{f' | {self.measure}' if self.measure else ''}"
        )

    __repr__ = __str__


def why_bounds(moved: tuple[str, ...], so: str = "amortisation may be more, and approximation as much less") -> str:
    """Say what a split means in which sites were moved by offsets.

    Example:
        >>> why_bounds(("z1",))
        ' | z1 (flow, or given other sites): the best offset a row, so amortisation may be more, and approximation as much less'
    """
    return f" | {', '.join(moved)} (flow, or given other sites): the best offset a row, so {so}" if moved else ""


def format_part(summary: Number, name: str) -> str:
    """Format a part with its errors; as a bound where it is of a log p(x) that is not believed, which amortisation is not.

    Example:
        >>> part = {"value": 0.25, "mc_se": 0.01, "data_se": None}
        >>> of_rows = {"approximation": part, "amortisation": part, "rows": 10, "rows_flagged": 2}
        >>> format_part(of_rows, "approximation"), format_part(of_rows, "amortisation")
        ('≥ 0.25', '0.250 ± 0.010 ± unknown')
    """
    part = summary[name]
    if name == "amortisation" or not is_loose(summary):
        return str(Quantity(**part))
    return format_bound(summary | {"log_px": part["value"]})


def why_errors(*summaries: Number) -> str:
    """Say which errors are printed; and why not all are, where rows are flagged."""
    loose = [why_loose(s) for s in summaries if is_loose(s)]
    return f"± Monte Carlo ± data{f'; {loose[0]}' if loose else ''}"


@suggest_keywords
def gaps(
    model: Program,
    guide: Program,
    x: Any,
    *context: Any,
    log_px: Tensor | LogPx | None = None,
    steps: int = 500,
    lr: float = 0.05,
    num_particles: int = 8,
    num_samples: int = 1000,
    seed: int = 0,
    chunk_size: int = 4096,
    missing: bool = False,
    verbose: bool = True,
) -> Gaps:
    r"""log p(x) − ELBO(q) = [log p(x) − ELBO(q*)] + [ELBO(q*) − ELBO(q)] for each row: approximation + amortisation gap.

    q* is the best of the guide's own family for one row: the distributions that the guide draws from, with parameters
    that belong to this row alone, all of them free (so a scale that the guide holds fixed is fitted, too). From the
    amortised parameters, in unconstrained space, Adam climbs the ELBO of all rows of a chunk at once, with fresh draws at
    every step. All figures are then taken from K other draws, the same noise for q and q*, so that no fit to noise can
    flatter q*: what it did not find shows as a smaller amortisation and a larger approximation gap, alike.

    Of a hierarchy, a site's parameters depend on draws of another, η(z′, x_n): a row has a function of z′ there, and no one set
    of parameters. That function stays as the guide has it, and each row adds to it an offset of its own, η(z′, x_n) + δ_n in
    unconstrained space, from 0. So q* is the best of those: a function of its own might serve a row better, and the split is a
    bound (amortisation at least, approximation at most, what is shown), which `moved` and every print say.

    Of a flow the base is moved by such offsets, and its transforms stay. Discrete sites, angles and mixtures, whose draws have
    no path to their parameters, climb by the score (q's log-density times how much better a draw did than the others of its
    row, Kool et al. 2019): noisier, so that more particles help.

    Where log p(x) is not given it is the importance-sampled bound of q*, too low by about 1/2 (1/ESS − 1/K), and so is the
    approximation gap. Where more than a tenth of the rows is flagged, by k̂ or by what gave log p(x), gap and approximation
    gap are printed as bounds, without errors; amortisation needs no log p(x). Changes no parameter, no module's mode and no
    global random state.

    Args:
        model, guide, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`; the model must broadcast over particles,
            and so must a guide some of whose sites depend on draws of others.
        log_px: log p(x_n), ``(N,)``, exact or from a stronger estimator; or what holds it as ``log_px``, with its error (an
            :class:`~pyro_vae.Evidence`, an annealed estimate, an oracle's).
        steps: of Adam, a row.
        lr: its first rate, in unconstrained parameters; falls to 0 by a cosine.
        num_particles: draws a row and step.
        num_samples: K, draws a row for the figures; 2 at least.
        seed: of all noise.
        chunk_size: (row, particle) pairs run at a time. Under torchrun, processes that call this together share the chunks;
            the fits of the last ones, which are too few for all, are made by one process each, and their draws are shared.
        verbose: a progress bar on a terminal; elsewhere a line of how long is to go, where that is long.

    Returns:
        :class:`Gaps`: per row, ``summary()`` for the means; ``converged`` says which rows need more steps.

    Raises:
        ProgramError: a site of the guide that is no family, is masked by draws of another, or is a flow of networks that do
            not broadcast; a guide that never draws some of what p(x, z) allows, where log p(x) is not given.
        ShapeError, DataError: another number of log p(x) than rows; log p(x) of other rows, by their digest.
        UsageError: evidence of another model (that of another guide is taken).
        SupportError, DataError: as :func:`~pyro_vae.log_likelihood`.

    References:
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018), https://arxiv.org/abs/1801.03558
        Sticking the Landing (Roeder, Wu & Duvenaud, 2017; the gradient), https://arxiv.org/abs/1703.09194
        Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof & Welling, 2019; the score's),
        https://openreview.net/forum?id=r1lgTGL5DE

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):   # the posterior is N(x / 2, 1/2): the family holds it, this encoder is 0.3 off
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2 + 0.3, 0.5**0.5))
        >>> split = gaps(model, guide, torch.tensor([0.0, 1.0]), steps=200)
        >>> (split.approximation.abs() < 1e-3).tolist(), split.converged.tolist()
        ([True, True], [True, True])
        >>> bool(((split.amortisation - 0.3**2).abs() < 4 * split.amortisation_se).all())
        True
    """
    check_whole(num_samples=num_samples, steps=steps, num_particles=num_particles, chunk_size=chunk_size, seed=seed)
    if num_samples < 2 or min(steps, num_particles, chunk_size) < 1 or not lr > 0:
        raise UsageError(
            "num_samples must be at least 2 (for its own error), steps, num_particles and chunk_size at least 1, lr above "
            f"0; got {num_samples}, {steps}, {num_particles}, {chunk_size}, {lr}"
        )
    x, *rest = [read_once(a) for a in (x, *context)]
    problem = Problem.of(
        model, guide, x, *rest, seed=seed, missing=missing
    )  # discrete sites, too, as the guide draws them
    warn_of_guide(problem)
    truth = None if log_px is None else as_truth(log_px, len(problem), RowIds.of(x, *rest))
    if truth is None:  # log p(x) is weighed by q*, of the guide's family
        with problem.quiet(seed):
            local_sites(problem.few(1))  # refuses what is no family, which no other log p(x) helps
            check_reach(problem, otherwise="hand log p(x) in, log_px=log_likelihood(..., proposal=defensive(0.1))")
    refuse_other_model(log_px, problem)
    how = getattr(log_px, "how", None)
    options = GapOptions(steps, lr, num_particles, num_samples, seed, chunk_size)
    check_same_on_ranks(problem, asdict(options) | {"log_px": truth and tensor_digest({"": truth[0]})})
    parts = gaps_of_chunks(problem, options, truth, verbose)
    moved = dict.fromkeys(name for part in parts for name in json.loads(text_of(part.pop(MOVED))))
    by_row: dict[str, Any] = {field: torch.cat([part[field] for part in parts]) for field in parts[0]}
    facts: dict[str, Any] = {"steps": steps, "num_samples": num_samples, "seed": seed, "measure": problem.measure}
    return Gaps(**by_row, given=truth is not None, how=how, moved=tuple(moved), **facts)
