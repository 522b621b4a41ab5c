r"""Ranks for simulation-based calibration: the rank of the true z among draws of q(z | x)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.objectives.particles import with_values
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.simulate import Simulated
from pyro_vae.programs.sites import Site, check_pair, sample_sites

JOINT = "log p(x, z)"


@dataclass(frozen=True)
class Ranking:
    """A pair on simulated rows, and whether it broadcasts over particles."""

    problem: Problem
    vectorized: bool

    def split(self, draws: int) -> list[int]:
        """Return how many particles each run of a program draws."""
        return [draws] if self.vectorized else [1] * draws

    def posterior(self, draws: int) -> list[poutine.Trace]:
        """The guide's traces."""
        return [self.problem.trace(self.problem.guide, n) for n in self.split(draws)]

    def joint(self, like: poutine.Trace, values: Mapping[str, Tensor]) -> Tensor:
        """log p(x, z) at latents ``(K, ..., N, ...)``: ``(K, N)``; `like` is a trace of the guide."""
        sizes = self.split(len(next(iter(values.values()))))
        parts = ({name: v.split(sizes)[i] for name, v in values.items()} for i in range(len(sizes)))
        return torch.cat([self.scored(with_values(like, part), n) for part, n in zip(parts, sizes, strict=True)])

    def scored(self, like: poutine.Trace, particles: int) -> Tensor:
        p = self.problem.sites(self.problem.model, particles, like)
        check_pair(p, sample_sites(like))
        return self.problem.log_prob(p)


def block_ranks(pair: Ranking, truth: Simulated, num_draws: int) -> tuple[tuple[str, ...], Tensor]:
    """Names of the quantities, and the ranks of the truth among L draws of the guide, ``(N, Q)``."""
    plates, traces = pair.problem.plates, pair.posterior(num_draws)
    drawn = [sample_sites(trace) for trace in traces]
    sites = drawn[0]
    values = {
        name: torch.cat([lifted(truth.latents[name], site, plates), *(d[name]["value"] for d in drawn)])
        for name, site in sites.items()
    }
    joint = pair.joint(traces[0], values)  # the truth and the draws in one run, rounded alike
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
