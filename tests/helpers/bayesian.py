"""Pairs of programs with global parameters whose log p(X), posterior and predictive are known in closed form, in float64.

Each has `model`, `guide` (wider than the posterior on purpose: weights of a finite variance), `exact_guide` (every weight is
p(X)), `args(n)` (a data set of the model), `log_evidence(*args)` and `log_predictive(new, *old)`.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from pyro_vae.programs.parameters import register

DOUBLE = torch.float64
WIDER = 1.3  # times the posterior's standard deviations


def normal_rows(n, seed=0):
    return 0.7 + torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class NormalMean:
    """μ ~ N(0, 4), x_n ~ N(μ, 1)."""

    prior_sd = 2.0

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), self.prior_sd))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def posterior(self, x):
        precision = len(x) + self.prior_sd**-2
        return x.sum() / precision, precision**-0.5

    def draw(self, x, wider=1.0):
        loc, sd = self.posterior(x)
        return pyro.sample("mu", dist.Normal(loc, wider * sd))

    def exact_guide(self, x):
        self.draw(x)

    def guide(self, x):
        self.draw(x, WIDER)

    def args(self, n):
        return (normal_rows(n),)

    def log_evidence(self, x):
        covariance = torch.eye(len(x), dtype=DOUBLE) + self.prior_sd**2
        return MultivariateNormal(torch.zeros(len(x), dtype=DOUBLE), covariance).log_prob(x)

    def log_predictive(self, new, *old):
        loc, sd = self.posterior(*old)
        return dist.Normal(loc, (1 + sd**2) ** 0.5).log_prob(new[0])


class Regression:
    """w ~ N(0, I), y_n ~ N(c_n · w, 1/4), a design c with a context's N rows."""

    width, noise = 3, 0.5

    def mean(self, w, c):
        return (w * c).sum(-1)

    def model(self, y, c):
        w = pyro.sample("w", dist.Normal(c.new_zeros(self.width), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(self.mean(w, c), self.noise), obs=y)

    def posterior(self, y, c):
        precision = torch.eye(self.width, dtype=DOUBLE) + c.T @ c / self.noise**2
        covariance = torch.linalg.inv(precision)
        return covariance @ c.T @ y / self.noise**2, covariance

    def exact_guide(self, y, c):
        loc, covariance = self.posterior(y, c)
        pyro.sample("w", dist.MultivariateNormal(loc, covariance))

    def guide(self, y, c):
        loc, covariance = self.posterior(y, c)
        pyro.sample("w", dist.MultivariateNormal(loc, WIDER**2 * covariance))

    def args(self, n, seed=0):
        noise = torch.Generator().manual_seed(seed)
        c = torch.randn(n, self.width, generator=noise, dtype=DOUBLE)
        return c @ torch.tensor([1.0, -1.0, 0.5]).double() + self.noise * torch.randn(
            n, generator=noise, dtype=DOUBLE
        ), c

    def log_evidence(self, y, c):
        covariance = c @ c.T + self.noise**2 * torch.eye(len(y), dtype=DOUBLE)
        return MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)

    def mean_field_elbo(self, y, c):
        """log p(y) less the KL of the best diagonal normal."""
        precision = torch.linalg.inv(self.posterior(y, c)[1])
        return self.log_evidence(y, c) - (precision.diagonal().log().sum() - torch.logdet(precision)) / 2

    def log_predictive(self, new, *old):
        loc, covariance = self.posterior(*old)
        variance = (new[1] @ covariance * new[1]).sum(-1) + self.noise**2
        return dist.Normal(new[1] @ loc, variance.sqrt()).log_prob(new[0])


class MatrixRegression(Regression):
    """The same, by a matrix product, that knows no particles on the left of w."""

    def mean(self, w, c):
        return c @ w


class LocalLatents:
    """μ ~ N(0, 1), z_n ~ N(μ, 1), x_n ~ N(z_n, 1): a hierarchy, whose q(z | x, μ) sees the draw of μ."""

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def posterior(self, x):
        precision = 1 + len(x) / 2
        return x.sum() / 2 / precision, precision**-0.5

    def exact_guide(self, x, wider=1.0):
        loc, sd = self.posterior(x)
        mu = pyro.sample("mu", dist.Normal(loc, wider * sd))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + mu) / 2, 0.5**0.5))

    def guide(self, x):
        self.exact_guide(x, WIDER)

    def args(self, n):
        return (normal_rows(n),)

    def log_evidence(self, x):
        covariance = 2 * torch.eye(len(x), dtype=DOUBLE) + 1
        return MultivariateNormal(torch.zeros(len(x), dtype=DOUBLE), covariance).log_prob(x)

    def log_predictive(self, new, *old):
        loc, sd = self.posterior(*old)
        return dist.Normal(loc, (2 + sd**2) ** 0.5).log_prob(new[0])


ORACLES = {
    "normal-mean": NormalMean(),
    "regression": Regression(),
    "matrix-product": MatrixRegression(),
    "local-latents": LocalLatents(),
}


class LearnedMean(nn.Module):
    """q(μ) = N(loc, sd²), learned, for :class:`NormalMean`; of a mini-batch, too."""

    def __init__(self, loc=0.0, sd=0.5):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(loc, dtype=DOUBLE))
        self.log_sd = nn.Parameter(torch.tensor(sd, dtype=DOUBLE).log())

    def model(self, x):
        NormalMean().model(x)

    def guide(self, x):
        register(self)
        pyro.sample("mu", dist.Normal(self.loc, self.log_sd.exp()))

    def elbo(self, x):
        """E_q[log p(x, μ)] + H(q), exactly."""
        loc, variance, prior = self.loc, (2 * self.log_sd).exp(), NormalMean.prior_sd
        rows = dist.Normal(loc, 1.0).log_prob(x).sum() - len(x) * variance / 2
        return rows - torch.distributions.kl_divergence(dist.Normal(loc, variance.sqrt()), dist.Normal(loc * 0, prior))
