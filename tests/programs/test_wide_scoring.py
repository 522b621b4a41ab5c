"""Log-probabilities of users' own distributions keep their digits: large arguments, large logits, half precision."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import (
    VAE,
    Bound,
    Conditional,
    StandardNormal,
    analytic_kl,
    bernoulli,
    check,
    elbo,
    log_likelihood,
    log_weights,
    normal,
)
from pyro_vae.common.widen import in_dtype
from pyro_vae.errors import NoWeightError, ProgramError
from pyro_vae.priors.flow import FlowPrior
from pyro_vae.programs.log_density import log_density
from pyro_vae.programs.wide_scoring import CANCELLING, cancels, wide_log_prob

ERROR = 1e-6  # of a log-probability or of one nat


def f32(*values):
    return torch.tensor(values, dtype=torch.float32)


A, B = f32(3.5, 1e3, 1e5), f32(0.25, 2e3, 7e4)
COUNTS, BIG = f32(2.0, 999.0, 100_300.0), f32(7.0, 3000.0, 1_000_000.0)
PARTS, ROWS = torch.tensor([[5e3, 2e4, 1e5]]), torch.tensor([[0.0390625, 0.1640625, 0.796875]])
SMALL, SHARES = f32(20.0, 3.0, 2.0), f32(0.625, 0.328125, 0.59375)
NEAR = f32(8103.0, 1.234e-4)  # e^9 and e^−9


def n(*tensors):
    return [t.double().numpy() for t in tensors]


a, b, y, big, share = n(A, B, COUNTS, BIG, SHARES)


def of_sticks(shares):
    """Offsets and logits of stick breaking, u with shares = T(u): two of three shares."""
    left = 1 - np.concatenate([[0.0], np.cumsum(shares[:-2])])
    part = shares[:-1] / left
    return np.log(part) - np.log1p(-part) + np.log(np.arange(len(part), 0, -1))


def sticks_log_det(u):
    """log |∂ shares / ∂ u| = Σ log part (1 − part) left, of stick breaking."""
    part = 1 / (1 + np.exp(-(u - np.log(np.arange(len(u), 0, -1)))))
    left = np.concatenate([[1.0], np.cumprod(1 - part)[:-1]])
    return np.log(part * (1 - part) * left).sum()


def lkj_of_two(concentration, r):
    """r = 2 b − 1, b ~ Beta(η, η), as the Cholesky factor of a correlation of two: its density in r is that of L."""
    return stats.beta.logpdf((1 + r) / 2, concentration, concentration) - math.log(2)


TABLE = {  # the distribution, the value, and what scipy says in float64
    "NegativeBinomial": (dist.NegativeBinomial(A, probs=SHARES), COUNTS, stats.nbinom.logpmf(y, a, 1 - share)),
    "Binomial": (dist.Binomial(BIG, probs=SHARES), COUNTS, stats.binom.logpmf(y, big, share)),
    "Poisson": (dist.Poisson(A), COUNTS, stats.poisson.logpmf(y, a)),
    "Beta": (dist.Beta(A, B), SHARES, stats.beta.logpdf(share, a, b)),
    "Gamma": (dist.Gamma(A, B), A / B, stats.gamma.logpdf(n(A / B)[0], a, scale=1 / b)),
    "Chi2": (dist.Chi2(A), COUNTS, stats.chi2.logpdf(y, a)),
    "InverseGamma": (dist.InverseGamma(A, B), B / A, stats.invgamma.logpdf(n(B / A)[0], a, scale=b)),
    "StudentT": (dist.StudentT(A * 7, SHARES, SHARES), SHARES * 2, stats.t.logpdf(share * 2, a * 7, share, share)),
    "FisherSnedecor": (dist.FisherSnedecor(A, BIG), SHARES, stats.f.logpdf(share, a, big)),
    "BetaBinomial": (dist.BetaBinomial(A, B, BIG), COUNTS, stats.betabinom.logpmf(y, big, a, b)),
    "GammaPoisson": (dist.GammaPoisson(A, B), SMALL, stats.nbinom.logpmf(n(SMALL)[0], a, b / (1 + b))),
    "Dirichlet": (dist.Dirichlet(PARTS), ROWS, stats.dirichlet.logpdf(n(ROWS / ROWS.double().sum())[0][0], n(PARTS)[0][0])),
    "DirichletMultinomial": (
        dist.DirichletMultinomial(PARTS, torch.tensor(100_000.0)), torch.tensor([[4e3, 1.6e4, 8e4]]),
        stats.dirichlet_multinomial.logpmf([4_000, 16_000, 80_000], n(PARTS)[0][0], 100_000)),
    "Multinomial": (
        dist.Multinomial(100_000, probs=torch.tensor([[0.25, 0.25, 0.5]])), torch.tensor([[2.5e4, 2.5e4, 5e4]]),
        stats.multinomial.logpmf([25_000, 25_000, 50_000], 100_000, [0.25, 0.25, 0.5])),
    "ZeroInflatedPoisson": (
        dist.ZeroInflatedPoisson(A, gate=torch.tensor(0.25)), COUNTS, stats.poisson.logpmf(y, a) + math.log(0.75)),
    "VonMises": (dist.VonMises(SHARES, A), SHARES / 2, stats.vonmises.logpdf(share / 2, a, share)),
    "LogNormal": (
        dist.LogNormal(f32(9.0, -9.0), f32(2**-10, 2**-10)), NEAR,
        stats.lognorm.logpdf(n(NEAR)[0], 2**-10, scale=[math.exp(9), math.exp(-9)])),
    "Weibull": (dist.Weibull(SHARES, A), SHARES * 1.00001, stats.weibull_min.logpdf(n(SHARES * 1.00001)[0], a, scale=share)),
    "Pareto": (dist.Pareto(SHARES, A), SHARES * 1.00001, stats.pareto.logpdf(n(SHARES * 1.00001)[0], a, scale=share)),
}  # fmt: skip
LINE, THIN = torch.tensor([[1.0, 1.0]]), f32(2**-20, 2**-20)  # draws along (1, 1), 1e-3 off it
COV = np.ones((2, 2)) + np.diag(n(THIN)[0])
LOGITS = f32(9.0, 2.0)  # of a logistic normal's edge
EDGE = dist.transforms.StickBreakingTransform()(LOGITS)[None]
CORNER = n(EDGE / EDGE.double().sum())[0][0]
W = f32(900.0, 0.0, 0.0, 1100.0).reshape(2, 2)
TABLE |= {
    "LowRankMultivariateNormal": (
        dist.LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), THIN), LINE + f32(0.0, 2**-10),
        stats.multivariate_normal.logpdf(n(LINE + f32(0.0, 2**-10))[0], np.zeros(2), COV)),
    "LogisticNormal": (
        dist.LogisticNormal(torch.zeros(2), f32(2.0, 8.0)), EDGE,
        stats.norm.logpdf(back := of_sticks(CORNER), 0, [2, 8]).sum() - sticks_log_det(back)),
    "LKJCholesky": (
        dist.LKJCholesky(2, torch.tensor(1e5)), torch.tensor([[[1.0, 0.0], [2**-10, (1 - 2**-20) ** 0.5]]]),
        lkj_of_two(1e5, 2**-10)),
    "Wishart": (dist.Wishart(torch.tensor(1e3), torch.eye(2)), W[None], stats.wishart.logpdf(n(W)[0], 1e3, np.eye(2))),
}  # fmt: skip
TABLE["whole numbers"] = (dist.Poisson(A), COUNTS.long(), stats.poisson.logpmf(y, a))
TABLE["torch's own Poisson"] = (torch.distributions.Poisson(A), COUNTS, stats.poisson.logpmf(y, a))


def check_table(score, name):
    fn, value, exact = TABLE[name]
    got, exact = score(fn, value).double().reshape(-1), torch.as_tensor(exact).reshape(-1)
    assert ((got - exact).abs() <= ERROR * exact.abs().clamp_min(1)).all(), (got, exact)


@pytest.mark.parametrize("name", TABLE)
def test_the_users_distributions_are_scored_to_six_digits(name):
    for score in (log_density, wide_log_prob):
        check_table(score, name)
    with pytest.raises(AssertionError):
        check_table(lambda fn, value: fn.log_prob(value), name)  # their own float32 loses them


def test_the_class_tells_and_one_that_scores_itself_is_left_alone():
    class Mine(dist.Poisson):
        pass

    class Own(dist.Poisson):
        def log_prob(self, value):
            return super().log_prob(value)

    assert cancels(Mine) and not cancels(Own) and not cancels(dist.Normal) and not cancels(dist.TransformedDistribution)
    assert all(map(cancels, CANCELLING))


WRAPPED = {
    "event": (dist.Poisson(A).to_event(1), COUNTS, lambda each: each.sum()),
    "expanded": (dist.Poisson(A).expand((2, 3)), COUNTS, lambda each: each.expand(2, 3)),
    "masked": (dist.Poisson(A).mask(torch.tensor([True, False, True])), COUNTS, lambda each: each * f32(1, 0, 1).double()),
    "mixture": (
        dist.MixtureSameFamily(dist.Categorical(torch.ones(3, 2)), dist.Poisson(A.unsqueeze(-1).expand(3, 2))),
        COUNTS, lambda each: each),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_around_a_distribution_does_not_hide_it(name):
    fn, value, of = WRAPPED[name]
    each = torch.as_tensor(stats.poisson.logpmf(y, a))
    torch.testing.assert_close(log_density(fn, value).double(), of(each), rtol=ERROR, atol=ERROR)
    torch.testing.assert_close(wide_log_prob(fn, value).double(), of(each), rtol=ERROR, atol=ERROR)


def test_gradients_reach_the_parameters_and_are_right():
    r = torch.tensor([1e5], requires_grad=True)
    (grad,) = torch.autograd.grad(wide_log_prob(dist.NegativeBinomial(r, logits=f32(-10.0)), f32(3.0)).sum(), r)
    wide = r.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(
        dist.NegativeBinomial(wide, logits=f32(-10.0).double()).log_prob(f32(3.0).double()).sum(), wide
    )
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad.double(), exact, rtol=1e-6, atol=0)


def test_what_was_computed_from_a_parameter_is_computed_anew():
    """Sampling a negative binomial computes its logits in float32, and keeps them."""
    fresh, drawn = (dist.NegativeBinomial(A, probs=SHARES) for _ in range(2))
    drawn.sample(), drawn.log_prob(COUNTS)
    assert "logits" in vars(drawn)
    assert torch.equal(log_density(drawn, COUNTS), log_density(fresh, COUNTS))
    assert "logits" in vars(drawn) and drawn.logits.dtype == torch.float32  # itself it stays as it was


def test_categorical_draws_by_unnormalised_logits_keep_their_probabilities():
    """q(k | x) of logits that are log p(x, k), as far from 0 as those are."""
    logits = f32(-1e5, -1e5 - 0.5, -1e5 - 3)
    exact = logits.double().log_softmax(-1)
    for fn, value in (
        (dist.Categorical(logits=logits), torch.arange(3)),
        (dist.OneHotCategorical(logits=logits), torch.eye(3)),
    ):
        torch.testing.assert_close(log_density(fn, value).double(), exact, rtol=ERROR, atol=ERROR)
        assert (fn.log_prob(value) - exact).abs().max() > 1e-4


def test_a_closed_form_kl_has_its_digits():
    q, p = dist.Gamma(f32(9e4), f32(9e4)), dist.Gamma(f32(1e5), f32(1e5))
    exact = kl_divergence(*(in_dtype(d, torch.float64) for d in (q, p))).item()
    assert abs(kl_divergence(q, p).item() - exact) > 1e-3

    def pair(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    x = torch.zeros(2)
    pyro.set_rng_seed(0)
    analytic = Bound(elbo, estimator=analytic_kl(exact=True)).per_row(pair, guide, x)
    pyro.set_rng_seed(0)
    z = dist.Gamma(f32(9e4), f32(9e4)).expand((2,)).sample()
    assert analytic.dtype == torch.float32
    assert ((dist.Normal(z, 1.0).log_prob(x) - analytic) - exact).abs().max() < 1e-5


# whole pairs


def counts_pair(r, mean):
    """A model that ignores z: log p(x) is one sum over elements."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample(
                "x",
                dist.NegativeBinomial(torch.tensor(r), logits=torch.tensor(mean / r).log()).expand(x.shape).to_event(1),
                obs=x,
            )

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return model, guide


