r"""Lattices of each row's own, their points, and what their sublattices say of a sum over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Density = Callable[[Tensor, Tensor], Tensor]  # u (G, R, D) and rows to log p(x, u), (G, R)
BITS = {1: 50, 2: 26, 3: 17}  # of a whole-number coordinate in a key; rows have the rest
KINK = 4.0  # an eighth of what sublattices of 3 times the spacing differ by is a kink's error at most; and twice that


@dataclass(frozen=True)
class Box:
    """Edges of a grid in u, ``(R, D)`` each; R is 1 where all rows share it."""

    lower: Tensor
    upper: Tensor

    @property
    def width(self) -> Tensor:
        return self.upper - self.lower

    def of(self, which: Tensor) -> Box:
        """Return the boxes of some of its rows."""
        return self if len(self.lower) == 1 else Box(self.lower[which], self.upper[which])

    def at(self, digits: Tensor, m: int) -> Tensor:
        """Return grid points u ``(G, R, D)`` of digits 0 … m − 1, ``(G, D)``."""
        return self.lower + self.width * (digits.to(self.lower) / (m - 1)).unsqueeze(1)


@dataclass(frozen=True)
class Lattice:
    """u = origin + step k for whole numbers k, row by row; both are ``(R, D)``."""

    origin: Tensor
    step: Tensor

    def at(self, row: Tensor, digits: Tensor) -> Tensor:
        """Return the points u, ``(1, P, D)``."""
        return (self.origin[row] + self.step[row] * digits).unsqueeze(0)

    def nearest(self, row: Tensor, u: Tensor) -> Tensor:
        """Return whole numbers k of the points next to u ``(P, D)``, as floats."""
        return ((u - self.origin[row]) / self.step[row]).round()

    def finer(self, factor: Tensor) -> Lattice:
        """Take the spacing times a factor for each row and axis, ``(R, D)``."""
        return Lattice(self.origin, self.step * factor)

    @property
    def log_cell(self) -> Tensor:
        """log h_1 … h_D, ``(R,)``."""
        return self.step.log().sum(-1)


@dataclass(frozen=True)
class Points:
    """Some lattice points of some rows: rows ``(P,)``, whole numbers ``(P, D)``, and the integrand there ``(P,)``."""

    row: Tensor
    digits: Tensor
    values: Tensor

    def of(self, which: Tensor) -> Points:
        """Select some of them."""
        return Points(self.row[which], self.digits[which], self.values[which])

    @classmethod
    def joined(cls, parts: list[Points]) -> Points:
        """Join points of several parts."""
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row", "digits", "values")))

    def maxima(self, rows: int) -> Tensor:
        """Return the largest value over the points of each row, ``(R,)``; −∞ for none."""
        return self.values.new_full((rows,), -math.inf).scatter_reduce(0, self.row, self.values, "amax")

    def log_sums(self, rows: int) -> Tensor:
        """log Σ e^value over the points of each row, ``(R,)``."""
        largest = self.maxima(rows)
        sums = torch.zeros_like(largest).index_add(0, self.row, (self.values - largest[self.row]).exp())
        return torch.where(largest == -math.inf, largest, largest + sums.log())


def keys(row: Tensor, digits: Tensor) -> Tensor:
    """Pack a row and its whole numbers into one whole number."""
    bits = BITS[digits.shape[-1]]
    for axis in digits.unbind(-1):
        row = (row << bits) + axis + (1 << (bits - 1))
    return row


def unpacked(packed: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Unpack keys to rows and whole numbers."""
    bits = BITS[dims]
    axes = [(packed >> i * bits & (1 << bits) - 1) - (1 << (bits - 1)) for i in reversed(range(dims))]
    return packed >> dims * bits, torch.stack(axes, -1)


def among(sought: Tensor, known: Tensor) -> Tensor:
    """Return which whole numbers are among some that are sorted."""
    if not len(known):
        return torch.zeros_like(sought, dtype=torch.bool)
    return known[torch.searchsorted(known, sought).clamp(max=len(known) - 1)] == sought


@dataclass(frozen=True)
class Sums:
    r"""log Σ e^value of each row, and how far the sums of sparser lattices within it are off, ``(R,)`` each.

    d_k is the most that any of the k^D lattices of k times the spacing is off the whole. A jump is off by d_2 at most. A
    kink, of size C, is off by C h² B₂(θ) where it lies a part θ of a cell from a point, B₂(θ) = θ² − θ + 1/6: d_2 vanishes at
    θ = 1/2 though the error does not, but three thirds of a parabola are never alike, and d_3 is 8 times the error or more
    at each θ. For what is smooth both fall like the Fourier transform of the integrand. So the error is max(d_2, d_3 / 4).
    """

    total: Tensor
    second: Tensor
    third: Tensor

    @classmethod
    def of(cls, points: Points, rows: int) -> Sums:
        """Add up the points of each row."""
        top = points.maxima(rows)
        weights = (points.values - top[points.row]).exp()
        total = torch.zeros_like(top).index_add(0, points.row, weights).log()
        return cls(top + total, *(off(points, weights, total, k) for k in (2, 3)))

    @property
    def error(self) -> Tensor:
        return torch.maximum(self.second, self.third / KINK)

    @property
    def power(self) -> Tensor:
        """Return the power of the spacing by which d_2 and d_3 fall, no less than a jump's: ``(R,)``."""
        return ((self.third / self.second).log() / math.log(1.5)).nan_to_num(nan=1.0).clamp(min=1.0)


def off(points: Points, weights: Tensor, total: Tensor, k: int) -> Tensor:
    """Return the largest distance of a row's log-sum from those of its k^D lattices of k times the spacing, ``(R,)``."""
    dims = points.digits.shape[-1]
    rows, classes = len(total), k**dims
    residue = torch.zeros_like(points.row)
    for axis in points.digits.unbind(-1):
        residue = residue * k + axis.remainder(k)
    sums = weights.new_zeros(rows * classes).index_add(0, points.row * classes + residue, weights)
    distance = (sums.view(rows, classes).log() + math.log(classes) - total.unsqueeze(-1)).abs().amax(-1)
    return distance.nan_to_num(nan=math.inf, posinf=math.inf)
