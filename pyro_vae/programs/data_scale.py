"""The scale of x: a word on columns far from the scale that networks start at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .data_atoms import atoms_of
from .findings import Finding
from .pair import owners, quiet
from .sites import Program, Site, observed_sites, trace_pair
from .wrapped import bare, elements

ROWS = 512  # that are looked at
FAR, NARROW = 30.0, 0.01  # standard deviations, means relative to them: beyond these a word is said
NAMED = 5  # columns
LEAST = 16  # rows: the spread of fewer says little


@runtime_checkable
class Standardizable(Protocol):
    """A model that can take x in standard units by itself, such as a VAE."""

    standardized: bool

    def standardize(self, x: Tensor, *c: Tensor) -> None:
        """Set its units by rows of x and their contexts."""


def scale_of(name: str, site: Site, rows: int, able: bool) -> Iterator[Finding]:
    """Find the columns of an observed site whose scale or mean is far from that which networks start at.

    Nothing is said of likelihoods with units of their own, nor of fewer than 16 rows. `able`: the model is
    :func:`standardizable`.
    """
    fix = "fit(..., standardize=True) has the networks see standard units, and densities stay those of x"
    way = fix if able else "standardize x, and count the Jacobian in log p"
    value = site["value"]
    by_row = value.dim() > 0 and len(value) == rows >= LEAST and unbounded(site["fn"])
    if by_row and (told := odd_columns(value.reshape(len(value), -1).double())):
        yield Finding("scale", f"site {name!r}", f"{told}, and networks start at scale 1", way, "warning")


def scale_findings(model: Program, guide: Program, batch: tuple[Any, ...]) -> list[Finding]:
    """Return :func:`scale_of` of all observed sites, and :func:`~pyro_vae.programs.data_atoms.atoms_of`.

    Nothing where the programs do not run on the batch.
    """
    try:
        with quiet(model, guide, seed=0, device=batch[0].device), torch.enable_grad():
            _, p = trace_pair(model, guide, *batch)
    except Exception:  # the user's own: training meets it, and shows it as it is
        return []
    able = standardizable(model, guide)
    rows, observed = len(batch[0]), observed_sites(p).items()
    scale = [found for name, site in observed for found in scale_of(name, site, rows, able)]
    return [*scale, *(found for name, site in observed for found in atoms_of(name, site, rows))]


def standardizable(*programs: Program) -> bool:
    """Return whether one of the modules behind programs can take x in standard units by itself."""
    return any(isinstance(module, Standardizable) for module in owners(*programs))


def unbounded(fn: Any) -> bool:
    """Return whether a likelihood is of real numbers, in no units of its own."""
    fn = elements(fn)
    try:
        real = isinstance(bare(fn.support), type(torch.distributions.constraints.real))
    except NotImplementedError:
        return False
    return real and not isinstance(fn, torch.distributions.TransformedDistribution)


def odd_columns(x: Tensor) -> str:
    """Describe the columns of ``(N, d)`` that are out of scale; "" where there is none."""
    mean = x.nanmean(0).nan_to_num()
    std = (x - mean).square().nanmean(0).nan_to_num().sqrt()
    varies = std > 1e-6 * mean.abs()
    odd = ((std > FAR) | (std < NARROW) | (mean.abs() > FAR * std)) & varies
    columns = odd.nonzero().flatten()[:NAMED].tolist()
    if not columns:
        return ""
    told = ", ".join(f"{i} (mean {mean[i].item():.3g}, std {std[i].item():.3g})" for i in columns)
    more = f", … ({int(odd.sum())} in all)" if int(odd.sum()) > len(columns) else ""
    return f"column{'s' * (int(odd.sum()) > 1)} {told}{more} of x {'are' if int(odd.sum()) > 1 else 'is'} out of scale"
