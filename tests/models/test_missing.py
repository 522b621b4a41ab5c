"""Missing data against the exact Gaussian marginal and conditional; NaN nowhere else, and in no gradient."""

import math
from functools import partial

import pyro
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from pyro_vae import MLP, VAE, ConvEncoder, bernoulli, binomial, encode, reconstruct
from pyro_vae import fit as noisy_fit
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.data import as_rows, batch_of
from pyro_vae.errors import DataError, ProgramError, SupportError
from pyro_vae.evidence.imputation import impute
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.programs.problem import Problem
from tests.helpers.missing import vae_of, with_gaps
from tests.helpers.small import binary, small_vae

fit, log_likelihood = partial(noisy_fit, verbose=False), partial(noisy_log_likelihood, verbose=False)
nan = math.nan


# log p(x_obs)


def check_log_px(evidence, exact):
    """5 Monte Carlo standard errors in each row, 4 in the mean."""
    off = evidence.log_px - exact.cpu()
    assert (off.abs() <= 5 * evidence.mc_se).all()
    assert off.mean().abs() < 4 * evidence.mc_se.square().sum().sqrt() / len(off)


def test_log_px_is_the_gaussian_marginal(gappy):
    vae = gappy.vae(gappy.wide)
    evidence = log_likelihood(vae.model, vae.guide, gappy.gaps, num_samples=3000)
    check_log_px(evidence, gappy.log_px(gappy.gaps))
    assert (evidence.mc_se > 0).all()
    filled = torch.where(gappy.gaps.isnan(), gappy.mean, gappy.gaps)  # masked entries counted, at a filled-in value
    with pytest.raises(AssertionError):
        check_log_px(log_likelihood(vae.model, vae.guide, filled, num_samples=3000), gappy.log_px(gappy.gaps))


def test_with_the_exact_posterior_of_what_is_observed_every_weight_is_p_of_it(gappy):
    vae = gappy.vae(gappy.exact)
    log_w = Problem.on(vae.model, vae.guide, gappy.gaps).log_probs(20).log_w
    torch.testing.assert_close(log_w, gappy.log_px(gappy.gaps).expand(20, -1), rtol=0, atol=1e-8)


def test_a_row_with_nothing_observed_scores_zero(gappy):
    """So its ELBO is −KL(q(z | nothing) || p(z)), within 4 standard errors."""
    x = gappy.gaps[7:8]
    vae = gappy.vae(gappy.wide)
    terms = Problem.on(vae.model, vae.guide, x).log_probs(4000)
    assert (terms.reconstruction == 0).all()
    q = gappy.wide(x)
    kl = 0.5 * (q.covariance_matrix[0].trace() + q.loc.square().sum() - 2 - q.covariance_matrix[0].logdet())
    assert (terms.log_w.mean() + kl).abs() < 4 * terms.log_w.std() / 4000**0.5
    assert log_likelihood(vae.model, gappy.vae(gappy.exact).guide, x, num_samples=5).log_px.abs() < 1e-8


# the encoder


def test_the_encoder_sees_values_and_mask():
    x = torch.tensor([[1.0, nan], [nan, 4.0]])
    seen = WithMask(nn.Identity())(x)
    assert seen.tolist() == [[1, 0, 1, 0], [0, 4, 0, 1]]
    assert WithMask(nn.Identity(), torch.tensor([7.0, 8.0]))(x).tolist() == [[1, 8, 1, 0], [7, 4, 0, 1]]
    assert WithMask(MLP(4 + 3, 2))(x, torch.zeros(2, 3)).shape == (2, 2)
    assert WithMask(ConvEncoder(4, shape=(2, 8, 8), width=2))(torch.full((3, 64), nan)).shape == (3, 4)
    assert WithMask(nn.Identity()).double()(x.double()).dtype == torch.float64


# what is refused


