"""Entries of a site that a mask leaves out of its density: they are no data, and no latents that a posterior speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.common.pyro_private import mask_of

from .sites import Site


def kept_entries(site: Site) -> Tensor:
    """Whether each entry of a site's value counts in its density, in the shape of the value (or of a mask, if that is wider).

    Masks of ``poutine.mask`` and of ``.mask()`` on the distribution, inside ``to_event`` too, are read.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro import poutine
        >>> def model():
        ...     with pyro.plate("data", 2), poutine.mask(mask=torch.tensor([True, False])):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0).expand([2, 1]).to_event(1))
        >>> kept_entries(poutine.trace(model).get_trace().nodes["z"])
        tensor([[ True],
                [False]])
    """
    value: Tensor = site["value"]
    kept = torch.ones((), dtype=torch.bool, device=value.device)
    for mask in masks(site):
        kept = kept & mask.to(kept.device)
    return kept.expand(torch.broadcast_shapes(kept.shape, value.shape))


def masks(site: Site) -> Iterator[Tensor]:
    """The masks that a site lies under, each with the dimensions of an event of the site on the right."""
    yield from beside_event(site["mask"], site["fn"].event_dim)
    for fn in layers(site["fn"]):
        yield from beside_event(mask_of(fn), fn.event_dim)


def layers(fn: Any) -> Iterator[Any]:
    """A distribution, and what its ``to_event``, masks and expansions wrap."""
    while fn is not None:
        yield fn
        # a transformed distribution's base lies on another space: its mask is not one of this value's entries
        fn = None if hasattr(fn, "transforms") else getattr(fn, "base_dist", None)


def beside_event(mask: Any, event_dim: int) -> Iterator[Tensor]:
    """A mask with dimensions of size 1 for an event; nothing where there is no mask."""
    if mask is not None:
        mask = torch.as_tensor(mask).bool()
        yield mask.reshape(*mask.shape, *[1] * event_dim) if mask.dim() else mask
