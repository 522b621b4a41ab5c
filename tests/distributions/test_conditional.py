"""A part whose network returns something else than features: told by name, where the family cannot read it."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae import VAE, Conditional, StandardNormal, bernoulli, log_likelihood, normal
from pyro_vae.errors import ProgramError
from pyro_vae.likelihoods import categorical, poisson


def loc_and_log_var(x):
    return x[..., :2], x[..., 2:] * 0.0


@pytest.mark.parametrize(
    "family", [normal, bernoulli, poisson, categorical(2)], ids=["normal", "bernoulli", "poisson", "categorical"]
)
@pytest.mark.parametrize(
    ("net", "came"),
    [(loc_and_log_var, "a tuple of 2 (Tensor, Tensor)"), (lambda x: {"loc": x}, "dict"), (lambda x: None, "NoneType")],
    ids=["tuple", "dict", "none"],
)
def test_a_network_that_returns_no_tensor_is_told(net, came, family):
    with pytest.raises(ProgramError) as told:
        Conditional(net, family)(torch.ones(3, 4))
    assert f"returned {came}" in str(told.value) and "lambda x" in str(told.value)


def test_a_family_that_reads_the_tuple_is_taken():
    exact = VAE(
        StandardNormal(2),
        Conditional(lambda z: (z, torch.zeros_like(z)), lambda h: dist.Normal(h[0], (h[1] / 2).exp())),
        Conditional(lambda x: (x / 2, torch.full_like(x, 0.5).log()), lambda h: dist.Normal(h[0], (h[1] / 2).exp())),
    )
    x = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    found = log_likelihood(exact.model, exact.guide, x, num_samples=50, verbose=False).log_px
    torch.testing.assert_close(found, dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1).double(), atol=1e-5, rtol=0)


def test_a_familys_own_error_is_shown_as_it_is():
    def broken(h):
        return h.no_such_thing

    with pytest.raises(AttributeError, match="no_such_thing"):
        Conditional(lambda x: x, broken)(torch.ones(3, 4))
