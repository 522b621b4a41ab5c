"""A mixture of Gaussians as prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.common.picklable import Picklable
from pyro_vae.distributions.features import MIN_SCALE, UNIT, check_sizes
from pyro_vae.distributions.mixtures import mixture


class Mixture(Picklable):
    r"""p(z) = Σ_k π_k N(z; loc_k, diag(scale_k²)), all learned. Event shape ``(dim,)``, support R^dim.

    Starts with equal weights, scales of 1 and locations drawn from N(0, I) (by torch's global generator).

    Args:
        dim: number of latents.
        components: K.

    Example:
        >>> Mixture(4, components=3)().expand((7, 5)).sample().shape
        torch.Size([7, 5, 4])
    """

    def __init__(self, dim: int, components: int = 10) -> None:
        super().__init__()
        check_sizes(1, dim=dim, components=components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, dim))
        self.raw_scale = nn.Parameter(torch.full((components, dim), UNIT))

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        components = dist.Normal(self.loc, softplus(self.raw_scale) + MIN_SCALE).to_event(1)
        return mixture(dist.Categorical(logits=self.logits), components)

    def extra_repr(self) -> str:
        return f"dim={self.loc.shape[1]}, components={self.loc.shape[0]}"
