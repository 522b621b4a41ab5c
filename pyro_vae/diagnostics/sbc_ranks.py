r"""Ranks for simulation-based calibration: the rank of the true z among draws of q(z | x)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.simulate import Simulated
from pyro_vae.programs.sites import Site, check_pair, sample_sites, with_values

JOINT = "log p(x, z)"


def block_ranks(problem: Problem, truth: Simulated, num_draws: int, vectorized: bool) -> tuple[tuple[str, ...], Tensor]:
    """Names of the quantities, and the ranks of the truth among L draws of the guide, ``(N, Q)``; `problem` is on its rows."""
    plates, sizes = problem.plates, [num_draws] if vectorized else [1] * num_draws
    traces = [problem.trace(problem.guide, size) for size in sizes]
    drawn = [sample_sites(trace) for trace in traces]
    sites = drawn[0]
    values = {
        name: torch.cat([lifted(truth.latents[name], site, plates), *(d[name]["value"] for d in drawn)])
        for name, site in sites.items()
    }
    # the truth and the draws in one run, rounded alike
    joint = log_joint(problem, traces[0], values, [1 + num_draws] if vectorized else [1, *sizes])
    names: list[str] = []
    ranks = []
    for name, value in values.items():
        units, flat = by_unit(name, value, sites[name], plates)
        names += units
        ranks.append(rank(name, flat))
    # log p(x, z) of a discrete z takes few values, and equal ones differ by rounding: ties, too
    near = 16 * torch.finfo(joint.dtype).eps * joint.abs().nan_to_num(posinf=0, neginf=0).amax(0, keepdim=True)
    ranks.append(rank(JOINT, joint.unsqueeze(-1), near.unsqueeze(-1)))
    return (*names, JOINT), torch.cat(ranks, 1)


def log_joint(problem: Problem, like: poutine.Trace, values: Mapping[str, Tensor], sizes: list[int]) -> Tensor:
    """log p(x, z) at latents ``(K, ..., N, ...)``: ``(K, N)``, in runs of so many; `like` is a trace of the guide."""
    runs = []
    for size, *part in zip(sizes, *(value.split(sizes) for value in values.values()), strict=True):
        p = problem.sites(problem.model, size, with_values(like, dict(zip(values, part, strict=True))))
        check_pair(p, sample_sites(like))
        runs.append(problem.log_prob(p))
    return torch.cat(runs)


def lifted(value: Tensor, site: Site, plates: Plates) -> Tensor:
    """A latent drawn without particles, with their dimension (of size 1) on the left."""
    missing = 1 + plates.nesting + site["fn"].event_dim - value.dim()
    return value.reshape((1,) * missing + value.shape)


def by_unit(name: str, value: Tensor, site: Site, plates: Plates) -> tuple[list[str], Tensor]:
    """A site's coordinates: their names, and their values ``(K, N, units)``."""
    moved = plates.leading(value, site["fn"].event_dim)
    where = product(*(range(size) for size in moved.shape[2:] if size > 1))
    labels = [",".join(map(str, index)) for index in where]
    units = [f"{name}[{label}]" if label else name for label in labels]
    return units, moved.reshape(*moved.shape[:2], -1)


def rank(name: str, values: Tensor, near: Tensor | float = 0.0) -> Tensor:
    """Rank the first among the others, ``(N, U)``, for values ``(1 + L, N, U)``; differences up to `near` are ties."""
    if values.isnan().any():
        rows = values.isnan().any(0).any(-1).nonzero().flatten().tolist()
        raise ProgramError(
            f"{name} is NaN for simulated rows {rows[:5]} (counted in their block): the model or guide puts out non-finite "
            "parameters on data of the model. Look at its weights, and at what it does to extreme rows."
        )
    truth, draws = values[0], values[1:]
    ties = (draws == truth) | ((draws - truth).abs() <= near)
    below = ((draws < truth) & ~ties).sum(0)
    among = torch.rand(below.shape, dtype=torch.float64, device=below.device) * (ties.sum(0) + 1)
    return below + among.long()
