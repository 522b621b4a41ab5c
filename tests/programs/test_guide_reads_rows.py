"""Guides that read other rows: log p(x) is right, and what is of q(z | x) of a row is told, or refused."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    check,
    decompose,
    encode,
    gaps,
    impute,
    interpolate,
    latents,
    log_likelihood,
    log_weights,
    posterior_draws,
    posterior_predictive_check,
    reconstruct,
    simulation_based_calibration,
    to_datatree,
)
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

    for rows in (X, X[:-1], X[:-2]):  # of other draws
        found = check(in_millions, rounded, 1e6 * rows + 0.37).findings
        assert not [finding for finding in found if finding.kind == "rows"]


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


USES = {
    "encode": lambda guide: encode((model, guide), X),
    "encode, guide alone": lambda guide: encode(guide, X),
    "encode, draws": lambda guide: encode((model, guide), X, num_samples=2),
    "reconstruct": lambda guide: reconstruct((model, guide), X),
    "reconstruct, draws": lambda guide: reconstruct((model, guide), X, num_samples=2),
    "interpolate": lambda guide: interpolate((model, guide), X, X + 1, steps=2),
    "posterior_draws": lambda guide: posterior_draws(model, guide, X, draws=2, num_samples=200, strict=False),
    "to_datatree": lambda guide: to_datatree(model, guide, X, draws=2, num_samples=200, strict=False),
    "impute": lambda guide: impute((model, guide), X, num_samples=20),
    "posterior_predictive_check": lambda guide: posterior_predictive_check(model, guide, X, num_draws=4),
    "log_weights": lambda guide: log_weights(model, guide, X),
    "one by one": lambda guide: log_likelihood(model, guide, X, num_samples=2, vectorize_particles=False),
}


@pytest.mark.parametrize("use", USES)
def test_what_is_handed_out_of_a_guide_that_reads_rows_is_told(use):
    """And of one that does not nothing is said: warnings are errors here."""
    with pytest.warns(CoupledGuideWarning, match="site 'z' of the guide"):
        USES[use](guide_of(LOCS["attention"]))
    USES[use](guide_of(lambda x: x / 2))


@pytest.mark.parametrize("name", LOCS)
def test_a_code_among_other_rows_is_told(name):
    with pytest.warns(CoupledGuideWarning, match="its codes are those of a row among"):
        encode(guide_of(LOCS[name]), X)


def test_a_code_of_a_guide_with_terms_of_a_loss_auxiliary_sites_or_rows_of_its_own_is_told_nothing():
    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(u / 2, 0.9))
            pyro.sample("head", dist.Normal(x - x.mean(0), 1.0), obs=x)  # of the loss alone: no code is of it

    assert encode(guide, X).keys() == {"z"}
    own = pyro.infer.autoguide.AutoNormal(model)
    encode((model, own), X)
    assert len(next(own.parameters())) == len(X)


def test_ranks_of_a_guide_that_reads_rows_are_refused():
    with pytest.raises(ProgramError, match="ranks are tested as those of all rows"):
        simulation_based_calibration(model, guide_of(LOCS["centred"]), X[:1], num_rows=20, num_draws=9)
    simulation_based_calibration(model, guide_of(LOCS["centred"]), X[:1], num_rows=2, num_draws=9, chunk_size=1)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_model_of_coupled_rows_is_refused_however_particles_are_run(vectorized):
    def scaled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1 + x.std(correction=0)), obs=x)

    for asked in (log_likelihood, log_weights):
        with pytest.raises(ProgramError, match="site 'x' of the model has another log-probability for a row"):
            asked(scaled, guide_of(lambda x: x / 2), X, vectorize_particles=vectorized)
