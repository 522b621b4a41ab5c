"""Imputation against the exact conditional."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae.evidence.imputation as imputation
from pyro_vae import MLP, Conditional, normal
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.imputation import impute, impute_mean
from pyro_vae.models.missing import SkipMissing, WithMask
from tests.helpers.missing import vae_of, with_gaps
from tests.helpers.small import binary

nan = math.nan


def replicas(gappy, n):
    """One row with two gaps, n times: each replica has particles of its own."""
    row = gappy.x[3].clone()
    row[[1, 3]] = nan
    return row, row.repeat(n, 1)


def check_conditional(gappy, row, draws):
    """Mean and covariance of draws (n, 2) against the exact conditional: 4 standard errors of each entry."""
    mean, cov = gappy.conditional(row)
    n = len(draws)
    assert ((draws.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    se = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / n).sqrt()  # of a Gaussian's sample covariance
    assert ((draws.T.cov() - cov).abs() < 4 * se).all()


@pytest.mark.parametrize("posterior", ["exact", "wide"])
def test_imputations_have_the_conditionals_mean_and_covariance(gappy, posterior):
    row, x = replicas(gappy, 3000)
    drawn = impute(gappy.vae(getattr(gappy, posterior)), x, num_samples=200, chunk_size=100_000)
    assert drawn.shape == (1, 3000, 5) and torch.equal(drawn[0][~x.isnan()], x[~x.isnan()])
    check_conditional(gappy, row, drawn[0][:, [1, 3]])


def test_imputation_without_weights_is_caught(gappy, monkeypatch):
    row, x = replicas(gappy, 3000)
    monkeypatch.setattr(imputation, "checked", lambda log_w, *_: torch.zeros_like(log_w))
    drawn = impute(gappy.vae(gappy.wide), x, num_samples=50, chunk_size=100_000)
    with pytest.raises(AssertionError):
        check_conditional(gappy, row, drawn[0][:, [1, 3]])


def test_many_draws_of_one_row(gappy):
    """Draws that share particles (exact posterior): their mean errs by draws and by particles."""
    row, x = replicas(gappy, 1)
    drawn = impute(gappy.vae(gappy.exact), x, num_samples=4000, draws=4000)[:, 0, [1, 3]]
    mean, cov = gappy.conditional(row)
    assert ((drawn.mean(0) - mean).abs() < 4 * (2 * cov.diagonal() / 4000).sqrt()).all()
    assert len(drawn.unique(dim=0)) == 4000  # x is drawn anew, even where two draws share a particle


def test_the_imputed_mean_is_the_conditionals(gappy):
    row, x = replicas(gappy, 300)
    means = impute_mean(gappy.vae(gappy.wide), x, num_samples=1000, chunk_size=100_000)
    assert means.shape == x.shape and torch.equal(means[~x.isnan()], x[~x.isnan()])
    found = means[:, [1, 3]]
    assert ((found.mean(0) - gappy.conditional(row)[0]).abs() < 4 * found.std(0) / 300**0.5).all()
    off = impute_mean(gappy.vae(gappy.exact), gappy.gaps, num_samples=4000) - gappy.gaps.where(~gappy.gaps.isnan(), 0.0)
    for n in (0, 1, 2, 7):  # rows with gaps of their own, and one with nothing observed
        if (gap := gappy.gaps[n].isnan()).any():
            mean, cov = (gappy.conditional(gappy.gaps[n])) if (~gap).any() else (gappy.mean, gappy.cov)
            assert ((off[n][gap] - mean).abs() < 4 * (cov.diagonal() / 4000).sqrt()).all()


def test_imputation_leaves_everything_as_it_was(device):
    vae = vae_of().to(device)
    x = with_gaps(binary(9)).to(device)
    vae.likelihood.eval()
    flags, kept = [m.training for m in vae.modules()], x.clone()
    first = impute(vae, x, num_samples=20, draws=3, seed=1)
    torch.randn(10)
    assert torch.equal(impute(vae, x, num_samples=20, draws=3, seed=1), first)
    assert not torch.equal(impute(vae, x, num_samples=20, draws=3, seed=2), first)
    state = torch.get_rng_state()
    impute_mean(vae, x, num_samples=20)
    impute(vae, x, num_samples=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in vae.modules()] == flags and torch.equal(x.nan_to_num(), kept.nan_to_num())
    assert all(p.grad is None for p in vae.parameters())
    assert set(first[:, x.isnan()].unique().tolist()) <= {0.0, 1.0} and not first.isnan().any()


def test_any_pair_of_programs_with_contexts_levels_and_chunks():
    """Two levels and a label, in one chunk a row; x comes back whole where nothing is missing."""
    likelihood, level = SkipMissing(Conditional(MLP(2 + 3, 8, (8,)), normal)), Conditional(MLP(2, 4, (8,)), normal)
    encoder = Conditional(WithMask(MLP(8 + 3, 4, (8,))), normal)

    def model(x, c):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", level(z2))
            pyro.sample("x", likelihood(z1, c), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", encoder(x, c))
            pyro.sample("z2", level(z1))

    x, c = torch.randn(5, 4), torch.eye(3)[[0, 1, 2, 0, 1]]
    x[1, 2], x[3] = nan, nan
    drawn = impute((model, guide), x, c, num_samples=30, draws=6, chunk_size=1)
    assert drawn.shape == (6, 5, 4) and drawn.isfinite().all()
    assert torch.equal(drawn[:, [0, 2, 4]], x[[0, 2, 4]].expand(6, 3, 4)) and drawn[:, 1, 2].std() > 0
    assert impute_mean((model, guide), x, c, num_samples=30).isfinite().all()


def test_a_model_that_observes_something_else_than_x_is_refused():
    vae = vae_of(normal, 6, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.likelihood(pyro.sample("z", vae.prior())), obs=x + 0)

    with pytest.raises(ProgramError, match="x is observed at 0 sites"):
        impute((model, vae.guide), with_gaps(torch.randn(4, 6)), num_samples=3)


def test_numpy_goes_in(device):
    x = np.where(np.random.default_rng(0).random((4, 6)) < 0.3, np.nan, 1.0).astype(np.float32)
    assert impute(vae_of().to(device), x, num_samples=4).device.type == device.type
