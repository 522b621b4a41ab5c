"""Every family at the ends of its range, value and gradient, against its documented formula in fifty digits."""

import itertools
import math

import mpmath
import pyro.distributions as dist
import pytest
import torch
from mpmath import mp, mpf

from pyro_vae import likelihoods
from pyro_vae.distributions.counts import DiscretizedLogistic
from pyro_vae.distributions.features import MIN_SCALE
from pyro_vae.likelihoods import FAMILIES

DIGITS = 60
ERROR = 1e-6  # of a log-density or of one nat, whichever is larger; of a derivative or of 1 likewise
FLOOR = mpf("1e-4")
ENDS = (-1e4, -30.0, -9.0, -3.0, 0.0, 0.5, 9.0, 30.0, 1e4)
COUNTS = (0, 1, 7, 1000, 99_840, 100_000)
REALS = (0, 1, 1.0003, -1e4, 1e4)
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def positive(h):
    return mp.log1p(mp.exp(h)) + FLOOR


def log_sigmoid(h):
    return -mp.log1p(mp.exp(-h))


def log_binomial(n, y):
    return mp.loggamma(n + 1) - mp.loggamma(y + 1) - mp.loggamma(n - y + 1)


def log_softmax(h):
    total = mp.log(mp.fsum(mp.exp(one) for one in h))
    return [one - total for one in h]


def bernoulli(y, h):
    return y * h - mp.log1p(mp.exp(h))


def binomial(n):
    return lambda y, h: log_binomial(n, y) + y * log_sigmoid(h) + (n - y) * log_sigmoid(-h)


def categorical(y, *h):
    return log_softmax(h)[int(y)]


def poisson(y, h):
    return y * mp.log(positive(h)) - positive(h) - mp.loggamma(y + 1)


def negative_binomial(y, mean, size):
    mean, r = positive(mean), positive(size)
    terms = mp.loggamma(y + r) - mp.loggamma(r) - mp.loggamma(y + 1)
    return terms + r * mp.log(r / (r + mean)) + y * mp.log(mean / (r + mean))


def zero_inflated(counts):
    def log_p(y, *h):
        counted = log_sigmoid(-h[-1]) + counts(y, *h[:-1])
        return mp.log(mp.exp(log_sigmoid(h[-1])) + mp.exp(counted)) if y == 0 else counted

    return log_p


def log_bin(y, loc, scale, levels):
    """log of the mass of a logistic between y ± ½; from the side where both tails are small."""
    if y == 0:
        return log_sigmoid((y + mpf("0.5") - loc) / scale)
    if y == levels - 1:
        return log_sigmoid(-(y - mpf("0.5") - loc) / scale)
    low, high = sorted((-abs(y - loc) / scale - 1 / (2 * scale), -abs(y - loc) / scale + 1 / (2 * scale)))
    tails = [1 / (1 + mp.exp(-edge)) for edge in (low, high)]
    return mp.log(tails[1] - tails[0])


def discretized(levels):
    half = mpf(levels - 1) / 2
    return lambda y, loc, raw: log_bin(y, half * (1 + loc), half * positive(raw), levels)


def discretized_mixture(levels, count):
    def log_p(y, *h):
        weights, loc, raw = log_softmax(h[:count]), h[count : 2 * count], h[2 * count :]
        each = [w + discretized(levels)(y, *pair) for w, *pair in zip(weights, loc, raw, strict=True)]
        largest = max(each)
        return largest + mp.log(mp.fsum(mp.exp(one - largest) for one in each))

    return log_p


def cumulative_logit(y, h):
    """Five classes, cut at -1.5 and by gaps of features 0.5; from the side where both tails are small."""
    cut = [mpf("-1.5") + k * positive(mpf("0.5")) for k in range(4)]
    if y in (0, 4):
        return log_sigmoid(cut[0] - h) if y == 0 else log_sigmoid(h - cut[-1])
    low, high = cut[int(y) - 1] - h, cut[int(y)] - h
    low, high = (low, high) if low + high < 0 else (-high, -low)
    return mp.log(1 / (1 + mp.exp(-high)) - 1 / (1 + mp.exp(-low)))


def cut_at_halves(num_classes, dim):
    """Parameters that half precision holds exactly."""
    family = likelihoods.CumulativeLogit(num_classes, dim)
    with torch.no_grad():
        family.first.fill_(-1.5)
        family.gaps.fill_(0.5)
    return family


