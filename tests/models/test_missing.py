"""Missing data against the exact Gaussian marginal and conditional; NaN nowhere else, and in no gradient."""

import inspect
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import pyro_vae.evidence.imputation as imputation
from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    ConvEncoder,
    StandardNormal,
    bernoulli,
    binomial,
    encode,
    likelihoods,
    normal,
    reconstruct,
)
from pyro_vae import fit as noisy_fit
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.common.random import seeded
from pyro_vae.data import as_rows, batch_of
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import DataError, ProgramError, SupportError
from pyro_vae.evidence.imputation import impute, impute_mean
from pyro_vae.models.missing import SkipMissing, WithMask
from pyro_vae.programs.problem import Problem
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import binary, small_vae

fit, log_likelihood = partial(noisy_fit, verbose=False), partial(noisy_log_likelihood, verbose=False)
nan = math.nan


def with_gaps(x, share=0.3, seed=0):
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return x.masked_fill(gaps.to(x.device), nan)


class Gappy(LinearGaussian):
    """The linear-Gaussian oracle with missing entries: marginal, posterior and conditional of each row in closed form."""

    def __init__(self, device="cpu"):
        super().__init__(device=device)
        self.gaps = with_gaps(self.x)
        self.gaps[7] = nan

    def exact(self, x):
        """q(z | x_obs) = N(loc_n, cov_n): the columns that are missing carry no precision."""
        weight = (~x.isnan()).to(x) / self.noise
        precision = torch.eye(2).to(x) + torch.einsum("id,nd,jd->nij", self.a, weight, self.a)
        loc = (weight * (x - self.mean).nan_to_num()) @ self.a.T
        return dist.MultivariateNormal(torch.linalg.solve(precision, loc), precision_matrix=precision)

    def wide(self, x):
        """Off by half a standard deviation and twice the variance: weights of finite variance that matter."""
        q = self.exact(x)
        return dist.MultivariateNormal(q.loc + q.stddev / 2, covariance_matrix=2 * q.covariance_matrix)

    def vae(self, posterior):
        return VAE(self.prior, SkipMissing(self.likelihood), posterior)

    @property
    def cov(self):
        return self.a.T @ self.a + self.noise.diag()

    def log_px(self, x):
        """log N(x_obs; mean_obs, cov_obs), row by row."""
        rows = []
        for row in x:
            o = ~row.isnan()
            p = dist.MultivariateNormal(self.mean[o], self.cov[o][:, o]) if o.any() else None
            rows.append(p.log_prob(row[o]) if p else row.new_zeros(()))
        return torch.stack(rows)

    def conditional(self, row):
        """Mean and covariance of x_mis | x_obs."""
        m, o = row.isnan(), ~row.isnan()
        gain = self.cov[m][:, o] @ self.cov[o][:, o].inverse()
        return self.mean[m] + gain @ (row[o] - self.mean[o]), self.cov[m][:, m] - gain @ self.cov[o][:, m]


@pytest.fixture
def gappy(device):
    return Gappy(device)


def vae_of(family=bernoulli, width=6, features=1, hidden=(8,)):
    decoder = Conditional(MLP(2, features * width, hidden), family)
    return VAE(StandardNormal(2), SkipMissing(decoder), Conditional(WithMask(MLP(2 * width, 4, hidden), 0.5), normal))


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


# the likelihood


WIDTH = 6
GIVEN = {"total_count": 16, "num_classes": 3, "dim": WIDTH}
NOT_ELEMENTWISE = {"multinomial", "columns"}  # refused, and tested by itself
TABLE = getattr(likelihoods, "FAMILIES", {})
FAMILIES = sorted({*TABLE, "bernoulli", "binomial", "normal"} - NOT_ELEMENTWISE)


def made(name):
    """A family, and how many features an element it takes."""
    if name not in TABLE:
        return {"bernoulli": (bernoulli, 1), "binomial": (binomial(16), 1), "normal": (normal, 2)}[name]
    options = {o: GIVEN[o] for o, default in TABLE[name].options.items() if default is inspect.Parameter.empty}
    return TABLE[name].make(**options), TABLE[name].num_features(**options)


