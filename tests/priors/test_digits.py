"""Priors and posteriors at the ends of their ranges, in float32: to six digits of fifty, or of float64."""

import copy

import pyro.distributions as dist
import pytest
import torch
from mpmath import mp, mpf

from pyro_vae.posteriors import families
from pyro_vae.priors import (
    PRIORS,
    DiagonalNormal,
    Dirichlet,
    Laplace,
    Mixture,
    OneHot,
    StandardNormal,
    StudentT,
    UniformSphere,
)

ERROR = 1e-6  # of a log-density or of one nat
mp.dps = 60


def within(got, exact):
    return abs(got - float(exact)) <= ERROR * max(1.0, abs(float(exact)))


def student_t(df):
    df = mpf(df)
    constant = mp.loggamma((df + 1) / 2) - mp.loggamma(df / 2) - mp.log(df * mp.pi) / 2
    return lambda z: mp.fsum(constant - (df + 1) / 2 * mp.log1p(one * one / df) for one in z)


def dirichlet(a):
    def log_p(z):
        constant = mp.loggamma(len(z) * mpf(a)) - len(z) * mp.loggamma(mpf(a))
        return constant + (mpf(a) - 1) * mp.fsum(map(mp.log, z))

    return log_p


Z = torch.tensor([[0.0, 1e-3, -2.0], [1e4, -1e4, 3.0], [0.3, 0.1, -0.7]])
PARTS = torch.tensor([[0.25, 0.25, 0.5], [0.3125, 0.34375, 0.34375], [2.0**-20, 0.5, 0.5 - 2.0**-20]])
CASES = {
    **{f"student_t df={df:g}": (StudentT(3, df), student_t(df), Z) for df in (0.01, 1.0, 1e4, 1e6, 1e8)},
    **{f"dirichlet a={a:g}": (Dirichlet(3, a), dirichlet(a), PARTS) for a in (0.0078125, 1.0, 1024.0, 1048576.0)},
    "standard_normal": (StandardNormal(3), lambda z: -mp.fsum(t * t for t in z) / 2 - 3 * mp.log(2 * mp.pi) / 2, Z),
    "normal": (DiagonalNormal(3), lambda z: -mp.fsum(t * t for t in z) / 2 - 3 * mp.log(2 * mp.pi) / 2, Z),
    "laplace": (Laplace(3), lambda z: -mp.fsum(map(abs, z)) - 3 * mp.log(2), Z),
    "uniform_sphere": (UniformSphere(3), lambda z: -mp.log(4 * mp.pi), torch.eye(3)),
}


@pytest.mark.parametrize("name", CASES)
def test_priors_are_right_to_six_digits(name):
    prior, log_p, values = CASES[name]
    got = prior().log_prob(values)
    assert got.dtype == torch.float32
    for one, z in zip(got.tolist(), values.tolist(), strict=True):
        assert within(one, log_p([mpf(t) for t in z])), (z, one)


@pytest.mark.parametrize("name", ["student_t df=1e+06", "dirichlet a=1.04858e+06"])
def test_torchs_own_are_not(name):
    _, log_p, values = CASES[name]
    plain = (
        dist.StudentT(1e6, torch.zeros(3), 1.0).to_event(1)
        if name[0] == "s"
        else dist.Dirichlet(torch.full((3,), 2.0**20))
    )
    got = plain.log_prob(values).tolist()
    assert not all(within(one, log_p([mpf(t) for t in z])) for one, z in zip(got, values.tolist(), strict=True))


def logits_at(prior, logits):
    with torch.no_grad():
        prior.logits.copy_(torch.tensor(logits))
    return prior


@pytest.mark.parametrize("make", [lambda: OneHot(3, learned=True), lambda: Mixture(2, 3)], ids=["one_hot", "mixture"])
def test_weights_of_large_logits_keep_their_probabilities(make):
    torch.manual_seed(0)
    prior = logits_at(make(), [1e4, 9999.5, 9997.0])
    values = torch.eye(3) if isinstance(prior, OneHot) else torch.randn(50, 2) * 2
    exact = copy.deepcopy(prior).double()().log_prob(values.double())
    assert ((prior().log_prob(values) - exact).abs() <= ERROR * exact.abs().clamp_min(1)).all()


def test_every_prior_is_here_or_compared_with_float64():
    here = {name.split()[0] for name in CASES} | {"one_hot", "mixture"}
    assert set(PRIORS) - here == {"vamp", "flow"}  # a mixture of posteriors; `check` says what a flow keeps


# posteriors


POSTERIORS = {
    "logistic_normal": (families.logistic_normal, 6),
    "full_normal": (families.full_normal(3), 3 + 6),
    "low_rank_normal": (families.low_rank_normal(2), 3 * 4),
    "one_hot_categorical": (families.one_hot_categorical, 3),
    "one_hot_categorical_st": (families.one_hot_categorical_st, 3),
}


@pytest.mark.parametrize("size", [1.0, 10.0, 1e4])
@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors_score_their_draws_to_six_digits(name, size):
    torch.manual_seed(0)
    family, features = POSTERIORS[name]
    h = torch.randn(200, features) * size
    z = family(h).sample()
    exact = family(h.double()).log_prob(z.double())
    assert ((family(h).log_prob(z) - exact).abs() <= ERROR * exact.abs().clamp_min(1)).all()


def on_the_sphere(loc, kappa, z):
    """The density of the directions of μ and z: float32 leaves neither of length 1."""
    lengths = [mp.sqrt(mp.fsum(t * t for t in v)) for v in (loc, z)]
    cosine = mp.fsum(a * b for a, b in zip(loc, z, strict=True)) / lengths[0] / lengths[1]
    half = mpf(len(z) - 1) / 2
    log_c = mp.loggamma(2 * half + kappa) - mp.loggamma(half + kappa) - half * mp.log(mp.pi) - 2 * half * mp.log(2)
    return kappa * mp.log((1 + cosine) / 2) + log_c


@pytest.mark.parametrize("raw", [-9.0, 3.0, 100.0, 1e4])
def test_power_spherical_forgives_lengths_that_rounding_changed(raw):
    torch.manual_seed(0)
    d = families.power_spherical(torch.cat([torch.randn(60, 4), torch.full((60, 1), raw)], 1))
    z = d.sample()
    worst = 0.0
    for loc, kappa, value, got in zip(
        d.loc.tolist(), d.concentration.tolist(), z.tolist(), d.log_prob(z).tolist(), strict=True
    ):
        exact = on_the_sphere([mpf(t) for t in loc], mpf(kappa), [mpf(t) for t in value])
        worst = max(worst, abs(got - float(exact)) / max(1.0, abs(float(exact))))
    assert worst <= ERROR
    if raw == 1e4:  # broken: the logarithm of (1 + μ·z) / 2 as it was, κ times the rounding of 1 + 1
        broken = d.concentration * ((d.loc + z).square().sum(-1) / 4).log()
        assert (broken - (d.log_prob(z) - d.log_prob(d.loc))).abs().max() > 1e-4