def normal_density(y, loc, scale):
    return -(((y - loc) / scale) ** 2) / 2 - mp.log(scale) - mp.log(2 * mp.pi) / 2


def laplace(y, loc, raw):
    return -abs(y - loc) / positive(raw) - mp.log(2 * positive(raw))


def student_t(df):
    df = mpf(df)
    constant = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2

    def log_p(y, loc, raw):
        return constant - mp.log(positive(raw)) - (df + 1) / 2 * mp.log1p(((y - loc) / positive(raw)) ** 2 / df)

    return log_p


def log_normal(y, loc, raw):
    loc, scale = max(-30, min(30, loc)), min(8, positive(raw))
    return normal_density(mp.log(y), loc, scale) - mp.log(y)


def gamma(y, a, b):
    a, b = positive(a), positive(b)
    return a * mp.log(b) + (a - 1) * mp.log(y) - b * y - mp.loggamma(a)


def beta(y, a, b):
    a, b = positive(a), positive(b)
    constant = mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b)
    return constant + (a - 1) * mp.log(y) + (b - 1) * mp.log1p(-y)


def continuous_bernoulli(y, h):
    return h * y - mp.log(mp.expm1(h) / h) if h else mpf(0)


def multinomial(n):
    def log_p(y, *h):
        coefficient = mp.loggamma(n + 1) - mp.fsum(mp.loggamma(mpf(one) + 1) for one in y)
        return coefficient + mp.fsum(mpf(one) * log_pi for one, log_pi in zip(y, log_softmax(h), strict=True))

    return log_p


# the family's options; its formula; values of one element; features that put its mean near a value (or its peak, at the value)
TABLE = {
    "bernoulli": [({}, bernoulli, (0, 1), [])],
    "binomial": [
        ({"total_count": 5}, binomial(5), (0, 2, 5), []),
        ({"total_count": 10**6}, binomial(10**6), (0, 333_312, 999_424), [(-0.693,), (11.47,)]),
    ],
    "categorical": [({"num_classes": 4}, categorical, (0, 3), [(1e4, 9999, 9998, 9997), (7.5, 8, 7, -30)])],
    "CumulativeLogit": [({"num_classes": 5, "dim": 1}, cumulative_logit, (0, 1, 2, 4), [(0.7,), (-90,)])],
    "multinomial": [
        ({"total_count": 3}, multinomial(3), ((3, 0, 0), (1, 1, 1)), [(1e4, 9999, 9998)]),
        ({"total_count": 98304}, multinomial(98304), ((98304, 0, 0), (32768, 32768, 32768)), [(11, -8, -1), (0, 0, 0.01)]),
    ],
    "discretized_logistic": [
        ({"levels": 16}, discretized(16), (0, 1, 8, 15), [(0.9, -3), (0.066, -9)]),
        ({"levels": 256}, discretized(256), (0, 1, 128, 255), [(0.004, -7), (1, -3.4), (-1, -9)]),
    ],
    "discretized_logistic_mixture": [
        ({"levels": 256, "components": 2}, discretized_mixture(256, 2), (0, 128, 255), [(1e4, 9999, 0.01, 0, -7, -3)])
    ],
    "poisson": [({}, poisson, COUNTS, [(1e5,), (99_900,), (1010,), (7,)])],
    "negative_binomial": [({}, negative_binomial, COUNTS, [(1e5, 1e4), (1e5, 1e5), (1000, 9e4), (7, 1e-3)])],
    "zero_inflated_poisson": [({}, zero_inflated(poisson), COUNTS, [(1e5, -9), (1000, 3), (8, 9)])],
    "zero_inflated_negative_binomial": [({}, zero_inflated(negative_binomial), COUNTS, [(1e5, 1e5, -3), (1000, 1e4, 30)])],
    "normal": [({}, lambda y, loc, raw: normal_density(y, loc, positive(raw)), REALS, [(1.0001, -9), (9999, -30)])],
    "normal_fixed": [({"scale": 0.5}, lambda y, h: normal_density(y, h, mpf("0.5")), REALS, [(1.0001,), (9999,)])],
    "SharedNormal": [({"dim": 1}, lambda y, h: normal_density(y, h, 1 + FLOOR), REALS, [(1.0001,), (9999,)])],
    "laplace": [({}, laplace, REALS, [(1.0001, -9), (9999, -30)])],
    "student_t": [
        ({"df": df}, student_t(df), REALS, [(1.0001, -9), (9999, -30)]) for df in (0.01, 3.0, 1e4, 1e6, 1e8)
    ],
    "log_normal": [({}, log_normal, (1, 2.0**-99, 2.0**13, 2.5), [(0.9163, -30), (9, -9)])],
    "gamma": [({}, gamma, (1, 2.0**-99, 2.0**13, 2.5), [(9e3, 9e3), (1e4, 4e3), (1e4, 1.2)])],
    "beta": [({}, beta, (0.5, 2.0**-20, 0.9375), [(1e4, 1e4), (9e3, 620), (1e4, -9)])],
    "continuous_bernoulli": [({}, continuous_bernoulli, (0, 0.3125, 1), [(0.2499,), (0.2501,), (1e-3,)])],
}  # fmt: skip
CASES = {
    f"{name} {' '.join(f'{k}={v:g}' for k, v in case[0].items())}".strip(): (name, *case)
    for name, cases in TABLE.items()
    for case in cases
}


