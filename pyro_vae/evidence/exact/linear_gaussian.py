r"""log p(x) in closed form, where the program is linear and Gaussian, which running it shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from pyro_vae.common.given import check_whole
from pyro_vae.common.keywords import suggest_keywords
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.estimate import identified
from pyro_vae.programs.masks import present
from pyro_vae.programs.pair import device_of, quiet
from pyro_vae.programs.row_reads import RowReads
from pyro_vae.programs.sites import Program, Site, latent_sites
from pyro_vae.programs.structured import on_tensors
from pyro_vae.programs.wrapped import base_name, elements

from .joint import Joint
from .result import Exact

BLOCK = 64  # rows at a time, where parameters differ by row
WAY_OUT = 'no closed form. Use quadrature (up to 3 latent dimensions), or log_likelihood(method="importance").'
RADII = (1.0, 3.0, 10.0, 30.0)  # standard deviations of p(z) at which a mean must be affine
DIRECTIONS = 16  # random ones at each radius, beside the axes
PROBES = 32  # z run at a time


@suggest_keywords
@identified
def linear_gaussian(
    model: Program,
    guide: Program | None,
    x: Any,
    *context: Any,
    missing: bool = False,
    tol: float = 1e-6,
    seed: int = 0,
) -> Exact:
    r"""log p(x_n) = log N(x_n; A μ + b, A Σ Aᵀ + R) for p(z) = N(μ, Σ) and p(x | z) = N(A z + b, R), in float64.

    Runs the program at z = 0 and at the unit vectors, reads the means and covariances of its sites, and checks that means are
    affine in z and covariances constant: on both sides of the prior's mean along every axis and in random directions, 1 to 30
    standard deviations out. Several latent sites may depend on each other (linearly), as x may on a context; NaN in x is
    marginalised, and so is what a mask leaves out. The formula's p(x, z) is held against the program's at draws from the
    prior and from the posterior of each row in the end. A bend that none of these z sees passes.

    Args:
        model, x, *context, missing: as for :func:`~pyro_vae.log_likelihood`; sites are Normal or MultivariateNormal.
        guide: not run; its modules are put in eval mode too. May be None.
        tol: relative departure from affine means and constant covariances that passes for rounding.
        seed: of the random z.

    Raises:
        ProgramError: a site that is not Gaussian, whose mean is not affine or whose covariance varies with z; a singular
            covariance; a masked latent whose value is read. One that is not is not there: its density would integrate to 1.

    References:
        Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), https://doi.org/10.1111/1467-9868.00196

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 2.0))
        ...         pyro.sample("x", dist.Normal(3 * z + 1, 0.5), obs=x)
        >>> x = torch.tensor([0.0, 1.0])
        >>> linear_gaussian(model, None, x).log_px, dist.Normal(1.0, 36.25**0.5).log_prob(x)
        (tensor([-2.7280, -2.7142], dtype=torch.float64), tensor([-2.7280, -2.7142]))
    """
    check_whole(seed=seed)
    model, guide, args = on_tensors(model, guide, x, *context)
    with quiet(model, guide, seed=seed, device=device_of(args[0], model, guide)):
        joint = Joint(model, guide, args[0], args[1:], missing)
        for name, site in (joint.latents | joint.observed).items():
            gaussian(name, site["fn"])
        blocks = joint.everyone.split(len(joint) if one_program(joint) else BLOCK)
        try:
            log_px = torch.cat([Gaussian(joint, rows, tol).log_px() for rows in blocks])
        except torch.linalg.LinAlgError as error:
            raise ProgramError(f"a covariance of z or of x is singular, or so in all digits: {WAY_OUT}") from error
    how = f"{joint.dims} latent dimensions"
    return Exact.without_error(log_px, "linear-Gaussian closed form", joint.measure, how)


def gaussian(name: str, fn: Any) -> Any:
    """Return the Normal or MultivariateNormal that a site is made of; a ProgramError for another."""
    fn = elements(fn)
    if isinstance(fn, td.Normal | td.MultivariateNormal | td.LowRankMultivariateNormal):
        return fn
    raise ProgramError(
        f"site {name!r} is a {base_name(fn)}, wanted a Normal or MultivariateNormal: no closed form. For up to 3 latent "
        "dimensions there is quadrature, for discrete latents enumerate_latents."
    )


class Gaussian:
    """The program of some rows as matrices: z = B z + b_z + N(0, Q), x = A z + b_x + N(0, R).

    They are read off z = 0 and the unit vectors, and hold where the program agrees with them elsewhere: on both sides of
    every axis and in random directions, near and far, as the prior counts it, and where each row's posterior lies.
    """

    def __init__(self, joint: Joint, rows: Tensor, tol: float) -> None:
        self.joint, self.rows, self.tol = joint, rows, max(tol, 50 * joint.eps)
        self.size = joint.dims
        shared = one_program(joint)
        self.some = rows[:1] if shared else rows
        base = torch.cat([torch.zeros(1, self.size), torch.eye(self.size)]).to(joint.device, torch.float64)
        means, self.cov0 = zip(*self.moments_at(base.unsqueeze(1)), strict=True)
        self.b = tuple(mean[0] for mean in means)
        self.a = tuple((mean[1:] - mean[0]).movedim(0, -1) for mean in means)
        self.cov = tuple(embed(cov[0]) for cov in self.cov0)
        depth = len(joint.latents)
        (self.into, start, self.noise), (self.onto, self.shift, self.rest) = (
            (torch.cat(self.a[part], 1), torch.cat(self.b[part], 1), block_diagonal(self.cov[part]))
            for part in (slice(depth), slice(depth, None))
        )
        self.start = start
        self.check_affine(base.unsqueeze(1))
        back = torch.linalg.inv(torch.eye(self.size).to(self.into) - self.into)
        self.loc = (back @ start.unsqueeze(-1)).squeeze(-1)
        self.prior_cov = back @ self.noise @ back.mT
        for z in self.probes():
            self.check_affine(z)

    def moments_at(self, z: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return mean and covariance of every site at z, ``(P, R, D)`` or one for all rows."""
        sites = self.joint.trace(z.expand(-1, len(self.some), -1), self.some).sites
        return [moments(name, sites[name], self.joint) for name in (*self.joint.latents, *self.joint.observed)]

    def probes(self) -> Iterator[Tensor]:
        """Yield z on both sides of the prior's mean along each axis and in random directions: ``(P, R, D)`` at a time."""
        scale = torch.linalg.cholesky(self.prior_cov)
        axes = torch.eye(self.size).to(scale) * self.prior_cov.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-2)
        some = torch.randn(DIRECTIONS, self.size).to(scale) @ scale.mT  # (R, P, D)
        for radius in RADII:
            for step in (axes, -axes, some):
                yield from (self.loc.unsqueeze(-2) + radius * step).movedim(-2, 0).split(PROBES)

    def check_affine(self, z: Tensor) -> None:
        """Refuse a site whose moments at z are not those of the matrices."""
        names = (*self.joint.latents, *self.joint.observed)
        for i, (name, (mean, cov)) in enumerate(zip(names, self.moments_at(z), strict=True)):
            guess = self.b[i] + torch.einsum("rkd,prd->prk", self.a[i], z.expand(-1, len(self.b[i]), -1))
            for off, why in (
                ((mean - guess).abs().amax() / (1 + mean.abs().amax()), "its mean is not affine in z (off by"),
                ((cov - self.cov0[i][:1]).abs().amax() / cov[0].abs().amax(), "its covariance varies with z (by"),
            ):
                if not off <= self.tol:
                    raise ProgramError(f"site {name!r}: {why} {off:.1e} of its size): {WAY_OUT}")

    def observed(self) -> dict[str, Tensor]:
        """Return x of the rows by site, NaN where it is masked: either way it drops out."""
        return self.unmasked(self.joint.data(self.rows))

    def unmasked(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return values by site in the shape of their distributions, NaN where a mask leaves them out."""
        sites = self.joint.rows(self.rows).sites(self.joint.problem.model)
        there = {name: present(sites[name] | {"value": value}) for name, value in values.items()}
        return {n: value if (w := there[n]) is None else value.masked_fill(~w, math.nan) for n, value in values.items()}

    def absent(self) -> Tensor:
        """Return where a mask leaves a latent's coordinate out, ``(R, D)``."""
        sites = latent_sites(self.joint.rows(self.rows).sites(self.joint.problem.model))
        kept = self.unmasked({name: torch.zeros(sites[name]["fn"].shape()) for name in self.joint.latents})
        parts = [by_row(kept[name], self.joint, sites[name]["fn"].event_dim, 0) for name in self.joint.latents]
        return torch.cat(parts, -1).isnan().to(self.joint.device)

    def log_px(self) -> Tensor:
        """log p(x) of the rows; checks their p(x, z) against the program's, where p(z) and where p(z | x) lies."""
        data, sites = self.observed(), self.joint.observed
        x = torch.cat([by_row(data[name], self.joint, sites[name]["fn"].event_dim, 0) for name in sites], -1).double()
        absent = self.absent()
        for z in torch.cat([self.from_prior(len(x)), self.from_posterior(x)]):
            closed_form = log_normal(z.masked_fill(absent, math.nan), self.times(self.into, z) + self.start, self.noise)
            closed_form = closed_form + log_normal(x, self.times(self.onto, z) + self.shift, self.rest)
            log_p = self.joint.log_prob(z.unsqueeze(0), self.rows)[0]
            if not ((closed_form - log_p).abs() <= self.tol * (1 + log_p.abs())).all():
                named = ", ".join(map(repr, (*self.joint.latents, *sites)))
                raise ProgramError(
                    f"sites {named}: p(x, z) of the program is not that of their means and covariances: {WAY_OUT}"
                )
        mean, cov = self.shift + self.times(self.onto, self.loc), self.onto @ self.prior_cov @ self.onto.mT + self.rest
        return log_normal(x, mean, cov)

    @staticmethod
    def times(matrix: Tensor, z: Tensor) -> Tensor:
        """Apply a matrix, of each row or one for all, to vectors ``(R, D)``."""
        return (matrix @ z.unsqueeze(-1)).squeeze(-1)

    def from_prior(self, rows: int) -> Tensor:
        """Draw z from p(z) and from ever wider ones, ``(P, R, D)``."""
        scale = torch.linalg.cholesky(self.prior_cov)
        radii = torch.tensor(RADII).to(scale).view(-1, 1, 1)
        return self.loc + radii * self.times(scale, torch.randn(len(RADII), rows, self.size).to(scale))

    def from_posterior(self, x: Tensor) -> Tensor:
        """Draw z about p(z | x_n) of each row, ``(P, R, D)``; of what is missing, as if it were the mean."""
        gain_of = self.onto @ self.prior_cov  # (R, k, D)
        gain = torch.linalg.solve(gain_of @ self.onto.mT + self.rest, gain_of).mT
        residual = (x - self.shift - self.times(self.onto, self.loc)).nan_to_num()
        cov = self.prior_cov - gain @ gain_of
        width = cov.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
        noise = torch.randn(len(RADII), len(x), self.size).to(x)
        return self.loc + self.times(gain, residual) + 2 * width * noise


def one_program(joint: Joint) -> bool:
    """Return whether means and covariances of one row are all rows': none is computed from what the row holds."""
    one = joint.rows(joint.everyone[:1])
    with RowReads(one.args) as reads:
        sites = joint.trace_on(one, torch.zeros(1, 1, joint.dims, dtype=torch.float64, device=joint.device)).sites
        terms = [moments(name, sites[name], joint) for name in (*joint.latents, *joint.observed)]
    return not reads.derived(terms)


def by_row(tensor: Tensor, joint: Joint, event_dim: int, to: int) -> Tensor:
    """Move the data plate's dimension to `to`, and flatten all that follow."""
    moved = tensor.movedim(joint.problem.plates.dim - event_dim, to)
    return moved.reshape(*moved.shape[: to + 1], -1)


def moments(name: str, site: Site, joint: Joint) -> tuple[Tensor, Tensor]:
    """Return mean ``(P, R, k)`` and covariance ``(P, R, blocks, m, m)`` of a site, in float64."""
    fn, base = site["fn"], gaussian(name, site["fn"])
    shape = fn.shape()
    mean = by_row(base.mean.double().expand(shape), joint, fn.event_dim, 1)
    if isinstance(base, td.Normal):
        variance = by_row(base.scale.double().square().expand(shape), joint, fn.event_dim, 1)
        return mean, variance[..., None, None]
    m = shape[-1]
    cov = covariance(base).expand(*shape, m).movedim(joint.problem.plates.dim - fn.event_dim - 1, 1)
    return mean, cov.reshape(*mean.shape[:2], -1, m, m)


def covariance(base: Any) -> Tensor:
    """Return Σ in float64, from the factors that log_prob is computed of: in float32 Σ has half of their digits."""
    if isinstance(base, td.LowRankMultivariateNormal):
        factor = base.cov_factor.double()
        return factor @ factor.mT + torch.diag_embed(base.cov_diag.double())
    factor = base.scale_tril.double()
    return factor @ factor.mT


def embed(blocks: Tensor) -> Tensor:
    """Embed ``(R, blocks, m, m)`` in block-diagonal matrices ``(R, blocks m, blocks m)``."""
    count, size = blocks.shape[1], blocks.shape[1] * blocks.shape[2]
    return torch.einsum("reij,ef->reifj", blocks, torch.eye(count).to(blocks)).reshape(-1, size, size)


def block_diagonal(parts: tuple[Tensor, ...]) -> Tensor:
    """Join covariances ``(R, k, k)`` of independent noises."""
    return torch.stack([torch.block_diag(*row) for row in zip(*parts, strict=True)])


def log_normal(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """log N(x; mean, cov) of rows ``(N, d)``; NaN is marginalised; one mean and cov may stand for all rows."""
    if x.isnan().any():
        cov = cov.expand(len(x), -1, -1)
        few = max(1, 2**24 // x.shape[1] ** 2)
        parts = (t.split(few) for t in (x, mean.expand_as(x), cov))
        return torch.cat([log_observed(*part) for part in zip(*parts, strict=True)])
    return log_complete(x - mean, cov)


def log_observed(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """log N(x; mean, cov) of what is not NaN: the rest becomes independent N(0, 1) at 0, and its densities are taken off."""
    gone = x.isnan()
    cov = torch.where(gone.unsqueeze(-1) | gone.unsqueeze(-2), 0.0, cov) + torch.diag_embed(gone.to(cov))
    return log_complete((x - mean).nan_to_num(), cov) + 0.5 * math.log(2 * math.pi) * gone.to(cov).sum(-1)


def log_complete(residual: Tensor, cov: Tensor) -> Tensor:
    """log N(residual; 0, cov), ``(N,)``."""
    chol = torch.linalg.cholesky(cov)
    columns = residual.T.unsqueeze(0) if len(chol) == 1 else residual.unsqueeze(-1)
    white = torch.linalg.solve_triangular(chol, columns, upper=False)
    square = white.square().sum(1).flatten()
    half_log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (square + residual.shape[1] * math.log(2 * math.pi)) - half_log_det
