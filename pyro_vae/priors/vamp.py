"""VampPrior: the mixture of posteriors at learned pseudo-inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.distributions.features import check_sizes
from pyro_vae.distributions.mixtures import mixture
from pyro_vae.errors import ShapeError, UsageError


class VampPrior(FunctionParts):
    r"""p(z) = 1/K Σ_k q(z | u_k): the posterior at K learned pseudo-inputs. Support and event shape are the posterior's.

    With contexts, p(z | c) = 1/K Σ_k q(z | u_k, c). The posterior is a submodule: give the same one to the VAE, and its
    parameters are trained (and registered) once.

    Args:
        posterior: ``posterior(x, *c)`` is q(z | x, c).
        components: K.
        shape: the event shape of x, or its width.
        initial: K rows of data to start from, ``(K, *shape)``; by default draws from N(0, 1), or from the uniform
            distribution between the bounds.
        bounds: (low, high) of the data, where the pseudo-inputs shall keep within: u = low + (high − low) sigmoid(raw).
            By default they are unconstrained.

    Raises:
        ShapeError: initial rows of another shape.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), https://arxiv.org/abs/1705.07120

    Example:
        >>> from pyro_vae import VAE, Conditional, MLP, bernoulli, normal
        >>> posterior = Conditional(MLP(9, 2 * 2), normal)
        >>> vae = VAE(VampPrior(posterior, 5, 9, bounds=(0, 1)), Conditional(MLP(2, 9), bernoulli), posterior)
        >>> vae.prior().event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        posterior: Callable[..., TorchDistributionMixin],
        components: int,
        shape: int | Sequence[int],
        initial: Tensor | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(1, components=components)
        if bounds is not None and not bounds[0] < bounds[1]:
            raise UsageError(f"bounds are (low, high) with low < high, got {bounds}")
        size = (components, shape) if isinstance(shape, int) else (components, *shape)
        self.posterior, self.bounds = posterior, bounds
        if initial is None:
            u = torch.randn(size) if bounds is None else torch.rand(size) * (bounds[1] - bounds[0]) + bounds[0]
        else:
            u = initial.detach().clone()
        if tuple(u.shape) != size:
            raise ShapeError(f"initial pseudo-inputs must have shape {size}, got {tuple(u.shape)}")
        # 1e-2: a pixel of exactly 0 or 1 would start at an infinite logit
        self.raw = nn.Parameter(u if bounds is None else torch.logit((u - bounds[0]) / (bounds[1] - bounds[0]), 1e-2))

    @property
    def pseudo_inputs(self) -> Tensor:
        """Pseudo-inputs u, ``(K, *shape)``, within the bounds."""
        if self.bounds is None:
            return self.raw
        low, high = self.bounds
        return low + (high - low) * self.raw.sigmoid()

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        components = self.posterior(self.pseudo_inputs, *(c.unsqueeze(-2) for c in context))
        weights = dist.Categorical(logits=self.raw.new_zeros(len(self.raw))).expand(components.batch_shape[:-1])
        return mixture(weights, components)

    def extra_repr(self) -> str:
        return f"components={len(self.raw)}, shape={tuple(self.raw.shape[1:])}, bounds={self.bounds}"
