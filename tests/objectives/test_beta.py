"""Beta weighs the KL and nothing else."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyro_vae import Beta, Bound, constant, cyclical, elbo, fit, warmup
from pyro_vae.errors import UsageError
from pyro_vae.programs.pair import owners
from tests.helpers.kl_terms import close
from tests.helpers.small import binary, small_vae

DOUBLE = torch.float64


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("objective", [Bound(elbo, 3), Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)])
def test_beta_weighs_the_kl_and_nothing_else(beta, objective, vae, x):
    """loss = −Σ_n (log p(x | z) − β (log q(z | x) − log p(z))), written down for the same noise."""
    model, guide = Beta(beta).pair(vae)
    torch.manual_seed(3)
    loss = objective.loss(model, guide, x)
    torch.manual_seed(3)
    q = vae.posterior(x)
    z = q.expand((3, 7)).rsample()
    kl = q.log_prob(z) - vae.prior().log_prob(z)
    close(torch.as_tensor(loss, dtype=DOUBLE), -(vae.likelihood(z).log_prob(x) - beta * kl).mean(0).sum().detach())


def test_beta_leaves_observed_and_other_sites_alone(vae, x):
    def model(x):
        vae.model(x)
        pyro.deterministic("d", torch.zeros(7))

    sites = poutine.trace(Beta(0.3)(model)).get_trace(x).nodes
    assert {name: site["scale"] for name, site in sites.items() if site["type"] == "sample"} == {
        "data": 1.0, "z": 0.3, "x": 1.0, "d": 1.0,
    }  # fmt: skip


def test_nothing_of_beta_is_left_on_and_two_are_independent(vae, x):
    objective = Bound(elbo)

    def loss(pair):
        torch.manual_seed(3)
        return objective.loss(*pair, x)

    plain, small, large = (vae.model, vae.guide), Beta(0.1), Beta(4.0)
    alone = loss(plain), loss(small.pair(vae)), loss(large.pair(vae))
    small.at(0.5)
    both = small.pair(large.pair(vae))  # nested, they multiply
    close(loss(both), loss(Beta(0.4).pair(vae)))
    assert (loss(plain), loss(small.pair(vae)), loss(large.pair(vae))) == alone
    close((alone[2] - alone[0]) / 3, (alone[0] - alone[1]) / 0.9)  # linear in β


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [(None, [2.0] * 8), (warmup(constant, 0.5), [0, 0.5, 1, 1.5, 2, 2, 2, 2]), (cyclical(2), [0, 1, 2, 2, 0, 1, 2, 2])],
)
def test_schedules_through_fit(schedule, wanted):
    """β before each of eight steps, and the loss of the first of them."""
    beta, seen = Beta(2.0, schedule), []

    def at(done):
        beta.at(done)
        seen.append(beta.value)

    fit(beta.pair(small_vae(seed=0)), torch.ones(16, 6), epochs=4, batch_size=8, on_step=at, verbose=False)
    assert seen == pytest.approx(wanted)


def test_the_modules_behind_beta_are_found_in_whatever_order_handlers_are(vae):
    """Their mode, dtype and device are what `fit` and evaluation go by."""
    model, guide = Beta(2.0).pair(vae)
    assert owners(model, guide) == owners(poutine.scale(model, 0.5), Beta().pair((model, guide))[1]) == [vae]
    seen = []
    vae.likelihood.register_forward_hook(lambda m, *_: seen.append(m.training))
    fit(
        (model, guide), binary(7, dtype=DOUBLE, seed=1).tolist(), epochs=1, verbose=False
    )  # a list takes the dtype of the parameters
    assert set(seen) == {True, False}


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_beta_is_not_negative(bad):
    with pytest.raises(UsageError, match="beta must be 0 or more"):
        Beta(bad)
