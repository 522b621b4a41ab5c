"""What is asked of a likelihood's draws and means is answered by those it has; one that is no density is refused by site."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from pyro_vae import reconstruct
from pyro_vae.errors import NoWeightError, ProgramError

X = torch.linspace(-1, 1, 5)


class OnlyScored(dist.TorchDistribution):
    """A Laplace density that cannot be drawn from."""

    support, arg_constraints = constraints.real, {}

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.loc.expand(batch_shape))

    def log_prob(self, value):
        return dist.Laplace(self.loc, 1.0).log_prob(value)


class WithMean(OnlyScored):
    @property
    def mean(self):
        return self.loc


def pair(likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", dist.Normal(0.0, 1.0))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    return model, guide


@pytest.mark.parametrize("mask", [None, True, X > 0], ids=["plain", "masked", "masked by row"])
@pytest.mark.parametrize("num_samples", [None, 2], ids=["means", "draws"])
def test_data_of_an_improper_density_are_refused_by_site(mask, num_samples):
    def improper(z):
        fn = dist.ImproperUniform(constraints.real, z.shape, ())
        return fn if mask is None else fn.mask(mask)

    with pytest.raises(NoWeightError, match=r"site 'x' .*ImproperUniform, which is no normalised density"):
        reconstruct(pair(improper), X, num_samples=num_samples)


def test_a_density_that_has_a_mean_and_no_draws_is_reconstructed():
    torch.testing.assert_close(reconstruct(pair(WithMean), X)["x"], X / 2)
    with pytest.raises(ProgramError, match=r"site 'x' .* no mean in closed form"):
        reconstruct(pair(OnlyScored), X)
