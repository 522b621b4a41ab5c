"""p(z): modules that return a distribution when called. They take a context and may leave it unused."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn


class StandardNormal(nn.Module):
    r"""p(z) = N(0, I) in `dim` dimensions.

    Example:
        >>> from pyro_vae import StandardNormal
        >>> StandardNormal(16)().event_shape
        torch.Size([16])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim), persistent=False)
        self.register_buffer("scale", torch.ones(dim), persistent=False)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        return f"dim={self.loc.numel()}"