@pytest.mark.parametrize("r", [1e3, 1e4, 1e5])
def test_log_likelihood_of_a_users_negative_binomial(r):
    x = torch.poisson(torch.full((6, 500), 3.0), generator=torch.Generator().manual_seed(0))
    model, guide = counts_pair(r, 3.0)
    exact = torch.as_tensor(stats.nbinom.logpmf(x.numpy(), r, r / (r + 3.0))).sum(1)
    for log_px in (
        log_likelihood(model, guide, x, num_samples=10, verbose=False).log_px,
        log_weights(model, guide, x, num_particles=3).logsumexp(0) - torch.tensor(3.0).log(),
        Bound(elbo).per_row(model, guide, x),
    ):
        assert (log_px - exact).abs().max() < 1e-2
    plain = dist.NegativeBinomial(torch.tensor(r), logits=torch.tensor(3.0 / r).log()).log_prob(x).sum(1)
    assert (plain - exact).abs().max() > 0.05 if r > 1e3 else True


def test_numbers_of_a_row_do_not_depend_on_the_rows_beside():
    model, guide = counts_pair(1e5, 3.0)
    x = torch.cat([torch.ones(1, 500), torch.full((1, 500), 2.0), torch.full((1, 500), 1e5)])
    both = log_likelihood(model, guide, x, num_samples=10, verbose=False).log_px
    assert torch.equal(log_likelihood(model, guide, x[:2], num_samples=10, verbose=False).log_px, both[:2])


