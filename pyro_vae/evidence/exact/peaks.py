"""Maxima of an integrand that a lattice may step over: climbed to from wherever its values rise, and measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .lattice import Density
from .trapezoid import Hints, Rule, Survey

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


def find_peaks(survey: Survey, own: Density, draws: Tensor, log_p: Tensor, rows: Tensor, rule: Rule) -> Peaks:
    """Climb from local maxima of a survey, and from the best draws v ``(S, R, D)`` that stand out of it.

    `own` takes points that each row has for itself.
    """
    step = survey.step
    grid, on_grid, count = local_maxima(survey)
    picked, of_draws = best_apart(draws, outstanding(survey, draws, log_p), 3 * step)
    starts = torch.cat([grid, picked])
    known = torch.cat([on_grid > -math.inf, of_draws > -math.inf])
    at, values, width = climb(own, starts, known, step, rows, rule.chunk_size)
    found = Peaks(at, values, width, count > len(grid))
    hidden = ((width < step / 16).any(-1) & found.relevant(rule.tol)).any(0)
    return replace(found, many=found.many & hidden)


def local_maxima(survey: Survey) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest local maxima on a grid, ``(S, R, D)``, their values, −∞ for none, and how many there are."""
    values, dims = survey.values, survey.digits.shape[-1]
    rows = torch.arange(values.shape[1], device=values.device)
    image = values.T.reshape(len(rows), 1, *[survey.m] * dims)
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[dims]
    highest = pool(image, 3, stride=1, padding=1)
    lowest = -pool(-image, 3, stride=1, padding=1)
    top = ((image == highest) & (image > lowest)).reshape(len(rows), -1).T
    best = values.masked_fill(~top, -math.inf).topk(min(FROM_GRID, len(values)), 0)
    return survey.at(best.indices, rows.expand_as(best.indices)), best.values, top.sum(0)


def outstanding(survey: Survey, draws: Tensor, log_p: Tensor) -> Tensor:
    """Return log p of the draws that lie above all corners of their cell, ``(S, R)``; −∞ for what the survey shows as well."""
    dims, m = draws.shape[-1], survey.m
    cell = ((draws.nan_to_num() - survey.box.lower) / survey.step).floor().clamp(0, m - 2).long()
    corners = torch.tensor(list(itertools.product((0, 1), repeat=dims)), device=draws.device)
    powers = m ** torch.arange(dims, device=draws.device)
    highest = torch.full_like(log_p, -math.inf)
    for corner in corners:
        highest = torch.maximum(highest, survey.values.gather(0, ((cell + corner) * powers).sum(-1)))
    return log_p.masked_fill(~(log_p > highest), -math.inf)


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
    """Move to the best of the neighbours, or halve the step, until no two opposite ones are `DROP` lower."""
    dims = starts.shape[-1]
    around = neighbours(dims).to(starts)
    on_axis = around.abs().sum(-1) == 1
    picked = known.flatten().nonzero().flatten()
    at, row = starts.flatten(0, 1)[picked], rows.expand(len(starts), -1).flatten()[picked]
    width = step.expand_as(starts).flatten(0, 1)[picked].clone()
    smallest = width * 2.0**-40
    values = evaluated(f, at.unsqueeze(0), row, chunk)[0]
    fall = torch.full_like(at, DROP)
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
        near = near[:, ~up]
        steep = torch.maximum(near, near.flip(0)) < values[still] - DROP
        fall[still] = (values[still] - (near + near.flip(0)) / 2)[on_axis][:dims].T  # they begin with one of each axis
        along = torch.einsum("gp,gd->pd", (steep & on_axis.unsqueeze(-1)).to(around), around.abs()) > 0
        along = along | (steep.any(0) & ~along.any(-1)).unsqueeze(-1)  # a ridge askew
        width[still] = torch.where(along, width[still] / 2, width[still])
        active = torch.cat([moved, still[steep.any(0) & (width[still] > smallest[still]).all(-1)]])
    width = width * (DROP / fall).clamp(1, 16).sqrt()  # a step may end short of the width
    shape = starts.shape[:2]
    whole = torch.full(shape, -math.inf, dtype=values.dtype, device=values.device).flatten()
    places, widths = starts.flatten(0, 1).clone(), step.expand_as(starts).flatten(0, 1).clone()
    whole[picked], places[picked], widths[picked] = values, at, width
    return places.view_as(starts), whole.view(shape), widths.view_as(starts)


def neighbours(dims: int) -> Tensor:
    """Return the steps to the 3^D − 1 neighbours, and half way to those on the axes; opposite ones in opposite places.

    Half way, as a maximum in the middle of two points of like values is seen from neither.
    """
    around = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=dims)))
    half = torch.eye(dims) / 2
    return torch.cat([-half, around[around.abs().sum(-1) > 0], half.flip(0)])


def evaluated(f: Density, points: Tensor, row: Tensor, chunk: int) -> Tensor:
    """log p at points ``(G, P, D)`` of these rows, −∞ where it is no number."""
    size = max(1, chunk // len(points))
    parts = zip(points.split(size, 1), row.split(size), strict=True)
    return torch.cat([f(part, own) for part, own in parts], 1).nan_to_num(nan=-math.inf, posinf=-math.inf)
