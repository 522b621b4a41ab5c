"""p(z) by a normalizing flow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyro_vae.common.picklable import Picklable
from pyro_vae.distributions.flows import FlowDistribution, make_flow


class FlowPrior(Picklable):
    r"""p(z) = N(f(z); 0, I) |det ∂f/∂z|, f an autoregressive flow; support R^dim, event shape ``(dim,)``.

    Any context is ignored. With dim = 1 there is nothing to condition on: each step is a map of one number.

    Args:
        dim: number of latents.
        kind: ``"nsf"`` (splines, and an affine map for scale), ``"maf"`` (affine steps), or ``"iaf"`` (slow as a prior).
        transforms: steps, in alternating order of the latents.
        hidden: widths of each step's network.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
        Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017), https://arxiv.org/abs/1705.07057

    Example:
        >>> prior = FlowPrior(4, kind="maf", hidden=(16,))
        >>> prior().event_shape, prior().expand((7, 5)).sample().shape
        (torch.Size([4]), torch.Size([7, 5, 4]))
    """

    def __init__(self, dim: int, kind: str = "nsf", transforms: int = 3, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.dim, self.kind = dim, kind
        self.flow = make_flow(kind, dim, 0, transforms, hidden)

    def forward(self, *context: Tensor) -> FlowDistribution:
        return FlowDistribution(self.flow())

    def extra_repr(self) -> str:
        return f"dim={self.dim}, kind={self.kind!r}"
