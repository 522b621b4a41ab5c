"""A data set as one row: log p(X) against closed forms, by importance sampling, annealing and from both sides; refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_vae import (
    WholeDataSet,
    ais,
    bdmc,
    bracket,
    check,
    fit,
    gaps,
    log_likelihood,
    log_weights,
    predictive_density,
    simulate,
)  # fmt: skip
from pyro_vae.errors import ProgramError
from tests.helpers.bayesian import DOUBLE, ORACLES, LocalLatents, MatrixRegression, NormalMean
from tests.helpers.gaussian import gaussian

N = 20


def whole_of(oracle, guide="guide", n=N):
    pair = WholeDataSet(oracle.model, getattr(oracle, guide))
    args = oracle.args(n)
    return pair, pair.rows(*args), oracle.log_evidence(*args).item()


@pytest.mark.parametrize("kind", ORACLES)
def test_under_the_posterior_each_weight_is_the_evidence(kind):
    pair, rows, exact = whole_of(ORACLES[kind], "exact_guide")
    log_w = log_weights(pair.model, pair.guide, *rows, num_particles=5)
    assert log_w.shape == (5, 1)
    assert (log_w - exact).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ORACLES)
def test_importance_sampling_is_within_its_errors(kind):
    pair, rows, exact = whole_of(ORACLES[kind])
    evidence = log_likelihood(pair.model, pair.guide, *rows, num_samples=1000, verbose=False)
    assert len(evidence) == 1 and evidence.log_px.dtype == DOUBLE
    assert abs(evidence.log_px.item() - exact) < 4 * evidence.mc_se.item() < 0.4
    assert evidence.elbo.item() < exact - 2 * evidence.elbo_se.item()  # a wide guide's bound is not the evidence


def test_a_density_without_the_prior_of_the_parameters_is_found_out():
    """Broken on purpose: the terms of the rows alone, as a per-row function would add them up."""
    oracle = NormalMean()
    _, rows, _ = whole_of(oracle)

    def model_without_prior(x):
        with pyro.poutine.mask(mask=False):
            mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    broken = WholeDataSet(model_without_prior, oracle.guide)
    with pytest.raises(ProgramError, match="mu"):  # a mask of one program only
        log_weights(broken.model, broken.guide, *rows)


@pytest.mark.parametrize("kind", ["regression", "local-latents"])
def test_annealing_and_brackets_hold_the_evidence(kind):
    pair, rows, exact = whole_of(ORACLES[kind], n=6)
    annealed = ais(
        pair.model,
        pair.guide,
        *rows,
        start="guide",
        num_temperatures=15,
        num_chains=12,
        leapfrog_steps=5,
        verbose=False,
    )
    assert abs(annealed.log_px.item() - exact) < 4 * annealed.mc_se.item() < 1
    ends = bracket(pair.model, pair.guide, *rows, num_temperatures=15, num_chains=12, leapfrog_steps=5, verbose=False)
    assert (ends.lower - exact).item() < 4 * ends.lower_se.item() < 1
    assert (exact - ends.upper).item() < 4 * ends.upper_se.item() + 0.05  # chains of a row share their start


def test_a_simulated_data_set_has_a_strict_bracket():
    oracle = LocalLatents()
    pair, rows, _ = whole_of(oracle, n=8)
    ends = bdmc(
        pair.model, pair.guide, *rows, num_rows=1, num_temperatures=15, num_chains=12, leapfrog_steps=5, verbose=False
    )
    drawn = simulate(pair.model, *rows, seed=0)
    exact = oracle.log_evidence(drawn.x[0]).item()
    assert ends.strict and drawn.x.shape == (1, 8)
    assert ends.lower.item() - 4 * ends.lower_se.item() < ends.upper.item() + 4 * ends.upper_se.item()
    assert abs(ends.lower.item() - exact) < 10  # of a data set of that size


def test_a_program_sees_values_as_it_would_alone():
    seen = []

    class Watched(MatrixRegression):
        def mean(self, w, c):
            seen.append((w.shape, c.shape))
            return c @ w

    pair, rows, _ = whole_of(Watched())
    result = log_likelihood(pair.model, pair.guide, *rows, num_samples=5, verbose=False)
    assert "loop" in result.vectorizing and ((3,), (N, 3)) in seen


def test_sampled_weights_of_a_layer():
    """p(y) of a linear layer whose weight and bias are drawn."""

    class Layer(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))

        def forward(self, y, c):
            mean = self.linear(c).squeeze(-1)
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y, c):
        pyro.sample("linear.weight", dist.Normal(torch.zeros(1, 2).double(), 0.7).to_event(2))
        pyro.sample("linear.bias", dist.Normal(torch.zeros(1).double(), 0.7).to_event(1))

    noise = torch.Generator().manual_seed(0)
    y, c = (torch.randn(*shape, generator=noise, dtype=DOUBLE) for shape in ((4,), (4, 2)))
    pair = WholeDataSet(Layer(), guide)
    evidence = log_likelihood(pair.model, pair.guide, *pair.rows(y, c), num_samples=1500, verbose=False)
    covariance = c @ c.T + 1 + torch.eye(4, dtype=DOUBLE)
    exact = dist.MultivariateNormal(torch.zeros(4, dtype=DOUBLE), covariance).log_prob(y).item()
    assert abs(evidence.log_px.item() - exact) < 4 * evidence.mc_se.item() < 0.3


def test_the_gap_of_a_data_set_is_split():
    pair, rows, _ = whole_of(NormalMean())
    found = gaps(pair.model, pair.guide, *rows, steps=200, verbose=False)
    kl = (1.3**2 - 1) / 2 - math.log(1.3)  # of the wide guide from the posterior, which its family holds
    assert abs(found.gap.item() - kl) < 4 * found.gap_se.item() < 0.2
    assert abs(found.amortisation.item() - kl) < 4 * found.amortisation_se.item() + 0.01


def test_data_sets_are_simulated_whole():
    oracle = LocalLatents()
    pair, rows, _ = whole_of(oracle)
    drawn = simulate(pair.model, *rows, seed=1)
    assert drawn.x.shape == (1, N) and drawn.latents["mu"].numel() == 1 and drawn.latents["z"].shape[-1] == N


def test_a_check_finds_nothing():
    pair, rows, _ = whole_of(LocalLatents())
    assert check(pair.model, pair.guide, *rows).ok


def of_local(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def unplated(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]).to_event(1), obs=x)


def of_mu(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def inside(x):
    with pyro.plate("data", len(x)):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


REFUSED = {
    "rows-share-nothing": (gaussian, of_local, r"all sites lie in the plate 'data'.*log_px.sum\(\)"),
    "part-of-the-rows": (subsampled, of_mu, r"site 'x': its plate 'data' holds 5 of 100 rows"),
    "no-plate": (unplated, of_mu, "no data plate"),
    "global-inside-the-plate": (inside, of_mu, "site 'mu' lies inside the plate 'data' in the model"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_by_name(why):
    model, guide, message = REFUSED[why]
    pair = WholeDataSet(model, guide)
    with pytest.raises(ProgramError, match=message):
        log_likelihood(pair.model, pair.guide, *pair.rows(torch.zeros(5)), num_samples=5, verbose=False)


def test_one_data_set_at_a_time():
    pair = WholeDataSet(NormalMean().model, NormalMean().guide)
    with pytest.raises(ProgramError, match=r"one data set at a time.*got 3.*whole\.rows\(x\)"):
        pair.model(torch.zeros(3, 5))


@pytest.mark.parametrize("function", [log_likelihood, ais, bracket, gaps], ids=lambda f: f.__name__)
def test_functions_of_rows_point_to_those_of_data_sets(function):
    oracle = NormalMean()
    with pytest.raises(
        ProgramError, match=r"site 'mu' lies outside the plate 'data'.*WholeDataSet.*predictive_density"
    ):
        function(oracle.model, oracle.guide, *oracle.args(5))


@pytest.mark.parametrize("role", ["model", "guide"])
def test_a_program_that_writes_into_its_rows_is_refused_and_they_are_as_they_were(role):
    oracle = ORACLES["normal-mean"]

    def writes(x):
        x.mul_(0.5)
        return getattr(oracle, role)(x)

    programs = (writes, oracle.guide) if role == "model" else (oracle.model, writes)
    (x,) = oracle.args(N)
    before, pair = x.clone(), WholeDataSet(*programs)
    for use in (
        lambda: log_likelihood(pair.model, pair.guide, *pair.rows(x), num_samples=10, verbose=False),
        lambda: predictive_density(*programs, x, num_samples=10),
        lambda: fit(programs, x, epochs=1, batch_size=5, verbose=False),
    ):
        with pytest.raises(ProgramError, match="writes into x in place"):
            use()
        assert torch.equal(x, before)
