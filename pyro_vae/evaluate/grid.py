r"""The trapezoid rule in a few dimensions, for many rows at once: where to lay the grid, how fine, and its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

Density = Callable[[Tensor, Tensor], Tensor]  # u (G, R, D) and rows to log p(x, u), (G, R)
COARSE = {1: 65, 2: 21, 3: 11}  # points along each axis of the grid that looks for the mass
FIRST = {1: 65, 2: 31, 3: 25}  # and of the first one that is summed
ROUNDS = 40  # of looking for the mass
MARGIN = 16.0  # nats below tol times the maximum, from where on the integrand is left out


@dataclass(frozen=True)
class Box:
    """A box in coordinates v, u = centre + axes v, with axes lower triangular; R is 1 where all rows share it.

    Attributes:
        lower: its edges in v, ``(R, D)``.
        upper: likewise.
        centre: ``(R, D)``.
        axes: ``(R, D, D)``.
    """

    lower: Tensor
    upper: Tensor
    centre: Tensor
    axes: Tensor

    @classmethod
    def between(cls, low: Tensor, high: Tensor) -> Box:
        """With edges along the axes of u."""
        return cls(low, high, torch.zeros_like(low), torch.diag_embed(torch.ones_like(low)))

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def of(self, which: Tensor) -> Box:
        """The boxes of some of its rows."""
        if len(self.lower) == 1:
            return self
        return Box(self.lower[which], self.upper[which], self.centre[which], self.axes[which])

    def at(self, digits: Tensor, m: int) -> Tensor:
        """Grid points u ``(G, R, D)`` of digits 0 … m − 1, ``(G, D)``."""
        v = self.lower + self.width * (digits.to(self.lower) / (m - 1)).unsqueeze(1)
        return self.centre + torch.einsum("rij,grj->gri", self.axes, v)

    def log_cell(self, m: int) -> Tensor:
        """log h^D |du/dv| of a grid of m points along each axis, ``(R,)``."""
        return (self.width / (m - 1)).log().sum(-1) + self.axes.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@dataclass(frozen=True)
class Rule:
    """The trapezoid rule in `dims` dimensions: where to lay the grid, how fine, and what is known of its error."""

    dims: int
    tol: float
    points: int
    chunk_size: int
    eps: float

    def floor(self, log_px: Tensor) -> Tensor:
        """What rounding leaves of log p(x)."""
        return 4 * self.eps * (log_px.abs() + 1)

    def rough(self, log_px: Tensor, error: Tensor) -> Tensor:
        """Rows whose error is above what was asked for, and above rounding."""
        return ~(error <= torch.maximum(3 * self.floor(log_px), torch.full_like(error, self.tol)))

    def digits(self, start: int, stop: int, m: int, device: torch.device) -> Tensor:
        """Grid points start … stop − 1 by their digits along each axis, ``(G, D)``."""
        return torch.arange(start, stop, device=device).unsqueeze(-1) // m ** torch.arange(self.dims, device=device) % m

    @property
    def depth(self) -> float:
        """Nats below the maximum, from where on the integrand is left out."""
        return MARGIN - math.log(self.tol)

    def fit(self, f: Density, box: Box, rows: Tensor) -> Box:
        """A box for each row, along the axes of its posterior: few points show a narrow one that lies aslant."""
        box = self.zoom(f, box, rows)
        for _ in range(2):
            box = self.zoom(f, self.turn(f, box, rows), rows)
        return box

    def turn(self, f: Density, box: Box, rows: Tensor) -> Box:
        """Coordinates in which what the coarse grid shows of each posterior has mean 0 and covariance I."""
        m = COARSE[self.dims]
        points, values = self.look(f, box, rows, m)
        weights = values.softmax(0).unsqueeze(-1)
        centre = (weights * points).sum(0)
        spread = torch.einsum("gri,grj->rij", weights * (points - centre), points - centre)
        cell = box.axes * (box.width / (m - 1)).unsqueeze(-2) / 4  # what is narrower than that the grid cannot show
        axes, failed = torch.linalg.cholesky_ex(spread + cell @ cell.mT)
        seen = centre.isfinite().all(-1) & (failed == 0)
        reach = torch.full_like(box.upper, 1 + math.sqrt(2 * self.depth))
        return Box(
            torch.where(seen[:, None], -reach, box.lower),
            torch.where(seen[:, None], reach, box.upper),
            torch.where(seen[:, None], centre, box.centre),
            torch.where(seen[:, None, None], axes, box.axes),
        )

    def zoom(self, f: Density, box: Box, rows: Tensor) -> Box:
        """Moves, widens and narrows the box until a coarse grid shows each row's mass inside and spread out."""
        m, everyone = COARSE[self.dims], torch.arange(len(rows), device=rows.device)
        for _ in range(ROUNDS):
            found = [self.span(f, box.of(part), rows[part], m) for part in everyone.split(self.rows_at_once(m))]
            low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
            if len(box.lower) == 1:
                low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
            step = box.width / (m - 1)
            lower = torch.where(low == 0, box.lower - box.width / 2, box.lower + (low - 1) * step)
            upper = torch.where(high == m - 1, box.upper + box.width / 2, box.lower + (high + 1) * step)
            settled = (low > 0) & (high < m - 1) & (upper - lower > 0.7 * box.width)
            box = replace(box, lower=lower, upper=upper)
            if settled.all():
                break
        return box

    def rows_at_once(self, m: int) -> int:
        return max(1, 64 * self.chunk_size // m**self.dims)

    def span(self, f: Density, box: Box, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """First and last digit along each axis of the points that matter, ``(R, D)`` each."""
        _, values = self.look(f, box, rows, m)
        keep = (values > values.amax(0) - self.depth) & values.isfinite()
        keep = (keep | ~keep.any(0)).unsqueeze(-1)  # nothing seen yet: look everywhere, and further out
        digits = self.digits(0, m**self.dims, m, rows.device).unsqueeze(1)
        return torch.where(keep, digits, m).amin(0), torch.where(keep, digits, -1).amax(0)

    def look(self, f: Density, box: Box, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """All grid points and the integrand there, NaN left out: ``(G, R, D)`` and ``(G, R)``."""
        points = box.at(self.digits(0, m**self.dims, m, rows.device), m)
        values = torch.cat([f(part, rows) for part in points.split(self.at_once(rows))])
        return points, values.nan_to_num(nan=-math.inf, posinf=-math.inf)

    def at_once(self, rows: Tensor) -> int:
        return max(1, self.chunk_size // len(rows))

    def refine(self, f: Density, box: Box, rows: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x) and its error, on grids of halved spacing until the error is small or the points too many."""
        log_px, error = torch.full((2, len(rows)), math.inf, dtype=torch.float64, device=rows.device)
        m, todo = FIRST[self.dims], torch.arange(len(rows), device=rows.device)
        while len(todo) and m**self.dims <= self.points:
            fine, change, outside = self.integrate(f, box.of(todo), rows[todo], m)
            floor = self.floor(fine)
            log_px[todo], error[todo] = fine, change + outside + floor
            todo, m = todo[~(change <= torch.maximum(floor, torch.full_like(floor, self.tol / 2)))], 2 * m - 1
        return log_px, error

    def integrate(self, f: Density, box: Box, rows: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """log of the trapezoid sum, its change when every second point is left out, and the share of mass outside, ``(R,)``."""
        sums = torch.full((4, len(rows)), -math.inf, dtype=torch.float64, device=rows.device)
        chunk = self.at_once(rows)
        for start in range(0, m**self.dims, chunk):
            digits = self.digits(start, min(start + chunk, m**self.dims), m, rows.device)
            from_edge = torch.minimum(digits, m - 1 - digits)
            log_f = f(box.at(digits, m), rows)
            if (bad := (log_f.isnan() | (log_f == math.inf)).any(0)).any():
                raise ProgramError(
                    f"log p(x, z) is NaN or +inf for rows {rows[bad][:5].tolist()} at some z: the model puts out "
                    "non-finite parameters there."
                )
            layer = from_edge.amin(-1)
            halved = log_f - math.log(2) * (from_edge == 0).sum(-1, keepdim=True)  # the rule's weights at its ends
            parts = (
                (halved, layer >= 0),
                (halved, (digits % 2 == 0).all(-1)),
                (log_f, layer == 0),
                (log_f, layer == 1),
            )
            sums = torch.logaddexp(sums, torch.stack([masked_logsumexp(*part) for part in parts]))
        fine, coarse, rim, inner = sums
        change = (fine - coarse - self.dims * math.log(2)).abs()
        ratio = (
            (rim - inner).exp().nan_to_num(nan=0.0)
        )  # of neighbouring layers; the rest of a geometric series lies outside
        outside = torch.where(ratio < 1, (rim - fine).exp().nan_to_num(nan=0.0) / (1 - ratio), math.inf)
        return fine + box.log_cell(m), change, outside


def masked_logsumexp(values: Tensor, keep: Tensor) -> Tensor:
    """log Σ e^v over the kept rows of ``(G, R)``; −∞ for none."""
    return values[keep].logsumexp(0) if keep.any() else torch.full_like(values[0], -math.inf)
