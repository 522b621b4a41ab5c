"""The errors that an exact method states are honest."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.evidence.exact import trapezoid
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from tests.helpers.oracles import close, curved, draws, linear_model

log_likelihood = partial(noisy_log_likelihood, verbose=False)


def test_a_curved_decoder_agrees_with_importance_sampling_within_4_standard_errors():
    vae, x = curved()
    exact = quadrature(vae.model, vae.guide, x)
    sampled = log_likelihood(vae.model, vae.guide, x, num_samples=20000)
    assert ((sampled.log_px - exact.log_px).abs() < 4 * sampled.mc_se).all()
    assert not ((sampled.log_px - exact.log_px - 0.5).abs() < 4 * sampled.mc_se).all()


def kinked(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Laplace(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.relu().sum(-1), 0.7), obs=x)


def test_errors_are_honest():
    """The true error, against a finer grid, is below 3 times the reported one; on a coarse grid, rows are flagged."""
    vae, x = curved()
    for pair in ((vae.model, vae.guide, x), (kinked, None, 3 * draws(4))):
        true = quadrature(*pair, tol=1e-8, points=241**2)
        for points in (31**2, 61**2):
            found = quadrature(*pair, tol=1e-8, points=points)
            assert ((found.log_px - true.log_px).abs() <= 3 * found.error + true.error).all()
    assert len(found.flagged) == len(found)


def cut_at_the_mode(monkeypatch, x):
    """A first grid that ends where the posterior has its maximum."""
    a = draws(1, 4)
    monkeypatch.setattr(
        trapezoid.Rule, "widen", lambda self, f, box, rows: trapezoid.Box(box.lower, (x @ a.T / a.square().sum())[rows])
    )


def test_a_first_grid_that_cuts_the_mass_is_grown(monkeypatch):
    model, x = linear_model(1)
    exact = linear_gaussian(model, None, x).log_px
    cut_at_the_mode(monkeypatch, x)
    found = quadrature(model, None, x)
    assert not len(found.flagged) and ((found.log_px - exact).abs() <= found.error).all()


def test_mass_that_is_cut_is_found_out(monkeypatch):
    """The test above sees it where the grid grows away from it, over all of its steps: two rows are enough."""
    model, x = linear_model(1)
    x = x[:2]
    exact = linear_gaussian(model, None, x).log_px
    cut_at_the_mode(monkeypatch, x)
    both = trapezoid.Rule.around
    monkeypatch.setattr(trapezoid.Rule, "around", lambda self, row, digits: both(self, row, digits - 1))
    found = quadrature(model, None, x)
    assert len(found.flagged) == len(found) and ((found.log_px - exact).abs() > 0.5).all()


@pytest.mark.parametrize(("share", "width"), [(True, 0.02), (False, 0.1)])
def test_every_one_of_several_narrow_modes_is_counted(share, width):
    """x = z² + noise has a mode in each quadrant, and log p(x) = Σ_d log ∫ N(x_d; z², width²) N(z; 0, 1) dz."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), width).to_event(1), obs=x)

    x = torch.tensor([[1.0, 2.0], [4.0, 0.5]], dtype=torch.float64)
    z = torch.linspace(-9, 9, 1_000_001, dtype=torch.float64).unsqueeze(-1)
    each = dist.Normal(z.square(), width).log_prob(x.view(1, -1)) + dist.Normal(0.0, 1.0).log_prob(z)
    wanted = (each.logsumexp(0) + math.log(z[1] - z[0])).view(2, 2).sum(-1)
    close(quadrature(model, None, x, tol=1e-8, share=share).log_px, wanted, 1e-7)


def test_a_narrow_posterior_far_from_the_prior_is_found():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1e-4).to_event(1), obs=x)

    x = torch.tensor([[0.0, 0.1], [9.0, -12.3]], dtype=torch.float64)
    close(
        quadrature(model, None, x, tol=1e-7).log_px,
        dist.Normal(x.new_zeros(()), (1 + 1e-8) ** 0.5).log_prob(x).sum(-1),
        1e-6,
    )


def test_single_precision_says_how_far_it_goes():
    model, x = linear_model(2)
    weight = draws(2, 4).float()

    def single(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 0.3).to_event(1), obs=x)

    exact = linear_gaussian(model, None, x)
    for found in (quadrature(single, None, x.float()), linear_gaussian(single, None, x.float())):
        assert found.log_px.dtype == torch.float64 and not len(found.flagged)
        close(found.log_px, exact.log_px, 1e-4)
