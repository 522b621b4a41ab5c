r"""log p(x) by quadrature, where the latents are few and continuous."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import OverBudgetError, ProgramError, UsageError
from pyro_vae.evidence.estimate import identified
from pyro_vae.programs.pair import device_of, quiet
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors

from .joint import Joint, ReadsRowsError, Shared
from .lattice import Density
from .line import Line
from .peaks import find_peaks
from .prior_mass import FINER, missed_share, unseen_mass
from .result import Exact
from .scout import Scout
from .trapezoid import FEWEST, Rule

MAX_DIMS = 3
AT_ONCE = 1 / 16  # of the work, where one run of the decoder serves all rows
FEW = 16  # rows, up to which a grid for each is less work than one for all
BLOCK = {True: 512, False: 64}  # rows treated at once, on a shared grid or not


class Budget:
    """(row, grid point) pairs run so far, and the most that may be."""

    def __init__(self, limit: float | None) -> None:
        self.limit, self.used = math.inf if limit is None else limit, 0.0

    def counted(self, f: Density, weight: float = 1.0) -> Density:
        """Count the pairs that a density is taken at."""

        def of(z: Tensor, rows: Tensor) -> Tensor:
            self.used += weight * len(z) * len(rows)
            self.check(self.used)
            return f(z, rows)

        return of

    def forecast(self, done: int, rows: int) -> None:
        """Check what all rows will take, if the others are as those that are done."""
        self.check(self.used * rows / done)

    def check(self, pairs: float) -> None:
        if pairs > self.limit:
            raise OverBudgetError(
                f"quadrature takes more than {pairs:.2g} (row, point) pairs, its budget is {self.limit:.2g}. Give it fewer "
                "rows or a larger tol, or use log_likelihood with method='importance'."
            )


@suggest_keywords
@identified
def quadrature(
    model: Program,
    guide: Program | None,
    x: Any,
    *context: Any,
    points: int = 300_000,
    tol: float = 1e-4,
    share: bool | None = None,
    chunk_size: int = 16384,
    missing: bool = False,
    seed: int = 0,
    budget: float | None = None,
) -> Exact:
    r"""log p(x_n) = log ∫ p(x_n | z) p(z) dz by the trapezoid rule, for latents of 1 to 3 continuous dimensions in all.

        log p(x_n) ≈ log Σ_g h^D p(x_n, z(u_g)) |dz/du|,   u unconstrained

    on a lattice of spacing h, which converges exponentially as h falls, for smooth integrands. A grid over a box that holds
    the mass of each row shows where it is: where p(z) and p(x | z) are seen to be computed without x and contexts, one for
    all rows. From its local maxima, and from those of 288 draws of prior and guide that stand out of it, the maxima are
    climbed to and measured. Each row then has a lattice of its own, as fine as the narrowest maximum that matters asks for,
    which grows from there until the integrand is below e^−6 tol of its maximum, and is made finer where its error is above
    tol. Along axes with heavy tails, u = c + s sinh(v).

    The error is read off the lattices of 2 and 3 times the spacing that make up the last one: it is a bound for a kink or a
    jump wherever it lies between points, and far above the truth for what is smooth. What is left out, and what lies where z
    rounds to an edge of its support, is added to it; and so are two things that may have been missed. Mass of the prior:
    ∫ p(z) dz is found in the same way, and by how much it is below 1, at the largest likelihood on the grid, is added. And
    what the draws, as importance samples, see beyond the result. So what is promised holds for any mass of the prior, as
    far as its own integral is known (to tol / 100, if p(z) is smooth), and for maxima of the likelihood that are wider than
    the grid's cells (48 along each axis of 2, 16 of 3), or that a draw touches. A likelihood with a narrower one, which
    neither touches and which is lower than the rest in all that is seen, is missed, and nothing says so.

    A latent that is masked in a row counts as not there, it integrates to 1; a masked observation adds nothing.

    Args:
        model, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`.
        guide: likewise; some draws of it say where to look first. None leaves that to the prior.
        points: the most points that a row may have on a lattice.
        tol: error to aim at in each row, in nats; single precision ends at about 1e-7 |log p(x)|.
        share: one first lattice for all rows, where the program allows it. None: for more than 16 rows.
        chunk_size: (row, grid point) pairs run at a time.
        seed: of the draws that say where to look first.
        budget: the most (row, grid point) pairs to run in all; those that rows share count a sixteenth. None: no end.

    Returns:
        An :class:`~pyro_vae.Exact`; rows whose error stayed above `tol` are flagged.

    Raises:
        ProgramError: discrete latents, latents on a manifold, more than 3 dimensions, or a masked latent whose value is read,
            by site; or log p(x, z) is NaN.
        UsageError: `points` too few for a first grid, `tol` or `chunk_size` not positive.

    References:
        The Exponentially Convergent Trapezoidal Rule (Trefethen & Weideman, 2014), https://doi.org/10.1137/130932132

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> quadrature(model, None, torch.tensor([0.0, 3.0], dtype=torch.float64)).log_px.exp()   # 1/4, 4/32
        tensor([0.2500, 0.1250], dtype=torch.float64)
    """
    check_whole(points=points, chunk_size=chunk_size, seed=seed)
    if not tol > 0 or chunk_size < 1:
        raise UsageError(f"tol and chunk_size must be above 0, got {tol} and {chunk_size}")
    model, guide, args = on_tensors(model, guide, x, *context)
    with quiet(model, guide, seed=seed, device=device_of(args[0], model, guide)):
        joint = Joint(model, guide, args[0], args[1:], missing, unconstrained=True)
        dims = joint.dims
        if dims > MAX_DIMS:
            sizes = ", ".join(f"{layout.name!r} {layout.size}" for layout in joint.layouts)
            raise ProgramError(
                f"the latents have {dims} dimensions in all ({sizes}): a grid takes 1 to {MAX_DIMS}. Use log_likelihood with "
                "method='importance', or linear_gaussian where all is Gaussian."
            )
        if points < FEWEST[dims]:
            raise UsageError(f"points must be at least {FEWEST[dims]} for {dims} dimensions, got {points}")
        rule = Rule(dims, tol, points, chunk_size, joint.eps)
        shared = None
        if len(joint) > FEW if share is None else share:
            shared = Shared.of(joint, torch.randn(4, 1, dims, dtype=torch.float64, device=joint.device))
        try:
            found = all_rows(joint, guide, rule, shared, Budget(budget))
        except ReadsRowsError:  # at points that were no probes
            shared, found = None, all_rows(joint, guide, rule, None, Budget(budget))
        log_px, error, refined, reliable = found
        how = "one grid for all rows" if shared else "a grid for each row"
        if refined.any():
            how += f", refined for {int(refined.sum())} of them"
    return Exact(log_px.cpu(), error.cpu(), reliable.cpu(), f"quadrature in {dims} dimensions", joint.measure, how)


def all_rows(
    joint: Joint, guide: Program | None, rule: Rule, shared: Shared | None, budget: Budget
) -> tuple[Tensor, ...]:
    """Return log p(x), its error, whether a row's lattice was refined, and whether to believe it, ``(N,)`` each."""
    parts = []
    for rows in joint.everyone.split(BLOCK[bool(shared)]):
        parts.append(some_rows(joint, guide, rule, shared, rows, budget))
        budget.forecast(int(rows[-1]) + 1, len(joint))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def some_rows(
    joint: Joint, guide: Program | None, rule: Rule, shared: Shared | None, rows: Tensor, budget: Budget
) -> tuple[Tensor, ...]:
    """:func:`all_rows` of a block of rows: look where their mass is, integrate, and hold sampling against the result."""
    by_row, together = budget.counted(joint.log_prob), bool(shared)
    density = budget.counted(shared.log_prob, AT_ONCE) if shared else by_row
    scout, line = Scout.of(joint, guide, rows), Line.plain(joint)
    box = rule.widen(line.along(density), scout.box(scout.u, together), rows)
    line = line.stretched(rows, box, scout.quartiles(together))
    draws = line.v(scout.u, rows)
    if line.heavy.any():
        box = rule.widen(line.along(density), scout.box(draws, together), rows)
    survey, own = rule.survey(line.along(density), box, rows), line.along(by_row)
    peaks = find_peaks(survey, own, draws, scout.log_p, rows, rule)
    log_px, error, refined = rule.integrate(own, survey, rows, peaks.hints(rule.tol, line.unseen))
    error = error.masked_fill(peaks.many | line.lost[rows], math.inf)
    one = slice(1) if together else slice(None)  # p(z) of all rows
    prior, closer = line.along(budget.counted(joint.log_prior)), replace(rule, tol=FINER * rule.tol)
    of_prior, missing = unseen_mass(prior, line, box, draws[:, one], rows[one], closer)
    error = error + missed_share(missing, survey, of_prior, log_px)
    error = torch.maximum(error, scout.missed(log_px))
    return log_px, error, refined, ~rule.rough(log_px, error)
