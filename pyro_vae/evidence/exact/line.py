r"""Coordinates that quadrature works in: u on the real line, or v with u = c + s sinh(v) along axes with heavy tails."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .joint import Joint
from .lattice import Box, Density

HEAVY = 200.0  # a box of so many interquartile ranges: a normal's has 40, a Laplace's 70, a Student t's of 3 thousands
SAFE = 8.0  # times an error that is extrapolated
EDGE = 700.0  # the v at which sinh overflows
UNSEEN = 10.0  # how much more there may be beyond a border than what is seen there


@dataclass(frozen=True)
class Line:
    """log p(x_n, z(v)) |dz/dv| at v, ``(G, R, D)``, of all rows by number.

    sinh takes tails that fall as a power of u to ones that fall as an exponential of v, and leaves the middle as it is.
    """

    joint: Joint
    borders: Tensor  # (2, D): the u beyond which z = T(u) stands still
    center: Tensor  # (N, D)
    scale: Tensor  # (N, D)
    heavy: Tensor  # (D,): the axes that are stretched
    lost: Tensor = field(repr=False)  # (N,): rows with points beyond all numbers

    @classmethod
    def plain(cls, joint: Joint) -> Line:
        """Work in u along all axes."""
        center = torch.zeros(len(joint), joint.dims, dtype=torch.float64, device=joint.device)
        heavy = torch.zeros(joint.dims, dtype=torch.bool, device=joint.device)
        lost = torch.zeros(len(joint), dtype=torch.bool, device=joint.device)
        return cls(joint, joint.borders(), center, torch.ones_like(center), heavy, lost)

    def stretched(self, rows: Tensor, box: Box, quartiles: Tensor) -> Line:
        """Stretch the axes along which the box of some rows is far wider than half of the draws, ``(3, R, D)``."""
        low, middle, high = quartiles
        spread = (high - low).clamp_min(1e-300)
        heavy = (box.width > HEAVY * spread).any(0)
        center, scale = self.center.clone(), self.scale.clone()
        center[rows], scale[rows] = middle, 2 * spread
        return replace(self, center=center, scale=scale, heavy=heavy)

    def u(self, v: Tensor, rows: Tensor) -> Tensor:
        """Return u at v, of each row or of one for all."""
        if not self.heavy.any():
            return v
        rows = rows[: v.shape[-2]]
        return torch.where(self.heavy, self.center[rows] + self.scale[rows] * v.clamp(-EDGE, EDGE).sinh(), v)

    def v(self, u: Tensor, rows: Tensor) -> Tensor:
        return torch.where(self.heavy, ((u - self.center[rows]) / self.scale[rows]).asinh(), u)

    def beyond(self, v: Tensor, rows: Tensor) -> Tensor:
        """Return where z stands still along each axis: ``(G, R, D)``."""
        u = self.u(v, rows)
        return (u < self.borders[0]) | (u > self.borders[1]) | (self.heavy & (v.abs() >= EDGE))

    def along(self, f: Density) -> Density:
        """Return a density of u, as one of v; −∞ where numbers end, which is remembered of the rows."""

        def of(v: Tensor, rows: Tensor) -> Tensor:
            values = f(self.u(v, rows), rows).double()
            if self.heavy.any():
                stretch = (
                    self.scale[rows[: v.shape[-2]]].log() + v.abs() + torch.log1p((-2 * v.abs()).exp()) - math.log(2.0)
                )
                values = values + torch.where(self.heavy, stretch, 0.0).sum(-1)
            wrong = values.isnan() | (values == math.inf)
            if (ends := wrong & self.beyond(v, rows).any(-1)).any():
                self.lost[rows[ends.any(0)]] = True
                values = values.masked_fill(ends, -math.inf)
            return values

        return of

    def unseen(self, v: Tensor, rows: Tensor, share: Tensor) -> Tensor:
        """Return what points ``(P, D)`` beyond the borders, of some share of their row's mass, may be off by: ``(P,)``.

        Where log p(z) has a formula in u, and the likelihood is no other there than well inside, that is next to nothing.
        """
        out = self.beyond(v, rows).any(-1).nonzero().flatten()
        error = torch.zeros_like(share)
        if len(out):
            u, rows = self.u(v[out], rows[out]), rows[out]
            error[out] = share[out] * (SAFE * self.joint.doubt_beyond(u, self.borders, rows)).clamp(max=UNSEEN)
        return error
