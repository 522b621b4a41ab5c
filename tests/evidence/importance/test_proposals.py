"""Proposals: defensive mixtures and widened guides, unbiased, and what cannot be widened."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.importance import estimator, sampler
from pyro_vae.evidence.importance.proposals import GUIDE, defensive, widen, widened
from tests.helpers.importance import Chain, check_within_errors, checked_once, log_likelihood, narrow_guide

# truth


def test_the_prior_gets_its_share_of_the_particles():
    """⌊wK⌋ or one more, from block to block; the share of a run is w to 1 / K, its mean over starts exactly w."""
    w = defensive(0.1)
    assert sum(w.strata(0.37).from_prior(k, k + 64) for k in range(0, 6400, 64)) == 640
    starts = (torch.arange(1000) + 0.5) / 1000
    assert sum(w.strata(o).from_prior(0, 5) for o in starts.tolist()) / 1000 == pytest.approx(0.5)
    assert all(GUIDE.strata(o).from_prior(0, 100) == 0 for o in (0.0, 0.999999))


def check_fractions_of_particles():
    """wK = 0.5: mean of p̂ / p is 1 within 4 SE over 30 runs, whose rows share a start; half of them have no particle of p."""
    o = Chain(64)
    run = partial(log_likelihood, o.model, o.guide, o.x, num_samples=5, proposal=defensive(0.1))
    with checked_once():
        runs = [run(seed=s) for s in range(30)]
    means = torch.stack([(run.log_px - o.log_px()).exp().mean() for run in runs])
    assert (means.mean() - 1).abs() < 4 * means.std() / 30**0.5


def test_fractions_of_particles_are_unbiased(monkeypatch):
    check_fractions_of_particles()
    monkeypatch.setattr(sampler, "stream", lambda *_: 0)
    with pytest.raises(AssertionError):
        check_fractions_of_particles()


def test_a_defensive_mixture_bounds_the_weights(monkeypatch):
    """w ≤ p(x | z) / weight: with a guide far too narrow it is still reliable where the guide alone is not."""
    monkeypatch.setattr(estimator, "layout_on", lambda *_: (64, 64 * 1250))  # few passes
    o = Chain()
    alone, mixed = (
        log_likelihood(o.model, narrow_guide, o.x, num_samples=5000, proposal=p) for p in (GUIDE, defensive(0.1))
    )
    assert len(alone.flagged) > 100 and alone.khat.median() > 0.7
    assert len(mixed.flagged) < len(alone.flagged) / 4 and mixed.khat.median() < 0
    assert mixed.mc_se.mean() < alone.mc_se.mean() / 3
    good = mixed.reliable
    off = (mixed.log_px - o.log_px())[good]
    assert off.mean().abs() < 4 * mixed.mc_se[good].square().sum().sqrt() / len(off)
    densest = dist.Normal(0.0, 1.0).log_prob(torch.zeros(()))
    bound = densest - math.log(0.1) - mixed.log_px - math.log(5000)
    assert (mixed.max_share.log() <= bound + 1e-6).all()


def test_widening_helps_a_narrow_guide():
    o = Chain()
    alone, wide = (
        log_likelihood(o.model, narrow_guide, o.x, num_samples=2000, proposal=p) for p in (GUIDE, widened(4.0))
    )
    assert len(wide.flagged) < 5 < 100 < len(alone.flagged) and wide.elbo.mean() > alone.elbo.mean() - 5
    check_within_errors(wide, o.log_px())


# what is refused


@pytest.mark.parametrize("d", [dist.Gamma(2.0, 1.0), dist.Delta(torch.zeros(())), dist.Categorical(torch.ones(3))])
def test_only_location_and_scale_can_be_widened(d):
    with pytest.raises(ProgramError, match=rf"site 'z' of the guide is a {type(d).__name__}.*defensive"):
        widen(d, 2.0, "z")


@pytest.mark.parametrize(
    "d",
    [
        dist.Normal(1.0, 2.0),
        dist.StudentT(5.0, 1.0, 2.0),
        dist.Laplace(torch.ones(2), 2.0).to_event(1),
        dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        dist.LowRankMultivariateNormal(torch.ones(2), torch.ones(2, 1), torch.ones(2)),
        dist.Normal(torch.ones(3, 2), 2.0).to_event(1).expand([3]),
    ],
)
def test_widening_multiplies_the_standard_deviation(d):
    wide = widen(d, 3.0, "z")
    torch.testing.assert_close(wide.variance, 9 * d.variance)
    torch.testing.assert_close(wide.mean, d.mean)
    assert wide.shape() == d.shape()


def test_widening_a_lognormal_is_in_its_logarithm():
    wide = widen(dist.LogNormal(0.3, 0.5), 2.0, "z")
    assert (wide.loc, wide.scale) == (0.3, 1.0)
    flow = dist.TransformedDistribution(dist.Normal(0.3, 0.5), [dist.transforms.ExpTransform()])
    z = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(widen(flow, 2.0, "z").log_prob(z), wide.log_prob(z))


@pytest.mark.parametrize(
    "wrong", [partial(defensive, 1.0), partial(defensive, -0.1), partial(widened, 0.0), partial(widened, math.inf)]
)
def test_proposals_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        wrong()
