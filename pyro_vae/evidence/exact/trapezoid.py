r"""Trapezoid rule in a few dimensions, for many rows at once: lattices as fine as each row's integrand asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError

from .lattice import BITS, Box, Density, Lattice, Points, Sums, among, keys, unpacked

COARSE = {1: 65, 2: 21, 3: 11}  # points along each axis of the grid that widens the box
SURVEY = {1: 1025, 2: 49, 3: 17}  # and of the one that shows where each row's mass is
FEWEST = {1: 65, 2: 961, 3: 9261}  # points that a row must be allowed
ROUNDS = 40  # of widening
LEVELS = 64  # of lattices, one finer than the other
SHELLS = 1024  # of points that a lattice may grow by
DEVIATION = 5.0  # widths of a maximum, in which it falls by 0.02 nats, in a normal's standard deviation
SHARPER = 0.95  # a lattice finer than a normal needs, which posteriors are not
LAYER, TAIL = 4.0, 0.1  # what lies further out is an exponential's 1/50, in 3-D 1/30, of the last 4 nats that count
MARGIN = 6.0  # nats below tol times the maximum, from where on the integrand is left out: of a normal in 3-D, tol / 100


@dataclass(frozen=True)
class Survey:
    """The integrand on one grid, of m points along each axis of a box: digits ``(G, D)`` and values ``(G, R)``."""

    box: Box
    m: int
    digits: Tensor
    values: Tensor

    @property
    def step(self) -> Tensor:
        """Spacing of the grid in each row, ``(R, D)``."""
        return (self.box.width / (self.m - 1)).expand(self.values.shape[1], -1)

    def at(self, point: Tensor, row: Tensor) -> Tensor:
        """Return the u of some grid points of some rows, ``(P, D)``."""
        return self.box.lower.expand(len(self.step), -1)[row] + self.step[row] * self.digits[point]

    def left_out(self, below: Tensor) -> Tensor:
        """log of the mass on the grid that lies below a value, ``(R,)``."""
        return self.values.masked_fill(self.values > below, -math.inf).logsumexp(0) + self.step.log().sum(-1)


@dataclass(frozen=True)
class Hints:
    """What is known of rows' integrands beside their survey.

    Maxima v ``(S, R, D)`` and which of them matter ``(S, R)``; the value of the highest of these ``(R,)``; how wide the
    narrowest is along each axis ``(R, D)``; and how to tell, at points ``(P, D)`` of rows ``(P,)`` that hold shares ``(P,)``
    of the mass, what part of it is a guess.
    """

    at: Tensor
    matter: Tensor
    top: Tensor
    finest: Tensor
    unseen: Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Found:
    """What the lattices of each row gave so far, ``(R,)`` each; ∞ for no error yet, and `left` for rows to go on with."""

    log_px: Tensor
    change: Tensor
    left: Tensor

    def take(self, log_px: Tensor, change: Tensor, complete: Tensor) -> None:
        """Take a finer lattice's where it is complete, or where there is no other."""
        better = self.left & (complete | (self.log_px == -math.inf))
        self.log_px = torch.where(better, log_px, self.log_px)
        self.change = torch.where(better, torch.where(complete, change, math.inf), self.change)


