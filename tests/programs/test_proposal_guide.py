"""What a guide observes is no proposal: no number has it in log q, whoever hands the number out."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.cevae import CEVAE

from pyro_vae import (
    Bound,
    ais,
    bracket,
    check,
    decompose,
    defensive,
    elbo,
    gaps,
    iwae,
    latents,
    log_likelihood,
    widened,
)
from pyro_vae import log_weights as weights
from pyro_vae.common.random import seeded
from pyro_vae.diagnostics.sbc import simulation_based_calibration
from pyro_vae.errors import ProgramError
from pyro_vae.programs.problem import Problem
from pyro_vae.programs.proposal_guide import ProposalGuide, as_proposal
from pyro_vae.training.metrics import row_elbo, true_elbo
from tests.helpers.gaussian import gaussian

X = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
EXACT = dist.Normal(X.new_zeros(()), 2**0.5).log_prob(X)
POSTERIOR_SD = 0.5**0.5


def plain(x, sd=POSTERIOR_SD):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, sd))


def head(x):
    with pyro.plate("data", len(x)):
        pyro.sample("head", dist.Normal(x.new_zeros(()), 10.0), obs=x, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(x / 2, POSTERIOR_SD))


def factor(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, POSTERIOR_SD))
        pyro.factor("loss", torch.full_like(x, -5.0), has_rsample=False)


def outside(x):
    plain(x)
    pyro.factor("penalty", x.new_tensor(3.0), has_rsample=True)


def unmarked(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, POSTERIOR_SD))
        pyro.sample("label", dist.Bernoulli(logits=z), obs=(x > 0).to(x))


def deeper(x):
    """The head lies in a plate that the model does not have, left of the data's."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x / 2, POSTERIOR_SD))
        with pyro.plate("views", 3, dim=-2):
            pyro.sample("view", dist.Normal(z, 1.0), obs=x.expand(3, -1))


def conditioned(x):
    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + 0 * y, POSTERIOR_SD))

    return poutine.condition(guide, data={"y": x + 1})(x)


def scaled(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, POSTERIOR_SD))
        with poutine.scale(scale=7.0):
            pyro.sample("head", dist.Normal(x, 1.0), obs=x)


GUIDES = {g.__name__: g for g in (head, factor, outside, unmarked, deeper, conditioned, scaled)}
EVERY = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)


@EVERY
def test_weights_of_the_exact_posterior_are_the_evidence(guide):
    assert (weights(gaussian, guide, X, num_particles=5) - EXACT).abs().max() < 1e-12
    assert (log_likelihood(gaussian, guide, X, num_samples=20, verbose=False).log_px - EXACT).abs().max() < 1e-12
    assert (Bound(elbo).per_row(gaussian, guide, X) - EXACT).abs().max() < 1e-12
    assert (Bound(iwae, 3).per_row(gaussian, guide, X) - EXACT).abs().max() < 1e-12


NUMBERS = {
    "defensive": lambda g: (
        log_likelihood(gaussian, g, X, num_samples=50, proposal=defensive(0.2), verbose=False).log_px
    ),
    "widened": lambda g: log_likelihood(gaussian, g, X, num_samples=50, proposal=widened(1.5), verbose=False).log_px,
    "ais": lambda g: ais(gaussian, g, X, start="guide", num_temperatures=3, num_chains=2, verbose=False).log_px,
    "bracket": lambda g: bracket(gaussian, g, X, num_temperatures=3, num_chains=4, step_size=0.5).upper,
    "gaps": lambda g: gaps(gaussian, g, X, steps=5, verbose=False).best_elbo,
    "decompose": lambda g: decompose(gaussian, g, X, verbose=False).to_dict()["elbo"],
    "latents": lambda g: latents(gaussian, g, X).kl_per_unit,
    "information": lambda g: latents(gaussian, g, X).mutual_information,
    "sbc": lambda g: simulation_based_calibration(gaussian, g, X, num_rows=20, num_draws=9).ranks,
    "logged": lambda g: logged(g)["elbo"],
    "aggressive": lambda g: seeded_rows(g),
}


class StepOf:
    """What the metrics read of a step."""

    def __init__(self, guide):
        self.model, self.guide, self.objective = gaussian, guide, Bound()


def seeded_rows(guide):
    with seeded(0):
        return row_elbo(StepOf(guide), (X,))


def logged(guide):
    with seeded(0):
        return true_elbo(StepOf(guide), (X,))


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("guide", [head, factor, deeper], ids=["head", "factor", "deeper"])
def test_every_number_is_that_of_the_guide_without_its_observed_sites(guide, number):
    """The observed sites draw nothing, so that the random streams are the same: equal up to rounding."""
    got, expected = (torch.as_tensor(number(g), dtype=torch.float64) for g in (guide, plain))
    assert torch.allclose(got, expected, atol=1e-9, rtol=0)


def test_the_number_with_the_head_would_be_another():
    """What is left out matters: weights that keep log q(head) lie two nats above."""
    q = poutine.trace(head).get_trace(X)
    p = poutine.trace(poutine.replay(gaussian, trace=q)).get_trace(X)
    assert p.log_prob_sum() - q.log_prob_sum() > EXACT.sum() + 8


def test_a_plain_guide_is_run_as_it_is():
    guide, plates = as_proposal(gaussian, plain, X)
    assert guide is plain and (plates.data, plates.dim, plates.nesting) == ("data", -1, 1)
    wrapped, plates = as_proposal(gaussian, deeper, X)
    assert isinstance(wrapped, ProposalGuide) and plates.nesting == 2
    nodes = poutine.trace(wrapped).get_trace(X).nodes
    assert "z" in nodes and "view" not in nodes


def test_check_finds_nothing():
    assert str(check(gaussian, head, X)) == str(check(gaussian, outside, X)) == "✓ nothing found"


def test_a_latent_that_the_guide_observes_is_missing_from_it():
    with pytest.raises(ProgramError, match=r"'z' is in the model but not in the guide"):
        weights(gaussian, poutine.condition(plain, data={"z": X}), X)


def test_auxiliary_draws_of_no_latent_are_refused():
    def auxiliary(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a / 2, 1.0))

    with pytest.raises(
        ProgramError, match=r"'a' of the guide is auxiliary: the model does not have it.*Sample it in the model"
    ):
        weights(gaussian, auxiliary, X)

    def extended(x):  # as in auxiliary deep generative models: p(z) p(x | z) p(a | z, x)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("a", dist.Normal(z + x, 1.0))

    estimate = log_likelihood(extended, auxiliary, X, num_samples=4000, verbose=False)
    assert ((estimate.log_px - EXACT).abs() < 4 * estimate.mc_se).all()


def test_a_published_model_with_heads():
    """CEVAE of Pyro: log w is log p(x, t, y, z) − log q(z | x, t, y), by hand off one trace."""
    torch.manual_seed(0)
    cevae = CEVAE(feature_dim=3, outcome_dist="bernoulli", latent_dim=2, hidden_dim=4, num_layers=2)
    x, t, y = torch.randn(6, 3), torch.tensor([0.0, 1] * 3), torch.tensor([1.0, 1, 0] * 2)
    problem = Problem.on(cevae.model, cevae.guide, x, t, y)
    with problem.quiet(0):
        q, p = problem.draw(1)
        log_w = problem.score(p)
        terms = problem.score(q)
    assert set(terms) == {"z"} and set(log_w) == {"z", "x", "t", "y"}
    with problem.quiet(0):
        by_hand = problem.log_probs().log_w
    assert torch.allclose(by_hand, sum(log_w.values()) - terms["z"])
