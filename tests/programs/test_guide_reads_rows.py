"""Guides that read other rows: log p(x) is right, and what is of q(z | x) of a row is told, or refused."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import check, decompose, gaps, latents, log_likelihood
from pyro_vae.errors import CoupledGuideWarning, ProgramError

X = torch.tensor([0.3, -1.2, 2.0, 0.0, 1.1])
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X.double())
LOCS = {
    "centred": lambda x: (x - x.mean(0)) / 2,
    "attention": lambda x: (-(x - x[:, None]).square()).softmax(-1) @ x / 2,
    "greatest": lambda x: x / 2 + 0.1 * (x == x.max()),
    "number of rows": lambda x: x / 2 + 1.0 / len(x),
    "neighbour": lambda x: x / 2 + 0.1 * x.roll(1, 0),
}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of(loc):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), 0.9))

    return guide


@pytest.mark.parametrize("name", LOCS)
def test_log_px_is_right_and_the_elbo_is_told(name):
    guide = guide_of(LOCS[name])
    with pytest.warns(CoupledGuideWarning, match="site 'z' of the guide"):
        found = log_likelihood(model, guide, X, num_samples=2000)
    assert ((found.log_px - EXACT).abs() < 4 * found.mc_se).all()
    (finding,) = check(model, guide, X).findings
    assert (finding.kind, finding.level, finding.where) == ("rows", "warning", "site 'z' of the guide")


@pytest.mark.parametrize("name", ["centred", "neighbour"])
def test_what_compares_posteriors_of_rows_is_refused(name):
    for asked in (decompose, latents):
        with pytest.raises(ProgramError, match=r"there is no q\(z \| x\) of a row by itself"):
            asked(model, guide_of(LOCS[name]), X)
    with pytest.warns(CoupledGuideWarning):
        gaps(model, guide_of(LOCS[name]), X, steps=2, num_samples=10)


def test_rows_with_noise_of_their_own_are_run_alone():
    guide = guide_of(LOCS["centred"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [log_likelihood(model, guide, x, noise="row", num_samples=50) for x in (X, X[:2])]
    assert torch.equal(found[0].elbo[:2], found[1].elbo)


def test_guides_of_rows_alone_are_told_nothing():
    for loc in (lambda x: x / 2, lambda x: (x - 0.4) / 2, lambda x: torch.where(x > 1, x, x / 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log_likelihood(model, guide_of(loc), X, num_samples=20)
        assert not check(model, guide_of(loc), X).findings


@pytest.mark.parametrize("scale", [0.05, 1.0, 20.0])
def test_numbers_rounded_otherwise_in_a_batch_of_another_size_are_none_of_other_rows(scale):
    """As by a network whose products depend on how many rows there are, of rows in millions."""

    def in_millions(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1e6))
            pyro.sample("x", dist.Normal(z, 1e6), obs=x)

    def rounded(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x / 2 + 1e6 * len(x)) - 1e6 * len(x), scale))

    assert not [finding for finding in check(in_millions, rounded, 1e6 * X + 0.37).findings if finding.kind == "rows"]


def test_rows_in_millions_that_are_centred_are_told():
    def in_millions(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1e6))
            pyro.sample("x", dist.Normal(z, 1e6), obs=x)

    def centred(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - x.mean(0)) / 2, 1e6))

    assert [finding.kind for finding in check(in_millions, centred, 1e6 * X).findings] == ["rows"]


def test_a_site_that_a_model_has_in_small_batches_alone_is_no_rounding():
    def of_few(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            if len(x) < 4:
                pyro.sample("few", dist.Normal(torch.zeros(len(x)), 1.0), obs=torch.ones(len(x)))

    with pytest.raises(ProgramError, match="site 'few' of the model has another log-probability for a row"):
        log_likelihood(of_few, guide_of(lambda x: x / 2), X, num_samples=20)
