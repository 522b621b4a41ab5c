"""Exact oracles against each other, scikit-learn, scipy and brute force; honest errors; refusals; and broken variants."""

import dataclasses
import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae.common.random import random_states
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.exact import joint, trapezoid
from pyro_vae.evidence.exact.choose import exact as exact_choice
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from tests.helpers.environment import HEAVY
from tests.helpers.oracles import (
    close,
    discrete,
    draws,
    gamma_poisson,
    linear_model,
    lognormal_guide,
    test_a_context_has_its_own_prior_and_likelihood_in_each_row,
)


def fails(check):
    """That a check finds what was broken."""
    with pytest.raises(AssertionError):
        check()


# against each other, and against scikit-learn and scipy


def test_linear_gaussian_is_sklearns(lg):
    exact = linear_gaussian(lg.model, lg.mean_field_guide, lg.x)
    close(exact.log_px, lg.log_px(lg.x).cpu(), 1e-10)
    assert exact.error.eq(0).all() and not len(exact.flagged) and exact.measure == "continuous"
    fails(lambda: close(linear_gaussian(lg.model, None, lg.x + 0.01).log_px, lg.log_px(lg.x).cpu(), 1e-10))


@pytest.mark.parametrize("share", [True, False])
def test_quadrature_is_sklearns_on_one_grid_or_many(lg, share):
    found = quadrature(lg.vae().model, lg.vae().guide, lg.x, share=share, tol=1e-9)
    close(found.log_px, lg.log_px(lg.x).cpu())
    assert found.error.max() < 1e-7 and ("one grid" in found.how) == share


@pytest.mark.parametrize("oracle", [linear_gaussian, quadrature, exact_choice])
def test_an_oracle_draws_on_a_stream_of_its_own_wherever_its_rows_lie(oracle, lg):
    """Neither the host's random state nor the device's moves, and both may stand anywhere before."""
    before = random_states(lg.x.device)
    first = oracle(lg.model, None, lg.x).log_px
    assert all(map(torch.equal, random_states(lg.x.device), before))
    torch.randn(3), torch.randn(3, device=lg.x.device)
    again = oracle(lg.model, None, lg.x).log_px
    if lg.x.is_cuda:  # sums by index go in any order there
        close(again, first, 1e-12)
    else:
        assert torch.equal(again, first)


@pytest.mark.parametrize(
    ("noise", "dims"), [(0.5, 1), (0.5, 2), (0.02, 1), (0.02, 2), (0.02, 3), *([(0.5, 3)] if HEAVY else [])]
)
def test_quadrature_is_the_closed_form(dims, noise):
    model, x = linear_model(dims, noise)
    exact, found = linear_gaussian(model, None, x), quadrature(model, None, x, tol=1e-9)
    close(found.log_px, exact.log_px)
    assert not len(found.flagged) and found.method == f"quadrature in {dims} dimensions"


def test_gamma_poisson_is_scipys():
    x = torch.arange(12.0, dtype=torch.float64)
    check = partial(close, wanted=stats.nbinom.logpmf(x.numpy(), 2.5, 0.7 / 1.7))
    found = quadrature(gamma_poisson, lognormal_guide, x, tol=1e-9)
    check(found.log_px)
    assert found.measure == "counts"


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), *([(2.0, 3.5)] if HEAVY else [])])  # with mass at the edges, or none
def test_beta_binomial_is_scipys(a, b):
    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(x.new_tensor(a), x.new_tensor(b)))
            pyro.sample("x", dist.Binomial(10, p), obs=x)

    x = torch.arange(11.0, dtype=torch.float64)
    close(quadrature(model, None, x, tol=1e-9).log_px, stats.betabinom.logpmf(x.numpy(), 10, a, b), 1e-7)


def test_dirichlet_multinomial_is_scipys():
    """A simplex of 3 has 2 dimensions."""
    alpha = torch.tensor([1.5, 2.0, 0.8], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(6, p, validate_args=False), obs=x)

    x = torch.tensor([[6.0, 0, 0], [2, 2, 2], [0, 1, 5]], dtype=torch.float64)
    wanted = stats.dirichlet_multinomial.logpmf(x.long().numpy(), alpha.numpy(), 6)
    close(quadrature(model, None, x, tol=1e-8).log_px, wanted, 1e-7)


