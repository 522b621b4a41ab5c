"""A likelihood under missing values: what is observed scores as it would alone, NaN in no gradient."""

import inspect
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, binomial, likelihoods, normal
from pyro_vae import fit as noisy_fit
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.common.random import seeded
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.imputation import impute, impute_mean
from pyro_vae.models.missing import SkipMissing, WithMask
from tests.helpers.missing import with_gaps

fit, log_likelihood = partial(noisy_fit, verbose=False), partial(noisy_log_likelihood, verbose=False)
nan = math.nan
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
