"""The variational autoencoder, as two Pyro programs."""

from __future__ import annotations

from collections.abc import Callable

import pyro
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.common.result_table import html_table
from pyro_vae.programs.parameters import register

from .describe import densities
from .standardize import give_units, is_standardized


class VAE(FunctionParts):
    r"""p(z) p(x | z) with amortized q(z | x); an optional context c conditions all three.

    Args:
        prior: ``prior(*c)`` is p(z | c).
        likelihood: ``likelihood(z, *c)`` is p(x | z, c).
        posterior: ``posterior(x, *c)`` is q(z | x, c).

    Each is a callable that returns a distribution: a :class:`~pyro_vae.Conditional`, a module of one's own, or a lambda.
    Sites are ``"z"`` and ``"x"``, the plate is ``"data"``; x has shape ``(N, *event)``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_vae import VAE, StandardNormal, Conditional, MLP, bernoulli, normal
        >>> vae = VAE(
        ...     prior=StandardNormal(2),                            # p(z)
        ...     likelihood=Conditional(MLP(2, 9), bernoulli),       # p(x | z)
        ...     posterior=Conditional(MLP(9, 2 * 2), normal),       # q(z | x)
        ... )
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(5, 9))
    """

    code_site, data_site = "z", "x"  # what encode and sample are of, where no site is named

    def __init__(
        self,
        prior: Callable[..., TorchDistributionMixin],
        likelihood: Callable[..., TorchDistributionMixin],
        posterior: Callable[..., TorchDistributionMixin],
    ) -> None:
        super().__init__()
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    def model(self, x: Tensor, *c: Tensor) -> Tensor:
        """z ~ p(z | c), x ~ p(x | z, c), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(*c))
            return pyro.sample("x", self.likelihood(z, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> Tensor:
        """z ~ q(z | x, c), for each row."""
        register(self)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, *c))

    standardize = give_units
    standardized = property(is_standardized)

    def _repr_html_(self) -> str:
        parts = {"p(z)": self.prior, "p(x | z)": self.likelihood, "q(z | x)": self.posterior}
        return html_table(densities(parts), f"{type(self).__name__}: p(z) p(x | z), and q(z | x)")