def test_a_mixture_prior_with_a_linear_decoder_is_a_mixture_of_gaussians():
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    loc, scale = 4 * draws(3, 2), draws(3, 2, seed=1).exp() * 0.3
    a, x = draws(2, 4, seed=2), 3 * draws(7, 4, seed=3)
    prior = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ a, 0.5).to_event(1), obs=x)

    cov = a.T @ torch.diag_embed(scale**2) @ a + 0.25 * torch.eye(4)
    each = dist.MultivariateNormal(loc @ a, cov)
    close(
        quadrature(model, None, x, tol=1e-9).log_px, dist.MixtureSameFamily(dist.Categorical(weights), each).log_prob(x)
    )


def by_hand(x):
    total = []
    for code in itertools.product([0.0, 1.0], repeat=3):
        bits = torch.tensor(code)
        p = torch.tensor([0.2, 0.5, 0.7])
        logits = bits @ torch.tensor([[1.0, 0, -1, 2], [0, 1, 1, -1], [-2, 0, 1, 0]])
        for k, step in enumerate((0.0, 1.0, 3.0, 7.0)):
            prior = (p * bits + (1 - p) * (1 - bits)).log().sum() + logits.log_softmax(-1)[k]
            loc = torch.cat([bits, torch.tensor([step])])
            total.append(prior + dist.Normal(loc, 0.8).log_prob(x).sum(-1))
    return torch.stack(total).double().logsumexp(0)


@pytest.mark.parametrize("rows", [1, 6])
def test_enumeration_is_brute_force(rows):
    x = 2 * torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    found = enumerate_latents(discrete, None, x)
    close(found.log_px, by_hand(x), 2e-5)  # float32
    assert found.method == "enumeration" and found.how == "32 codes of 'bits', 'class'"
    close(enumerate_latents(discrete, None, x, chunk_size=1).log_px, found.log_px, 1e-6)


def test_enumeration_of_codes_in_an_inner_plate():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 3, dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
            pyro.sample("x", dist.Normal(4.0 * z, 1.0), obs=x)

    x = 3 * draws(5, 3)
    each = torch.stack([math.log(p) + dist.Normal(m, 1.0).log_prob(x) for p, m in ((0.3, 0.0), (0.7, 4.0))])
    found = enumerate_latents(model, None, x)
    close(found.log_px, each.logsumexp(0).sum(-1), 1e-10)
    assert found.how.startswith("8 codes")


# broken variants are found


def gamma_poisson_check():
    test_gamma_poisson_is_scipys()


def test_a_missing_jacobian_is_found(monkeypatch):
    add_up, bare = joint.Joint.add_up, partial(dataclasses.replace, log_det={}, on_the_line={})
    monkeypatch.setattr(joint.Joint, "add_up", lambda self, terms, traced: add_up(self, terms, bare(traced)))
    fails(gamma_poisson_check)


def test_grid_weights_that_are_off_are_found(monkeypatch):
    monkeypatch.setattr(trapezoid.Lattice, "log_cell", property(lambda self: (1.01 * self.step).log().sum(-1)))
    fails(gamma_poisson_check)


def test_a_halving_that_is_forgotten_is_found(monkeypatch):
    monkeypatch.setattr(trapezoid.Lattice, "finer", lambda self, factor: self)
    fails(lambda: test_quadrature_is_the_closed_form(2, 0.02))


def test_an_unfair_prior_of_codes_is_found(monkeypatch):
    monkeypatch.setattr(joint.Joint, "add_up", lambda self, terms, log_det: next(iter(terms.values())).double())
    with pytest.raises((AssertionError, ProgramError, RuntimeError)):
        test_enumeration_is_brute_force(6)


def test_one_rows_prior_for_all_is_found(monkeypatch):
    """Without the proof and the comparison row by row, a program that moves with the context would be shared."""
    monkeypatch.setattr(joint.RowReads, "derived", lambda self, values: False)
    monkeypatch.setattr(torch, "allclose", lambda *args, **kwargs: True)
    fails(lambda: test_a_context_has_its_own_prior_and_likelihood_in_each_row(quadrature, 70))
