"""The floor of independent elements: scipy's maximum likelihood, and the same in every unit."""

import math

import pytest
import torch
from scipy import stats

from pyro_vae import likelihoods
from pyro_vae.runs import marginal_baseline
from pyro_vae.runs.marginal_baseline import floor, standard_units
from pyro_vae.runs.tabular_spec import named_columns

nan = math.nan
CASES = {
    "normal": (likelihoods.normal, stats.norm(3.0), lambda x: stats.norm(*stats.norm.fit(x))),
    "laplace": (likelihoods.laplace, stats.laplace(-1.0), lambda x: stats.laplace(*stats.laplace.fit(x))),
    "student_t": (likelihoods.student_t(3.0), stats.t(3, 2.0), lambda x: stats.t(*stats.t.fit(x, f0=3))),
    "gamma": (likelihoods.gamma, stats.gamma(2.5), lambda x: stats.gamma(*stats.gamma.fit(x, floc=0))),
    "log_normal": (likelihoods.log_normal, stats.lognorm(0.7), lambda x: stats.lognorm(*stats.lognorm.fit(x, floc=0))),
}


def rows(case):
    return torch.as_tensor(CASES[case][1].rvs((400, 2), random_state=0))


@pytest.mark.parametrize("case", CASES)
def test_a_floor_is_scipys_and_the_same_in_every_unit(case):
    family, _, fitted = CASES[case]
    x = rows(case)
    wanted = sum(torch.as_tensor(fitted(column.numpy()).logpdf(column.numpy())) for column in x.T)
    plain = floor(case, family, 4, x, x)
    assert (plain.mean() - wanted.mean()).abs() < 1e-4
    for c in (1e-6, 1e-3, 1e3, 1e6):
        torch.testing.assert_close(floor(case, family, 4, c * x, c * x), plain - 2 * math.log(c), atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["laplace", "gamma"])
def test_what_is_missing_has_no_unit(case):
    x = rows(case)
    x[::3, 0] = nan
    x[5] = nan
    plain, small = (floor(case, CASES[case][0], 4, c * x, c * x) for c in (1.0, 1e-5))
    torch.testing.assert_close(small + (~x.isnan()).sum(1) * math.log(1e-5), plain, atol=1e-4, rtol=0)
    assert plain[5] == 0


@pytest.mark.parametrize("c", [1e-6, 1.0, 1e6])
def test_columns_of_their_own_units_and_one_that_is_mostly_alike(c):
    x = rows("normal") * torch.tensor([1.0, 1e4])
    x[:300, 1] = 7.0
    wanted = sum(torch.as_tensor(stats.norm(*stats.norm.fit(v)).logpdf(v)) for v in x.T.numpy())
    found = floor("normal", likelihoods.normal, 4, c * x, c * x) + 2 * math.log(c)
    assert (found.mean() - wanted.mean()).abs() < 1e-4


@pytest.mark.parametrize("name", ["poisson", "beta", "normal_fixed"])
def test_a_family_with_a_unit_keeps_it(name):
    family = {"poisson": likelihoods.poisson, "beta": likelihoods.beta, "normal_fixed": likelihoods.normal_fixed(1.0)}[
        name
    ]
    x = torch.tensor([[0.2, 0.5], [0.3, 0.9]])
    loc, scale = standard_units(family, 4 if name == "beta" else 2, x)
    assert loc.tolist() == [0, 0] and scale.tolist() == [1, 1]


def test_a_normal_of_a_given_scale_is_not_rescaled():
    x = 50 * rows("normal")
    px = floor("normal_fixed", likelihoods.normal_fixed(1.0), 2, x, x)
    wanted = sum(torch.as_tensor(stats.norm(v.mean(), 1.0).logpdf(v)) for v in x.T.numpy())
    assert (px.mean() - wanted.mean()).abs() < 0.1


@pytest.mark.parametrize("case", ["laplace", "student_t", "gamma", "normal"])
def test_without_standard_units_small_and_large_ones_are_worse(case, monkeypatch):
    zero = torch.zeros(2, dtype=torch.float64)
    monkeypatch.setattr(marginal_baseline, "standard_units", lambda *args: (zero, zero + 1))
    with pytest.raises(AssertionError):
        test_a_floor_is_scipys_and_the_same_in_every_unit(case)


def test_the_floor_of_columns_is_that_of_each_by_itself():
    """Normal, binary and categorical in closed form, counts by gradient, of what is observed."""
    draw = torch.Generator().manual_seed(0)
    x = torch.stack([
        4000 + 300 * torch.randn(90, generator=draw),
        torch.randint(0, 2, (90,), generator=draw).float(),
        torch.randint(0, 3, (90,), generator=draw).float(),
        torch.poisson(torch.full((90,), 3.0), generator=draw),
    ], 1).double()  # fmt: skip
    x[::7, 0], x[3, 2] = nan, nan
    family = named_columns("normal:1,bernoulli:1,categorical:1:num-classes=3,poisson:1")
    found = floor("columns", family, sum(family.features), x, x)
    mass, flags, kinds, counts = x.T
    seen = mass[~mass.isnan()]
    wanted = torch.as_tensor(stats.norm(seen.mean(), seen.std(correction=0)).logpdf(mass)).nan_to_num()
    p, shares = (flags.sum() + 0.5) / 91, torch.stack([(kinds == k).sum() + 0.5 for k in range(3)]) / (89 + 1.5)
    wanted += torch.where(flags == 1, p, 1 - p).log()
    wanted += torch.where(kinds.isnan(), 1.0, shares[kinds.nan_to_num().long()]).log()
    wanted += torch.as_tensor(stats.poisson(counts.mean()).logpmf(counts))
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
