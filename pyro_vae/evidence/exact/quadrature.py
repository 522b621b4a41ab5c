r"""log p(x) by quadrature, where the latents are few and continuous."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.estimate import identified
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.sites import Program
from pyro_vae.programs.structured import on_tensors

from .joint import Joint, ReadsRowsError, Shared
from .line import Line
from .peaks import find_peaks
from .result import Exact
from .scout import Scout
from .trapezoid import ALONE, FIRST, TOGETHER, Rule

MAX_DIMS = 3
FEW = 16  # rows, up to which a grid for each is less work than one for all
BLOCK = {True: 512, False: 64}  # rows treated at once, on a shared grid or not


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
) -> Exact:
    r"""log p(x_n) = log ∫ p(x_n | z) p(z) dz by the trapezoid rule, for latents of 1 to 3 continuous dimensions in all.

        log p(x_n) ≈ log Σ_g h^D p(x_n, z(u_g)) |dz/du|,   u unconstrained

    on a lattice of spacing h, which converges exponentially as h falls, for smooth integrands. A first lattice covers a box
    that holds the mass of each row: where p(z) and p(x | z) do not depend on the row, one for all rows, and the decoder runs
    once at each of its points. Its spacing is then halved for the rows that need it, where their integrand is above
    e^−16 tol of its maximum, and what is connected with that: several modes are no more work than one. The error is the
    most that any of the 2^D lattices of twice the spacing, which make up the last one, is off it.

    A latent that is masked in a row counts as not there, it integrates to 1; a masked observation adds nothing.

    It can miss a second mode that is so narrow that all points of the first lattice lie e^16 / tol below the best one of
    them. Kinks (a Laplace prior, ReLUs) slow the convergence, and the error shows it.

    Args:
        model, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`.
        guide: likewise; some draws of it say where to look first. None leaves that to the prior.
        points: the most points that a row may have on a lattice.
        tol: error to aim at in each row, in nats; single precision ends at about 1e-7 |log p(x)|.
        share: one first lattice for all rows, where the program allows it. None: for more than 16 rows.
        chunk_size: (row, grid point) pairs run at a time.
        seed: of the draws that say where to look first.

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
    if not tol > 0 or chunk_size < 1:
        raise UsageError(f"tol and chunk_size must be above 0, got {tol} and {chunk_size}")
    model, guide, args = on_tensors(model, guide, x, *context)
    with quiet(model, guide, seed=seed):
        joint = Joint(model, guide, args[0], args[1:], missing, unconstrained=True)
        dims = joint.dims
        if dims > MAX_DIMS:
            sizes = ", ".join(f"{layout.name!r} {layout.size}" for layout in joint.layouts)
            raise ProgramError(
                f"the latents have {dims} dimensions in all ({sizes}): a grid takes 1 to {MAX_DIMS}. Use log_likelihood with "
                "method='importance', or linear_gaussian where all is Gaussian."
            )
        if points < FIRST[dims] ** dims:
            raise UsageError(f"points must be at least {FIRST[dims] ** dims} for {dims} dimensions, got {points}")
        rule = Rule(dims, tol, points, chunk_size, joint.eps)
        shared = None
        if len(joint) > FEW if share is None else share:
            shared = Shared.of(joint, torch.randn(4, 1, dims, dtype=torch.float64, device=joint.device))
        try:
            found = all_rows(joint, guide, rule, shared)
        except ReadsRowsError:  # at points that were no probes
            shared, found = None, all_rows(joint, guide, rule, None)
        log_px, error, refined, reliable = found
        how = "one grid for all rows" if shared else "a grid for each row"
        if refined.any():
            how += f", refined for {int(refined.sum())} of them"
    return Exact(log_px.cpu(), error.cpu(), reliable.cpu(), f"quadrature in {dims} dimensions", joint.measure, how)


def all_rows(joint: Joint, guide: Program | None, rule: Rule, shared: Shared | None) -> tuple[Tensor, ...]:
    """Return log p(x), its error, whether a row's lattice was refined, and whether to believe it, ``(N,)`` each."""
    m = min((TOGETHER if shared else ALONE)[joint.dims], int(rule.points ** (1 / joint.dims) + 1e-9))  # along each axis
    parts = [some_rows(joint, guide, rule, shared, rows, m) for rows in joint.everyone.split(BLOCK[bool(shared)])]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def some_rows(
    joint: Joint, guide: Program | None, rule: Rule, shared: Shared | None, rows: Tensor, m: int
) -> tuple[Tensor, ...]:
    """:func:`all_rows` of a block of rows: look where their mass is, integrate, and hold sampling against the result."""
    density, together = (shared or joint).log_prob, bool(shared)
    scout, line = Scout.of(joint, guide, rows), Line.plain(joint)
    box = rule.widen(line.along(density), scout.box(scout.u, together), rows)
    line = line.stretched(rows, box, scout.quartiles(together))
    draws = line.v(scout.u, rows)
    if line.heavy.any():
        box = rule.widen(line.along(density), scout.box(draws, together), rows)
    first, own = line.along(density), line.along(joint.log_prob)
    peaks = find_peaks(first, own, box, draws, scout.log_p, rows, rule)
    hints = peaks.hints(rule.tol, line.unseen)
    log_px, error, refined = rule.integrate(first, box, rows, m, own, hints)
    error = error.masked_fill(peaks.many | line.lost[rows], math.inf)
    error = torch.maximum(error, scout.missed(log_px))
    return log_px, error, refined, ~rule.rough(log_px, error)
