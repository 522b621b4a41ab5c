r"""Latents at the edges of their supports, where numbers end: Beta(0.01) has 70 % of its mass beyond 1 − 1e-16.

On the real line, z = T(u), its density goes on: for a Beta, log p(z) + log |dz/du| = a log σ(u) + b log σ(−u) − log B(a, b).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import Beta, Gamma, InverseGamma
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_vae.programs.masks import mask_of_site
from pyro_vae.programs.plates import Plates, sum_rows
from pyro_vae.programs.sites import Site
from pyro_vae.programs.unconstrained import SubstituteLatents, support_of
from pyro_vae.programs.wrapped import bare, elements

HALF_LINE = (constraints.positive, constraints.nonnegative)


class InsideSupport(SubstituteLatents):
    """Latents at coordinates u, of which none rounds to an edge of its support, where densities and parameters end."""

    def placed(self, value: Tensor, fn: Any) -> Tensor:
        return inside(value, bare(support_of(fn)))


def inside(value: Tensor, support: Any) -> Tensor:
    """Move values that lie on a bound, or at infinity, to the numbers next to it."""
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    limits = torch.finfo(value.dtype)
    if low is not None:
        bottom = torch.as_tensor(low).to(value)
        up = torch.where(bottom == 0, limits.tiny, torch.nextafter(bottom, bottom.new_tensor(math.inf)))
        value = torch.maximum(value, up)
    if high is not None:
        top = torch.as_tensor(high).to(value)
        value = torch.minimum(value, torch.nextafter(top, top.new_tensor(-math.inf)))
    return value if low is None and high is None else value.clamp(limits.min, limits.max)


def density_on_the_line(fn: Any, u: Tensor) -> Tensor | None:
    """log p(T(u)) + log |dT/du| of each element, from u alone and in float64; None for a family that has no formula here.

    Example:
        >>> import pyro.distributions as dist
        >>> density_on_the_line(dist.Beta(0.01, 0.01), torch.tensor(100.0, dtype=torch.float64))   # z rounds to 1
        tensor(-6.2982, dtype=torch.float64)
    """
    base = elements(fn)
    if isinstance(base, Beta):
        a, b = base.concentration1.double(), base.concentration0.double()
        log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        return a * logsigmoid(u) + b * logsigmoid(-u) - log_beta
    if isinstance(base, Gamma | InverseGamma):
        a, b = base.concentration.double(), base.rate.double()
        log_z = u if isinstance(base, Gamma) else -u
        return a * (b.log() + log_z) - b * log_z.exp() - torch.lgamma(a)
    return None


def log_densities(substituted: SubstituteLatents, sites: dict[str, Site], plates: Plates) -> dict[str, Tensor]:
    """:func:`density_on_the_line` of the latents that have it, ``(G, R)`` by site; masked ones are left to others."""
    if substituted.parts:  # particles that were run one after the other
        by_part = [log_densities(part, own, plates) for part, own in substituted.parts]
        return {name: torch.cat([terms[name] for terms in by_part]) for name in by_part[0]}
    found = {}
    for name, (_, u, _) in substituted.moved.items():
        fn = sites[name]["fn"]
        each = density_on_the_line(fn, u.double()) if mask_of_site(sites[name]) is True else None
        if each is not None:
            found[name] = sum_rows(name, sum_rightmost(each, fn.event_dim), plates)
    return found


def borders(site: Site, dtype: torch.dtype) -> tuple[float, float]:
    """Return the u between which z = T(u) of a site still moves, in its own precision.

    Example:
        >>> import pyro.distributions as dist
        >>> borders({"fn": dist.Beta(1.0, 1.0)}, torch.float64)
        (-36.04365338911715, 36.04365338911715)
    """
    support, limits = bare(support_of(site["fn"])), torch.finfo(dtype)
    if isinstance(support, type(constraints.real)):
        return -math.inf, math.inf
    rounds, tiny, huge = -math.log(limits.eps), math.log(limits.tiny), math.log(limits.max)
    return (tiny, huge) if support in HALF_LINE else (-rounds, rounds)  # torch clamps probabilities at both ends
