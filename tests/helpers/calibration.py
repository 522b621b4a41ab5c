"""Pairs that are calibrated, and pairs that are not."""

import pyro
import pyro.distributions as dist
import torch


def guided(width=1.0, shift=0.0):
    """The posterior of `gaussian`: `width` times as wide, and `shift` posterior standard deviations too high."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift * 0.5**0.5, width * 0.5**0.5))

    return guide


def prior_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def counts(x):
    """z ~ Gamma(2, 1), x | z ~ 3 Poisson(z): the posterior is Gamma(2 + Σ x, 4)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Poisson(z.unsqueeze(-1)).expand((*z.shape, 3)).to_event(1), obs=x)


def counts_exact(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(2.0 + x.sum(-1), 4.0))


def counts_lognormal(x):
    mean = (2.0 + x.sum(-1)) / 4
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(mean.log(), 0.3))


def half(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x / 2)