@pytest.mark.parametrize("use", ["fit", "log_likelihood", "encode", "reconstruct"])
def test_nan_is_refused_without_wrappers_and_infinity_with_them(use):
    run = {
        "fit": lambda vae, x: fit(vae, x, epochs=1),
        "log_likelihood": lambda vae, x: log_likelihood(vae.model, vae.guide, x, num_samples=2),
        "encode": encode,
        "reconstruct": reconstruct,
    }[use]
    x = binary(7)
    x[4, 2] = nan
    plain = small_vae()
    with pytest.raises(DataError, match=r"x has NaN or infinite values in 1 of 7 rows: 4 .* column 2"):
        run(plain, x)
    blind = VAE(plain.prior, SkipMissing(plain.likelihood), plain.posterior)
    with pytest.raises(ProgramError, match="WithMask"):
        run(blind, x)
    run(vae_of(), x)
    x[5, 3] = math.inf
    with pytest.raises(DataError, match=r"x has infinite values in 1 of 7 rows: 5 .* column 3"):
        run(vae_of(), x)


@pytest.mark.parametrize("family", [bernoulli, binomial(16)])
def test_a_plain_likelihood_under_an_encoder_that_takes_nan_is_refused_by_row(family):
    x = binary(7)
    x[4, 2] = nan
    vae = vae_of(family)
    bare = VAE(vae.prior, vae.likelihood.likelihood, vae.posterior)
    match = r"1 of 7 rows .*: row 4 holds nan in column 2 .* SkipMissing"
    for run in (partial(fit, bare, epochs=1), partial(log_likelihood, bare.model, bare.guide), partial(impute, bare)):
        with pytest.raises(SupportError, match=match):
            run(x)


def test_values_outside_the_support_are_named_beside_missing_ones():
    x = binary(7)
    x[4, 2], x[4, 3] = nan, 0.5
    with pytest.raises(
        SupportError, match=r"Bernoulli \(0 or 1, or NaN where missing\): row 4 holds 0.5 .*3.* binarize"
    ):
        fit(vae_of(), x, epochs=1)


def test_plain_functions_take_missing_values_where_a_module_that_they_close_over_does(gappy):
    likelihood, plain = SkipMissing(gappy.likelihood), gappy.likelihood

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", gappy.prior())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", gappy.exact(x))

    def blind(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", plain(pyro.sample("z", gappy.prior())), obs=x)

    with pytest.raises(DataError, match="NaN"):
        log_likelihood(blind, guide, gappy.gaps)
    evidence = log_likelihood(model, guide, gappy.gaps, num_samples=3)
    torch.testing.assert_close(evidence.log_px, gappy.log_px(gappy.gaps).cpu(), rtol=0, atol=1e-8)
    with pytest.raises(SupportError, match=r"Normal .* row 0 holds nan"):
        log_likelihood(gappy.model, guide, torch.full_like(gappy.x, nan), missing=True)


def test_rows_and_contexts():
    x = torch.tensor([[1.0, nan]])
    assert as_rows(x, missing=True) is not None and as_rows(x.numpy(), missing=True).isnan().any()
    for wrong in (partial(as_rows, x), partial(as_rows, x, dtype=torch.int64, missing=True)):
        with pytest.raises(DataError, match="x has NaN or infinite"):
            wrong()
    with pytest.raises(DataError, match="context 0 has NaN or infinite"):
        batch_of(x.nan_to_num(), x)
    assert batch_of(x, x, missing=True)[1].isnan().any()  # of a modality, which is observed, as x is


# training


def test_digits_with_gaps_train_and_held_out_log_px_improves(device):
    x = with_gaps(torch.tensor(load_digits().data, dtype=torch.float32), 0.3).to(device)
    train, held = x[:1200], x[1200:1400]
    vae = vae_of(binomial(16), 64, hidden=(32,)).to(device)
    before = log_likelihood(vae.model, vae.guide, held, num_samples=20)
    run = fit(vae, train, validation=held, epochs=10, batch_size=100)
    after = log_likelihood(vae.model, vae.guide, held, num_samples=20)
    gain = after.log_px - before.log_px
    assert gain.mean() > 4 * gain.std() / 200**0.5
    assert all(p.isfinite().all() for p in vae.parameters())
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]
    assert encode(vae, held).isfinite().all() and reconstruct(vae, held).isfinite().all()
