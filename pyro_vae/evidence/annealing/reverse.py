r"""Annealing from the posterior back to the start: 1 / p(x) without bias, so log p(x) from above."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError, ShapeError

from .ais import AnnealingTask, anneal, checked
from .densities import Densities, Point
from .hmc import Density, transition
from .result import AnnealedRun
from .schedule import AnnealingPath

Latents = dict[str, Tensor]
REVERSE, RESAMPLE = 3, 4  # kinds of streams, after those of annealing


def reverse(task: AnnealingTask, refresh: int, latents: Latents | None, ahead: AnnealedRun) -> AnnealedRun:
    """The weighted run from β = 1 to 0: E[exp(log w)] = 1 / p(x) if it starts at exact draws of p(z | x)."""

    settings, runs = task.settings, []
    for i, chunk in enumerate(task.chunks):
        density, rows = task.densities(i), slice(chunk.first, chunk.first + len(chunk))
        with task.quiet(RESAMPLE, i):
            u = density.draw(settings.num_chains)  # also lays out the sites
            if latents is None:
                u = resampled(ahead.u[:, rows], ahead.log_w[:, rows])
            else:
                u = density.at(rows_of(latents, rows, len(task.problem), density), settings.num_chains)
        with task.quiet(REVERSE, i):
            point = refreshed(density, density(u), task.frozen[i], refresh, settings.leapfrog_steps)
            runs.append(anneal(density, point, task.frozen[i].reversed(), settings, "reverse AIS"))
    return checked(AnnealedRun.joined(runs))


def rows_of(latents: Latents, rows: slice, total: int, density: Densities) -> Latents:
    """The latents of some rows; refuses latents that lack a site, or are of another number of rows in all."""
    chosen = {}
    for layout in density.layouts:
        name, dim = layout.name, layout.plates.dim - layout.event_dim
        if name not in latents:
            raise ProgramError(
                f"latents lack site {name!r}: pass the values of every latent site, as simulate gives them"
            )
        if (got := latents[name].shape[dim]) != total:
            raise ShapeError(
                f"latents of site {name!r} have {got} rows, x has {total}: give each row the latents it was drawn with"
            )
        chosen[name] = latents[name].movedim(dim, 0)[rows].movedim(0, dim)
    return chosen


def resampled(u: Tensor, log_w: Tensor) -> Tensor:
    """Chains drawn anew by their weights, with replacement, row by row."""
    chosen = torch.multinomial(log_w.softmax(0).nan_to_num(1).T, len(u), replacement=True).T
    return torch.take_along_dim(u, chosen[..., None], 0)


def refreshed(density: Density, point: Point, frozen: AnnealingPath, times: int, leapfrogs: int) -> Point:
    """Further transitions at β = 1, which leave the posterior as it is, and take chains that share a start apart."""
    for _ in range(times):
        point, _ = transition(density, 1.0, point, frozen.steps[-1], leapfrogs)
    return point
