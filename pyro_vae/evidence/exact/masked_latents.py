"""Masked latents of an oracle: what a mask leaves without a density gets one that sums or integrates to 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions.transforms import IndependentTransform

from pyro_vae.programs.masks import present
from pyro_vae.programs.plates import Plates, sum_rows
from pyro_vae.programs.sites import Site
from pyro_vae.programs.unconstrained import SubstituteLatents, is_discrete
from pyro_vae.programs.wrapped import elements


def log_volumes(substituted: SubstituteLatents, sites: dict[str, Site], plates: Plates) -> dict[str, Tensor]:
    """log |dz/du| of latents at points u, ``(G, R)`` by site, and for masked ones a density in place of their own.

    A masked one of V values has 1 / V at each, a masked one on the real line N(u; 0, 1).
    """
    if substituted.parts:  # particles that were run one after the other
        by_part = [log_volumes(part, own, plates) for part, own in substituted.parts]
        return {name: torch.cat([terms[name] for terms in by_part]) for name in by_part[0]}
    volumes = substituted.log_jacobians(sites)
    for name in substituted.values:
        if (where := present(sites[name])) is not None:
            moved = substituted.moved.get(name)
            if moved is not None:
                volumes[name] = on_the_line(name, where, moved, plates)
            elif is_discrete(name, sites[name]["fn"]):
                volumes[name] = one_of_a_list(sites[name], where, plates)
    return volumes


def on_the_line(name: str, where: Tensor, moved: Any, plates: Plates) -> Tensor:
    """log |dz/du| of the units that are there and log N(u; 0, 1) of the others, ``(G, R)``."""
    to_support, u, z = moved
    event_dim = where.dim() - (1 + plates.nesting)
    while isinstance(to_support, IndependentTransform):
        to_support = to_support.base_transform
    log_det = to_support.log_abs_det_jacobian(u, z)
    standard = sum_rightmost(-0.5 * (u.square() + math.log(2 * math.pi)), to_support.domain.event_dim)
    dims = to_support.codomain.event_dim
    there = where.flatten(-dims).any(-1) if dims else where  # a point of a simplex is there or not as a whole
    return sum_rows(name, sum_rightmost(torch.where(there, log_det, standard), event_dim - dims), plates)


def one_of_a_list(site: Site, where: Tensor, plates: Plates) -> Tensor:
    """−log V of each element that is masked, ``(G, R)``."""
    element = elements(site["fn"])
    values = element.enumerate_support(expand=False)
    absent = (~plates.by_unit(where, site["fn"].event_dim)).double().sum(-1) / math.prod(element.event_shape)
    return -absent * math.log(len(values))
