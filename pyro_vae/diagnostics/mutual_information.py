"""Mutual information of x and z under q, from below: how well a row's latents tell it from other rows."""

from __future__ import annotations

import math

import torch
from pyro import plate, poutine
from torch import Tensor

from pyro_vae.common.random import seeded
from pyro_vae.programs.plates import Plates, row_log_prob
from pyro_vae.programs.sites import PARTICLES, Program, Site, sample_sites, sum_terms

PAIRS = 65_536  # (i, j) evaluated at a time


def information(guide: Program, rows: tuple[Tensor, ...], plates: Plates, seed: int) -> Tensor:
    """log q(z_i | x_i) − log 1/B Σ_j q(z_i | x_j) for each of B rows, ``(B,)``, float64 on the CPU.

    The guide is run again on all rows, conditioned on the draws of row i, on one random stream: what it draws on the way to
    its parameters is the same each time.
    """
    count, terms = len(rows[0]), []
    values = {name: crossed(site, plates) for name, site in run(guide, rows, plates, 1, seed).items()}
    step = max(1, PAIRS // count)
    for start in range(0, count, step):
        some = {name: value[start : start + step] for name, value in values.items()}
        sites = run(poutine.condition(guide, some), rows, plates, min(step, count - start), seed)
        log_q = sum_terms({name: row_log_prob(name, site, plates) for name, site in sites.items()}).to(
            "cpu", torch.float64
        )
        terms.append(log_q.diagonal(start) - log_q.logsumexp(1) + math.log(count))
    return torch.cat(terms)


def run(guide: Program, rows: tuple[Tensor, ...], plates: Plates, particles: int, seed: int) -> dict[str, Site]:
    """The guide's sites, under a plate of particles."""
    with seeded(seed, 1, device=rows[0].device), plate(PARTICLES, particles, dim=-1 - plates.nesting):
        return sample_sites(poutine.trace(guide).get_trace(*rows))


def crossed(site: Site, plates: Plates) -> Tensor:
    """Give every row the draw of one row: one particle's draws for B rows become B particles."""
    value, event_dim = site["value"], site["fn"].event_dim
    particles, data = (d - event_dim for d in (-1 - plates.nesting, plates.dim))
    shape = list(value.shape)
    shape[particles] = shape[data]
    return value.transpose(particles, data).expand(shape)
