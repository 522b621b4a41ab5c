"""The likelihood family of ordered classes. Layout of features and floors: see :mod:`.registry`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.common.picklable import Picklable
from pyro_vae.distributions.features import MIN_SCALE, at_least, positive
from pyro_vae.distributions.ordinal import OrderedLogistic
from pyro_vae.distributions.wide import wide
from pyro_vae.errors import ShapeError


class CumulativeLogit(Picklable):
    r"""P(y ≤ k) = s(c_k − h), for classes y in 0..C − 1 in their order; d features for d elements.

    The cutpoints c of each element are learned and shared by all rows: what h moves is the odds of y ≤ k against y > k, by the
    same factor for each k (proportional odds). c_1 = first, c_k = c_{k−1} + log(1 + e^gap) + 1e-4; at the start all classes
    are alike at h = 0.

    Args:
        num_classes: C, the same for every element.
        dim: d.

    References:
        Regression Models for Ordinal Data (McCullagh, 1980), https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    Example:
        >>> family = CumulativeLogit(4, dim=2)
        >>> family(torch.zeros(5, 2)).log_prob(torch.full((5, 2), 3.0)).exp()[0]
        tensor([0.2500, 0.2500], grad_fn=<SelectBackward0>)
        >>> family.cutpoints.shape
        torch.Size([2, 3])
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        at_least(2, num_classes, "num_classes")
        shares = torch.arange(1, num_classes, dtype=torch.float64) / num_classes
        edges = shares.logit().expand(at_least(1, dim, "dim"), -1).to(torch.get_default_dtype())
        gaps = edges.double().diff(dim=-1) - MIN_SCALE
        self.first = nn.Parameter(edges[:, 0].contiguous())
        self.gaps = nn.Parameter(torch.log(torch.expm1(gaps)).to(edges.dtype))

    @property
    def cutpoints(self) -> Tensor:
        """``(d, C − 1)``, in order."""
        return self.cutpoints_of(self.first, self.gaps)

    @staticmethod
    def cutpoints_of(first: Tensor, gaps: Tensor) -> Tensor:
        """Add up the gaps from the first cutpoint on."""
        first = first.unsqueeze(-1)
        return torch.cat([first, first + positive(gaps).cumsum(-1)], -1)

    def forward(self, h: Tensor) -> OrderedLogistic:
        if h.shape[-1:] != self.first.shape:
            raise ShapeError(
                f"CumulativeLogit{self.extra_repr()} takes {len(self.first)} features, one an element, got shape "
                f"{tuple(h.shape)}"
            )
        return wide(self.distribution, h, self.first, self.gaps)

    @classmethod
    def distribution(cls, h: Tensor, first: Tensor, gaps: Tensor) -> OrderedLogistic:
        """Return p(y | h) of features and parameters, both in whatever dtype it is scored in."""
        return OrderedLogistic(h, cls.cutpoints_of(first, gaps))

    def extra_repr(self) -> str:
        return f"({self.gaps.shape[-1] + 2}, dim={len(self.first)})"
