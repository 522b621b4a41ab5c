r"""Trapezoid rule in a few dimensions, for many rows at once: lattices that are refined where each row's integrand is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

Density = Callable[[Tensor, Tensor], Tensor]  # u (G, R, D) and rows to log p(x, u), (G, R)
COARSE = {1: 65, 2: 21, 3: 11}  # points along each axis of the grid that widens the box
FIRST = {1: 65, 2: 31, 3: 21}  # and the fewest of the first lattice
ALONE = {1: 513, 2: 97, 3: 25}  # of the first lattice that a row has for itself
TOGETHER = {1: 4097, 2: 513, 3: 65}  # and of one that many rows share
BITS = {1: 50, 2: 26, 3: 17}  # of a whole-number coordinate in a key; rows have the rest
ROUNDS = 40  # of widening
CELLS = (
    16.0  # widths of a maximum, in which it falls by 0.02 nats, that a cell may have: 2 to 3 of a normal's deviations
)
SHELLS = 1024  # of points that a lattice may grow by
SAFE = 8.0  # times an error that is extrapolated
FASTEST = {
    1: 0.2,
    2: 0.1,
    3: 0.05,
}  # rate at which errors may fall with each halving; of 2, 4 or 8 lattices few agree by chance
MARGIN = 16.0  # nats below tol times the maximum, from where on the integrand is left out


@dataclass(frozen=True)
class Box:
    """Edges of the first lattice in u, ``(R, D)`` each; R is 1 where all rows share it."""

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

    def halved(self) -> Lattice:
        return Lattice(self.origin, self.step / 2)

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
        return Points(self.row[which], self.digits[which], self.values[which])

    @classmethod
    def joined(cls, parts: list[Points]) -> Points:
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row", "digits", "values")))

    def above(self, depth: float, top: Tensor) -> Points:
        """Select the points within `depth` of their row's maximum, or of one that is known, ``(R,)``."""
        return self.of(self.values > torch.maximum(self.maxima(self.row, len(top)), top)[self.row] - depth)

    def maxima(self, index: Tensor, size: int) -> Tensor:
        """Return the largest value over the points of each index, ``(size,)``; −∞ for none."""
        return self.values.new_full((size,), -math.inf).scatter_reduce(0, index, self.values, "amax")

    def log_sums(self, index: Tensor, size: int) -> Tensor:
        """log Σ e^value over the points of each index, ``(size,)``."""
        largest = self.maxima(index, size)
        return largest + torch.zeros_like(largest).index_add(0, index, (self.values - largest[index]).exp()).log()


