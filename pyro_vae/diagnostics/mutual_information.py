"""Mutual information of x and z under q, from below: how well a row's latents tell it from other rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.sites import Program, Site

PAIRS = 65_536  # (i, j) evaluated at a time


def information(problem: Problem, seed: int) -> Tensor:
    """log q(z_i | x_i) − log 1/B Σ_j q(z_i | x_j) for each of the B rows, ``(B,)``, float64 on the CPU.

    The guide is run again on all rows, conditioned on the draws of row i, on one random stream: what it draws on the way to
    its parameters is the same each time.
    """
    count, terms = len(problem), []
    values = {name: crossed(site, problem.plates) for name, site in run(problem, problem.guide, 1, seed).items()}
    step = max(1, PAIRS // count)
    for start in range(0, count, step):
        some = {name: value[start : start + step] for name, value in values.items()}
        sites = run(problem, problem.guide, min(step, count - start), seed, some)
        log_q = problem.log_prob(sites).to("cpu", torch.float64)
        terms.append(log_q.diagonal(start) - log_q.logsumexp(1) + math.log(count))
    return torch.cat(terms)


def run(
    problem: Problem, program: Program, particles: int, seed: int, at: Mapping[str, Tensor] | None = None
) -> dict[str, Site]:
    """A program's sites, its latents held at some values or drawn from one random stream."""
    with problem.quiet(seed, 1):
        return problem.sites(program, particles, at)


def crossed(site: Site, plates: Plates) -> Tensor:
    """Give every row the draw of one row: one particle's draws for B rows become B particles."""
    value, event_dim = site["value"], site["fn"].event_dim
    particles, data = (d - event_dim for d in (plates.particles, plates.dim))
    shape = list(value.shape)
    shape[particles] = shape[data]
    return value.transpose(particles, data).expand(shape)
