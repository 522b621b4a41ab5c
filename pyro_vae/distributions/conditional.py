"""p(y | parents): a network, and the family that its output parameterises."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts

Family = Callable[[Tensor], TorchDistributionMixin]


class Conditional(FunctionParts):
    r"""p(y | parents) = family(net(parents)).

    The same class is encoder q(z | x), decoder p(x | z), level p(z1 | z2) or prior p(z | c): roles are argument names.

    Args:
        net: maps the parents, each of shape ``(*batch, features)``, to the features that `family` takes.
        family: features ``(*batch, features)`` to a distribution over elements (see :mod:`pyro_vae.likelihoods`).
        event_dim: how many rightmost dimensions make up one y (1 for vectors); the rest is batch shape.

    Example:
        >>> from pyro_vae import Conditional, MLP, normal
        >>> posterior = Conditional(MLP(784, 2 * 16), normal)
        >>> q = posterior(torch.zeros(5, 784))
        >>> q.batch_shape, q.event_shape
        (torch.Size([5]), torch.Size([16]))
    """

    def __init__(self, net: Callable[..., Tensor], family: Family, event_dim: int = 1) -> None:
        super().__init__()
        self.net, self.family, self.event_dim = net, family, event_dim

    def forward(self, *parents: Tensor) -> TorchDistributionMixin:
        return self.distribution(self.net(*parents))

    def distribution(self, features: Tensor) -> TorchDistributionMixin:
        """Return the family's distribution, over y of `event_dim` dimensions."""
        d = self.family(features)
        return d.to_event(self.event_dim - d.event_dim)

    def extra_repr(self) -> str:
        family = getattr(self.family, "__name__", type(self.family).__name__)
        return f"family={family}, event_dim={self.event_dim}"