@dataclass(frozen=True)
class Hints:
    """What is known of rows' integrands beside their lattices.

    Maxima v ``(S, R, D)`` and which of them matter ``(S, R)``; the value of the highest of these ``(R,)``; how wide the
    narrowest is along each axis ``(R, D)``; and how to tell, at points ``(P, D)`` of rows ``(P,)`` that hold shares ``(P,)``
    of the mass, what part of it is a guess.
    """

    at: Tensor
    matter: Tensor
    top: Tensor
    finest: Tensor
    unseen: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rule:
    """The trapezoid rule in `dims` dimensions: where the lattice lies, how fine it is, and how large its error may be."""

    dims: int
    tol: float
    points: int
    chunk_size: int
    eps: float

    def floor(self, log_px: Tensor) -> Tensor:
        """Return the error that rounding leaves in log p(x)."""
        return 4 * self.eps * (log_px.abs() + 1)

    def rough(self, log_px: Tensor, error: Tensor) -> Tensor:
        """Return which rows have an error above the one asked for, and above rounding."""
        enough = torch.maximum(3 * self.floor(log_px), torch.full_like(error, self.tol))
        return ~(log_px.isfinite() & error.isfinite() & (error <= enough))

    @property
    def depth(self) -> float:
        """Nats below the maximum, from where on the integrand is left out."""
        return MARGIN - math.log(self.tol)

    def digits(self, start: int, stop: int, m: int, device: torch.device) -> Tensor:
        """Return grid points start … stop − 1 by their digits along each axis, ``(G, D)``."""
        return torch.arange(start, stop, device=device).unsqueeze(-1) // m ** torch.arange(self.dims, device=device) % m

    def widen(self, f: Density, box: Box, rows: Tensor) -> Box:
        """Move the edges out until a coarse grid shows the mass of each row inside; the box never shrinks."""
        m, everyone = COARSE[self.dims], torch.arange(len(rows), device=rows.device)
        at_once = max(1, 64 * self.chunk_size // m**self.dims)
        for _ in range(ROUNDS):
            spans = [self.span(f, box.of(part), rows[part], m) for part in everyone.split(at_once)]
            low, high = (torch.cat(ends) for ends in zip(*spans, strict=True))
            if len(box.lower) == 1:
                low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
            if (low > 0).all() and (high < m - 1).all():
                break
            lower = torch.where(low == 0, box.lower - box.width / 2, box.lower)
            box = replace(box, lower=lower, upper=torch.where(high == m - 1, box.upper + box.width / 2, box.upper))
        return box

    def span(self, f: Density, box: Box, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """Return the first and last digit along each axis of the points that matter, ``(R, D)`` each."""
        digits = self.digits(0, m**self.dims, m, rows.device)
        values = torch.cat([f(part, rows) for part in box.at(digits, m).split(max(1, self.chunk_size // len(rows)))])
        values = values.nan_to_num(nan=-math.inf, posinf=-math.inf)
        keep = (values > values.amax(0) - self.depth) & values.isfinite()
        keep = (keep | ~keep.any(0)).unsqueeze(-1)  # nothing seen yet: look further out everywhere
        return torch.where(keep, digits.unsqueeze(1), m).amin(0), torch.where(keep, digits.unsqueeze(1), -1).amax(0)

    def first(self, f: Density, box: Box, rows: Tensor, m: int, known: Tensor) -> tuple[Lattice, Points, Tensor]:
        """Lay m points along each axis, and keep those that matter; streamed, so that the rest takes no memory.

        Returns the log of the mass that was left out too, ``(R,)``.
        """
        top = whole = torch.full((len(rows),), -math.inf, dtype=torch.float64, device=rows.device)
        parts, chunk, wrong = [], max(1, self.chunk_size // len(rows)), torch.zeros_like(rows, dtype=torch.bool)
        for start in range(0, m**self.dims, chunk):
            digits = self.digits(start, min(start + chunk, m**self.dims), m, rows.device)
            values = f(box.at(digits, m), rows)
            wrong |= (values.isnan() | (values == math.inf)).any(0)
            values = values.nan_to_num(nan=-math.inf, posinf=-math.inf)
            top = torch.maximum(top, values.amax(0))
            whole = torch.logaddexp(whole, values.logsumexp(0))
            point, row = (values > torch.maximum(top, known) - self.depth).nonzero(as_tuple=True)
            parts.append(Points(row, digits[point], values[point, row]))
        check((wrong & (top == -math.inf)).nonzero().flatten(), rows)
        lattice = Lattice(*(t.expand(len(rows), -1) for t in (box.lower, box.width / (m - 1))))
        points = Points.joined(parts).above(self.depth, known)
        kept = points.log_sums(points.row, len(rows))
        left_out = whole + (-torch.expm1((kept - whole).clamp(max=-1e-16))).log()
        return lattice, points, left_out.nan_to_num(nan=-math.inf) + lattice.log_cell

    def integrate(
        self, f: Density, box: Box, rows: Tensor, m: int, finer: Density, hints: Hints
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x), its error, and which rows took lattices finer than the first, ``(R,)`` each.

        `f` is run on the first lattice, and `finer` on points that each row has for itself, ``(1, P, D)``.
        """
        lattice, points, left_out = self.first(f, box, rows, m, hints.top)
        log_px, change = self.judged(lattice, points, rows, hints)
        edge = ((points.digits == 0) | (points.digits == m - 1)).any(-1)
        change[points.row[edge]] = math.inf  # there may be more of it outside
        left = refined = ~self.settled(log_px, change)
        for _ in range(BITS[self.dims] - 1 - m.bit_length()):
            left = left & ~self.hopeless(lattice, points, hints)
            if not left.any():
                break
            lattice, points = lattice.halved(), points.of(left[points.row])
            start = torch.cat([self.around(points.row, 2 * points.digits), self.hinted(lattice, hints, left)]).unique()
            points, complete = self.cover(finer, lattice, start, rows, hints.top)
            now, moved = self.judged(lattice, points, rows, hints)
            now_left = left & complete
            log_px, change = torch.where(now_left, now, log_px), torch.where(now_left, moved, change)
            left = now_left & ~self.settled(log_px, change)
        log_px = torch.logaddexp(log_px, left_out)
        return log_px, change + self.floor(log_px) + (left_out - log_px).exp().nan_to_num(nan=math.inf), refined

    def hopeless(self, lattice: Lattice, points: Points, hints: Hints) -> Tensor:
        """Return which rows would take far more points than they may, until a cell is as narrow as their maxima: ``(R,)``."""
        levels = (lattice.step / (CELLS * hints.finest)).log2().ceil().clamp(min=1).amax(-1)
        return points.row.bincount(minlength=len(levels)) * 2.0 ** (self.dims * levels) > 4 * self.points

    def judged(self, lattice: Lattice, points: Points, rows: Tensor, hints: Hints) -> tuple[Tensor, Tensor]:
        """Return :meth:`summed`, its error ∞ where maxima are narrower than a cell, and larger where z stands still."""
        log_px, change = self.summed(lattice, points)
        change = torch.where((lattice.step <= CELLS * hints.finest).all(-1), change, math.inf)
        share = (points.values + lattice.log_cell[points.row] - log_px[points.row]).exp()
        unseen = hints.unseen(lattice.at(points.row, points.digits)[0], rows[points.row], share)
        return log_px, change.index_add(0, points.row, unseen + 0.5 * share * self.brinks(points, share))

    def brinks(self, points: Points, share: Tensor) -> Tensor:
        """Return which points have a neighbour that counts for nothing: at a jump, half of the cell is a guess."""
        keys = self.keys(points.row, points.digits)
        known, alone = keys.sort().values, torch.zeros_like(keys, dtype=torch.bool)
        which = (share > 1e-3 * self.tol).nonzero().flatten()
        row, digits = points.row[which], points.digits[which]
        for axis, step in itertools.product(range(self.dims if len(which) else 0), (-1, 1)):
            beside = digits.clone()
            beside[:, axis] += step
            sought = self.keys(row, beside)
            alone[which] |= known[torch.searchsorted(known, sought).clamp(max=len(known) - 1)] != sought
        return alone.double()

    def hinted(self, lattice: Lattice, hints: Hints, left: Tensor) -> Tensor:
        """Return keys of the points about the maxima that are known of the rows that are left."""
        which, row = (hints.matter & left).nonzero(as_tuple=True)
        digits = ((hints.at[which, row] - lattice.origin[row]) / lattice.step[row]).round()
        within = (digits.abs() < 2.0 ** (BITS[self.dims] - 2)).all(-1)
        return self.around(row[within], digits[within].long())

    def settled(self, log_px: Tensor, change: Tensor) -> Tensor:
        return change.isfinite() & (change <= torch.maximum(self.floor(log_px), torch.full_like(log_px, self.tol / 2)))

    def summed(self, lattice: Lattice, points: Points) -> tuple[Tensor, Tensor]:
        """Return log of the trapezoid sum, ``(R,)``, and what it may be off by, from the lattices within it.

        e_k is the most that any of the 2^kD lattices of 2^k times the spacing is off the whole. The first may agree by chance
        (a kink a quarter of a cell from a point). So the error is the larger of e_1 and of what e_2 falls to in two more
        halvings, at the rate from e_3 to e_2, several times over; no faster than a kink's, which what is smooth may hide.
        """
        top = points.maxima(points.row, len(lattice.step))
        weights = (points.values - top[points.row]).exp()
        total = torch.zeros_like(top).index_add(0, points.row, weights).log()
        first, second, third = (self.off(points, weights, total, k) for k in (1, 2, 3))
        rate = (second / third.clamp(max=1.0)).nan_to_num(nan=1.0).clamp(FASTEST[self.dims], 1.0)
        change = torch.maximum(first, second * (SAFE * rate.square()).clamp(max=1.0))
        return top + total + lattice.log_cell, change.nan_to_num(nan=math.inf, posinf=math.inf)

    def off(self, points: Points, weights: Tensor, total: Tensor, k: int) -> Tensor:
        """Return the largest distance of a row's sum from those of its 2^kD lattices of 2^k times the spacing, ``(R,)``."""
        rows, classes = len(total), 2 ** (k * self.dims)
        places = k * torch.arange(self.dims, device=points.row.device)
        residue = ((points.digits & (2**k - 1)) << places).sum(-1)  # shifted: CUDA has no product of integers
        sums = weights.new_zeros(rows * classes).index_add(0, points.row * classes + residue, weights)
        off = (sums.view(rows, classes).log() + math.log(classes) - total.unsqueeze(-1)).abs().amax(-1)
        return off.nan_to_num(nan=math.inf, posinf=math.inf)

    def around(self, row: Tensor, digits: Tensor) -> Tensor:
        """Return keys of these points and their neighbours, each once."""
        steps = self.digits(0, 3**self.dims, 3, row.device) - 1
        near = digits.unsqueeze(1) + steps
        return self.keys(row.unsqueeze(1).expand(near.shape[:2]).flatten(), near.flatten(0, 1)).unique()

    def keys(self, row: Tensor, digits: Tensor) -> Tensor:
        """Pack a row and its whole numbers into one whole number."""
        bits = BITS[self.dims]
        for axis in digits.unbind(-1):
            row = (row << bits) + axis + (1 << (bits - 1))
        return row

    def unpacked(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Unpack keys to rows and whole numbers."""
        bits = BITS[self.dims]
        axes = [(keys >> i * bits & (1 << bits) - 1) - (1 << (bits - 1)) for i in reversed(range(self.dims))]
        return keys >> self.dims * bits, torch.stack(axes, -1)

    def cover(self, f: Density, lattice: Lattice, keys: Tensor, rows: Tensor, known: Tensor) -> tuple[Points, Tensor]:
        """Grow these points until no neighbour of a point that matters is left out; and the rows that had enough for it."""
        count, seen = len(rows), keys[:0]
        points = Points(keys[:0], keys.new_empty(0, self.dims), lattice.step.new_empty(0))
        used = torch.zeros(count, dtype=torch.long, device=rows.device)
        for _ in range(SHELLS):
            if not len(keys):
                break
            row, digits = self.unpacked(keys)
            used, seen = used + row.bincount(minlength=count), torch.cat([seen, keys])
            within = (used <= self.points)[row]
            new = self.evaluate(f, lattice, row[within], digits[within], rows)
            points = Points.joined([points, new]).above(self.depth, known)
            fresh = points.of(torch.isin(self.keys(points.row, points.digits), keys))
            near = self.around(fresh.row, fresh.digits)
            keys = near[~torch.isin(near, seen)]
        complete = used <= self.points
        complete[self.unpacked(keys)[0]] = False  # it would have grown on
        return points, complete

    def evaluate(self, f: Density, lattice: Lattice, row: Tensor, digits: Tensor, rows: Tensor) -> Points:
        """Evaluate the integrand at chosen points; a ProgramError if it is NaN or +inf."""
        if not len(row):
            return Points(row, digits, lattice.step.new_empty(0))
        chunks = zip(lattice.at(row, digits).split(self.chunk_size, 1), rows[row].split(self.chunk_size), strict=True)
        values = torch.cat([f(u, part)[0].double() for u, part in chunks])
        check(row[values.isnan() | (values == math.inf)], rows)
        return Points(row, digits, values)


def check(bad: Tensor, rows: Tensor) -> None:
    """Refuse rows whose integrand is no number."""
    if len(bad):
        raise ProgramError(
            f"log p(x, z) is NaN or +inf for rows {rows[bad].unique()[:5].tolist()} at some z: the model puts out non-finite "
            "parameters there."
        )
