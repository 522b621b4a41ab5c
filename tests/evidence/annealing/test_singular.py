"""Proposals at which a matrix has no factor, inverse or solution are rejected; the others of the batch go on."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import ProgramError
from pyro_vae.evidence.annealing import densities
from pyro_vae.evidence.annealing.bracket import bracket
from pyro_vae.evidence.annealing.singular import NaNWhereSingular
from tests.helpers.annealing import ais, check_unbiased
from tests.helpers.pilots import short_pilots

D = torch.float64
SIGMA = 0.4  # of the prior: |z| ≥ 3, where the covariance is none, has 6e-14 of its mass


def correlation(z):
    """[[1, z / 3], [z / 3, 1]], a covariance where |z| < 3."""
    o, one = z / 3, torch.ones_like(z)
    return torch.stack([torch.stack([one, o], -1), torch.stack([o, one], -1)], -2)


def by_covariance(z):
    return dist.MultivariateNormal(torch.zeros(2, dtype=D), covariance_matrix=correlation(z))


def by_factor(z):
    return dist.MultivariateNormal(torch.zeros(2, dtype=D), scale_tril=torch.linalg.cholesky(correlation(z)))


def by_precision(z):
    return dist.MultivariateNormal(torch.zeros(2, dtype=D), precision_matrix=torch.linalg.inv(correlation(z)))


MADE = {"covariance": by_covariance, "factor": by_factor, "precision": by_precision}


def pair(made):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", made(pyro.sample("z", dist.Normal(x.new_zeros(()), SIGMA))), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x[..., 0], 0.6))

    return model, guide


def log_px(x):
    """By the trapezoid rule over |z| < 3, exact to 1e-9 as the integrand is smooth and 0 at the ends."""
    z = torch.linspace(-2.999, 2.999, 6001, dtype=D)
    log_p = dist.Normal(0.0, SIGMA).log_prob(z)[:, None] + by_covariance(z[:, None]).log_prob(x)
    return (log_p + math.log(5.998 / 6000)).logsumexp(0)


def rows(n):
    return torch.randn(n, 2, dtype=D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_a_singular_covariance_is_a_rejection(made, start):
    """Steps of 1.2 in a prior of 0.4 go beyond 3 all the time; the mean of p̂ / p is 1 within 4 standard errors."""
    x = rows(300)
    options = {"num_temperatures": 5, "num_chains": 6, "leapfrog_steps": 3, "step_size": 1.2}
    found = ais(*pair(MADE[made]), x, start=start, **options)
    assert 0 < found.acceptance.mean() < 0.9
    check_unbiased((found.log_px - log_px(x)).exp())


def test_without_the_rejection_it_is_an_error(monkeypatch):
    monkeypatch.setattr(densities, "NaNWhereSingular", lambda: torch.no_grad())
    with pytest.raises(torch.linalg.LinAlgError):
        ais(*pair(by_covariance), rows(50), num_temperatures=5, step_size=1.2)


def test_the_pilot_and_the_way_back_go_on_too(monkeypatch):
    short_pilots(monkeypatch)
    x = rows(10)
    found = bracket(*pair(by_covariance), x, num_temperatures=5, num_samples=50, refresh=2, verbose=False)
    low, high = found.lower - 5 * found.lower_se, found.upper + 5 * found.upper_se
    assert ((low < log_px(x)) & (log_px(x) < high)).all()


def test_a_start_without_a_covariance_is_refused_by_row():
    """Draws of the guide where the model is none: no number comes of them."""

    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(x[..., 0] > 100, 3.0, 0.0).to(D), 0.3))

    x = torch.tensor([[0.0, 0.0], [101.0, 0.0]], dtype=D)
    with pytest.raises((ProgramError, torch.linalg.LinAlgError)):
        ais(pair(by_covariance)[0], far, x, start="guide", num_temperatures=3, step_size=0.1)


def test_only_the_singular_ones_are_nan():
    good, none = 4 * torch.eye(2, dtype=D), torch.zeros(2, 2, dtype=D)
    batch = torch.stack([good, none, good])
    with NaNWhereSingular():
        for name in ("cholesky", "inv"):
            found = getattr(torch.linalg, name)(batch)
            assert found.isnan().flatten(1).all(1).tolist() == [False, True, False]
            assert torch.equal(found[0], getattr(torch.linalg, name)(good))
        found = torch.linalg.solve(batch, torch.ones(3, 2, 1, dtype=D))
        assert found.isnan().flatten(1).all(1).tolist() == [False, True, False]
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(batch)
