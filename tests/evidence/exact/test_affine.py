"""linear_gaussian refuses means that bend on either side of an axis, near or far, askew, or where a posterior lies."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import log_likelihood
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.exact import linear_gaussian as closed_form
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from tests.helpers.environment import HEAVY

D = torch.float64
W = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=D)
W /= W.norm()


def program(mean, loc=0.0, scale=1.0, dims=1):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_full((dims,), loc), scale).to_event(1))
            pyro.sample("x", dist.Normal(mean(z), 0.5), obs=x)

    return model


HINGES = {
    "at_3": program(lambda z: z[..., 0] + 10 * torch.relu(z[..., 0] - 3)),
    "at_minus_3": program(lambda z: z[..., 0] + 10 * torch.relu(-3 - z[..., 0])),
    "about_a_prior_far_away": program(lambda z: z[..., 0] + torch.relu(z[..., 0] - 103), loc=100.0),
    "of_a_tight_prior": program(lambda z: z[..., 0] + torch.relu(z[..., 0] - 0.3), scale=0.1),
    "askew_in_50_dimensions": program(lambda z: z.sum(-1) + torch.relu(z @ W - 3), dims=50),
    "far_out": program(lambda z: z[..., 0] + torch.relu(z[..., 0] - 20)),
}


@pytest.mark.parametrize("model", HINGES.values(), ids=HINGES)
def test_a_hinge_is_seen(model):
    with pytest.raises(ProgramError, match="'x': its mean is not affine"):
        linear_gaussian(model, None, torch.tensor([0.0, 10.0], dtype=D))


def test_a_bend_where_only_one_rows_posterior_lies_is_seen(monkeypatch):
    """Between 200 and 300 standard deviations of the prior, which a row of x = 250 needs."""
    model = program(lambda z: z[..., 0] + torch.where((z[..., 0] - 250).abs() < 50, 1.0, 0.0))
    with pytest.raises(ProgramError, match="not that of their means"):
        linear_gaussian(model, None, torch.tensor([0.0, 300.0], dtype=D))


def test_probes_that_stay_near_see_no_hinge(monkeypatch):
    monkeypatch.setattr(closed_form, "RADII", (0.1, 1.0))
    found = linear_gaussian(HINGES["at_minus_3"], None, torch.tensor([0.5], dtype=D))
    assert found.method == "linear-Gaussian closed form"


def of_correlated(z, scale=0.5):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", z), scale).to_event(1), obs=x)

    return model


THIN, ROWS = 0.02, torch.tensor([[0.5, 1.0], [-1.0, 0.25]])
FACTOR = torch.tensor([[1.0, 0.0], [1.0, THIN]])
CORRELATED = {
    "full": (dist.MultivariateNormal(torch.zeros(2), scale_tril=FACTOR), FACTOR.double() @ FACTOR.double().T),
    "low rank": (
        dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.full((2,), THIN)),
        torch.ones(2, 2).double() + THIN * torch.eye(2).double(),
    ),
}


@pytest.mark.parametrize("name", CORRELATED)
def test_narrow_covariances_keep_their_digits(name):
    z, cov = CORRELATED[name]
    exact = torch.distributions.MultivariateNormal(
        torch.zeros(2).double(), cov + 0.25 * torch.eye(2).double()
    ).log_prob(ROWS.double())
    torch.testing.assert_close(linear_gaussian(of_correlated(z), None, ROWS).log_px, exact, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.OracleWarning")  # that quadrature has no lattice for it, either
@pytest.mark.parametrize("thin", [1e-3, 1e-4, 1e-6])
def test_a_covariance_that_is_singular_but_for_rounding_has_no_closed_form(thin):
    """It ended in torch's error of a Cholesky factor, of method="auto", too, which samples now."""
    z = dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [1.0, thin]]))
    model = of_correlated(z)
    with pytest.raises(ProgramError, match="no closed form"):
        linear_gaussian(model, None, ROWS)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", z)

    if HEAVY or thin == 1e-4:  # the lattices that are tried take seconds
        sampled = log_likelihood(model, guide, ROWS, num_samples=500, method="auto", verbose=False)
        assert sampled.log_px.isfinite().all()
