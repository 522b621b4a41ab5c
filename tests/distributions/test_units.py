"""Densities in units of the data, against the change of variables by hand."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_vae.distributions.missing import Observed
from pyro_vae.distributions.tabular import Columns
from pyro_vae.distributions.units import in_units, real_elements
from pyro_vae.errors import ProgramError

LOC, SCALE = torch.tensor([5.0, -2.0, 1e3]), torch.tensor([10.0, 0.1, 3.0])
BASES = {
    "normal": lambda: dist.Normal(torch.tensor([0.0, 1.0, -1.0]), 0.5).to_event(1),
    "laplace": lambda: dist.Laplace(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])).to_event(1),
    "student": lambda: dist.StudentT(3.0, torch.zeros(3), 2.0).to_event(1),
    "gaussian": lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 0.5),
    "columns": lambda: Columns(
        [dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Laplace(torch.zeros(1), 1.0).to_event(1)]
    ),
    "rows": lambda: dist.Normal(torch.zeros(4, 3), 1.0).to_event(1),
}


@pytest.mark.parametrize("kind", BASES)
def test_the_jacobian_is_in_the_density(kind):
    base = BASES[kind]()
    d = in_units(base, LOC, SCALE)
    y = LOC + SCALE * torch.randn(4, 3)
    right = base.log_prob((y - LOC) / SCALE) - SCALE.log().sum()
    assert torch.allclose(d.log_prob(y), right, atol=1e-5) and real_elements(base).all()
    assert d.batch_shape == base.batch_shape and d.event_shape == base.event_shape and d.has_rsample
    draws = d.sample((20_000,))
    if kind != "student":
        se = (d.variance / 20_000).sqrt()
        assert ((draws.mean(0) - d.mean).abs() < 4.5 * se).all()
    assert not torch.allclose(base.log_prob((y - LOC) / SCALE), right, atol=1e-2)


def test_the_density_integrates_to_one():
    d = in_units(dist.Normal(torch.tensor(0.3), 0.7), torch.tensor(1e4), torch.tensor(250.0))
    y = torch.linspace(8e3, 1.2e4, 4001, dtype=torch.double)
    assert torch.trapezoid(d.log_prob(y).exp(), y).item() == pytest.approx(1, abs=1e-6)


def test_no_digits_are_lost_far_from_zero():
    """Years with days' precision in float64 bits of float32's: u is taken before the density, not loc + scale · loc_u."""
    loc, scale = torch.tensor(2000.0), torch.tensor(1e-2)
    y = loc + torch.tensor([0.0, 1.0, 2.0]) * 2.0**-7
    right = dist.Normal(0.3, 0.7).log_prob((y.double() - 2000) / 1e-2) - math.log(1e-2)
    d = in_units(dist.Normal(torch.tensor(0.3), 0.7), loc, scale)
    assert torch.allclose(d.log_prob(y).double(), right, atol=1e-4)


def test_missing_values_bring_no_jacobian():
    d = in_units(Observed(BASES["normal"]()), LOC, SCALE)
    y = torch.tensor([[5.0, torch.nan, 1e3], [torch.nan] * 3])
    one = dist.Normal(torch.tensor([0.0, -1.0]), 0.5).log_prob(torch.zeros(2)).sum() - math.log(30)
    assert torch.allclose(d.log_prob(y), torch.stack([one, torch.tensor(0.0)]), atol=1e-5)


def test_columns_of_no_real_numbers_stay():
    base = Columns([
        dist.Normal(torch.zeros(1), 1.0).to_event(1),
        dist.Poisson(torch.ones(1)).to_event(1),
        dist.LogNormal(torch.zeros(1), 1.0).to_event(1),
    ])  # fmt: skip
    assert real_elements(base).tolist() == [True, False, False]
    loc, scale = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([2.0, 1.0, 1.0])
    d = in_units(base, loc, scale)
    y = torch.tensor([1.0, 4.0, 0.5])
    right = base.log_prob(torch.tensor([-1.0, 4.0, 0.5])) - math.log(2)
    assert torch.allclose(d.log_prob(y), right) and d.support.check(y)
    assert not d.support.check(torch.tensor([1.0, 0.5, 0.5]))


def test_what_is_real_already_has_units_once():
    d = in_units(BASES["normal"](), LOC, SCALE)
    assert not real_elements(d).any()
    assert isinstance(d.base_dist.support, type(constraints.real))


def test_a_masked_likelihood_is_refused():
    masked = dist.Normal(torch.zeros(3), 1.0).mask(torch.tensor([True, False, True])).to_event(1)
    with pytest.raises(ProgramError, match="masked likelihood"):
        in_units(masked, LOC, SCALE)
