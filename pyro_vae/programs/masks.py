"""Masks of sites: which units of which rows are there, under ``poutine.mask``, a distribution's ``.mask(...)``, or both."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.common.pyro_private import mask_of
from pyro_vae.errors import ProgramError

from .plates import Plates
from .sites import Site

Mask = bool | Tensor


def own_mask(fn: Any) -> Mask:
    """Return the mask that a distribution brings along, over its batch and event dimensions; True for none.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> own_mask(dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1))
        tensor([ True, False])
    """
    mask: Mask = True
    while isinstance(fn, MaskedDistribution | Independent | ExpandedDistribution):
        if isinstance(fn, MaskedDistribution):
            mask = both(mask, beside_events(mask_of(fn), fn.event_dim))
        fn = fn.base_dist
    return mask


def beside_events(mask: Any, event_dim: int) -> Mask:
    """Give a mask over a batch dimensions of size 1 for the event; a site's None is True."""
    if isinstance(mask, Tensor):
        return mask.bool().reshape(*mask.shape, *[1] * event_dim)
    return mask is None or bool(mask)


def both(a: Mask, b: Mask) -> Mask:
    """Return where both masks are on."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a & b
    return b if a is True else a if b is True else False


def same_mask(a: Any, b: Any) -> bool:
    """Return whether two masks (tensors, bools, or None for none) are one."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(*torch.broadcast_tensors(a, b))  # one of them may lack the dimension of particles
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and (a is not False) == (b is not False)


def mask_of_site(site: Site) -> Mask:
    """Return the mask of a site, the distribution's and the handlers', over batch and event; True for none."""
    return both(own_mask(site["fn"]), beside_events(site["mask"], site["fn"].event_dim))


def present(site: Site) -> Tensor | None:
    """Return where a site's density counts, in the shape of its value ``(K, ..., N, ..., *event)``; None: everywhere."""
    mask = mask_of_site(site)
    if mask is True:
        return None
    where = torch.as_tensor(mask, device=site["value"].device)
    if where.all():
        return None
    try:
        return where.expand(site["value"].shape)
    except RuntimeError as error:
        raise ProgramError(
            f"site {site['name']!r} has values of shape {tuple(site['value'].shape)} under a mask of shape "
            f"{tuple(where.shape)}, which is wider. Give the mask the shape of the site's plates."
        ) from error


def rows_absent(where: Tensor, event_dim: int, plates: Plates) -> Tensor:
    """Return in which rows a unit is masked in some particle, ``(N,)``."""
    return (~plates.by_unit(where, event_dim)).any(-1).any(0)
