"""Masks of latents: a weight leaves out of p(z) and q(z | x) the same entries, or it is none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import NoWeightError

Mask = Tensor | bool


class OtherMaskError(NoWeightError):
    """A latent that is masked in one program and not in the other: the ELBO is another number, too."""


def check_same_masks(p: Mapping[str, Any], q: Mapping[str, Any], values: bool = True) -> None:
    """Refuse, by site, a latent whose entries are masked in one program and not in the other.

    Equal masks leave an entry out of log p(z) and log q(z | x) alike, and log w is that of the others. Where they differ,
    log w keeps one of the two terms, and the mean of w is no p(x). Without `values`, tensors are not compared, which
    would wait for a GPU: two of them pass.

    Raises:
        OtherMaskError: names the site, the program with the wider mask and an entry.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> site = {"fn": dist.Normal(torch.zeros(2), 1.0), "mask": None}
        >>> check_same_masks({"z": site | {"mask": torch.tensor([True, False])}}, {"z": site})
        Traceback (most recent call last):
          ...
        pyro_vae.programs.latent_masks.OtherMaskError: site 'z' is masked in the model and not in the guide (at entry [1] of 2): ...
    """
    for name in [name for name in q if name in p]:
        prior, posterior = list(masks_of(p[name])), list(masks_of(q[name]))
        if same_objects(prior, posterior) or (not values and all_tensors(prior, posterior)):
            continue
        at = [joint(masks, site["fn"]) for masks, site in ((prior, p[name]), (posterior, q[name]))]
        try:
            model, guide = torch.broadcast_tensors(*at)
        except RuntimeError:  # of other shapes: that is said elsewhere
            continue
        if (model != guide).any():
            raise OtherMaskError(describe(name, model, guide))


def masks_of(site: Mapping[str, Any]) -> Iterator[tuple[Mask, int]]:
    """Masks of a site, of a handler and of its distribution, with how many dimensions of the event each is over."""
    fn, mask = site["fn"], site.get("mask")
    if mask is not None and mask is not True:
        yield mask, 0
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        if type(fn).__name__ == "MaskedDistribution":
            kept = fn.log_prob(site["value"]) != 0  # a masked entry scores 0, whatever its density
            yield kept | (fn.base_dist.log_prob(site["value"]) == 0), site["fn"].event_dim - fn.event_dim
        fn = fn.base_dist


def same_objects(a: list[tuple[Mask, int]], b: list[tuple[Mask, int]]) -> bool:
    """Return whether two lists of masks hold the very same ones, or none."""
    return len(a) == len(b) and all(m is n and i == j for (m, i), (n, j) in zip(a, b, strict=True))


def all_tensors(*sides: list[tuple[Mask, int]]) -> bool:
    """Return whether each side has masks, all of them tensors."""
    return all(side and all(isinstance(mask, Tensor) for mask, _ in side) for side in sides)


def joint(masks: list[tuple[Mask, int]], fn: Any) -> Tensor:
    """Join masks into one over batch and event of the site: True where its density counts."""
    shape = fn.batch_shape + fn.event_shape
    total = torch.ones((), dtype=torch.bool)
    for mask, over_event in masks:
        each = torch.as_tensor(mask, dtype=torch.bool).cpu()
        total = total & each.reshape(each.shape + (1,) * (fn.event_dim - over_event))
    return torch.broadcast_to(total, torch.broadcast_shapes(shape, total.shape))


def has_tensor_masks(*programs: Mapping[str, Any]) -> bool:
    """Return whether a site of these is masked by a tensor, which may differ from row to row."""
    return any(isinstance(mask, Tensor) for sites in programs for site in sites.values() for mask, _ in masks_of(site))


def describe(name: str, model: Tensor, guide: Tensor) -> str:
    """Describe masks that differ, by the first entry where they do."""
    entry = (model != guide).nonzero()[0].tolist()
    wider, other = ("guide", "model") if model[tuple(entry)] else ("model", "guide")
    return (
        f"site {name!r} is masked in the {wider} and not in the {other} (at entry {entry} of "
        f"{', '.join(map(str, model.shape))}): "
        f"log w would keep one of log p(z) and log q(z | x) there. {ALIKE}"
    )


ALIKE = "Mask both programs alike: poutine.mask(..., mask=m) around each, or .mask(m) on both distributions."