# half precision


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-3, 3, 784))

    def forward(self, z):
        return self.logits.expand(*z.shape[:-1], -1)


def half_vae(dtype):
    zeros = torch.zeros(8, 2, dtype=dtype)
    vae = VAE(
        StandardNormal(2), Conditional(Constant(), bernoulli), lambda x: dist.Normal(zeros[: len(x)], 1.0).to_event(1)
    )
    return vae.to(dtype)


X = torch.bernoulli(torch.sigmoid(torch.linspace(-3, 3, 784)).expand(8, -1), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:x. converted")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_half_precision_is_scored_in_float32(dtype):
    vae = half_vae(dtype)
    h = vae.likelihood.net.logits.detach().double()
    exact = (h * X.double() - nn.functional.softplus(h)).sum(1)
    e = log_likelihood(vae.model, vae.guide, X, num_samples=100, verbose=False)
    assert (e.log_px - exact).abs().max() < 1e-3
    for number in (
        log_weights(vae.model, vae.guide, X.to(dtype)),
        Bound(elbo).per_row(vae.model, vae.guide, X.to(dtype)),
    ):
        assert (number - exact).abs().max() < 1e-3
    found = check(vae.model, vae.guide, X)
    assert found.ok and {f.where for f in found.findings if f.kind == "half"} >= {"site 'x' of the model"}


def users_half(scale):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0).bfloat16(), torch.tensor(1.0).bfloat16()))
            pyro.sample("x", dist.Normal(z, torch.tensor(0.5).bfloat16()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, torch.tensor(scale).bfloat16()))

    return model, guide


