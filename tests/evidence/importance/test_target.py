"""K under a target error: from a pilot of other draws, so that p̂ stays unbiased; one particle is never enough."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import UnreliableError
from pyro_vae.evidence.importance import estimator, sampler, target
from pyro_vae.evidence.importance.proposals import GUIDE, defensive, widened
from pyro_vae.evidence.importance.result import Evidence
from tests.helpers.bits import same
from tests.helpers.environment import HEAVY
from tests.helpers.importance import Chain, checked_once, log_likelihood, of_weights

REPETITIONS = 1500 if HEAVY else 120
X = torch.tensor([1.0], dtype=torch.float64)
EXACT = dist.Normal(torch.zeros((), dtype=torch.float64), 2**0.5).log_prob(X)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def narrow(x):
    """The posterior is N(x / 2, 1/2): weights have all but a finite variance, and few show it."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.74 * 0.5**0.5))


def off_centre(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 - 0.9, 0.5**0.5))


def runs(guide, monkeypatch, repetitions=REPETITIONS, **options):
    """One row under a target, so many times: copies of it, each a block whose draws and K are its own."""
    monkeypatch.setattr(estimator, "layout_on", lambda *_: (1, 4096))
    monkeypatch.setattr(sampler, "ROWS", 1)  # a stream for each
    x = X.expand(repetitions)
    with checked_once():
        return log_likelihood(model, guide, x, num_samples=8, target_se=0.3, max_samples=4000, **options)


def check_unbiased(guide, monkeypatch, **options):
    """The mean of p̂ / p is 1 within 4 of its standard errors, sd / √repetitions; K is not always the same."""
    evidence = runs(guide, monkeypatch, **options)
    ratio = (evidence.log_px - EXACT).exp()
    assert len(evidence.samples.unique()) > 1
    assert (ratio.mean() - 1).abs() < 4 * ratio.std() / len(ratio) ** 0.5, f"{ratio.mean():.4f} after {len(ratio)}"


CASES = {"off-centre": (off_centre, GUIDE), "defensive": (off_centre, defensive(0.2))}
if HEAVY:
    CASES |= {"narrow": (narrow, GUIDE), "widened": (narrow, widened(1.2))}


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_stays_unbiased(case, monkeypatch):
    guide, proposal = CASES[case]
    check_unbiased(guide, monkeypatch, proposal=proposal)


def test_a_number_of_particles_that_their_own_draws_choose_fails(monkeypatch):
    """The pilot's stream is the evaluation's: K rises until these draws look good, which is where the mean is too low."""
    monkeypatch.setattr(target, "stream", lambda seed, *_: seed)
    monkeypatch.setattr(target, "AHEAD", 1)
    monkeypatch.setattr(target, "FEWEST", 8)
    with pytest.raises(AssertionError):
        check_unbiased(off_centre, monkeypatch, repetitions=max(REPETITIONS, 160))


def test_the_pilot_does_not_show_in_the_numbers():
    """The draws are those of as many `num_samples`; parts of rows, and what goes on from a resumed part, choose the same K."""
    o = Chain(150)
    options = {"num_samples": 30, "target_se": 0.05, "max_samples": 3000}
    whole = log_likelihood(o.model, o.guide, o.x, **options)
    parts = [log_likelihood(o.model, o.guide, o.x, rows=r, **options) for r in (range(64, 150), range(0, 64))]
    assert same(Evidence.merge(parts), whole)
    started = log_likelihood(o.model, o.guide, o.x, num_samples=30)
    assert same(log_likelihood(o.model, o.guide, o.x, resume=started, **options), whole)


@pytest.mark.parametrize("k", [1, 2, 24])
def test_few_particles_are_never_reliable(k):
    """Not even where all weights are the same: one always is, and ten of a guide that misses the posterior may be."""
    evidence = of_weights(torch.full((k, 3), -2.0, dtype=torch.float64))
    assert evidence.flagged.tolist() == [0, 1, 2]
    assert "K is below 25, too few for a k̂" in evidence.why_flagged() and "k̂ takes 25 particles" in str(evidence)
    o = Chain(5)
    with pytest.raises(UnreliableError, match="K is below 25"):
        log_likelihood(o.model, o.guide, o.x, num_samples=k, strict=True)


def test_equal_weights_of_enough_particles_are_reliable():
    assert len(of_weights(torch.full((25, 3), -2.0, dtype=torch.float64)).flagged) == 0


def test_one_part_with_few_particles_flags_its_rows_alone():
    o = Chain(100)
    many = log_likelihood(o.model, o.guide, o.x, num_samples=2000, rows=range(0, 64))
    few = log_likelihood(o.model, o.guide, o.x, num_samples=20, rows=range(64, 100))
    assert set(range(64, 100)) <= set(Evidence.merge([many, few]).flagged.tolist())
