"""Exact methods say which distribution they do not take, and what does."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import enumerate_latents, linear_gaussian
from pyro_vae.errors import ProgramError


@pytest.mark.parametrize("oracle", [linear_gaussian, enumerate_latents], ids=["linear_gaussian", "enumerate_latents"])
@pytest.mark.parametrize(
    ("name", "prior"),
    [
        ("LogNormal", dist.LogNormal(torch.zeros(2), 1.0).to_event(1)),
        ("InverseGamma", dist.InverseGamma(torch.ones(2), 1.0).to_event(1)),
        ("Weibull", dist.Weibull(torch.ones(2), 1.0).to_event(1)),
        ("LogisticNormal", dist.LogisticNormal(torch.zeros(2), torch.ones(2))),
    ],
    ids=["LogNormal", "InverseGamma", "Weibull", "LogisticNormal"],
)
def test_transformed_distributions_are_named_as_what_they_are(oracle, name, prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    with pytest.raises(ProgramError, match=rf"site 'z' is .*\b{name}\b"):
        oracle(model, None, torch.zeros(3))


def test_a_mean_that_bends_names_the_way_on():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sin(), 1.0), obs=x)

    with pytest.raises(ProgramError, match=r"site 'x': its mean is not affine.*quadrature.*importance"):
        linear_gaussian(model, None, torch.zeros(3))
