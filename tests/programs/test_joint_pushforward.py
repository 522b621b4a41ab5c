"""Guides that draw several latents out of one normal vector: their density against Pyro's own, and log p(x) by it."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)

from pyro_vae import GlobalGuide, WholeDataSet, log_likelihood
from pyro_vae.errors import ProgramError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.unconstrained import SubstituteLatents

X = torch.tensor([0.3, -1.0, 0.8, 2.0, 0.1])
KINDS = {
    "multivariate": AutoMultivariateNormal,
    "low-rank": partial(AutoLowRankMultivariateNormal, rank=2),
    "diagonal": AutoDiagonalNormal,
}


def model(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.sum((-1, -2)) + p[..., 0], s), obs=x)


def made(kind):
    """A guide with correlations."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = GlobalGuide(model, KINDS[kind])
    guide(X)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_is_that_of_pyros_own_trace(kind):
    guide = made(kind)
    q = poutine.trace(guide).get_trace(X)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(X)
    pair = WholeDataSet(model, guide)
    problem = Problem.of(pair.model, pair.guide, *pair.rows(X), seed=0)
    at = {name: q.nodes[name]["value"] for name in ("w", "s", "p")}
    with problem.quiet(0):
        log_q, log_p = (
            problem.log_prob(
                problem.sites(f, 1, SubstituteLatents({n: v.reshape(1, 1, 1, *v.shape) for n, v in at.items()}))
            )
            for f in (problem.guide, problem.model)
        )
    assert (log_p - log_q).item() == pytest.approx((p.log_prob_sum() - q.log_prob_sum()).item(), abs=1e-4)


def correlated(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("z_a", dist.Normal(0.0, 1.0))
        b = pyro.sample("z_b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


@pytest.mark.parametrize("correlation", [-0.5, 0.0], ids=["posterior", "independent"])
def test_two_latents_of_a_row(correlation):
    """Under the posterior, N(x/3 (1, 1), [[2, -1], [-1, 2]] / 3), each weight is p(x); without its correlation none is."""
    tril = torch.linalg.cholesky(torch.tensor([[1.0, correlation], [correlation, 1.0]]) * 2 / 3)

    @easy_guide(correlated)
    def guide(self, x):
        with self.plate("data", len(x)):
            self.group(match="z_.*").sample(
                "zs", dist.MultivariateNormal((x / 3)[:, None].expand(-1, 2), scale_tril=tril)
            )

    exact = dist.Normal(0.0, 3**0.5).log_prob(X)
    error = log_likelihood(correlated, guide, X, num_samples=4, verbose=False).log_px - exact
    assert (error.abs().max() < 1e-5) == (correlation == -0.5)


def test_a_vector_that_is_not_normal_is_refused():
    pyro.clear_param_store()
    guide = GlobalGuide(model, AutoIAFNormal)
    pair = WholeDataSet(model, guide)
    with pytest.raises(ProgramError, match=r"'w'.*a vector of 9 numbers for more than this latent"):
        log_likelihood(pair.model, pair.guide, *pair.rows(X), num_samples=5, verbose=False)