@dataclass(frozen=True)
class Rule:
    """The trapezoid rule in `dims` dimensions: how fine a lattice is, and how large its error may be."""

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

    def settled(self, log_px: Tensor, change: Tensor) -> Tensor:
        return change.isfinite() & (change <= torch.maximum(self.floor(log_px), torch.full_like(log_px, self.tol / 2)))

    @property
    def depth(self) -> float:
        """Nats below the maximum, from where on the integrand is left out."""
        return MARGIN - math.log(self.tol)

    @property
    def cell(self) -> float:
        """Widths of a maximum that a cell may have: a normal's sublattices of 3 times the spacing differ by 2 tol then.

        They are off by 2 D exp(−2 π² σ² / (3 h)²).
        """
        return SHARPER * DEVIATION * math.sqrt(2 * math.pi**2 / 9 / math.log(self.dims / min(self.tol, 0.1)))

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
        digits, values = self.on_grid(f, box, rows, m)
        values = values.nan_to_num(nan=-math.inf, posinf=-math.inf)
        keep = (values > values.amax(0) - self.depth) & values.isfinite()
        keep = (keep | ~keep.any(0)).unsqueeze(-1)  # nothing seen yet: look further out everywhere
        return torch.where(keep, digits.unsqueeze(1), m).amin(0), torch.where(keep, digits.unsqueeze(1), -1).amax(0)

    def on_grid(self, f: Density, box: Box, rows: Tensor, m: int) -> tuple[Tensor, Tensor]:
        """Return the points of a grid by their digits ``(G, D)``, and the integrand there ``(G, R)``."""
        digits = self.digits(0, m**self.dims, m, rows.device)
        parts = box.at(digits, m).split(max(1, self.chunk_size // len(rows)))
        return digits, torch.cat([f(part, rows) for part in parts])

    def survey(self, f: Density, box: Box, rows: Tensor) -> Survey:
        """Run the integrand on a grid that is coarse, but not as coarse as that of :meth:`widen`."""
        m = SURVEY[self.dims]
        digits, values = self.on_grid(f, box, rows, m)
        wrong = (values.isnan() | (values == math.inf)).any(0)
        values = values.nan_to_num(nan=-math.inf, posinf=-math.inf)
        check((wrong & (values.amax(0) == -math.inf)).nonzero().flatten(), rows)
        return Survey(box, m, digits, values)

    def integrate(self, f: Density, survey: Survey, rows: Tensor, hints: Hints) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x), its error, and which rows took lattices finer for that error, ``(R,)`` each.

        `f` is run on points that each row has for itself, ``(1, P, D)``.
        """
        top = torch.maximum(survey.values.amax(0), hints.top)
        target = self.cell * hints.finest
        lattice, packed = self.start(survey, hints, target, top)
        nothing = torch.full_like(top, -math.inf)
        found, refined = Found(nothing, -nothing, nothing < 0), torch.zeros_like(rows, dtype=torch.bool)
        left_out = survey.left_out(top - self.depth)
        for _ in range(LEVELS):
            if not found.left.any():
                break
            points, complete = self.cover(f, lattice, packed, rows, top)
            sums = Sums.of(points, len(rows))
            log_px = sums.total + lattice.log_cell
            jumps, unseen = self.guessed(lattice, points, sums, rows, hints.unseen)
            change = sums.error + jumps + unseen + TAIL * (self.outermost(points, top) - sums.total).exp()
            coarse = lattice.step > target * (1 + 1e-9)
            found.take(log_px, change.masked_fill(coarse.any(-1), math.inf), complete)
            finer = SHARPER * (self.tol / 2 / change).pow(1 / sums.power).nan_to_num(nan=0.5).clamp(0.5, 1.0)
            factor = torch.where(coarse, 0.5, torch.where(coarse.any(-1), 1.0, finer).unsqueeze(-1))
            found.left = found.left & complete & ~self.settled(found.log_px, found.change)
            found.left &= ~self.hopeless(lattice, points, coarse, target, survey) & (
                coarse.any(-1) | (unseen < self.tol / 2)
            )
            points, refined = points.of(found.left[points.row]), refined | (found.left & ~coarse.any(-1))
            places, lattice = lattice.at(points.row, points.digits)[0], lattice.finer(factor)
            again = keys(points.row, lattice.nearest(points.row, places).long())
            packed = torch.cat([again, self.hinted(lattice, hints, found.left)]).unique()
        log_px = torch.logaddexp(found.log_px, left_out)
        left_out = (left_out - log_px).exp().nan_to_num(nan=math.inf)
        return log_px, found.change + self.floor(log_px) + left_out, refined

    def start(self, survey: Survey, hints: Hints, target: Tensor, top: Tensor) -> tuple[Lattice, Tensor]:
        """Return lattices no coarser than the survey, that come to `target` by halving; and their points by what is seen."""
        step = torch.minimum(target, 2 * survey.step)
        halvings = (survey.step / step).log2().floor().clamp(min=0)
        lattice = Lattice(survey.box.lower.expand(len(step), -1), step * 2**halvings)
        point, row = (survey.values > top - self.depth).nonzero(as_tuple=True)
        seen = keys(row, lattice.nearest(row, survey.at(point, row)).long())
        return lattice, torch.cat([seen, self.hinted(lattice, hints, torch.ones_like(top, dtype=torch.bool))]).unique()

    def hopeless(self, lattice: Lattice, points: Points, coarse: Tensor, target: Tensor, survey: Survey) -> Tensor:
        """Return which rows would take more points than they may, to come to a cell as narrow as their maxima: ``(R,)``."""
        count = points.row.bincount(minlength=len(coarse))
        levels = (lattice.step / target).log2().round().clamp(min=0).sum(-1)
        finer = torch.where(coarse.any(-1), count * 2.0**levels / 4**self.dims, count * 2.0**self.dims)
        far = (survey.step / lattice.step).log2().amax(-1) + math.log2(survey.m) > BITS[self.dims] - 3
        return (finer > self.points) | far

    def guessed(
        self,
        lattice: Lattice,
        points: Points,
        sums: Sums,
        rows: Tensor,
        unseen: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return what part of a sum is a guess, at jumps and where z stands still: ``(R,)`` each."""
        share, none = (points.values - sums.total[points.row]).exp(), torch.zeros_like(sums.total)
        still = unseen(lattice.at(points.row, points.digits)[0], rows[points.row], share)
        jumps = 0.5 * share * self.brinks(points, share)
        return none.index_add(0, points.row, jumps), none.index_add(0, points.row, still)

    def brinks(self, points: Points, share: Tensor) -> Tensor:
        """Return which points have a neighbour that counts for nothing: at a jump, half of the cell is a guess."""
        known, alone = keys(points.row, points.digits).sort().values, torch.zeros_like(points.row, dtype=torch.bool)
        which = (share > 1e-3 * self.tol).nonzero().flatten()
        row, digits = points.row[which], points.digits[which]
        for step in self.beside(row.device):
            alone[which] |= ~among(keys(row, digits + step), known)
        return alone.double()

    def beside(self, device: torch.device) -> Tensor:
        """Return the steps to the 2 D neighbours along the axes."""
        unit = torch.eye(self.dims, dtype=torch.long, device=device)
        return torch.cat([unit, -unit])

    def hinted(self, lattice: Lattice, hints: Hints, left: Tensor) -> Tensor:
        """Return keys of the points about the maxima that are known of the rows that are left."""
        which, row = (hints.matter & left).nonzero(as_tuple=True)
        digits = lattice.nearest(row, hints.at[which, row])
        within = (digits.abs() < 2.0 ** (BITS[self.dims] - 2)).all(-1)
        row, digits = row[within], digits[within].long()
        steps = torch.tensor(list(itertools.product((-1, 0, 1), repeat=self.dims)), device=row.device)
        return keys(row.unsqueeze(1).expand(-1, len(steps)), digits.unsqueeze(1) + steps).flatten()

    def around(self, row: Tensor, digits: Tensor) -> Tensor:
        """Return keys of the neighbours of these points along the axes, each once."""
        near = digits.unsqueeze(1) + self.beside(row.device)
        return keys(row.unsqueeze(1).expand(near.shape[:2]), near).flatten().unique()

    def outermost(self, points: Points, known: Tensor) -> Tensor:
        """log Σ e^value over the points that are the next to be left out, ``(R,)``."""
        least = torch.maximum(points.maxima(len(known)), known) - self.depth + LAYER
        return points.of(points.values < least[points.row]).log_sums(len(known))

    def cover(self, f: Density, lattice: Lattice, packed: Tensor, rows: Tensor, known: Tensor) -> tuple[Points, Tensor]:
        """Grow these points until no neighbour of a point that matters is left out.

        Returns those that matter, and the rows that had enough for it.
        """
        count, seen, top = len(rows), packed[:0], known
        parts = [Points(packed[:0], packed.new_empty(0, self.dims), known.new_empty(0))]
        used = torch.zeros(count, dtype=torch.long, device=rows.device)
        for _ in range(SHELLS):
            if not len(packed):
                break
            row, digits = unpacked(packed, self.dims)
            used, seen = used + row.bincount(minlength=count), torch.cat([seen, packed]).sort().values
            within = (used <= self.points)[row]
            new = self.evaluate(f, lattice, row[within], digits[within], rows)
            top = torch.maximum(top, new.maxima(count))
            parts.append(new)
            fresh = new.of(new.values > top[new.row] - self.depth)
            near = self.around(fresh.row, fresh.digits)
            packed = near[~among(near, seen)]
        complete = used <= self.points
        complete[unpacked(packed, self.dims)[0]] = False  # it would have grown on
        points = Points.joined(parts)
        return points.of(points.values > top[points.row] - self.depth), complete

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
