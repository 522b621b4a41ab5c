"""Densities in the units of the data: y = loc + scale · u for a density of standardized u, Jacobian included."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import AffineTransform, Independent, constraints

from pyro_vae.errors import ProgramError

from .missing import Observed
from .tabular import Columns


class Affine(dist.TransformedDistribution):
    """y = loc + scale · u with u of the base: log p(y) = log p(u) − log scale, u = (y − loc) / scale.

    The density is taken at u, so that data far from 0 (a year, an altitude) loses no digits to a large loc.
    """

    @property
    def mean(self) -> Tensor:
        return self.affine(self.base_dist.mean)

    @property
    def mode(self) -> Tensor:
        return self.affine(self.base_dist.mode)

    @property
    def variance(self) -> Tensor:
        return self.affine.scale**2 * self.base_dist.variance

    @property
    def affine(self) -> Any:
        """The map from u to y."""
        return self.transforms[0]


def in_units(d: Any, loc: Tensor, scale: Tensor) -> Any:
    r"""Return the distribution of loc + scale · u, u ~ d, in those elements of u that are real numbers; the others as they are.

    Args:
        d: ``(*batch, *event)``: one family, a table of :class:`~pyro_vae.distributions.tabular.Columns`, either with missing
            values left out (:class:`~pyro_vae.distributions.missing.Observed`).
        loc, scale: ``(*event)``; 0 and 1 for elements that are no real numbers.

    Raises:
        ProgramError: a masked distribution, whose mask the Jacobian would have to know.

    Example:
        >>> d = in_units(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([5.0, 0.0]), torch.tensor([10.0, 1.0]))
        >>> d.mean, d.log_prob(torch.tensor([5.0, 0.0]))      # 2 log N(0; 0, 1) − log 10
        (tensor([5., 0.]), tensor(-4.1405))
    """
    if isinstance(d, Observed):
        return Observed(in_units(d.base_dist, loc, scale))
    if isinstance(d, Independent):
        inner: Any = in_units(d.base_dist, loc, scale)
        return inner.to_event(d.reinterpreted_batch_ndims)
    if isinstance(d, Columns):
        parts = zip(d.blocks, loc.split(d.widths, -1), scale.split(d.widths, -1), strict=True)
        return Columns([in_units(*part) for part in parts])
    if isinstance(d, dist.MaskedDistribution):
        raise ProgramError(
            "a masked likelihood has no density in other units, as its mask is its own: leave values out as NaN "
            "(SkipMissing), or mask in the program (poutine.mask)."
        )
    if not is_real(d):
        return d
    return Affine(d, [AffineTransform(loc, scale, event_dim=d.event_dim)])


def is_real(d: Any) -> bool:
    """Return whether a family's values are all real numbers, single or vectors of them."""
    support: Any = d.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))


def real_elements(d: Any) -> Tensor:
    """Mark the elements of one event that are real numbers and in no units yet, as wide as d's own last dimensions tell."""
    if isinstance(d, Observed):
        return real_elements(d.base_dist)
    if isinstance(d, Columns):
        return torch.cat([real_elements(b).reshape(-1).expand(w) for b, w in zip(d.blocks, d.widths, strict=True)])
    if isinstance(d, Independent):
        return real_elements(d.base_dist)
    return torch.tensor(not isinstance(d, Affine | dist.MaskedDistribution) and is_real(d))
