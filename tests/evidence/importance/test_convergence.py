"""Evidence of the first K particles, K rising: nested, computed once, and at each K what the bound should be."""

from itertools import pairwise

import pytest
import torch

from pyro_vae import log_likelihood
from pyro_vae.errors import UsageError
from pyro_vae.evidence.importance.convergence import convergence
from tests.helpers.conjugate import GammaPoisson

PAIR = GammaPoisson()
X = torch.arange(70).remainder(9).double()  # two blocks of rows
SAMPLES = (1, 3, 40, 100, 150)


@pytest.fixture(scope="module")
def found():
    return convergence(PAIR.model, PAIR.guide, X, samples=SAMPLES, seed=3, verbose=False)


def test_the_last_is_what_log_likelihood_says(found):
    whole = log_likelihood(PAIR.model, PAIR.guide, X, num_samples=SAMPLES[-1], seed=3, verbose=False)
    for field in ("log_px", "mc_se", "ess", "elbo", "khat", "jackknife"):
        assert torch.equal(getattr(found[-1], field), getattr(whole, field)), field
    assert [evidence.num_samples for evidence in found] == list(SAMPLES)
    assert all((evidence.counts == k).all() for evidence, k in zip(found, SAMPLES, strict=True))


def test_each_holds_the_particles_of_the_one_before(found):
    """K p̂_K − J p̂_J is the sum of the weights between, which a run of those particles alone gives, too."""
    assert torch.allclose(found[0].log_px, found[0].elbo, atol=1e-12)  # one weight
    for low, high in pairwise(found):
        between = range(low.num_samples, high.num_samples)
        alone = log_likelihood(
            PAIR.model, PAIR.guide, X, num_samples=SAMPLES[-1], particles=between, seed=3, verbose=False
        )
        total = low.num_samples * low.log_px.exp() + len(between) * alone.log_px.exp()
        assert torch.allclose(total, high.num_samples * high.log_px.exp(), rtol=1e-10)


def test_the_bound_rises_to_log_px(found):
    """Mean over rows at each K: at most 4 standard errors over rows above log p(x), at the last K as little below it."""
    exact = PAIR.log_px(X)
    differences = [evidence.log_px - exact for evidence in found]
    means = [d.mean().item() for d in differences]
    errors = [d.std().item() / len(d) ** 0.5 for d in differences]
    assert all(m < 4 * se for m, se in zip(means, errors, strict=True))
    assert abs(means[-1]) < 4 * errors[-1] and means[0] < -3 * errors[0]


def test_no_block_of_particles_is_run_twice():
    """192 runs of the model for K = 192, beside those that look at the programs, not 64 + 128 + 192."""
    runs = []

    def model(x):
        runs.append(1)
        PAIR.model(x)

    def count(samples):
        runs.clear()
        convergence(model, PAIR.guide, X[:64], samples=samples, vectorize_particles=False, verbose=False)
        return len(runs)

    looks = count((64,)) - 64
    assert 0 < looks < 100
    assert count((64, 128, 192)) == 192 + 3 * looks


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": (10, 5)}, "must rise"),
        ({"samples": (5, 5)}, "must rise"),
        ({"samples": ()}, "must rise"),
        ({"samples": (0, 5)}, "must rise"),
        ({"target_se": 0.1}, "convergence.. has no argument 'target_se'"),
        ({"num_samples": 5, "strict": True}, "convergence.. has no argument 'num_samples'; did you mean 'samples'?"),
    ],
)
def test_refuses_what_contradicts_the_samples(options, said):
    with pytest.raises(UsageError, match=said):
        convergence(PAIR.model, PAIR.guide, X, **options)
