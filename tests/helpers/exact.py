"""A VAE whose log p(x) is known: the linear-Gaussian one, as Pyro programs, as a `VAE`, and in closed form.

    p(z) = N(0, I),  p(x | z) = N(mean + z A, diag(noise)),  so  p(x) = N(mean, A'A + diag(noise))

and any Gaussian guide q(z | x) = N(m(x), S) has its ELBO and its KL to the exact posterior in closed form. A, noise and mean
are copied from scikit-learn's FactorAnalysis, whose `score_samples` is an independent reference for log p(x).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from sklearn.decomposition import FactorAnalysis
from torch import Tensor

from pyro_vae import VAE


class Pinned(dist.TorchDistribution):
    """A density of our own choice whose every draw is one value: no noise at all, so that two runs can be compared exactly."""

    arg_constraints: ClassVar = {}
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, value: Tensor, log_density: Tensor) -> None:
        self.value, self.log_density = value, log_density
        super().__init__(value.shape[:-1], value.shape[-1:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Pinned(self.value.expand(*batch_shape, *self.event_shape), self.log_density.expand(batch_shape))

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.value.expand(*sample_shape, *self.value.shape)

    def log_prob(self, value):
        return self.log_density.expand(value.shape[:-1])


@dataclass
class Gaussian:
    """q(z | x_n) = N(loc_n, cov): loc ``(N, L)``, one cov ``(L, L)`` for all rows."""

    loc: Tensor
    cov: Tensor


class LinearGaussian:
    """The exact oracle, in float64, with 2 latents.

    Args:
        columns: d.
        rows: how many rows FactorAnalysis is fitted on; they are `x`.
        device: where everything lies.
    """

    latents = 2

    def __init__(self, columns: int = 5, rows: int = 40, device: torch.device | str = "cpu") -> None:
        rng = np.random.default_rng(0)
        factors = rng.normal(size=(rows, 2)) * [1.6, 1.0]
        data = 3.0 + factors @ rng.normal(size=(2, columns)) + rng.normal(size=(rows, columns))
        self.sklearn = FactorAnalysis(2).fit(data)
        turn = np.array([[1, 1], [-1, 1]]) / 2**0.5  # leaves p(x) as it is, and makes the latents correlated given x
        self.x = torch.tensor(data, device=device)
        self.a = torch.tensor(turn @ self.sklearn.components_, device=device)
        self.noise = torch.tensor(self.sklearn.noise_variance_, device=device)
        self.mean = torch.tensor(self.sklearn.mean_, device=device)

    # p(x, z) and three q(z | x), by hand

    def likelihood(self, z: Tensor) -> dist.Distribution:
        return dist.Normal(self.mean + z @ self.a, self.noise.sqrt()).to_event(1)

    def prior(self) -> dist.Distribution:
        zero = self.mean.new_zeros(self.latents)
        return dist.Normal(zero, torch.ones_like(zero)).to_event(1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(z), obs=x)

    def exact_guide(self, x: Tensor) -> None:
        """The exact posterior: every weight is p(x)."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.normal(self.exact(x)))

    def mean_field_guide(self, x: Tensor) -> None:
        """The right means and variances, but no correlations: every weight has a finite variance."""
        q = self.mean_field(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(q.loc, q.cov.diagonal().sqrt()).to_event(1))

    def pinned_guide(self, x: Tensor) -> None:
        """A density whose draws are all the same: no noise at all, so that two runs can be compared exactly."""
        loc = self.exact(x).loc
        with pyro.plate("data", len(x)):
            pyro.sample("z", Pinned(loc, loc.sum(-1)))

    def vae(self, exact: bool = True) -> VAE:
        """The same as a `VAE` of lambdas (no parameters)."""
        approximation = self.exact if exact else self.mean_field
        return VAE(self.prior, self.likelihood, lambda x: self.normal(approximation(x)))

    # the same in closed form

    @cached_property
    def precision(self) -> Tensor:
        """Of the exact posterior: I + A diag(1/noise) A'."""
        return torch.eye(self.latents, dtype=self.a.dtype, device=self.a.device) + (self.a / self.noise) @ self.a.T

    def exact(self, x: Tensor) -> Gaussian:
        cov = self.precision.inverse()
        return Gaussian(((x - self.mean) / self.noise) @ self.a.T @ cov, cov)

    def mean_field(self, x: Tensor) -> Gaussian:
        p = self.exact(x)
        return Gaussian(p.loc, p.cov.diagonal().diag())

    @staticmethod
    def normal(q: Gaussian) -> dist.Distribution:
        return dist.MultivariateNormal(q.loc, covariance_matrix=q.cov)

    def log_px(self, x: Tensor) -> Tensor:
        """log N(x; mean, A'A + diag(noise)), by scikit-learn."""
        return torch.tensor(self.sklearn.score_samples(x.cpu().numpy()), device=x.device)

    def elbo(self, x: Tensor, q: Gaussian) -> Tensor:
        """E_q[log p(x | z)] - KL(q || p(z)), row by row, not by way of log p(x)."""
        residual = x - self.mean - q.loc @ self.a
        expected_square = residual.square() + (self.a.T @ q.cov @ self.a).diagonal()
        reconstruction = -0.5 * (expected_square / self.noise + (2 * math.pi * self.noise).log()).sum(-1)
        kl = 0.5 * (q.cov.trace() + q.loc.square().sum(-1) - self.latents - q.cov.logdet())
        return reconstruction - kl

    def kl_to_posterior(self, x: Tensor, q: Gaussian) -> Tensor:
        """KL(q(z | x) || p(z | x)), row by row."""
        p = self.exact(x)
        off = q.loc - p.loc
        trace = (self.precision @ q.cov).trace()
        quadratic = (off @ self.precision * off).sum(-1)
        return 0.5 * (trace + quadratic - self.latents + p.cov.logdet() - q.cov.logdet())


def counts(rows: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Counts 0..16 in three clusters, as scikit-learn's digits but smaller: ``(rows, 12)``."""
    draws = torch.Generator().manual_seed(seed)
    centres = torch.rand(3, 12, generator=torch.Generator().manual_seed(99)) * 0.8 + 0.1
    chosen = centres[torch.randint(3, (rows,), generator=draws)]
    return torch.binomial(torch.full_like(chosen, 16.0), chosen, generator=draws).to(device)
