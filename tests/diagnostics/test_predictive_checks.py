"""Predictive p-values against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2, kstest, norm

from pyro_vae.diagnostics.predictive_checks import STATISTICS, posterior_predictive_check, prior_predictive_check
from pyro_vae.errors import DataError, ProgramError, ShapeError, UsageError
from pyro_vae.programs.simulate import simulate
from tests.helpers.calibration import counts, counts_exact, counts_lognormal, gaussian, guided, half, prior_guide

IDENTITY = {"x": lambda x: x}
X = torch.tensor([-2.0, -0.3, 0.0, 1.0, 2.5])


def check_p(seen, exact, draws):
    """Within 4 Monte Carlo standard errors, √(p (1 − p) / S)."""
    exact = torch.as_tensor(exact)
    assert ((seen - exact).abs() < 4 * (exact * (1 - exact) / draws).sqrt()).all()


def test_posterior_predictive_p_values_in_closed_form():
    found = posterior_predictive_check(gaussian, guided(), X, statistics=IDENTITY, num_draws=4000)
    exact = norm.sf(X, X / 2, 1.5**0.5)
    check_p(found.statistics["x"].p_rows, exact, 4000)
    whole = norm.sf(X.mean(), X.mean() / 2, (1.5 / 5) ** 0.5)
    check_p(torch.tensor(found.statistics["x"].p), float(whole), 4000)
    assert found.statistics["x"].mc_se == pytest.approx((whole * (1 - whole) / 4000) ** 0.5, rel=0.1)
    with pytest.raises(AssertionError):  # replications of the prior
        check_p(found.statistics["x"].p_rows, norm.sf(X, 0, 2**0.5), 4000)
    with pytest.raises(AssertionError):  # the other tail
        check_p(found.statistics["x"].p_rows, 1 - exact, 4000)


def test_the_reconstruction_is_compared_at_the_same_z():
    """log p(x_rep | z) ≥ log p(x | z) where ε² ≤ (x − z)²: E F(χ²_1) over z ~ N(x / 2, 1 / 2), by Gauss-Hermite."""
    found = posterior_predictive_check(gaussian, guided(), X, statistics={}, num_draws=4000).statistics
    assert list(found) == ["log p(x | z)"]
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weight = (-0.5 * grid.square()).exp()
    z = X.double().unsqueeze(1) / 2 + 0.5**0.5 * grid
    inside = torch.from_numpy(chi2.cdf((X.double().unsqueeze(1) - z).square().numpy(), 1))
    check_p(found["log p(x | z)"].p_rows, (inside * weight).sum(1) / weight.sum(), 4000)


def test_resampling_comes_from_a_poor_guide_to_the_posterior():
    """S = 1000 draws of K = 20,000 particles of the prior: their own error, of weights with ESS ≥ K / 20, is in the bound."""
    kw = {"statistics": IDENTITY, "num_draws": 1000}
    exact = torch.tensor(norm.sf(X, X / 2, 1.5**0.5))
    plain = posterior_predictive_check(gaussian, prior_guide, X, **kw).statistics["x"].p_rows
    better = posterior_predictive_check(gaussian, prior_guide, X, num_particles=20_000, **kw).statistics
    check_p(better["x"].p_rows, exact, 500)
    with pytest.raises(AssertionError):
        check_p(plain, exact, 500)
    exactly = posterior_predictive_check(gaussian, guided(), X, **kw).statistics["log p(x | z)"].p_rows
    assert ((better["log p(x | z)"].p_rows - exactly).abs() < 4 * (0.5 / 500) ** 0.5).all()


def test_posterior_p_values_are_not_uniform_and_prior_ones_are():
    """On 400 rows of the model: var of p is 1/12 if uniform; posterior p-values crowd around ½ (here var 0.0317, by hand)."""
    x = simulate(gaussian, torch.zeros(400), seed=5).x
    posterior = posterior_predictive_check(gaussian, guided(), x, statistics=IDENTITY, num_draws=400).statistics["x"]
    prior = prior_predictive_check(gaussian, x, statistics=IDENTITY, num_draws=400, chunk_size=4000).statistics["x"]
    assert kstest(prior.p_rows.numpy(), "uniform").pvalue > 0.01
    check_p(prior.p_rows, norm.sf(x, 0, 2**0.5), 400)
    assert kstest(posterior.p_rows.numpy(), "uniform").pvalue < 1e-6 and posterior.p_rows.var() < 0.05


def test_ties_and_statistics_of_all_rows():
    """The share of zeros of continuous data is always 0: p is 1, and nothing is extreme. Chunks of rows change nothing in T."""
    x = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(0))
    statistics = STATISTICS | {"largest row": lambda x: x.flatten(1).sum(1).max()}

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None, None].expand(*z.shape, 2, 3), 1.0).to_event(2), obs=x)

    guide = prior_guide
    found = posterior_predictive_check(model, guide, x, statistics=statistics, num_draws=50, chunk_size=400)
    assert list(found.statistics) == [*statistics, "log p(x | z)"]
    zeros, largest = found.statistics["share of zeros"], found.statistics["largest row"]
    assert zeros.p == 1 and not zeros.extreme and zeros.extreme_rows == 0
    assert largest.observed.shape == (1, 1) and largest.replicated.shape == (50, 1)
    assert largest.observed.item() == pytest.approx(x.flatten(1).sum(1).max().item(), rel=1e-6)
    assert found.statistics["max"].replicated.shape == (50, 30)
    torch.testing.assert_close(found.statistics["max"].observed[0], x.flatten(1).amax(1).double())
    assert "posterior predictive check, 30 rows, 50 replications" in str(found)
    prior = prior_predictive_check(model, x, statistics=statistics, num_draws=50, chunk_size=70)
    assert prior.statistics["largest row"].replicated.shape == (50, 1)
    assert prior.statistics["mean"].replicated.shape == (50, 30) and prior.kind == "prior"


def test_a_gamma_poisson_model_is_checked():
    x = simulate(counts, torch.zeros(300, 3), seed=4).x
    assert posterior_predictive_check(counts, counts_exact, x, num_draws=100).extreme == ()
    assert posterior_predictive_check(counts, counts_lognormal, x, num_draws=100).extreme != ()  # the guide's fault
    assert posterior_predictive_check(counts, counts_lognormal, x, num_draws=100, num_particles=2000).extreme == ()
    assert "share of zeros" in posterior_predictive_check(counts, counts_exact, 5 * x, num_draws=100).extreme


@pytest.mark.parametrize(
    ("statistic", "error", "message"),
    [
        (lambda x: x.unsqueeze(-1), ShapeError, r"'t' returned shape \(5, 1\) for 5 rows"),
        (lambda x: x[:2], ShapeError, r"'t' returned shape \(2,\) for 5 rows"),
        (lambda x: x.mean() if len(x) > 5 else x, ShapeError, r"'t' returned shape \(\)"),
        (lambda x: x / 0 * 0, DataError, "'t' is NaN in rows"),
    ],
)
def test_statistics_that_are_none(statistic, error, message):
    with pytest.raises(error, match=message):
        posterior_predictive_check(gaussian, guided(), X, statistics={"t": statistic})
    with pytest.raises(error, match=message):
        prior_predictive_check(gaussian, X, statistics={"t": statistic})


def test_predictive_checks_refuse():
    with pytest.raises(UsageError, match="must be 1 or more"):
        posterior_predictive_check(gaussian, guided(), X, num_draws=0)
    with pytest.raises(UsageError, match="must be 1 or more"):
        prior_predictive_check(gaussian, X, num_draws=0)
    with pytest.raises(ProgramError, match="site 'x' observes none"):
        posterior_predictive_check(half, guided(), X)