def features_of(name, options, extra):
    """Features at the ends of float's useful range, in all combinations of a few and in random ones of many."""
    count = 3 if name == "multinomial" else FAMILIES[name].num_features(**options)
    draw = torch.Generator().manual_seed(0)
    rows = list(itertools.product(ENDS, repeat=count)) if count < 2 else []
    for _ in range(0 if rows else 24):
        row = [ENDS[i] for i in torch.randint(len(ENDS), (count,), generator=draw).tolist()]
        rows.append([end + shift for end, shift in zip(row, torch.randn(count, generator=draw).tolist(), strict=True)])
    return [torch.tensor(row, dtype=torch.float64) for row in (*rows, *extra)]


def exact_gradient(log_p, y, h):
    return [mpmath.diff(lambda *at: log_p(y, *at), h, tuple(int(i == j) for j in range(len(h)))) for i in range(len(h))]


def close(got, exact):
    return abs(got - float(exact)) <= ERROR * max(1.0, abs(float(exact)))


def check_digits(make, name, options, log_p, values, extra, dtype, gradients=True):
    family = make(**options)
    family = family.to(dtype) if isinstance(family, torch.nn.Module) else family
    mp.dps = DIGITS
    for h in features_of(name, options, extra):
        h = h.to(dtype).requires_grad_()
        if not bool(h.isfinite().all()):
            continue  # beyond float16
        features = [mpf(one) for one in h.tolist()]
        for value in values:
            y = torch.tensor(value if isinstance(value, tuple) else [value], dtype=torch.float64).to(dtype)
            if not bool(y.isfinite().all()) or y.double().tolist() != [
                *torch.tensor(value).double().reshape(-1).tolist()
            ]:
                continue  # half precision has no such value
            at = value if isinstance(value, tuple) else mpf(y.item())
            got = family(h).log_prob(y)
            exact = log_p(at, *features)
            assert got.dtype == (torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype)
            assert close(got.sum().item(), exact), (h.tolist(), value, got.sum().item(), float(exact))
            if gradients:
                (grad,) = torch.autograd.grad(got.sum(), h)
                wanted = exact_gradient(log_p, at, features)
                assert all(map(close, grad.tolist(), wanted)), (h.tolist(), value, grad.tolist(), wanted)


def test_every_family_is_in_the_table():
    assert set(TABLE) == set(FAMILIES) - {"columns"}  # whose blocks are these


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_right_to_six_digits(case, dtype):
    """Gradients in float32 and float64: in half precision they are rounded to its 8 bits at the end."""
    name, *of = CASES[case]
    if dtype == "float16" and max(of[0].values(), default=0) > torch.finfo(torch.float16).max:
        pytest.skip("float16 cannot hold total_count")
    wide = dtype in ("float32", "float64")
    make = cut_at_halves if name == "CumulativeLogit" else FAMILIES[name].make
    check_digits(make, name, *of, DTYPES[dtype], gradients=wide)


# broken: torch's own, and the forms that the families had


def torchs_poisson():
    return lambda h: dist.Poisson(torch.nn.functional.softplus(h) + MIN_SCALE)


