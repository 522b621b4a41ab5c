"""The measure that log p(x) is a density against: of the support, and none of a bare factor."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.programs.measure import measure_of
from tests.helpers.importance import log_likelihood


@pytest.mark.parametrize(
    ("fn", "measure"),
    [
        (dist.Bernoulli(0.5), "binary"),
        (dist.Poisson(1.0), "counts"),
        (dist.Binomial(3, 0.5), "counts"),
        (dist.Categorical(torch.ones(3)), "categories"),
        (dist.Normal(0.0, 1.0), "continuous"),
        (dist.Beta(1.0, 1.0), "continuous"),
        (dist.Normal(0.0, 1.0).expand([3]).to_event(1), "continuous"),
    ],
)
def test_the_measure_is_the_supports(fn, measure):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", fn, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = fn.sample((1,))
    assert measure_of(model, guide, x) == measure
    assert log_likelihood(model, guide, x.float(), num_samples=2).summary()["measure"] == measure


def test_a_bare_factor_is_a_score():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("extra", -x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert measure_of(model, guide, torch.zeros(1)) == "continuous x score"
