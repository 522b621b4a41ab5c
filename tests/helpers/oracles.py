"""Pairs that exact oracles are tested on."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_model(dims, noise=0.3, columns=4):
    """z ~ N(0, I), x ~ N(z A, noise^2): the model, and x drawn from it."""
    a = draws(dims, columns)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(a.new_zeros(dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ a, noise).to_event(1), obs=x)

    return model, draws(5, dims, seed=1) @ a + noise * draws(5, columns, seed=2)


def close(got, wanted, atol=1e-8):
    torch.testing.assert_close(got, torch.as_tensor(wanted, dtype=torch.float64), rtol=0, atol=atol)


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.5), x.new_tensor(0.7)))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def lognormal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal((x + 1).log(), 0.5))


def discrete(x):
    """3 bits, a class that depends on them, and a column of x for each."""
    with pyro.plate("data", len(x)):
        bits = pyro.sample("bits", dist.Bernoulli(torch.tensor([0.2, 0.5, 0.7])).to_event(1))
        logits = bits @ torch.tensor([[1.0, 0, -1, 2], [0, 1, 1, -1], [-2, 0, 1, 0]])
        one = pyro.sample("class", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
        loc = torch.cat([bits, one @ torch.tensor([[0.0], [1], [3], [7]])], -1)
        pyro.sample("x", dist.Normal(loc, 0.8).to_event(1), obs=x)


def conditional(x, c):
    """p(z | c) and p(x | z, c) both move with c."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(c, 1 + c.abs()))
        pyro.sample("x", dist.Normal(2 * z + c, 0.5 + c.abs()), obs=x)


@pytest.mark.parametrize("oracle", [linear_gaussian, quadrature])
@pytest.mark.parametrize("rows", [1, 6, 70])
def test_a_context_has_its_own_prior_and_likelihood_in_each_row(oracle, rows):
    x, c = 3 * draws(rows), draws(rows, seed=1)
    wanted = dist.Normal(3 * c, (4 * (1 + c.abs()) ** 2 + (0.5 + c.abs()) ** 2).sqrt()).log_prob(x)
    found = oracle(conditional, None, x, c, tol=1e-9)
    close(found.log_px, wanted)
    assert "one grid" not in found.how


class Curved(nn.Module):
    """A small smooth decoder, in float64."""

    def __init__(self, family=bernoulli, columns=6, width=1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, width * columns)).double()
        for p in self.net.parameters():
            p.data.mul_(2.5)
        self.family = family

    def forward(self, z):
        d = self.family(self.net(z))
        return d.to_event(1 - d.event_dim)


def curved(**kwargs):
    prior = StandardNormal(2).double()
    vae = VAE(prior, Curved(**kwargs), Conditional(MLP(6, 4, (8,)), normal).double())
    torch.manual_seed(1)
    return vae, vae.likelihood(prior().sample((5,))).sample().double()
