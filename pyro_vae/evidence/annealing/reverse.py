r"""Annealing from the posterior back to the start: 1 / p(x) without bias, so log p(x) from above."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError, ShapeError

from .ais import Annealer, ChainBlock, anneal
from .densities import Densities
from .hmc import transition
from .result import AnnealedRun
from .schedule import AnnealingPath

Latents = dict[str, Tensor]
REVERSE, RESAMPLE = 3, 4  # kinds of streams, after those of annealing


def reverse(annealer: Annealer, refresh: int, latents: Latents | None, ahead: AnnealedRun) -> AnnealedRun:
    """Run from β = 1 to 0 with weights: E[exp(log w)] = 1 / p(x) if it starts at exact draws of p(z | x)."""
    return annealer.joined(lambda block: reverse_block(annealer, block, refresh, latents, ahead), "reverse annealing")


def reverse_block(
    annealer: Annealer, block: ChainBlock, refresh: int, latents: Latents | None, ahead: AnnealedRun
) -> AnnealedRun:
    """Run a block: it starts where any chain of its rows ended."""
    settings, chunk, path = annealer.settings, annealer.chunks[block.chunk], annealer.path(block)
    density, rows = annealer.densities(block), slice(chunk.first, chunk.first + len(chunk))
    with annealer.quiet(RESAMPLE, block):
        u = density.draw(block.chains)  # also lays out the sites
        if latents is None:
            u = resampled(ahead.u[:, rows].to(u.device), ahead.log_w[:, rows].to(u.device), block.chains)
        else:
            u = density.at(latents_of(latents, rows, len(annealer.problem), density), block.chains)

    def run() -> AnnealedRun:
        point = density(u)
        for _ in range(refresh):  # leaves the posterior as it is, and takes chains that share a start apart
            point, _ = transition(density, 1.0, point, path.steps[-1], settings.leapfrog_steps)
        backwards = AnnealingPath(path.betas.flip(0), path.steps.flip(0))
        return anneal(density, point, backwards, settings, "reverse AIS")

    return annealer.walked(run, REVERSE, block)


def latents_of(latents: Latents, rows: slice, total: int, density: Densities) -> Latents:
    """Select the latents of some rows; refuse latents that lack a site, or are of another number of rows in all."""
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


def resampled(u: Tensor, log_w: Tensor, chains: int) -> Tensor:
    """Draw so many chains by their weights, with replacement, row by row."""
    chosen = torch.multinomial(log_w.softmax(0).nan_to_num(1).T, chains, replacement=True).T
    return torch.take_along_dim(u, chosen[..., None], 0)
