"""Maxima of an integrand that a lattice may step over: climbed to from wherever its values rise, and measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .trapezoid import Box, Density, Hints, Rule

GRID = {1: 1025, 2: 49, 3: 17}  # points along each axis, from whose local maxima to climb
FROM_GRID, FROM_DRAWS = 96, 12  # starting points of a row
ROUNDS = 120  # of climbing
DROP = 0.02  # nats to the neighbours, at which a step is narrower than the maximum: 1/5 of a normal's deviation


@dataclass(frozen=True)
class Peaks:
    """Maxima of each row: points v ``(S, R, D)``, values ``(S, R)``, and their widths along the axes ``(S, R, D)``.

    `many`: rows that have more of them than were climbed, narrow ones, ``(R,)``.
    """

    at: Tensor
    values: Tensor
    width: Tensor
    many: Tensor

    def relevant(self, tol: float) -> Tensor:
        """Return which of them may hold a part of the mass that counts, ``(S, R)``."""
        mass = self.values + self.width.log().sum(-1)
        return (mass > mass.amax(0) + math.log(tol) - 12.0) & self.values.isfinite()

    def hints(self, tol: float, unseen: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Hints:
        """Return what the lattices are to know of these."""
        matter = self.relevant(tol)
        top = self.values.masked_fill(~matter, -math.inf).amax(0)
        finest = torch.where(matter.unsqueeze(-1), self.width, math.inf).amin(0)
        return Hints(self.at, matter, top, finest, unseen)


def find_peaks(
    shared: Density, own: Density, box: Box, draws: Tensor, log_p: Tensor, rows: Tensor, rule: Rule
) -> Peaks:
    """Climb from local maxima on a grid, and from the best draws v ``(S, R, D)``; `own` takes points of each row."""
    dims = box.lower.shape[-1]
    m = GRID[dims]
    step = (box.width / (m - 1)).expand(len(rows), -1)
    chunk, tol = rule.chunk_size, rule.tol
    grid, on_grid, count = local_maxima(shared, box, m, rows, chunk)
    picked, of_draws = best_apart(draws, log_p, box.width.expand(len(rows), -1) / 16)
    starts = torch.cat([grid, picked])
    known = torch.cat([on_grid > -math.inf, of_draws > -math.inf])
    at, values, width = climb(own, starts, known, step, rows, chunk)
    found = Peaks(at, values, width, count > len(grid))
    hidden = ((width < step / 16).any(-1) & found.relevant(tol)).any(0)
    return replace(found, many=found.many & hidden)


def local_maxima(f: Density, box: Box, m: int, rows: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest local maxima on a grid, ``(S, R, D)``, their values, −∞ for none, and how many there are."""
    dims = box.lower.shape[-1]
    axes = torch.arange(m, device=rows.device)
    digits = torch.cartesian_prod(*[axes] * dims).reshape(-1, dims)
    values = torch.cat([f(box.at(part, m), rows) for part in digits.split(max(1, chunk // len(rows)))])
    values = values.nan_to_num(nan=-math.inf, posinf=-math.inf)
    image = values.T.reshape(len(rows), 1, *[m] * dims)
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[dims]
    highest = pool(image, 3, stride=1, padding=1)
    lowest = -pool(-image, 3, stride=1, padding=1)
    top = ((image == highest) & (image > lowest)).reshape(len(rows), -1).T
    best = values.masked_fill(~top, -math.inf).topk(min(FROM_GRID, len(values)), 0)
    at = (box.lower + box.width * (digits[best.indices].to(box.lower) / (m - 1))).expand(-1, len(rows), -1)
    return at, best.values, top.sum(0)


def best_apart(draws: Tensor, log_p: Tensor, apart: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best of some draws, of which none lies within `apart` ``(R, D)`` of another: ``(S, R, D)`` and values."""
    left = torch.where(draws.isfinite().all(-1) & ~log_p.isnan(), log_p, -math.inf)
    at, values = [], []
    for _ in range(FROM_DRAWS):
        best = left.max(0)
        at.append(draws.gather(0, best.indices.view(1, -1, 1).expand(1, -1, draws.shape[-1]))[0])
        values.append(best.values)
        left = left.masked_fill(((draws - at[-1]).abs() <= apart).all(-1), -math.inf)
    return torch.stack(at).nan_to_num(), torch.stack(values)


def climb(
    f: Density, starts: Tensor, known: Tensor, step: Tensor, rows: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Move to the best of the 3^D − 1 neighbours, or halve the step, until no two opposite ones are `DROP` lower."""
    dims = starts.shape[-1]
    around = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=dims))).to(starts)
    around = around[around.abs().sum(-1) > 0]  # opposite ones stand in opposite places
    on_axis = around.abs().sum(-1) == 1
    picked = known.flatten().nonzero().flatten()
    at, row = starts.flatten(0, 1)[picked], rows.expand(len(starts), -1).flatten()[picked]
    width = step.expand_as(starts).flatten(0, 1)[picked].clone()
    smallest = width * 2.0**-40
    values = evaluated(f, at.unsqueeze(0), row, chunk)[0]
    active = values.isfinite().nonzero().flatten()
    for _ in range(ROUNDS):
        if not len(active):
            break
        points = at[active] + width[active] * around.unsqueeze(1)
        near = evaluated(f, points, row[active], chunk)
        best = near.max(0)
        up = best.values > values[active]
        moved = active[up]
        at[moved], values[moved] = points[best.indices, torch.arange(len(active))][up], best.values[up]
        still = active[~up]
        # narrow where both sides fall: an edge that a likelihood cuts off is steep on one
        steep = torch.maximum(near, near.flip(0))[:, ~up] < values[still] - DROP
        along = torch.einsum("gp,gd->pd", (steep & on_axis.unsqueeze(-1)).to(around), around.abs()) > 0
        along = along | (steep.any(0) & ~along.any(-1)).unsqueeze(-1)  # a ridge askew
        width[still] = torch.where(along, width[still] / 2, width[still])
        active = torch.cat([moved, still[steep.any(0) & (width[still] > smallest[still]).all(-1)]])
    shape = starts.shape[:2]
    whole = torch.full(shape, -math.inf, dtype=values.dtype, device=values.device).flatten()
    places, widths = starts.flatten(0, 1).clone(), step.expand_as(starts).flatten(0, 1).clone()
    whole[picked], places[picked], widths[picked] = values, at, width
    return places.view_as(starts), whole.view(shape), widths.view_as(starts)


def evaluated(f: Density, points: Tensor, row: Tensor, chunk: int) -> Tensor:
    """log p at points ``(G, P, D)`` of these rows, −∞ where it is no number."""
    size = max(1, chunk // len(points))
    parts = zip(points.split(size, 1), row.split(size), strict=True)
    return torch.cat([f(part, own) for part, own in parts], 1).nan_to_num(nan=-math.inf, posinf=-math.inf)
