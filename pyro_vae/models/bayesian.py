"""Models with global parameters: θ ~ p(θ) once for the data set, outside the plate over its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyro_vae.common.function_parts import FunctionParts
from pyro_vae.common.picklable import Picklable
from pyro_vae.programs.parameters import register
from pyro_vae.programs.site_rows import frames_of
from pyro_vae.programs.sites import Program

Distribution = TorchDistributionMixin


class Bayesian(FunctionParts):
    r"""p(θ) Π_n p(x_n | θ, c_n) with q(θ): a Bayesian regression of x on c, or any model whose rows share θ.

    Args:
        prior: ``prior()`` is p(θ).
        likelihood: ``likelihood(theta, *c)`` is p(x | θ, c) of all rows; θ has dimensions of size 1 for them where K
            particles run side by side, so ``(theta * c).sum(-1)`` does that, and ``c @ theta`` runs them in turn.
        posterior: ``posterior()`` is q(θ), such as ``priors.DiagonalNormal(D)``; see :class:`GlobalGuide` for an AutoGuide.

    Sites are ``"theta"``, outside, and ``"x"`` in the plate ``"data"``.

    References:
        Keeping Neural Networks Simple by Minimizing the Description Length of the Weights (Hinton & van Camp, 1993),
        https://doi.org/10.1145/168304.168306

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_vae import Bayesian, StandardNormal, fit, priors
        >>> regression = Bayesian(
        ...     prior=StandardNormal(2),                                                     # p(θ)
        ...     likelihood=lambda theta, c: dist.Normal((theta * c).sum(-1), 1.0),           # p(y | θ, c)
        ...     posterior=priors.DiagonalNormal(2),                                          # q(θ)
        ... )
        >>> run = fit(regression, torch.randn(20), torch.randn(20, 2), epochs=2, verbose=False)
        >>> run.history[-1]["elbo_data_set"] == 20 * run.history[-1]["elbo"]
        True
    """

    code_site, data_site = "theta", "x"  # what encode and sample are of, where no site is named

    def __init__(
        self,
        prior: Callable[..., Distribution],
        likelihood: Callable[..., Distribution],
        posterior: Callable[..., Distribution],
    ) -> None:
        super().__init__()
        self.prior, self.likelihood, self.posterior = prior, likelihood, posterior

    def model(self, x: Tensor, *c: Tensor) -> Tensor:
        """θ ~ p(θ); x ~ p(x | θ, c), for each row."""
        register(self)
        theta = pyro.sample("theta", self.prior())
        with pyro.plate("data", len(x)):
            return pyro.sample("x", self.likelihood(theta, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> Tensor:
        """θ ~ q(θ)."""
        register(self)
        return pyro.sample("theta", self.posterior())


class BayesianVAE(FunctionParts):
    r"""p(θ) Π_n p(z_n | c_n) p(x_n | z_n, θ, c_n) with q(θ) Π_n q(z_n | x_n, c_n): a VAE whose decoder has a prior.

    Args:
        global_prior: ``global_prior()`` is p(θ).
        prior: ``prior(*c)`` is p(z | c).
        likelihood: ``likelihood(z, theta, *c)`` is p(x | z, θ, c).
        global_posterior: ``global_posterior()`` is q(θ).
        posterior: ``posterior(x, *c)`` is q(z | x, c), amortised: it does not see θ.

    Sites are ``"theta"``, outside, and ``"z"`` and ``"x"`` in the plate ``"data"``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014; appendix F, full variational Bayes),
        https://arxiv.org/abs/1312.6114

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro_vae import BayesianVAE, Conditional, MLP, StandardNormal, fit, normal, priors
        >>> factors = BayesianVAE(
        ...     global_prior=StandardNormal(3),                                              # p(θ), loadings
        ...     prior=StandardNormal(1),                                                     # p(z)
        ...     likelihood=lambda z, theta: dist.Normal(z * theta, 0.5).to_event(1),         # p(x | z, θ)
        ...     global_posterior=priors.DiagonalNormal(3),                                   # q(θ)
        ...     posterior=Conditional(MLP(3, 2 * 1), normal),                                # q(z | x)
        ... )
        >>> run = fit(factors, torch.randn(20, 3), epochs=2, verbose=False)
        >>> run.history[-1]["kl_global"] < 20 * run.history[-1]["kl"]
        True
    """

    code_site, data_site = "z", "x"

    def __init__(
        self,
        global_prior: Callable[..., Distribution],
        prior: Callable[..., Distribution],
        likelihood: Callable[..., Distribution],
        global_posterior: Callable[..., Distribution],
        posterior: Callable[..., Distribution],
    ) -> None:
        super().__init__()
        self.global_prior, self.prior, self.likelihood = global_prior, prior, likelihood
        self.global_posterior, self.posterior = global_posterior, posterior

    def model(self, x: Tensor, *c: Tensor) -> Tensor:
        """θ ~ p(θ); z ~ p(z | c), x ~ p(x | z, θ, c), for each row."""
        register(self)
        theta = pyro.sample("theta", self.global_prior())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(*c))
            return pyro.sample("x", self.likelihood(z, theta, *c), obs=x)

    def guide(self, x: Tensor, *c: Tensor) -> Tensor:
        """θ ~ q(θ); z ~ q(z | x, c), for each row."""
        register(self)
        pyro.sample("theta", self.global_posterior())
        return self.local_guide(x, *c)

    def local_guide(self, x: Tensor, *c: Tensor) -> Tensor:
        """z ~ q(z | x, c), for each row: what stands beside a :class:`GlobalGuide`."""
        register(self)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x, *c))


def no_latents(*args: Any) -> None:
    """Draw nothing: the local guide of a model whose rows have no latents."""


class GlobalGuide(Picklable):
    r"""q(θ) by one of Pyro's AutoGuides over the sites outside the data plate, beside an amortised q(z | x) of the user's.

    Args:
        model: a Pyro program with sites outside the plate.
        auto: makes the guide of a program, such as ``AutoNormal``, ``AutoMultivariateNormal``,
            ``functools.partial(AutoLowRankMultivariateNormal, rank=3)``; these have importance weights. One that draws all of
            θ out of a vector that is not normal (AutoIAFNormal) has, where θ is one site.
        local: draws the latents of rows; by default there are none.
        plate: over the rows.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoMultivariateNormal
        >>> from pyro_vae import Bayesian, GlobalGuide, StandardNormal, fit
        >>> regression = Bayesian(
        ...     StandardNormal(2), lambda theta, c: dist.Normal((theta * c).sum(-1), 1.0), posterior=StandardNormal(2)
        ... )
        >>> guide = GlobalGuide(regression.model, AutoMultivariateNormal)
        >>> run = fit((regression.model, guide), torch.randn(20), torch.randn(20, 2), epochs=1, verbose=False)
    """

    def __init__(
        self, model: Program, auto: Callable[[Program], AutoGuide], local: Program = no_latents, plate: str = "data"
    ) -> None:
        super().__init__()
        self.auto = auto(
            poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and plate in frames_of(site))
        )
        self.local = local

    def forward(self, *args: Tensor) -> Any:
        """θ ~ q(θ); z ~ q(z | x), for each row."""
        self.auto(*args)
        return self.local(*args)
