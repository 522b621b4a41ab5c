"""Densities outside their support, and invalid parameters: zero, or refused by name, wherever a number is made."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import AffineTransform, ExpTransform

from pyro_vae import Bound, elbo, log_weights
from pyro_vae.errors import ProgramError
from pyro_vae.programs.log_density import log_density
from pyro_vae.programs.pair import without_validation
from pyro_vae.programs.parameter_checks import ValidParameters
from pyro_vae.programs.simulate import simulate
from pyro_vae.programs.valid_parameters import check_site_parameters

ONE = torch.tensor(1.0)


def site_of(fn, value=None):
    return {"fn": fn, "value": value, "mask": None, "is_observed": False}


OUTSIDE = {  # a distribution, a value inside, one outside
    "exponential": (dist.Exponential(ONE), 0.5, -0.5),
    "gamma": (dist.Gamma(2 * ONE, ONE), 0.5, -0.5),
    "beta": (dist.Beta(2 * ONE, ONE), 0.5, 1.5),
    "uniform": (dist.Uniform(0 * ONE, ONE), 0.5, 1.5),
    "pareto": (dist.Pareto(2 * ONE, 3 * ONE), 2.5, 1.5),
    "halfnormal": (dist.HalfNormal(ONE), 0.5, -0.5),
    "lognormal": (dist.LogNormal(0 * ONE, ONE), 0.5, -0.5),
    "weibull": (dist.Weibull(ONE, 2 * ONE), 0.5, -0.5),
    "kumaraswamy": (dist.Kumaraswamy(2 * ONE, 2 * ONE), 0.5, -0.5),
    "continuous-bernoulli": (dist.ContinuousBernoulli(0.3 * ONE), 0.5, -0.5),
    "von-mises": (dist.VonMises(0 * ONE, ONE), 3.0, 3.5),
    "bernoulli": (dist.Bernoulli(0.3 * ONE), 1.0, 2.0),
    "geometric": (dist.Geometric(0.3 * ONE), 1.0, -1.0),
    "poisson": (dist.Poisson(ONE), 1.0, 1.5),
    "binomial": (dist.Binomial(3 * ONE, 0.3 * ONE), 3.0, 4.0),
    "inverse-gamma": (dist.InverseGamma(2 * ONE, ONE), 0.5, -0.5),
    "affine-of-uniform": (
        dist.TransformedDistribution(dist.Uniform(0 * ONE, ONE), [AffineTransform(2.0, 3.0)]),
        4.0,
        1.0,
    ),
    "shifted-lognormal": (
        dist.TransformedDistribution(dist.Normal(0 * ONE, ONE), [ExpTransform(), AffineTransform(5.0, 1.0)]),
        6.0,
        4.0,
    ),
    "expanded": (dist.Exponential(ONE).expand([3]).mask(torch.tensor([True, True, True])), 0.5, -0.5),
}


@pytest.mark.parametrize(("fn", "inside", "outside"), OUTSIDE.values(), ids=OUTSIDE)
def test_outside_its_support_a_density_is_zero(fn, inside, outside):
    with without_validation():
        here, there = torch.full(fn.shape(), inside), torch.full(fn.shape(), outside)
        assert torch.allclose(log_density(fn, here).float(), fn.log_prob(here))
        assert (log_density(fn, there) == -math.inf).all()


def test_of_vectors_one_element_outside_is_enough():
    with without_validation():
        fn = dist.Exponential(torch.ones(2, 3)).to_event(1)
        log_p = log_density(fn, torch.tensor([[1.0, 1.0, -1.0], [1.0, 2.0, 3.0]]))
        assert log_p.tolist() == [-math.inf, -6.0]
        assert log_density(dist.Dirichlet(torch.ones(3)), torch.tensor([0.5, 0.7, -0.2])) == -math.inf
        assert log_density(dist.Categorical(torch.ones(3)), torch.tensor([2, 3])).tolist() == [
            pytest.approx(-math.log(3)),
            -math.inf,  # torch itself stops there
        ]


def test_a_mixture_of_uniforms_has_each_component_on_its_own_support():
    low = torch.tensor([0.0, 2.0])
    fn = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.25, 0.75])), dist.Uniform(low, low + 1))
    with without_validation():
        at = torch.tensor([0.5, 1.5, 2.5])
        assert log_density(fn, at).exp().tolist() == pytest.approx([0.25, 0.0, 0.75])


def test_a_large_simplex_is_inside_as_far_as_it_is_rounded():
    torch.manual_seed(0)
    fn = dist.Dirichlet(torch.ones(5000))
    with without_validation():
        assert log_density(fn, fn.sample((20,))).isfinite().all()


def test_nan_stays_nan_and_gradients_are_not_poisoned():
    with without_validation():
        assert log_density(dist.Exponential(ONE), torch.tensor(math.nan)).isnan()
        rate = torch.tensor(2.0, requires_grad=True)
        log_p = log_density(dist.Gamma(rate, ONE), torch.tensor([-1.0, 1.0]))
        log_p[1].backward()
        assert rate.grad.isfinite()


def test_an_undeclared_support_is_not_checked():
    class Undeclared(dist.Normal):
        support = property(lambda self: (_ for _ in ()).throw(NotImplementedError))

    with without_validation():
        assert log_density(Undeclared(0.0, 1.0), torch.tensor(0.0)).isfinite()


INVALID = {  # a distribution of two rows, invalid in row 1; the parameter and what is wanted
    "negative-binomial": (
        lambda v: dist.NegativeBinomial(v, logits=0 * v),
        [2.0, -2.5],
        "total_count -2.5",
        "numbers from 0",
    ),
    "poisson": (dist.Poisson, [1.0, -0.5], "rate -0.5", "softplus or exp"),
    "bernoulli": (dist.Bernoulli, [0.5, 1.5], "probs 1.5", "sigmoid"),
    "uniform": (lambda v: dist.Uniform(0 * v, v), [1.0, -1.0], "Uniform has low", "low + softplus"),
    "normal": (lambda v: dist.Normal(0 * v, v), [1.0, -1.0], "scale -1", "softplus or exp"),
    "exponential": (dist.Exponential, [1.0, -1.0], "rate -1", "softplus or exp"),
    "geometric": (dist.Geometric, [0.5, 1.5], "probs 1.5", "sigmoid"),
    "gamma": (lambda v: dist.Gamma(v, 1 + 0 * v), [1.0, -0.5], "concentration -0.5", "numbers above 0"),
    "chi2": (dist.Chi2, [1.0, -1.0], "concentration -0.5", "numbers above 0"),
    "beta-binomial": (lambda v: dist.BetaBinomial(v, 1 + 0 * v, 5), [1.0, -1.0], "concentration -1", "softplus"),
    "binomial-count": (lambda v: dist.Binomial(v, 0.5 + 0 * v), [2.0, 2.5], "total_count 2.5", "whole numbers"),
    "lognormal": (lambda v: dist.LogNormal(0 * v, v), [1.0, -1.0], "scale -1", "softplus"),
    "zero-inflated": (lambda v: dist.ZeroInflatedPoisson(v, gate=0.2 + 0 * v), [1.0, -1.0], "rate -1", "softplus"),
    "categorical": (lambda v: dist.Categorical(torch.stack([v, 1 - v], -1)), [0.5, 1.5], "probs -0.5", "softmax"),
    "independent": (lambda v: dist.Normal(0 * v, v).expand([3, 2]).to_event(1), [1.0, -1.0], "scale -1", "softplus"),
}


@pytest.mark.parametrize(("make", "values", "names", "wanted"), INVALID.values(), ids=INVALID)
def test_invalid_parameters_are_named(make, values, names, wanted):
    with without_validation():
        sites = {"x": site_of(make(torch.tensor(values)))}
    with pytest.raises(ProgramError, match="site 'x' of the model") as caught:
        check_site_parameters(sites, -1, first=10, program="model")
    assert names in str(caught.value) and wanted in str(caught.value)
    if sites["x"]["fn"].batch_shape == (2,):
        assert "rows [11]" in str(caught.value)


VALID = {
    "underflow": dist.Exponential(torch.tensor([0.0, 1.0]), validate_args=False),
    "uniform": dist.Uniform(torch.zeros(2), torch.ones(2)),
    "masked": dist.Poisson(torch.tensor([1.0, -1.0]), validate_args=False).mask(torch.tensor([True, False])),
    "sums-to-1.5": dist.Categorical(torch.full((2, 3), 0.5)),  # torch divides by the sum
    "multivariate": dist.MultivariateNormal(torch.zeros(2, 3), scale_tril=torch.eye(3)),
    "low-rank": dist.LowRankMultivariateNormal(torch.zeros(2, 3), torch.ones(3, 1), torch.ones(3)),
    "one-hot": dist.OneHotCategorical(logits=torch.zeros(2, 3)),
    "mixture": dist.MixtureSameFamily(dist.Categorical(torch.ones(2, 2)), dist.Normal(torch.zeros(2, 2), 1.0)),
    "delta": dist.Delta(torch.zeros(2)),
}


@pytest.mark.parametrize("fn", VALID.values(), ids=VALID)
def test_valid_parameters_pass(fn):
    check_site_parameters({"x": site_of(fn)}, -1)


def poisson_of_z(x, prior=lambda: dist.Normal(0.0, 1.0)):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(pyro.sample("z", prior())), obs=x)


def normal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0 * x, 1.3))


@pytest.mark.parametrize(
    "number",
    [
        lambda x: log_weights(poisson_of_z, normal_guide, x, num_particles=50),
        lambda x: Bound(elbo, 50).per_row(poisson_of_z, normal_guide, x),
        lambda x: simulate(poisson_of_z, x),
    ],
    ids=["log_weights", "per_row", "simulate"],
)
def test_invalid_parameters_are_refused_where_numbers_are_made(number):
    torch.manual_seed(0)
    with pytest.raises(ProgramError, match=r"site 'x'.*Poisson has rate -.*softplus"):
        number(torch.zeros(20))


def test_what_is_computed_from_an_excluded_latent_counts_for_nothing():
    """z < 0 has p(z) = 0 under the Exponential: the Poisson's negative rate there is no error, log w is −∞."""

    def model(x):
        poisson_of_z(x, lambda: dist.Exponential(1.0))

    torch.manual_seed(0)
    log_w = log_weights(model, normal_guide, torch.tensor([0.0, 2.0]), num_particles=200_000)
    assert (log_w == -math.inf).any() and not log_w.isnan().any()
    p = log_w.double().exp()
    exact = torch.tensor([0.5, 0.125], dtype=torch.float64)  # ∫ e^−z Poisson(x | z) dz = 2^−(x + 1)
    assert ((p.mean(0) - exact).abs() < 4 * p.std(0) / 200_000**0.5).all()


def test_a_site_is_refused_before_torch_draws_it():
    with (
        without_validation(),
        pytest.raises(ProgramError, match="rows"),
        ValidParameters("model"),
        pyro.plate("data", 2),
    ):
        pyro.sample("x", dist.Bernoulli(torch.tensor([0.5, 1.5])))


@pytest.mark.parametrize("columns", [2, 3], ids=["as many as rows", "more"])
def test_a_parameter_that_a_mask_inside_to_event_leaves_out_may_be_anything(columns):
    """Scale −1 in column 1 of row 0: masked there it is no term of log p; masked in row 1, it is, of row 0."""
    scale, kept = torch.ones(2, columns), torch.ones(2, columns, dtype=torch.bool)
    scale[0, 1], kept[0, 1] = -1.0, False
    with without_validation():
        check_site_parameters({"x": site_of(dist.Normal(0.0, scale).mask(kept).to_event(1))}, -1)
        with pytest.raises(ProgramError, match=r"Normal has scale -1 for rows \[0\]"):
            check_site_parameters({"x": site_of(dist.Normal(0.0, scale).mask(kept.flip(0)).to_event(1))}, -1)
