"""`Bayesian` and `BayesianVAE` as written: their joint density against closed forms, and training on either engine."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

from pyro_vae import Bayesian, BayesianVAE, WholeDataSet, adam, fit, log_likelihood, log_weights, priors
from tests.helpers.bayesian import DOUBLE, Regression


def test_a_bayesian_regression_has_the_evidence_of_its_closed_form():
    oracle = Regression()
    y, c = oracle.args(15)
    loc, covariance = oracle.posterior(y, c)
    model = Bayesian(
        prior=lambda: dist.Normal(torch.zeros(3, dtype=DOUBLE), 1.0).to_event(1),
        likelihood=lambda theta, c: dist.Normal((theta * c).sum(-1), oracle.noise),
        posterior=lambda: dist.MultivariateNormal(loc, covariance),
    )
    pair = WholeDataSet(model.model, model.guide)
    log_w = log_weights(pair.model, pair.guide, *pair.rows(y, c), num_particles=4)
    assert (log_w - oracle.log_evidence(y, c)).abs().max() < 1e-6


def additive(x):
    """x_nd = θ_d + z_n + noise: normal, with covariance I ⊗ Σ + 1 ⊗ I, Σ = 1 + I / 4."""
    within = torch.ones(2, 2, dtype=DOUBLE) + 0.25 * torch.eye(2, dtype=DOUBLE)
    ones = torch.ones(len(x), len(x), dtype=DOUBLE)
    covariance = torch.kron(torch.eye(len(x), dtype=DOUBLE), within) + torch.kron(ones, torch.eye(2, dtype=DOUBLE))
    return MultivariateNormal(torch.zeros(2 * len(x), dtype=DOUBLE), covariance).log_prob(x.flatten())


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_bayesian_vae_trains_below_its_evidence(engine):
    torch.manual_seed(0)
    x = torch.randn(30, 2, dtype=DOUBLE)
    line = torch.nn.Linear(2, 1).double()
    vae = BayesianVAE(
        global_prior=lambda: dist.Normal(torch.zeros(2, dtype=DOUBLE), 1.0).to_event(1),
        prior=lambda: dist.Normal(torch.zeros(1, dtype=DOUBLE), 1.0).to_event(1),
        likelihood=lambda z, theta: dist.Normal(z + theta, 0.5).to_event(1),
        global_posterior=priors.DiagonalNormal(2).double(),
        posterior=lambda x: dist.Normal(line(x), 0.35).to_event(1),
    )
    run = fit(vae, x, epochs=40, batch_size=10, optimizer=adam(lr=0.05), engine=engine, verbose=False)
    exact, record = additive(x).item(), run.history[-1]
    assert exact - 12 < record["elbo_data_set"] < exact + 4 * record["elbo_data_set_se"]
    assert run.history[0]["elbo_data_set"] < record["elbo_data_set"]
    pair = WholeDataSet(vae.model, vae.guide)
    evidence = log_likelihood(pair.model, pair.guide, *pair.rows(x), num_samples=2000, verbose=False)
    assert evidence.log_px.item() < exact + 4 * evidence.mc_se.item()
