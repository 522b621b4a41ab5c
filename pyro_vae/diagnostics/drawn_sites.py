"""What a draw shows of the latent sites on some rows, and the tensors that one process gives another of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.common.exchange import bytes_of, text_of

FIELDS = ("kl", "kl_noise", "mean", "mean_noise", "has")
SITES = "sites"  # names and flags, as JSON


@dataclass(frozen=True)
class Drawn:
    """One site on n rows: KLs and posterior means of units, ``(n, units)``, their variances, the rows that have them; flags.

    No variances where nothing is drawn; no `has` where all rows have all units.
    """

    kl: Tensor
    kl_noise: Tensor | None
    mean: Tensor
    mean_noise: Tensor | None
    has: Tensor | None
    flags: tuple[bool, bool, bool]


def tensors_of(drawn: Mapping[str, Drawn]) -> dict[str, Tensor]:
    """Name the tensors of each site by its place, and tell the sites in their order."""
    about = json.dumps([[name, *site.flags] for name, site in drawn.items()])
    tensors = {f"{i}/{name}": getattr(site, name) for i, site in enumerate(drawn.values()) for name in FIELDS}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None} | {SITES: bytes_of(about)}


def drawn_of(part: Mapping[str, Tensor]) -> dict[str, Drawn]:
    """Read what :func:`tensors_of` named.

    Example:
        >>> import torch
        >>> one = Drawn(*torch.rand(4, 3, 2), torch.ones(3, 2, dtype=torch.bool), (True, True, False))
        >>> again = drawn_of(tensors_of({"z2": one, "z1": one}))
        >>> list(again), again["z1"].flags, torch.equal(again["z1"].mean, one.mean)
        (['z2', 'z1'], (True, True, False), True)
    """
    found = {}
    for i, (name, *flags) in enumerate(json.loads(text_of(part[SITES]))):
        kl, kl_noise, mean, mean_noise, has = (part.get(f"{i}/{field}") for field in FIELDS)
        assert kl is not None and mean is not None
        factorised, analytic, closed = flags
        found[name] = Drawn(kl, kl_noise, mean, mean_noise, has, (factorised, analytic, closed))
    return found
