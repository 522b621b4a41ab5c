"""Pairs of Pyro programs whose log p(x) is known in closed form: one-line supports, two sites, supports that depend on latents.

Each has `model`, `guide` (wrong on purpose, wider than the posterior: log p̂ has a finite variance), `narrow_guide` (wrong on
purpose, with lighter tails than the posterior: 1 / p̂ of reverse annealing has), `exact_guide` (the posterior: every weight is
p(x)), `rows(n)` (drawn from the model, float64) and `log_px(x)`.
"""

import math

import pyro
import pyro.distributions as dist
import torch


class GammaPoisson:
    """z ~ Gamma(2, 1/2), x ~ Poisson(z): negative binomial. The guide is a hand-written LogNormal."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), x.new_tensor(0.5)))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal((x + 1).log() + 0.2, x.new_tensor(0.8)))

    def exact_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2 + x, x.new_tensor(1.5)))

    def narrow_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(3 + x, x.new_tensor(2.2)))

    def rows(self, n):
        return dist.GammaPoisson(torch.tensor(2.0).double(), torch.tensor(0.5).double()).sample((n,))

    def log_px(self, x):
        return dist.GammaPoisson(x.new_tensor(2.0), x.new_tensor(0.5)).log_prob(x)


class BetaBernoulli:
    """z ~ Beta(2, 3), x_1..x_4 ~ Bernoulli(z)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_tensor(2.0), x.new_tensor(3.0)))
            pyro.sample("x", dist.Bernoulli(z[..., None].expand(*z.shape, 4)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(1.5 + 0.5 * x.sum(-1), x.new_tensor(2.0)))

    def exact_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(2 + x.sum(-1), 7 - x.sum(-1)))

    def narrow_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Beta(4 + x.sum(-1), 8 - x.sum(-1)))

    def rows(self, n):
        z = dist.Beta(torch.tensor(2.0).double(), torch.tensor(3.0).double()).sample((n, 1))
        return torch.bernoulli(z.expand(n, 4))

    def log_px(self, x):
        def log_beta(a, b):
            return a.lgamma() + b.lgamma() - (a + b).lgamma()

        ones = x.sum(-1)
        return log_beta(2 + ones, 7 - ones) - log_beta(x.new_tensor(2.0), x.new_tensor(3.0))


class DirichletMultinomial:
    """z ~ Dirichlet(1, 2, 3) on the simplex, x ~ Multinomial(6, z)."""

    concentration = torch.tensor([1.0, 2.0, 3.0]).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(self.concentration))
            pyro.sample("x", dist.Multinomial(6, z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(1 + 0.5 * x))

    def exact_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(self.concentration + x))

    def narrow_guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(self.concentration + x + 1))

    def rows(self, n):
        return dist.DirichletMultinomial(self.concentration, 6).sample((n,))

    def log_px(self, x):
        return dist.DirichletMultinomial(self.concentration, 6).log_prob(x)


class NormalGamma:
    """Two sites: λ ~ Gamma(3, 2), μ | λ ~ N(1, 1/(κ λ)), x_1..x_3 ~ N(μ, 1/λ), κ = 1/2: a multivariate Student t."""

    a, b, kappa, mean = 3.0, 2.0, 0.5, 1.0

    def model(self, x):
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", dist.Gamma(x.new_tensor(self.a), x.new_tensor(self.b)))
            mu = pyro.sample("mu", dist.Normal(self.mean, (self.kappa * precision).rsqrt()))
            pyro.sample(
                "x", dist.Normal(mu[..., None], precision[..., None].rsqrt().expand(*mu.shape, 3)).to_event(1), obs=x
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("mu", dist.Normal(x.mean(-1), 0.7 + 0 * x[..., 0]))
            pyro.sample("precision", dist.LogNormal(0.3 + 0 * x[..., 0], x.new_tensor(0.5)))

    def exact_guide(self, x):
        kappa, mean, a, b = self.posterior(x)
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", dist.Gamma(a, b))
            pyro.sample("mu", dist.Normal(mean, (kappa * precision).rsqrt()))

    def posterior(self, x):
        n, centre = x.shape[-1], x.mean(-1)
        kappa = self.kappa + n
        square = (x - centre[..., None]).square().sum(-1) + self.kappa * n * (centre - self.mean).square() / kappa
        a = x.new_tensor(self.a + n / 2)
        return kappa, (self.kappa * self.mean + n * centre) / kappa, a, self.b + square / 2

    def narrow_guide(self, x):
        kappa, mean, a, b = self.posterior(x)
        with pyro.plate("data", len(x)):
            precision = pyro.sample("precision", dist.Gamma(a + 1, 1.4 * b))
            pyro.sample("mu", dist.Normal(mean, (1.5 * kappa * precision).rsqrt()))

    def rows(self, n):
        precision = dist.Gamma(torch.tensor(self.a).double(), torch.tensor(self.b).double()).sample((n, 1))
        mu = self.mean + torch.randn(n, 1).double() * (self.kappa * precision).rsqrt()
        return mu + torch.randn(n, 3).double() * precision.rsqrt()

    def log_px(self, x):
        kappa, _, a, b = self.posterior(x)
        prior = self.a * math.log(self.b) - math.lgamma(self.a) + 0.5 * math.log(self.kappa)
        return prior + a.lgamma() - a * b.log() - 0.5 * math.log(kappa) - x.shape[-1] / 2 * math.log(2 * math.pi)


class Nested:
    """Dependent support: a ~ Gamma(2, 1), b ~ Uniform(0, a), so b ~ Exp(1); x ~ Poisson(b): p(x) = 2^−(x+1)."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(x.new_tensor(2.0), x.new_tensor(1.0)))
            b = pyro.sample("b", dist.Uniform(0, a))
            pyro.sample("x", dist.Poisson(b), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Gamma(2.0 + x, x.new_tensor(1.2)))
            pyro.sample("b", dist.Uniform(0, a))

    def exact_guide(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Gamma(1 + x, x.new_tensor(2.0)))
            above = dist.transforms.AffineTransform(b, 1.0)
            pyro.sample("a", dist.TransformedDistribution(dist.Exponential(torch.ones_like(b)), [above]))

    def narrow_guide(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Gamma(2 + x, x.new_tensor(3.0)))
            above = dist.transforms.AffineTransform(b, 1.0)
            pyro.sample("a", dist.TransformedDistribution(dist.Exponential(torch.ones_like(b) * 1.5), [above]))

    def rows(self, n):
        return torch.poisson(dist.Exponential(torch.tensor(1.0).double()).sample((n,)))

    def log_px(self, x):
        return -(x + 1) * math.log(2)


PROBLEMS = [GammaPoisson, BetaBernoulli, DirichletMultinomial, NormalGamma, Nested]
