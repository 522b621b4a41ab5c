"""Wrong variants of the gradient estimators, which the tests of the right ones find."""

import pytest
import torch

from pyro_vae import Bound, ciwae, elbo, gdreg, iwae, renyi, stl
from pyro_vae.objectives.gradient_estimators import first
from tests.helpers.gradient_programs import (
    CATEGORICAL,
    Exact,
    categorical_guide,
    categorical_model,
    categorical_states,
    compare,
    exact_gradient,
    gradients,
    t_values,
    wrong,
)

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}


def path_not_squared(draw, bound):
    """w̃ for the path in place of w̃²: what STL does to IWAE."""
    a = first(bound, draw.log_w)
    return bound(draw.log_w), draw.surrogate(a, a, torch.zeros_like(a))


def path_of_another_bound(draw, bound):
    """IWAE's w̃² under another bound."""
    a = first(bound, draw.log_w)
    return bound(draw.log_w), draw.surrogate(a, draw.log_w.detach().softmax(0) ** 2, torch.zeros_like(a))


def score_by_its_own_path(draw, bound):
    """log q is held at each site's own value, and not at those that later sites were given."""
    a, run = first(bound, draw.log_w), draw.first
    own = sum(site["fn"].log_prob(site["value"].detach()) for site in run.q.values())
    return bound(draw.log_w), (a * (draw.log_w + own)).sum(0)


def baseline_of_its_own_particle(draw, bound):
    """VIMCO with the mean of all particles in the baseline: it depends on what it is a baseline for."""
    log_w, log_q = draw.log_w.detach(), draw.terms.posterior["z"]
    signal = bound(log_w) - log_w.mean(0) - 0.5 * log_w
    return bound(draw.log_w), draw.surrogate(first(bound, draw.log_w)) + (signal * log_q).sum(0)


def prior_without_the_likelihood(draw, bound):
    """GDReG's path through the prior, but for the likelihood's part of it."""
    a, run = first(bound, draw.log_w), draw.first
    value, surrogate = gdreg.function(draw, bound)
    z, base = run.values["z"], run.p["z"]["fn"].base_dist
    gradient = torch.autograd.grad((a * run.terms.reconstruction).sum() / 1, z, retain_graph=True)[0]
    noise = ((z - base.loc) / base.scale).detach()
    return value, surrogate - (gradient * (base.loc + base.scale * noise)).sum((0, -1))


@pytest.mark.parametrize(
    ("function", "bound", "program"),
    [
        (path_not_squared, iwae, "one"),
        (path_not_squared, iwae, "two"),
        (path_of_another_bound, renyi(0.5), "one"),
        (path_of_another_bound, ciwae(0.3), "two"),
        (prior_without_the_likelihood, iwae, "one"),
    ],
)
def test_wrong_estimators_are_rejected(function, bound, program):
    assert compare(bound, wrong(function, weighable=True), program)[0] > 10


def test_stl_is_biased_where_it_says_so():
    assert compare(iwae, stl, "one")[0] > 10


def test_a_score_that_ignores_how_sites_hang_together_is_found():
    """Under the ELBO its mean is right, and it does not stick the landing."""
    objective = Bound(elbo, 4, estimator=wrong(score_by_its_own_path))
    exact = Exact()
    assert exact.largest(objective, 1) < 1e-8
    assert exact.largest(objective, 2) > 0.1


def test_a_baseline_of_its_own_particle_is_rejected():
    truth = exact_gradient(categorical_states, CATEGORICAL, iwae, 3)
    objective = Bound(iwae, 3, estimator=wrong(baseline_of_its_own_particle, needs_path=False))
    found = gradients(objective, categorical_model, categorical_guide, CATEGORICAL, rows=20_000)
    assert t_values(found["logits"], truth["logits"]).abs().max() > 10