def of_rounded_parameters(levels):
    """Broken: the sums in float64, of loc and scale that were rounded to float32."""

    def family(h):
        loc, raw = h.chunk(2, -1)
        half = (levels - 1) / 2
        scale = half * (torch.nn.functional.softplus(raw) + MIN_SCALE)
        return DiscretizedLogistic((half * (1 + loc)).double(), scale.double(), levels)

    return lambda h: Float32(family(h))


class Float32:
    def __init__(self, d):
        self.d = d

    def log_prob(self, y):
        return self.d.log_prob(y.double()).float()


def plain_student_t(df):
    def family(h):
        loc, raw = h.chunk(2, -1)
        return dist.StudentT(df, loc, torch.nn.functional.softplus(raw) + MIN_SCALE)

    return family


def plain_categorical(num_classes):
    return lambda h: dist.Categorical(logits=h.unsqueeze(0))


def plain_log_normal():
    def family(h):
        loc, raw = h.chunk(2, -1)
        scale = torch.nn.functional.softplus(raw) + MIN_SCALE
        return dist.LogNormal(loc.clamp(-30, 30), scale.clamp(max=8.0))

    return family


@pytest.mark.parametrize(
    ("case", "broken", "dtype"),
    [
        ("poisson", torchs_poisson, "float32"),
        ("discretized_logistic levels=256", of_rounded_parameters, "float32"),
        ("student_t df=1e+06", plain_student_t, "float32"),
        ("categorical num_classes=4", plain_categorical, "float32"),
        ("log_normal", plain_log_normal, "float32"),
    ],
)
def test_what_loses_digits_is_caught(case, broken, dtype):
    name, *of = CASES[case]
    with pytest.raises(AssertionError, match=r"nan|\d"):
        check_digits(broken, name, *of, DTYPES[dtype])


# rows of many elements


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5, 1e6])
def test_a_row_of_a_thousand_counts_is_right_to_the_sum(size):
    """d log p is a sum over the elements: what each loses in one direction adds up to nats."""
    y = torch.full((1000,), size)
    h = torch.cat([torch.full((1000,), size), torch.full((1000,), size)])
    mp.dps = DIGITS
    exact = 1000 * negative_binomial(mpf(size), mpf(size), mpf(size))
    got = likelihoods.negative_binomial(h).to_event(1).log_prob(y)
    assert abs(got.item() - float(exact)) < 1e-6 * abs(float(exact))


def test_draws_and_moments_keep_the_dtype_of_the_features():
    for dtype in (torch.float32, torch.float64):
        d = likelihoods.gamma(torch.zeros(4, dtype=dtype))
        assert d.sample().dtype == d.mean.dtype == d.variance.dtype == d.rsample().dtype == dtype
        assert d.log_prob(d.sample()).dtype == d.expand((3, 2)).log_prob(torch.ones(2, dtype=dtype)).dtype == dtype


def test_gradients_are_there_whether_or_not_it_was_scored_without_before():
    h = torch.zeros(2, requires_grad=True)
    d = likelihoods.poisson(h)
    with torch.no_grad():
        d.log_prob(torch.ones(2))
    (grad,) = torch.autograd.grad(d.log_prob(torch.ones(2)).sum(), h)
    assert (grad != 0).all()


def test_a_family_keeps_its_class():
    d = likelihoods.student_t(4.0)(torch.zeros(2))
    assert (
        isinstance(d, dist.StudentT) and type(d).__name__ == "StudentT" and isinstance(d.expand((3, 1)), dist.StudentT)
    )
    assert math.isfinite(d.to_event(1).expand((3,)).log_prob(torch.zeros(1)).sum())


def test_one_made_again_from_its_parameters_is_scored_wide_too():
    """As `widened()` and `gaps()` make them, who know the class alone."""
    h = torch.tensor([3.0, 1.0], requires_grad=True)
    d = likelihoods.student_t(1e6)(h)
    again = type(d)(d.df, loc=d.loc, scale=d.scale)
    for one in (again, again.expand((2, 1)), again.to_event(1)):
        torch.testing.assert_close(
            one.log_prob(torch.zeros(1)).sum() / one.batch_shape.numel(), d.log_prob(torch.zeros(1)).sum()
        )
    (grad,) = torch.autograd.grad(again.log_prob(torch.zeros(1)).sum(), h)
    assert (grad != 0).all()
