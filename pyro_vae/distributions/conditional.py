"""p(y | parents): a network, and the family that its output parameterises."""

from __future__ import annotations

from collections.abc import Callable

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.errors import ProgramError

Family = Callable[[Tensor], TorchDistributionMixin]


class Conditional(FunctionParts):
    r"""p(y | parents) = family(net(parents)).

    The same class is encoder q(z | x), decoder p(x | z), level p(z1 | z2) or prior p(z | c): roles are argument names.

    Args:
        net: maps the parents, each of shape ``(*batch, features)``, to the features that `family` takes.
        family: features ``(*batch, features)`` to a distribution over elements (see :mod:`pyro_vae.likelihoods`).
        event_dim: how many rightmost dimensions make up one y (1 for vectors); the rest is batch shape.

    Raises:
        ProgramError: as it is called, if the network returns no tensor (a tuple of loc and log-variance, say) and the family
            cannot read that.

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
        try:
            d = self.family(features)
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(features, Tensor):
                raise
            raise ProgramError(self.explain(features)) from error  # a net of plain torch: loc and log-variance apart
        return d.to_event(self.event_dim - d.event_dim)

    def explain(self, features: object) -> str:
        """Explain what a family cannot read: a network that returns no tensor."""
        came = type(features).__name__
        if isinstance(features, (tuple, list)):
            came = f"a {came} of {len(features)} ({', '.join(type(part).__name__ for part in features)})"
        name = getattr(self.family, "__name__", type(self.family).__name__)
        return (
            f"the network of a Conditional returned {came}, and its family {name} takes one tensor of features. Give a "
            "function of x as the part instead, as posterior=lambda x: dist.Normal(loc, scale).to_event(1) of what your "
            "network returns, or a family that takes it."
        )

    def extra_repr(self) -> str:
        family = getattr(self.family, "__name__", type(self.family).__name__)
        return f"family={family}, event_dim={self.event_dim}"