def elementwise(name, batch=(5,)):
    """Features (*batch, n WIDTH), the family over them, and a draw of it in their dtype."""
    family, features = made(name)
    h = torch.randn(*batch, features * WIDTH, dtype=torch.float64, requires_grad=True)
    d = family(h)
    d = d.to_event(1 - d.event_dim)
    return h, d, d.sample().detach().to(h.dtype)


@pytest.mark.parametrize("batch", [(), (5,), (3, 5)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_under_missing_values(name, batch):
    _, d, x = elementwise(name, batch)
    torch.testing.assert_close(Observed(d).log_prob(x), d.log_prob(x), rtol=1e-13, atol=1e-13)
    shared = x if len(batch) < 2 else x[0]  # rows under particles
    torch.testing.assert_close(Observed(d).log_prob(shared), d.log_prob(shared), rtol=1e-13, atol=1e-13)
    gaps = with_gaps(shared, 0.5)
    inner = d.base_dist.log_prob(shared)
    expected = inner.where(~gaps.isnan(), torch.zeros(())).sum(-1)
    observed = Observed(d)
    torch.testing.assert_close(observed.log_prob(gaps), expected)
    assert observed.support.check(gaps).all() and not d.support.check(gaps).all()
    wider = observed.expand((2, *batch))
    assert wider.batch_shape == (2, *batch) and wider.sample().shape == (2, *batch, *d.event_shape)
    torch.testing.assert_close(wider.log_prob(gaps), expected.expand(2, *batch))


def gradients(log_prob, name):
    """Of log p, with all of column 0 and all of row 1 missing, by the features."""
    h, d, x = elementwise(name)
    x[:, 0], x[1] = nan, nan
    x.requires_grad_()
    torch.autograd.backward(log_prob(d, x).sum())
    return h.grad, x


def check_gradients(log_prob, name):
    grad, x = gradients(log_prob, name)
    assert grad.isfinite().all() and grad.abs().sum() > 0
    per_element = grad.reshape(5, -1, x.shape[-1])  # features of one element: every width-th column
    assert (per_element[..., 0] == 0).all() and (per_element[1] == 0).all()
    assert x.grad is None or (x.grad.isfinite().all() and (x.grad[x.isnan()] == 0).all())


def nan_times_zero(d, x):
    """Broken: NaN goes through log_prob, and is dropped after."""
    with pyro.validation_enabled(False):
        return torch.where(x.isnan(), torch.zeros(()).to(x), d.base_dist.log_prob(x)).sum(-1)


def counted(d, x):
    """Broken: missing entries are counted, as zeros."""
    return d.log_prob(x.nan_to_num())


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_entries_have_no_gradient(name):
    check_gradients(lambda d, x: Observed(d).log_prob(x), name)


@pytest.mark.parametrize("broken", [nan_times_zero, counted])
def test_wrong_skipping_is_caught(broken):
    with pytest.raises(AssertionError):
        check_gradients(broken, "normal")


@pytest.mark.parametrize(
    "d",
    [
        dist.Normal(torch.tensor([1e20, -1e20]), 1e-4),  # at 0 its density is 0 and its gradient infinite
        dist.Cauchy(torch.zeros(2), 1.0),  # no mean
        dist.StudentT(0.5, torch.zeros(2), 1.0),
        dist.LogNormal(torch.full((2,), 200.0), 1.0),  # its mean overflows
        dist.Gamma(torch.tensor([0.1, 2.0]), 1.0),
        dist.Beta(torch.tensor([0.1, 2.0]), 0.1),
        dist.Uniform(torch.tensor([3.0, 4.0]), 5.0),
        dist.Poisson(torch.tensor([3.0, 4.0])),
        dist.Geometric(torch.tensor([0.3, 0.4])),
        dist.Pareto(torch.tensor([3.0, 4.0]), 0.5),
        dist.Categorical(torch.ones(2, 3)),
        dist.ContinuousBernoulli(torch.tensor([0.3, 0.5])),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2, 3)), dist.Normal(torch.zeros(2, 3), 1.0)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_what_stands_in_for_missing_values_lies_in_the_support(d):
    """Torch's validation, on here, would refuse it otherwise; its gradient is finite."""
    leaves = [v for v in vars(d).values() if isinstance(v, torch.Tensor) and v.is_floating_point() and v.is_leaf]
    for leaf in leaves:
        leaf.requires_grad_()
    log_p = Observed(d.to_event(1)).log_prob(torch.full((2,), nan))
    assert log_p == 0
    found = torch.autograd.grad(log_p, leaves, allow_unused=True) if log_p.requires_grad else ()
    assert all((g == 0).all() for g in found if g is not None)


@pytest.mark.parametrize(
    "d",
    [
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.Multinomial(4, torch.ones(3)),
        dist.OneHotCategorical(torch.ones(2, 3)).to_event(1),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2, 3), 1.0).to_event(1)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_a_likelihood_that_does_not_factorise_is_refused(d):
    name = "OneHotCategorical" if type(d).__name__ == "Independent" else type(d).__name__
    with pytest.raises(ProgramError, match=f"{name} .* does not factorise over elements"):
        SkipMissing(lambda z: d)(torch.zeros(2))


def test_draws_and_moments_are_the_bases():
    base = dist.Normal(torch.randn(5, 4, requires_grad=True), 2.0).to_event(1)
    d = Observed(base)
    assert torch.equal(d.mean, base.mean) and torch.equal(d.variance, base.variance) and torch.equal(d.mode, base.mode)
    for draw in ("sample", "rsample"):
        with seeded(0):
            ours = getattr(d, draw)((2,))
        with seeded(0):
            assert torch.equal(ours, getattr(base, draw)((2,))) and ours.requires_grad == (draw == "rsample")
    assert d.has_rsample and not Observed(dist.Bernoulli(torch.tensor(0.5))).has_rsample


@pytest.mark.skipif("columns" not in TABLE, reason="no table of families")
def test_a_table_of_families_skips_each_column_by_itself():
    """Mixed columns, those of classes included, which have no mean."""
    family = likelihoods.columns([(normal, 4, 2), (likelihoods.categorical(3), 3, 1), (likelihoods.poisson, 3, 3)])
    h = torch.randn(5, 10, requires_grad=True)
    d = family(h)
    x, observed = d.sample(), Observed(d)
    assert torch.equal(observed.log_prob(x), d.log_prob(x))
    each = torch.cat([b.base_dist.log_prob(v) for b, v in zip(d.blocks, x.split(d.widths, -1), strict=True)], -1)
    gaps = with_gaps(x, 0.5)
    gaps[0] = nan
    log_p = observed.log_prob(gaps)
    torch.testing.assert_close(log_p, each.where(~gaps.isnan(), 0.0).sum(-1))
    assert log_p[0] == 0 and observed.support.check(gaps).all() and not d.support.check(gaps).all()
    assert not observed.support.check(x.index_fill(-1, torch.tensor([3]), -1.0)).any()
    log_p.sum().backward()
    assert h.grad.isfinite().all() and (h.grad[0] == 0).all() and h.grad.abs().sum() > 0
    vae = VAE(
        StandardNormal(2), SkipMissing(Conditional(MLP(2, 10), family)), Conditional(WithMask(MLP(12, 4)), normal)
    )
    fit(vae, gaps, epochs=1)
    assert d.support.check(impute(vae, gaps, num_samples=9)).all()
    with pytest.raises(ProgramError, match="no mean"):
        impute_mean(vae, gaps, num_samples=9)


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


def test_plain_functions_say_that_x_may_be_missing(gappy):
    likelihood = SkipMissing(gappy.likelihood)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", likelihood(pyro.sample("z", gappy.prior())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", gappy.exact(x))

    with pytest.raises(DataError, match="NaN"):
        log_likelihood(model, guide, gappy.gaps)
    evidence = log_likelihood(model, guide, gappy.gaps, num_samples=3, missing=True)
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
        batch_of(x, x, missing=True)


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


# imputation


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
