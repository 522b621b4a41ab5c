"""Every family, by one registry: normalised, sampled as scored, finite at features of ±10⁴; and what it refuses."""

import inspect
import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from pyro_vae import MLP, Conditional, likelihoods
from pyro_vae.errors import ShapeError, UsageError
from pyro_vae.likelihoods import FAMILIES, continuous, discrete, fitting, ordinal, registry

TABLE = [(likelihoods.normal, 2, 1), (likelihoods.categorical(3), 3, 1), (likelihoods.bernoulli, 1, 1)]

# options to make it with; its support, as a list of values or as "real", "positive", "unit", "open unit"; values to score
# at extreme features
COUNTS = list(range(400))
CASES = {
    "bernoulli": ({}, [0, 1], [0, 1]),
    "binomial": ({"total_count": 5}, range(6), [0, 2, 5]),
    "categorical": ({"num_classes": 4}, range(4), [0, 3]),
    "CumulativeLogit": ({"num_classes": 5, "dim": 2}, range(5), [0, 2, 4]),
    "multinomial": ({"total_count": 3}, None, None),
    "discretized_logistic": ({"levels": 16}, range(16), [0, 1, 7, 15]),
    "discretized_logistic_mixture": ({"levels": 16, "components": 3}, range(16), [0, 1, 7, 15]),
    "poisson": ({}, COUNTS, [0, 1, 100_000]),
    "negative_binomial": ({}, COUNTS, [0, 1, 100_000]),
    "zero_inflated_poisson": ({}, COUNTS, [0, 1, 100_000]),
    "zero_inflated_negative_binomial": ({}, COUNTS, [0, 1, 100_000]),
    "normal": ({}, "real", [0, 1, -1e4, 1e4]),
    "normal_fixed": ({"scale": 0.7}, "real", [0, 1, -1e4, 1e4]),
    "SharedNormal": ({"dim": 2}, "real", [0, 1, -1e4, 1e4]),
    "laplace": ({}, "real", [0, 1, -1e4, 1e4]),
    "student_t": ({"df": 3.0}, "real", [0, 1, -1e4, 1e4]),
    "log_normal": ({}, "positive", [1, 1e-30, 1e30]),
    "gamma": ({}, "positive", [1, 1e-30, 1e10]),
    "beta": ({}, "open unit", [0.5, 1e-30, 1 - 2**-23]),
    "continuous_bernoulli": ({}, "unit", [0, 0.3, 1]),
    "columns": ({"spec": TABLE}, None, None),
}
ELEMENTWISE = [name for name, (_, support, _) in CASES.items() if support is not None]
DISCRETE = [name for name in ELEMENTWISE if not isinstance(CASES[name][1], str)]
CONTINUOUS = [name for name in ELEMENTWISE if name not in DISCRETE]


def made(name, d=2):
    """The family, and the features it takes for d elements (for its three columns, if it is `columns`)."""
    spec, options = FAMILIES[name], CASES[name][0]
    return spec.make(**options), 6 if name == "columns" else d * spec.num_features(**options)


def rows_of_multinomial(total=3, d=2):
    return torch.tensor([y for y in itertools.product(range(total + 1), repeat=d) if sum(y) == total])


def in_support(name, d=2):
    """Values in the support, ``(V, *event)`` with d elements a row."""
    if name == "multinomial":
        return rows_of_multinomial().float()
    if name == "columns":
        return torch.tensor([[0.0, 0, 0], [1e4, 2, 1], [-1e4, 1, 1]])
    return torch.tensor(CASES[name][2], dtype=torch.float32).unsqueeze(-1).expand(-1, d)


# the table


def public_families():
    """Public functions and modules of the files that define families."""
    names = set()
    for module in (likelihoods, continuous, discrete, ordinal, registry):
        for name, o in vars(module).items():
            ours = inspect.getmodule(o) is module and name != "fitting"
            if ours and not name.startswith("_") and (inspect.isfunction(o) or inspect.isclass(o)):
                names.add(name)
    return names


def test_every_public_family_is_in_the_table_and_is_tested_here():
    assert public_families() == set(FAMILIES) == set(CASES)
    assert set(likelihoods.__all__) - {"FAMILIES", "fitting"} == set(FAMILIES)
    for name, spec in FAMILIES.items():
        assert spec.support and spec.formula and spec.reference
        assert set(spec.options) == set(CASES[name][0])
        assert isinstance(spec.num_features(**CASES[name][0]), int)


