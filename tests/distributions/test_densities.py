"""Densities of our own against others' where those are right; and log p(x) of conjugate pairs against scipy."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_vae import log_likelihood
from pyro_vae.distributions.continuous import Beta, ContinuousBernoulli, Gamma
from pyro_vae.distributions.counts import DiscretizedLogistic, Multinomial, ZeroInflated
from pyro_vae.distributions.features import MIN_SCALE
from pyro_vae.distributions.tabular import Columns
from pyro_vae.errors import SupportError
from pyro_vae.likelihoods import negative_binomial

DOUBLE = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=DOUBLE)


# continuous Bernoulli


def test_continuous_bernoulli_is_torchs_where_torchs_is_right():
    eta = tensor(-12, -3, -0.3, -0.01, 0, 0.01, 0.2, 0.3, 5, 12)
    ours, torchs = ContinuousBernoulli(eta), torch.distributions.ContinuousBernoulli(logits=eta)
    for y in tensor(0, 0.2, 0.9, 1):
        torch.testing.assert_close(ours.log_prob(y), torchs.log_prob(y), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.mean, torchs.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.variance, torchs.variance, rtol=0, atol=1e-9)
    for u in tensor(0.1, 0.5, 0.8):
        torch.testing.assert_close(torchs.cdf(ours.icdf(u)), u.expand(10), rtol=0, atol=1e-4)


@pytest.mark.parametrize("eta", [-100.0, 100.0])
def test_torchs_continuous_bernoulli_is_no_density_at_large_logits_and_ours_is(eta):
    y = torch.linspace(0, 1, 200_001, dtype=torch.float32)
    ours = ContinuousBernoulli(torch.tensor(eta)).log_prob(y).exp()
    torchs = torch.distributions.ContinuousBernoulli(logits=torch.tensor(eta)).log_prob(y).exp()
    assert abs(torch.trapezoid(ours, y) - 1) < 1e-3
    assert abs(torch.trapezoid(torchs, y) - 1) > 0.5


def test_continuous_bernoulli_has_the_right_gradient_everywhere():
    """d log p / dη = y − mean, across the seams at 0 and ±1/4 too."""
    eta = tensor(-1e4, -30, -0.2501, -0.2499, 0, 1e-9, 0.2499, 0.2501, 30, 1e4).requires_grad_()
    d = ContinuousBernoulli(eta)
    for y in tensor(0, 0.3, 1):
        (grad,) = torch.autograd.grad(d.log_prob(y).sum(), eta)
        torch.testing.assert_close(grad, y - d.mean.detach(), rtol=0, atol=1e-9)


def test_continuous_bernoulli_samples_carry_gradients():
    eta = tensor(-2, 0, 3).requires_grad_()
    y = ContinuousBernoulli(eta).rsample((1000,))
    (grad,) = torch.autograd.grad(y.sum(), eta)
    assert (grad > 0).all() and not ContinuousBernoulli(eta).sample().requires_grad


# discretized logistic


def test_discretized_logistic_is_the_difference_of_two_cdfs():
    loc, scale, y = tensor(2.3), tensor(1.7), torch.arange(8, dtype=DOUBLE)
    edges = torch.cat([tensor(-torch.inf), torch.arange(7, dtype=DOUBLE) + 0.5, tensor(torch.inf)])
    cdf = torch.tensor(stats.logistic(2.3, 1.7).cdf(edges.numpy()))
    torch.testing.assert_close(DiscretizedLogistic(loc, scale, 8).log_prob(y).exp(), cdf.diff())


def test_discretized_logistic_keeps_tails_where_a_difference_of_cdfs_is_0():
    y, loc, scale = torch.tensor(200.0), torch.tensor(10.0), torch.tensor(1.0)
    naive = torch.sigmoid((y + 0.5 - loc) / scale) - torch.sigmoid((y - 0.5 - loc) / scale)
    assert naive == 0
    exact = -(y - loc) + torch.tensor(2 * 0.5).div(2).sinh().mul(2).log()  # log of e^-189.5 - e^-190.5
    torch.testing.assert_close(DiscretizedLogistic(loc, scale, 256).log_prob(y), exact)


def test_moments_of_the_discretized_logistic_are_those_of_its_probabilities():
    d = DiscretizedLogistic(tensor(2.3, -9, 40), tensor(1.7, 3, 8), 16)
    y = torch.arange(16, dtype=DOUBLE).unsqueeze(-1)
    p = d.log_prob(y).exp()
    torch.testing.assert_close((p * y).sum(0), d.mean)
    torch.testing.assert_close((p * y.square()).sum(0) - d.mean.square(), d.variance)


# zero inflation


@pytest.mark.parametrize("gate", [-3.0, 0.0, 2.0])
def test_zero_inflated_is_pyros_where_pyros_is_right(gate):
    rate, gate = tensor(3.0), tensor(gate)
    ours, pyros = ZeroInflated(dist.Poisson(rate), gate), dist.ZeroInflatedPoisson(rate, gate_logits=gate)
    y = torch.arange(9, dtype=DOUBLE).unsqueeze(-1)
    torch.testing.assert_close(ours.log_prob(y), pyros.log_prob(y))
    torch.testing.assert_close(ours.mean, pyros.mean)
    torch.testing.assert_close(ours.variance, pyros.variance)


def test_pyros_zero_inflation_breaks_once_sampled_and_ours_does_not():
    rate, gate, y = torch.tensor(3.0), torch.tensor(200.0), torch.tensor(2.0)
    ours, pyros = ZeroInflated(dist.Poisson(rate), gate), dist.ZeroInflatedPoisson(rate, gate_logits=gate)
    before = ours.log_prob(y)
    ours.sample(), pyros.sample()
    assert ours.log_prob(y) == before and before.isfinite()
    assert pyros.log_prob(y) == -torch.inf


# supports


def test_supports_leave_out_what_has_no_density():
    one = torch.ones(())
    assert Beta(one, one).support.check(tensor(0, 0.5, 1)).tolist() == [False, True, False]
    assert Gamma(one, one).support.check(tensor(-1, 0, 0.5)).tolist() == [False, False, True]
    assert type(Beta(one, one).expand((3,))) is Beta and type(Gamma(one, one).expand((3,))) is Gamma
    rows = tensor([1, 2], [1, 1], [4, -1], [1.5, 1.5])
    assert Multinomial(3, logits=torch.zeros(2)).support.check(rows).tolist() == [True, False, False, False]
    assert type(Multinomial(3, logits=torch.zeros(2)).expand((4,))) is Multinomial


def test_torchs_multinomial_admits_rows_with_a_smaller_sum():
    d = dist.Multinomial(3, logits=torch.zeros(2))
    assert d.support.check(tensor(1, 1))


def test_columns_say_which_block_a_row_leaves():
    d = Columns([dist.Poisson(torch.ones(5, 1)).to_event(1), Beta(torch.ones(5, 2), torch.ones(5, 2)).to_event(1)])
    assert (d.batch_shape, d.event_shape, d.has_rsample) == ((5,), (3,), False)
    rows = tensor([2, 0.5, 0.5], [0.5, 0.5, 0.5], [2, 0.5, 1])
    assert d.support.check(rows).tolist() == [True, False, False]
    assert d.support.check_blocks(rows).tolist() == [[True, True], [False, True], [True, False]]
    assert str(d.support).startswith("columns 0: ") and str(d.support).endswith("; 1..2: 0 < y < 1")
    with pytest.raises(ValueError, match="support"):
        d.log_prob(torch.full((5, 3), 2.0))


def test_columns_of_continuous_blocks_are_reparametrised():
    loc = torch.zeros(5, 2, requires_grad=True)
    d = Columns([dist.Normal(loc, 1.0).to_event(1), Beta(torch.ones(5, 1), torch.ones(5, 1)).to_event(1)])
    assert d.has_rsample and d.rsample((7,)).shape == (7, 5, 3)
    torch.testing.assert_close(d.variance[0], torch.tensor([1.0, 1.0, 1 / 12]))


def test_columns_without_a_mean_have_nan():
    meanless = dist.TransformedDistribution(dist.Normal(torch.zeros(5, 1), 1.0), [dist.transforms.ExpTransform()])
    with pytest.raises(NotImplementedError):
        _ = meanless.mean
    d = Columns([meanless.to_event(1), dist.Normal(torch.ones(5, 1), 1.0).to_event(1)])
    assert d.mean[:, 0].isnan().all() and (d.mean[:, 1] == 1).all()


def test_columns_broadcast_the_batches_of_their_blocks():
    d = Columns([dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Poisson(torch.ones(3, 5, 1)).to_event(1)])
    assert d.batch_shape == (3, 5) and d.sample().shape == (3, 5, 3)


# log p(x) of conjugate pairs, by importance sampling from a guide that is near the posterior, not on it


def evidence(prior, likelihood, posterior, x):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return log_likelihood(model, guide, x, num_samples=2000, verbose=False)


def agrees(result, exact):
    assert (result.mc_se < 0.05).all()
    return bool(((result.log_px - torch.as_tensor(exact)).abs() < 4 * result.mc_se).all())


def test_beta_binomial():
    a, b, n, x = tensor(1.5), tensor(2.5), 9, torch.arange(10, dtype=DOUBLE)
    result = evidence(
        lambda: Beta(a, b),
        lambda z: dist.Binomial(n, probs=z),
        lambda x: Beta(0.9 * (a + x), 0.9 * (b + n - x)),
        x,
    )
    exact = stats.betabinom(n, 1.5, 2.5).logpmf(x.numpy())
    assert agrees(result, exact)
    assert not agrees(result, stats.binom(n, 1.5 / 4).logpmf(x.numpy()))


def test_gamma_poisson():
    a, b, x = tensor(2.0), tensor(0.5), torch.arange(0, 20, 2, dtype=DOUBLE)
    result = evidence(
        lambda: Gamma(a, b), lambda z: dist.Poisson(z), lambda x: Gamma(0.9 * (a + x), 0.9 * (b + 1).expand(len(x))), x
    )
    exact = stats.nbinom(2.0, 0.5 / 1.5).logpmf(x.numpy())
    assert agrees(result, exact)
    assert not agrees(result, exact - torch.lgamma(x + 1).numpy())  # y! counted twice


def test_gamma_poisson_is_the_family_negative_binomial():
    """μ = a / b and r = a: the closed form of the pair above is the density of our family."""
    x = torch.arange(20, dtype=DOUBLE)
    d = negative_binomial((tensor(4.0, 2.0) - MIN_SCALE).expm1().log())
    exact = torch.tensor(stats.nbinom(2.0, 0.5 / 1.5).logpmf(x.numpy()))
    torch.testing.assert_close(d.log_prob(x.unsqueeze(-1)).squeeze(-1), exact)


def test_dirichlet_multinomial():
    alpha, n = tensor(0.8, 1.5, 2.0), 4
    rows = [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]
    x = torch.tensor(rows, dtype=DOUBLE)
    result = evidence(
        lambda: dist.Dirichlet(alpha),
        lambda z: Multinomial(n, logits=z.log()),
        lambda x: dist.Dirichlet(0.9 * (alpha + x)),
        x,
    )
    exact = stats.dirichlet_multinomial(alpha.numpy(), n).logpmf(rows)
    assert agrees(result, exact)
    assert abs(torch.as_tensor(exact).exp().sum() - 1) < 1e-9
    smaller = x - torch.tensor([0.0, 0.0, 1.0])
    with pytest.raises(SupportError, match="sum to 4"):
        evidence(
            lambda: dist.Dirichlet(alpha),
            lambda z: Multinomial(n, logits=z.log()),
            lambda x: dist.Dirichlet(0.9 * (alpha + x.clamp_min(0))),
            smaller,
        )
