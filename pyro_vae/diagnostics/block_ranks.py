"""Ranks of the truth among draws of a guide: of each latent's coordinates, and of log p(x, z)."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from pyro_vae.errors import ProgramError
from pyro_vae.programs.masks import kept_entries
from pyro_vae.programs.plates import Plates
from pyro_vae.programs.problem import Problem, Sites
from pyro_vae.programs.simulate import Simulated
from pyro_vae.programs.sites import Site, latent_sites

JOINT = "log p(x, z)"
LEFT_OUT = -1  # in the place of a rank


def block_ranks(problem: Problem, truth: Simulated, num_draws: int, vectorized: bool) -> tuple[tuple[str, ...], Tensor]:
    """Rank the truth among L draws of the guide, ``(N, Q)``, and name the quantities; `problem` is on the truth's rows."""
    plates, sizes = problem.plates, [num_draws] if vectorized else [1] * num_draws
    drawn = [{name: site for name, site in q.items() if name in truth.latents} for q in guide_draws(problem, sizes)]
    sites = drawn[0]
    values = {
        name: torch.cat([lifted(truth.latents[name], site, plates), *(d[name]["value"] for d in drawn)])
        for name, site in sites.items()
    }
    terms: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {name: [] for name in values}
    # the truth and the draws in one run, rounded alike
    for size in [1 + num_draws] if vectorized else [1, *sizes]:
        done = sum(map(len, terms))
        at = {name: value[done : done + size] for name, value in values.items()}
        p = problem.sites(problem.model, size, at)
        for name in kept:
            kept[name].append(kept_entries(p[name]).expand(at[name].shape))
        terms.append(problem.log_prob(p))
    joint = torch.cat(terms)
    names: list[str] = []
    ranks, any_kept = [], torch.zeros(joint.shape[1], dtype=torch.bool, device=joint.device)
    for name, value in values.items():
        event_dim = sites[name]["fn"].event_dim
        keep = plates.by_unit(torch.cat(kept[name]), event_dim)
        names += units(name, value, event_dim, plates)
        ranks.append(rank_kept(name, plates.by_unit(value, event_dim), keep))
        any_kept |= keep.any(0).any(-1)
    # log p(x, z) of a discrete z takes few values, and equal ones differ by rounding: ties, too
    near = 16 * torch.finfo(joint.dtype).eps * joint.abs().nan_to_num(posinf=0, neginf=0).amax(0, keepdim=True)
    ranks.append(rank(JOINT, joint.unsqueeze(-1), near.unsqueeze(-1)).masked_fill(~any_kept.unsqueeze(-1), LEFT_OUT))
    return (*names, JOINT), torch.cat(ranks, 1)


def guide_draws(problem: Problem, sizes: list[int]) -> list[Sites]:
    """Return the latent sites of runs of the guide, of these numbers of particles; checked to be the model's latents."""
    problem.draw(1)
    return [latent_sites(problem.sites(problem.guide, size)) for size in sizes]


def rank_kept(name: str, values: Tensor, kept: Tensor) -> Tensor:
    """Rank the truth, ``(N, U)``, with 0 for what is masked, and LEFT_OUT where truth and draws all are."""
    if kept.all():
        return rank(name, values)
    return rank(name, torch.where(kept, values, 0)).masked_fill(~kept.any(0), LEFT_OUT)


def lifted(value: Tensor, site: Site, plates: Plates) -> Tensor:
    """Give a latent that was drawn without particles their dimension, of size 1, on the left."""
    missing = 1 + plates.nesting + site["fn"].event_dim - value.dim()
    return value.reshape((1,) * missing + value.shape)


def units(name: str, value: Tensor, event_dim: int, plates: Plates) -> list[str]:
    """Name a site's coordinates."""
    moved = plates.leading(value, event_dim)
    indices = product(*(range(size) for size in moved.shape[2:] if size > 1))
    return [f"{name}[{','.join(map(str, index))}]" if index else name for index in indices]


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