def test_the_table_says_which_options_have_a_default():
    assert FAMILIES["discretized_logistic_mixture"].options == {"levels": 256, "components": 5}
    assert FAMILIES["binomial"].options == {"total_count": inspect.Parameter.empty}
    assert FAMILIES["normal"].options == {}
    assert FAMILIES["categorical"].num_features(num_classes=7) == 7
    with pytest.raises(AttributeError):
        FAMILIES["normal"].formula = "other"


# shapes


@pytest.mark.parametrize("batch", [(), (5,), (3, 5)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_shapes_expand_and_a_sample_that_can_be_scored(name, batch):
    family, features = made(name)
    d = Conditional(MLP(3, features, (6,)), family)(torch.randn(*batch, 3))
    assert (d.batch_shape, d.event_shape) == (batch, (3,) if name == "columns" else (2,))
    y = d.sample()
    log_prob = d.log_prob(y)
    assert log_prob.shape == batch and log_prob.isfinite().all()
    assert d.support.check(y).all()
    wide = d.expand((7, *batch))
    assert wide.sample().shape == (7, *batch, *d.event_shape)
    torch.testing.assert_close(wide.log_prob(y), log_prob.expand(7, *batch))
    assert d.sample((4,)).shape == (4, *batch, *d.event_shape)
    assert d.expand((7, *batch)).expand((2, 7, *batch)).log_prob(y).shape == (2, 7, *batch)  # after sampling, too
    assert d.mean.shape == y.shape and d.variance.shape == y.shape


# normalisation


MAPS = {  # of the real line onto a support: the map, its slope, its inverse
    "real": (torch.sinh, torch.cosh, torch.asinh),
    "positive": (torch.exp, torch.exp, torch.log),
    "unit": (torch.sigmoid, lambda t: torch.sigmoid(t) * torch.sigmoid(-t), torch.logit),
}


def on_a_grid(d, support):
    """t, and the density of t where y = map(t): a change of variables that makes every integrand smooth, its tails short."""
    forward, slope, _ = MAPS[support.removeprefix("open ")]
    t = torch.linspace(-40, 40, 160_001, dtype=torch.float64)
    if support.endswith("unit"):
        t = t[forward(t) < 1]
    return t, d.log_prob(forward(t).unsqueeze(-1)).exp() * slope(t).unsqueeze(-1)


def total_mass(d, support):
    """Σ or ∫ p(y), for each element."""
    if isinstance(support, str):
        t, density = on_a_grid(d, support)
        return torch.trapezoid(density, t, dim=0)
    y = torch.tensor(list(support), dtype=torch.float64).unsqueeze(-1)
    return d.log_prob(y).exp().sum(0)


def check_normalised(family, features, support, tolerance):
    for seed in range(3):
        h = torch.randn(features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (1 + seed)
        if support == "open unit":
            h = h.clamp_min(-0.5)  # at smaller concentrations too much mass lies above the last float below 1
        mass = total_mass(family(h), support)
        torch.testing.assert_close(mass, torch.ones_like(mass), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_densities_sum_or_integrate_to_1(name):
    family, features = made(name)
    check_normalised(family, features, CASES[name][1], 1e-6 if name in DISCRETE else 1e-4)


def test_multinomial_sums_to_1_over_counts_with_that_sum():
    d = likelihoods.multinomial(3)(torch.tensor([0.3, -2.0], dtype=torch.float64))
    torch.testing.assert_close(d.log_prob(rows_of_multinomial().double()).exp().sum().item(), 1.0)


def without_tails(h):
    """Broken: the outermost bins of a discretized logistic as narrow as the others."""
    loc, scale = h.chunk(2, -1)
    s = nn.functional.softplus(scale)

    class Narrow:
        def log_prob(self, y):
            return (torch.sigmoid((y + 0.5 - loc) / s) - torch.sigmoid((y - 0.5 - loc) / s)).log()

    return Narrow()


def without_its_normaliser(h):
    """Broken: the Bernoulli's formula for grey values (Loaiza-Ganem & Cunningham's "pervasive error")."""
    return dist.Bernoulli(logits=h, validate_args=False)


def without_its_jacobian(h):
    """Broken: a log-normal with the factor 1 / y dropped."""
    loc, scale = h.chunk(2, -1)

    class Dropped:
        def log_prob(self, y):
            return dist.Normal(loc, nn.functional.softplus(scale) + 1e-4).log_prob(y.log())

    return Dropped()


@pytest.mark.parametrize(
    ("broken", "features", "support"),
    [(without_tails, 4, range(16)), (without_its_normaliser, 2, "unit"), (without_its_jacobian, 4, "positive")],
)
def test_a_density_that_is_not_one_is_caught(broken, features, support):
    with pytest.raises(AssertionError):
        check_normalised(broken, features, support, 1e-3)


# samples


def goodness(d, support, draws=6000):
    """p-value of draws against the density: Kolmogorov-Smirnov's for the continuous, Pearson's for the discrete."""
    y = d.sample((draws,)).squeeze(-1)
    if isinstance(support, str):
        t, density = on_a_grid(d, support)
        cdf = torch.cumulative_trapezoid(density.squeeze(-1), t)
        inverse = MAPS[support.removeprefix("open ")][2]
        u = np.interp(inverse(y).numpy(), t[1:].numpy(), cdf.numpy())
        return stats.kstest(u, "uniform").pvalue
    values = torch.tensor(list(support), dtype=torch.float64)
    expected = draws * d.log_prob(values.unsqueeze(-1)).exp().squeeze(-1)
    counts = (y.unsqueeze(-1) == values).sum(0).double()
    rare = expected < 5  # Pearson's statistic needs them in one bin
    expected, counts = (torch.cat([t[~rare], t[rare].sum(0, keepdim=True)]) for t in (expected, counts))
    if expected[-1] < 5:
        expected, counts = (torch.cat([t[:-2], t[-2:].sum(0, keepdim=True)]) for t in (expected, counts))
    return stats.chisquare(counts.numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_samples_follow_the_density(name):
    if "dim" in FAMILIES[name].options:
        family, features = FAMILIES[name].make(**CASES[name][0] | {"dim": 1}), 1
    else:
        family, features = made(name, d=1)
    h = torch.randn(features, dtype=torch.float64) * 0.7
    with torch.no_grad():
        d = family(h)
        assert goodness(d, CASES[name][1]) > 1e-3


class Off:
    """Broken: samples of one feature, scored under another."""

    def __init__(self, family, h, other):
        self.drawn, self.scored = family(h), family(other)

    def sample(self, shape):
        return self.drawn.sample(shape)

    def log_prob(self, y):
        return self.scored.log_prob(y)


@pytest.mark.parametrize("name", ["poisson", "continuous_bernoulli"])
def test_samples_of_another_density_are_caught(name):
    family, h = made(name, d=1)[0], torch.zeros(1, dtype=torch.float64)
    assert goodness(Off(family, h, h), CASES[name][1]) > 1e-3
    assert goodness(Off(family, h, h + 0.6), CASES[name][1]) < 1e-3


@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n not in ("categorical", "student_t")])
def test_mean_and_variance_are_those_of_samples(name):
    """Within 4 standard errors; student_t(3) has no fourth moment, classes no mean."""
    family, features = made(name)
    with torch.no_grad():
        d = family(torch.randn(features, dtype=torch.float64) * 0.7 - 0.5)
        y = d.sample((20_000,)).double()
    squares = (y - d.mean).square()
    for estimates, exact in ((y, d.mean), (squares, d.variance)):
        assert ((estimates.mean(0) - exact).abs() < 4 * estimates.std(0) / len(y) ** 0.5).all()


# extremes


def extreme_features(features):
    """All of one size, and every pattern of signs and zeros that a few random draws make."""
    yield torch.full((features,), 1e4)
    yield torch.full((features,), -1e4)
    for seed in range(12):
        pattern = torch.randint(-1, 2, (features,), generator=torch.Generator().manual_seed(seed))
        yield 1e4 * pattern.float()


def check_finite(family, features, values):
    for h in extreme_features(features):
        h.requires_grad_()
        for y in values:
            d = family(h)
            log_prob = d.log_prob(y)
            (grad,) = torch.autograd.grad(log_prob.sum(), h)
            assert log_prob.isfinite().all(), (h, y)
            assert grad.isfinite().all(), (h, y)


@pytest.mark.parametrize("name", CASES)
def test_extreme_features_stay_finite_in_float32(name):
    family, features = made(name)
    check_finite(family, features, in_support(name))
    for h in extreme_features(features):
        with torch.no_grad():
            d = family(h)
            y = d.sample((50,))
            assert d.support.check(y).all(), h
            assert d.log_prob(y).isfinite().all(), h
            if name not in ("categorical", "columns"):
                assert d.mean.isfinite().all()


@pytest.mark.parametrize("value", [-1e4, -50.0, 50.0, 1e4])
def test_a_shared_scale_stays_finite_too(value):
    family = likelihoods.SharedNormal(2)
    with torch.no_grad():
        family.log_scale.fill_(value)
    log_prob = family(torch.zeros(2)).log_prob(torch.tensor([1.0, -1e4]))
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and family.log_scale.grad.isfinite().all()


def exp_without_a_bound(h):
    return dist.Poisson(h.exp(), validate_args=False)


def softplus_without_a_floor(h):
    return dist.Gamma(*nn.functional.softplus(h).chunk(2, -1), validate_args=False)


@pytest.mark.parametrize("broken", [exp_without_a_bound, softplus_without_a_floor, without_tails])
def test_a_family_that_does_not_stay_finite_is_caught(broken):
    with pytest.raises(AssertionError):
        check_finite(broken, 4, [torch.tensor(1.0)])


# what the formulas say, and in which layout


def test_features_come_part_by_part():
    h = torch.arange(6, dtype=torch.float64)
    d = likelihoods.categorical(3)(h)  # classes of element 0: features 0, 2, 4
    torch.testing.assert_close(d.logits.exp(), torch.softmax(h.view(3, 2).T, -1))
    d = likelihoods.zero_inflated_negative_binomial(h)
    softplus = nn.functional.softplus(h) + 1e-4
    torch.testing.assert_close(d.base.mean, softplus[:2])
    torch.testing.assert_close(d.base.variance, softplus[:2] + softplus[:2] ** 2 / softplus[2:4])
    torch.testing.assert_close(d.gate_logits, h[4:])
    d = likelihoods.discretized_logistic_mixture(16, 2)(torch.arange(12, dtype=torch.float64))
    torch.testing.assert_close(d.mixture_distribution.logits.diff(), torch.full((2, 1), 2.0, dtype=torch.float64))
    torch.testing.assert_close(d.component_distribution.loc[1], 7.5 * (1 + torch.tensor([5.0, 7.0]).double()))


def test_formulas_in_the_parameters_that_docstrings_name():
    h = torch.tensor([0.4, -1.0], dtype=torch.float64)
    positive = nn.functional.softplus(h) + 1e-4
    torch.testing.assert_close(likelihoods.poisson(h).mean, positive)
    torch.testing.assert_close(likelihoods.gamma(h).mean, positive[:1] / positive[1:])
    torch.testing.assert_close(likelihoods.beta(h).mean, positive[:1] / positive.sum())
    torch.testing.assert_close(likelihoods.laplace(h).log_prob(h[:1]), -(2 * positive[1:]).log())
    torch.testing.assert_close(likelihoods.log_normal(h).mean, (h[:1] + positive[1:] ** 2 / 2).exp())
    torch.testing.assert_close(likelihoods.normal_fixed(0.5)(h).variance, torch.full_like(h, 0.25))
    torch.testing.assert_close(likelihoods.student_t(5.0)(h).variance, positive[1:] ** 2 * 5 / 3)


def test_a_mixture_of_one_component_is_the_component():
    h = torch.randn(4)
    y = torch.arange(16.0).unsqueeze(-1)
    one = likelihoods.discretized_logistic_mixture(16, 1)(torch.cat([torch.randn(2), h]))
    torch.testing.assert_close(one.log_prob(y), likelihoods.discretized_logistic(16)(h).log_prob(y))


@pytest.mark.parametrize("name", CASES)
def test_names_and_gradients_of_parameters(name):
    family, features = made(name)
    part = Conditional(nn.Linear(3, features), family)
    assert name in repr(part)
    part(torch.randn(5, 3)).log_prob(in_support(name)[0]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


# refusals


@pytest.mark.parametrize(
    ("name", "count"),
    [("normal", 2), ("laplace", 2), ("student_t", 2), ("log_normal", 2), ("gamma", 2), ("beta", 2), ("categorical", 4),
     ("negative_binomial", 2), ("zero_inflated_poisson", 2), ("zero_inflated_negative_binomial", 3),
     ("discretized_logistic", 2), ("discretized_logistic_mixture", 9)],
)  # fmt: skip
def test_features_that_cannot_be_divided_are_refused(name, count):
    family, _ = made(name)
    with pytest.raises(ShapeError, match=rf"{name}.* takes {count} features an element, got 7\. Let the network"):
        family(torch.zeros(5, 7))
    with pytest.raises(ShapeError, match="no dimension"):
        family(torch.zeros(()))


def test_a_shared_scale_refuses_other_widths():
    with pytest.raises(ShapeError, match=r"SharedNormal\(2\) takes 2 features, one an element, got shape \(5, 1\)"):
        likelihoods.SharedNormal(2)(torch.zeros(5, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: likelihoods.categorical(1),
        lambda: likelihoods.multinomial(0),
        lambda: likelihoods.discretized_logistic(1),
        lambda: likelihoods.discretized_logistic_mixture(16, 0),
        lambda: likelihoods.discretized_logistic_mixture(2.5),
        lambda: likelihoods.normal_fixed(0.0),
        lambda: likelihoods.normal_fixed(math.nan),
        lambda: likelihoods.student_t(-1.0),
        lambda: likelihoods.SharedNormal(0),
        lambda: likelihoods.CumulativeLogit(1, 2),
        lambda: likelihoods.CumulativeLogit(4, 0),
        lambda: likelihoods.columns([]),
        lambda: likelihoods.columns([(likelihoods.normal, 2, 0)]),
    ],
)
def test_options_that_make_no_sense_are_refused(make):
    with pytest.raises(UsageError):
        make()


# columns


def test_columns_score_a_row_as_their_blocks_do():
    h = torch.randn(5, 6)
    d = likelihoods.columns(TABLE)(h)
    y = d.sample()
    by_hand = (
        likelihoods.normal(h[:, :2]).log_prob(y[:, :1])
        + likelihoods.categorical(3)(h[:, 2:5]).log_prob(y[:, 1:2])
        + likelihoods.bernoulli(h[:, 5:]).log_prob(y[:, 2:])
    )
    torch.testing.assert_close(d.log_prob(y), by_hand.squeeze(-1))
    torch.testing.assert_close(d.mean[:, 0], h[:, 0])
    assert d.mean[:, 1].isnan().all() and d.mean[:, 2].isfinite().all()


def test_columns_train_the_parameters_of_their_blocks():
    table = likelihoods.columns([(likelihoods.SharedNormal(2), 2, 2), (likelihoods.poisson, 1, 1)])
    part = Conditional(nn.Linear(3, 3), table)
    assert "family.parametrised.0.log_scale" in part.state_dict()
    part(torch.zeros(5, 3)).log_prob(torch.ones(5, 3)).sum().backward()
    assert (table.families[0].log_scale.grad != 0).all()


def test_columns_refuse_other_widths():
    with pytest.raises(ShapeError, match=r"takes 6 features \(2 \+ 3 \+ 1\), got an input of shape \(5, 7\)"):
        likelihoods.columns(TABLE)(torch.zeros(5, 7))
    with pytest.raises(ShapeError, match=r"make \[3\] columns of their features, not \[2\]"):
        likelihoods.columns([(likelihoods.normal, 6, 2)])(torch.zeros(5, 6))


REAL = {"normal", "normal_fixed", "SharedNormal", "laplace", "student_t"}
FROM_0 = {"poisson", "negative_binomial", "zero_inflated_poisson", "zero_inflated_negative_binomial"}
BOUNDED = {"binomial", "categorical", "CumulativeLogit", "discretized_logistic", "discretized_logistic_mixture"}


@pytest.mark.parametrize(
    ("x", "fit"),
    [
        ([[0.0, 1.0], [1.0, 1.0]], REAL | FROM_0 | BOUNDED | {"bernoulli", "continuous_bernoulli"}),
        ([[0.0, 1.0], [1.0, 0.0]], REAL | FROM_0 | BOUNDED | {"bernoulli", "continuous_bernoulli", "multinomial"}),
        ([[0.0, 256.0], [1.0, 3.0]], REAL | FROM_0 | BOUNDED),
        ([[0.0, 0.5], [1.0, 1.0]], REAL | {"continuous_bernoulli"}),
        ([[0.2, 0.5], [0.9, 0.1]], REAL | {"continuous_bernoulli", "beta", "gamma", "log_normal"}),
        ([[1.5, 2.0], [3.0, 4.0]], REAL | {"gamma", "log_normal"}),
        ([[0.0, 1.5], [3.0, 4.0]], REAL),
        ([[-1.0, 1.0], [3.0, 4.0]], REAL),
        ([[-3.0, -1.0], [-3.0, -1.0]], REAL),
        ([[math.nan, 1.5], [math.nan, 2.0]], REAL | {"gamma", "log_normal"}),
        ([[math.nan, math.nan]], set()),
    ],
)
def test_the_families_that_fit_some_data(x, fit):
    """Those whose own support and density, on all the rows, say so: bounds from the data."""
    x = torch.tensor(x)
    assert set(fitting(x)) == fit and set(fitting(x.reshape(len(x), 1, 2))) == fit
    assert set(fitting(x.repeat(1, 3))) == fit
