"""The scale of x before training: a word on columns that networks do not start at, and the model's own units for them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import quiet
from pyro_vae.programs.sites import Program, observed_sites, trace_pair
from pyro_vae.programs.wrapped import bare, elements

ROWS = 512  # that are looked at
FAR, NARROW = 30.0, 0.01  # standard deviations, means relative to them: beyond these a word is said
NAMED = 5  # columns


@runtime_checkable
class Standardizable(Protocol):
    """A model that can take x in standard units by itself, such as a VAE."""

    standardized: bool

    def standardize(self, x: Tensor, *c: Tensor) -> None:
        """Set its units by rows of x and their contexts."""


def standardize_model(modules: list[nn.Module], train: tuple[Tensor, ...]) -> None:
    """Set the units of the model among the modules by the training rows, unless it has some.

    Raises:
        UsageError: none of them can.
    """
    able = [module for module in modules if isinstance(module, Standardizable)]
    if len(able) != 1:
        raise UsageError(
            "standardize=True takes a VAE, whose roles it gives units of their own; programs by hand do it themselves: keep "
            "loc = x.mean(0) and scale = x.std(0) as buffers, give the guide's network (x - loc) / scale, and observe "
            "TransformedDistribution(p(u | z), AffineTransform(loc, scale)).to_event(1) at x itself."
        )
    if not able[0].standardized:
        able[0].standardize(*train)


def scale_note(model: Program, guide: Program, batch: tuple[Tensor, ...], standardizable: bool) -> list[str]:
    """Say which columns of x have a scale or a mean far from that which networks start at, under a density of real numbers.

    Nothing is said of likelihoods with units of their own, and nothing where the programs do not run on the batch.
    """
    try:
        with quiet(model, guide, seed=0, device=batch[0].device):
            _, p = trace_pair(model, guide, *batch)
    except Exception:  # the user's own: training meets it, and shows it as it is
        return []
    fix = "fit(..., standardize=True) has the networks see standard units, and densities stay those of x"
    way = fix if standardizable else "standardize x, and count the Jacobian in log p"
    for name, site in observed_sites(p).items():
        value = site["value"]
        by_row = value.dim() > 0 and len(value) == len(batch[0]) > 1 and unbounded(site["fn"])
        if by_row and (told := odd_columns(value.reshape(len(value), -1).double())):
            return [f"site {name!r}: {told}, and networks start at scale 1: {way}"]
    return []


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