def test_a_users_pair_in_half_precision_is_scored_in_float32():
    x = torch.tensor([0.5, -1.0, 2.0]).bfloat16()
    e = log_likelihood(*users_half(0.5), x, num_samples=20_000, verbose=False)
    exact = dist.Normal(0.0, 1.25**0.5).log_prob(x.float())
    assert ((e.log_px - exact).abs() < 4 * e.mc_se + 1e-3).all()


def test_draws_in_half_precision_coarser_than_their_scale_are_refused():
    with pytest.raises(
        NoWeightError, match=r"site 'z': its draws are in bfloat16, in steps of .*, and its scale is 0.001"
    ):
        log_likelihood(*users_half(1e-3), torch.tensor([0.5, -1.0, 2.0]).bfloat16(), num_samples=100, verbose=False)


def test_draws_that_half_precision_holds_exactly_are_not_coarse():
    """One-hot draws of rare classes: their standard deviation is below the step at 1, and they are 0 and 1."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.OneHotCategorical(logits=torch.tensor([9.0, 0.0]).bfloat16()))
            pyro.sample("x", dist.Normal(k[..., 1], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.OneHotCategorical(logits=torch.tensor([11.0, 0.0]).expand(len(x), 2).bfloat16()))

    assert log_weights(model, guide, torch.zeros(3)).isfinite().all()


def test_a_flow_in_half_precision_is_refused_by_site():
    vae = VAE(
        FlowPrior(2, "maf", transforms=1, hidden=(4,)),
        Conditional(nn.Linear(2, 4), bernoulli),
        Conditional(nn.Linear(4, 4), normal),
    )
    with pytest.raises(ProgramError, match=r"site 'z'.*bfloat16"):
        log_likelihood(
            vae.to(torch.bfloat16).model, vae.guide, torch.ones(3, 4).bfloat16(), num_samples=10, verbose=False
        )


# what check says


def observed(fn):
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", fn(x), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    return model, guide


class OwnPoisson(dist.Poisson):
    def log_prob(self, value):
        return value * self.rate.log() - self.rate - (value + 1).lgamma()


LOSSES = {
    "own formula": lambda x: OwnPoisson(torch.full((len(x),), 1e5)),
    "observed classes": lambda x: dist.Categorical(logits=torch.tensor([-1e5, -1e5 - 0.5]).expand(len(x), 2)),
    "log-gamma beyond float64": lambda x: dist.NegativeBinomial(
        torch.full((len(x),), 1e13), logits=torch.tensor(-29.0)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_check_says_how_many_digits_are_left(name):
    x = torch.full((4,), 1e5) if name == "own formula" else torch.ones(4)
    found = [f for f in check(*observed(LOSSES[name]), x).findings if f.kind == "digits"]
    assert len(found) == 1 and found[0].where == "site 'x' of the model" and found[0].level == "warning"
    assert 1 < float(found[0].what.split("keep ")[1].split()[0]) < 5


@pytest.mark.parametrize("rate", [3.0, 1e5])
def test_check_says_nothing_of_what_is_scored_with_its_digits(rate):
    found = check(*observed(lambda x: dist.Poisson(torch.full((len(x),), rate))), torch.full((4,), rate))
    assert [f for f in found.findings if f.kind in ("digits", "half")] == []


@pytest.mark.parametrize(("factor", "lost"), [(1.0, False), (10.0, True)])
def test_check_tells_of_a_flow_that_blows_rounding_up(factor, lost):
    torch.manual_seed(0)
    prior = FlowPrior(4, "maf", hidden=(32, 32))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.mul_(factor)
    vae = VAE(prior, Conditional(nn.Linear(4, 5), bernoulli), Conditional(nn.Linear(5, 8), normal))
    found = check(vae.model, vae.guide, torch.ones(64, 5)).findings
    assert {f.where for f in found if f.kind == "digits"} == ({"site 'z' of the model"} if lost else set())
