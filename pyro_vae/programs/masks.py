"""Masks of sites: which entries count in a density, under ``poutine.mask``, a distribution's ``.mask(...)``, or both.

Entries that a mask leaves out are no data, and no latents that a posterior speaks of. Two programs leave out the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from pyro_vae.common.pyro_private import mask_of
from pyro_vae.errors import OtherMaskError, ProgramError

from .site_rows import row_dim, rows_where
from .wrapped import layers

Mask = bool | Tensor
Masks = list[tuple[Mask, int]]  # each with how many dimensions of the event it has not
Site = Mapping[str, Any]


# --- masks of one site ----------------------------------------------------------------------------------------------------


def own_mask(fn: Any) -> Mask:
    """Return the mask that a distribution brings along, over its batch and event dimensions; True for none.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> own_mask(dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1))
        tensor([ True, False])
    """
    return joint(masks_within(fn))


def mask_of_site(site: Site) -> Mask:
    """Return the mask of a site, the distribution's and the handlers', over batch and event; True for none."""
    return joint(masks_of(site))


def masks_of(site: Site) -> Iterator[tuple[Mask, int]]:
    """Yield the masks of a site, of handlers and of its distribution, each with how many event dimensions it lacks."""
    mask = site.get("mask")
    if mask is not None and mask is not True:
        yield mask, site["fn"].event_dim
    yield from masks_within(site["fn"])


def masks_within(fn: Any) -> Iterator[tuple[Mask, int]]:
    """Yield the masks of a distribution, and of what its ``to_event``, masks and expansions wrap."""
    for layer in layers(fn):
        if isinstance(layer, MaskedDistribution) and (mask := mask_of(layer)) is not True:
            yield mask, layer.event_dim


def joint(masks: Iterator[tuple[Mask, int]]) -> Mask:
    """Join masks into one over batch and event: True where all of them are on."""
    on: Mask = True
    for mask, dims in masks:
        on = both(on, beside_event(mask, dims))
    return on


def beside_event(mask: Mask, event_dim: int) -> Mask:
    """Give a mask over a batch dimensions of size 1 for the event."""
    return mask.bool().reshape((*mask.shape, *[1] * event_dim)) if isinstance(mask, Tensor) else bool(mask)


def both(a: Mask, b: Mask) -> Mask:
    """Return where both masks are on."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a & b.to(a.device)
    return b if a is True else a if b is True else False


def kept_entries(site: Site) -> Tensor:
    """Mark the entries of a site's value that count in its density, in the shape of the value (or of a mask, if that is wider).

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
    kept = torch.as_tensor(mask_of_site(site)).to(site["value"].device)
    return torch.broadcast_tensors(kept, site["value"])[
        0
    ]  # by shapes alone torch imports its symbolic ones, half a second


def present(site: Site) -> Tensor | None:
    """Return :func:`kept_entries`, None where these are all; a ProgramError for a mask that is wider than the value."""
    if mask_of_site(site) is True or (where := kept_entries(site)).all():
        return None
    if where.shape != site["value"].shape:
        raise ProgramError(
            f"site {site['name']!r} has values of shape {tuple(site['value'].shape)} under a mask of shape "
            f"{tuple(where.shape)}, which is wider. Give the mask the shape of the site's plates."
        )
    return where


# --- masks of a pair ------------------------------------------------------------------------------------------------------


def same_mask(a: Any, b: Any) -> bool:
    """Return whether two masks (tensors, bools, or None for none) are one."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(*torch.broadcast_tensors(a, b))  # one of them may lack the dimension of particles
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and (a is not False) == (b is not False)


def check_same_masks(p: Mapping[str, Site], q: Mapping[str, Site], *, values: bool = True, first: int = 0) -> None:
    """Refuse, by site, a latent whose entries are masked in one program and not in the other.

    Equal masks leave an entry out of log p(z) and log q(z | x) alike, and log w is that of the others. Where they differ,
    log w keeps one of the two terms, and the mean of w is no p(x). Without `values`, tensors are not compared, which
    would wait for a GPU: two of them pass. `first` is the number of the first row, for the message.

    Raises:
        OtherMaskError: names the site, the program with the wider mask, an entry and the rows.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> site = {"fn": dist.Normal(torch.zeros(2), 1.0), "mask": None, "cond_indep_stack": ()}
        >>> check_same_masks({"z": site | {"mask": torch.tensor([True, False])}}, {"z": site})
        Traceback (most recent call last):
          ...
        pyro_vae.errors.OtherMaskError: site 'z' is masked in the model and not in the guide (at entry [1] of 2): ...
    """
    for name in [name for name in q if name in p]:
        prior, posterior = list(masks_of(p[name])), list(masks_of(q[name]))
        if same_objects(prior, posterior) or (not values and all_tensors(prior, posterior)):
            continue
        try:
            model, guide = torch.broadcast_tensors(*(over_entries(site[name]) for site in (p, q)))
        except RuntimeError:  # of other shapes: that is said elsewhere
            continue
        if (model != guide).any():
            raise OtherMaskError(describe(name, model, guide, rows_of(p[name], model != guide, first)))


def over_entries(site: Site) -> Tensor:
    """Return the mask of a site in the shape of what it draws (or in its own, if that is wider), on the CPU."""
    mask, fn = torch.as_tensor(mask_of_site(site)).cpu(), site["fn"]
    return torch.broadcast_tensors(mask, mask.new_empty(()).expand(fn.batch_shape + fn.event_shape))[0]


def same_objects(a: Masks, b: Masks) -> bool:
    """Return whether two lists of masks hold the very same ones, or none."""
    return len(a) == len(b) and all(m is n and i == j for (m, i), (n, j) in zip(a, b, strict=True))


def all_tensors(*sides: Masks) -> bool:
    """Return whether each side has masks, all of them tensors."""
    return all(side and all(isinstance(mask, Tensor) for mask, _ in side) for side in sides)


def rows_of(site: Site, where: Tensor, first: int) -> str:
    """Name up to five rows where a mask over a site's entries holds; "" for a site that lies in no plate."""
    dim = row_dim(site)
    if dim is None or where.dim() < site["fn"].event_dim - dim:
        return ""
    return f" in rows {(first + rows_where(where, dim - site['fn'].event_dim)[:5]).tolist()}"


def describe(name: str, model: Tensor, guide: Tensor, rows: str) -> str:
    """Describe masks that differ, by the first entry where they do."""
    entry = (model != guide).nonzero()[0].tolist()
    wider, other = ("guide", "model") if model[tuple(entry)] else ("model", "guide")
    return (
        f"site {name!r} is masked in the {wider} and not in the {other} (at entry {entry} of "
        f"{', '.join(map(str, model.shape))}){rows}: log w would keep one of log p(z) and log q(z | x) there. Mask both "
        "programs alike: poutine.mask(..., mask=m) around each, or .mask(m) on both distributions."
    )
