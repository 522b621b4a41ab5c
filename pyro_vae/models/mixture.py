"""A mixture of classes over the latents of a VAE, as two Pyro programs."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.programs.parameters import register

from .classes import one_hot


class GMVAE(FunctionParts):
    r"""p(y) p(z | y) p(x | z) with amortized q(z | x): a class y for each row, summed out.

    The model marks y for enumeration, so that training under any bound, and every evaluation, is of
    p(x, z) = p(x | z) Σ_y p(y) p(z | y). Given z, y does not depend on x: q(y | x) = E_{q(z | x)} p(y | z), by Bayes' rule
    (:meth:`classify`).

    Args:
        classes: ``classes()`` is p(y), a Categorical over C classes.
        components: ``components(y)`` is p(z | y), y as one-hot vectors ``(*batch, C)``.
        likelihood: ``likelihood(z)`` is p(x | z).
        posterior: ``posterior(x)`` is q(z | x).

    Sites are ``"y"``, ``"z"`` and ``"x"``, the plate is ``"data"``; x has shape ``(N, *event)``.

    References:
        Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders (Dilokthanakul et al., 2016),
        https://arxiv.org/abs/1611.02648; Variational Deep Embedding (Jiang et al., 2017; this model),
        https://arxiv.org/abs/1611.05148

    Example:
        >>> from pyro_vae import GMVAE, Classes, Conditional, MLP, bernoulli, normal, log_likelihood
        >>> vae = GMVAE(
        ...     classes=Classes(3),                                   # p(y)
        ...     components=Conditional(MLP(3, 2 * 2), normal),        # p(z | y)
        ...     likelihood=Conditional(MLP(2, 9), bernoulli),         # p(x | z)
        ...     posterior=Conditional(MLP(9, 2 * 2), normal),         # q(z | x)
        ... )
        >>> x = torch.ones(5, 9)
        >>> vae.classify(x).shape, len(log_likelihood(vae.model, vae.guide, x, num_samples=10))
        (torch.Size([5, 3]), 5)
    """

    def __init__(
        self,
        classes: Callable[[], dist.Categorical],
        components: Callable[[Tensor], TorchDistributionMixin],
        likelihood: Callable[[Tensor], TorchDistributionMixin],
        posterior: Callable[[Tensor], TorchDistributionMixin],
    ) -> None:
        super().__init__()
        self.classes, self.components, self.likelihood, self.posterior = classes, components, likelihood, posterior

    def model(self, x: Tensor) -> Tensor:
        """y ~ p(y), z ~ p(z | y), x ~ p(x | z), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", self.classes(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.components(self.one_hot(y)))
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x: Tensor) -> Tensor:
        """z ~ q(z | x), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x))

    def one_hot(self, y: Tensor) -> Tensor:
        """e_y, ``(*batch, C)``."""
        return one_hot(y, self.classes().logits)

    def prior(self) -> TorchDistributionMixin:
        """p(z) = Σ_y p(y) p(z | y)."""
        classes = self.classes()
        every = torch.eye(len(classes.logits)).to(classes.logits)
        return dist.MixtureSameFamily(classes, self.components(every))

    def log_classes(self, z: Tensor) -> Tensor:
        """log p(y | z) of each class, ``(*batch, C)``: log p(y) + log p(z | y) − log p(z)."""
        classes = self.classes()
        every = torch.eye(len(classes.logits)).to(classes.logits)
        log_joint = classes.logits.log_softmax(-1) + self.components(every).log_prob(z.unsqueeze(-2))
        return log_joint.log_softmax(-1)

    @torch.no_grad()
    def classify(self, x: Tensor, num_samples: int = 100) -> Tensor:
        """q(y | x) ≈ 1/K Σ_k p(y | z_k), z_k ~ q(z | x): ``(N, C)``; draws from torch's global generator."""
        return self.log_classes(self.posterior(x).sample((num_samples,))).exp().mean(0)
