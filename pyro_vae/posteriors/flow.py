"""q(z | x) by a normalizing flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.distributions.flows import FlowDistribution, make_flow
from pyro_vae.errors import UsageError


class FlowPosterior(FunctionParts):
    r"""q(z | x) = N(f_h(z); 0, I) |det ∂f_h/∂z| with h = net(x, \*c); support R^dim, reparameterised.

    Args:
        net: maps x and any contexts to `context_features` features, ``(*batch, context_features)``.
        dim: number of latents.
        kind: ``"iaf"`` draws and scores its own draws in one pass, which is all that an ELBO or importance weights ask for;
            ``"maf"`` and ``"nsf"`` draw in `dim` passes.
        transforms: steps, in alternating order of the latents.
        context_features: width of what `net` puts out.
        hidden: widths of each step's network.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), https://arxiv.org/abs/1606.04934
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Example:
        >>> from pyro_vae import MLP
        >>> posterior = FlowPosterior(MLP(784, 32), 4, context_features=32, hidden=(16,))
        >>> q = posterior(torch.zeros(5, 784))
        >>> q.batch_shape, q.event_shape, q.rsample((7,)).shape
        (torch.Size([5]), torch.Size([4]), torch.Size([7, 5, 4]))
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        dim: int,
        kind: str = "iaf",
        transforms: int = 3,
        context_features: int = 64,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if context_features < 1:
            raise UsageError(f"context_features must be at least 1, got {context_features}; without, see FlowPrior")
        self.net, self.dim, self.kind = net, dim, kind
        self.flow = make_flow(kind, dim, context_features, transforms, hidden)

    def forward(self, *parents: Tensor) -> FlowDistribution:
        return FlowDistribution(self.flow(self.net(*parents)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, kind={self.kind!r}"
