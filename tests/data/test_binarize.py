"""Binarization: means, ends, missing values and seeds."""

import math

import pytest
import torch

from pyro_vae.data import binarize, check_grey, static_binarization
from pyro_vae.errors import SupportError


def test_binarize_has_the_mean_of_a_bernoulli():
    """20,000 draws of each of 11 values: within 4 standard errors, SE = sqrt(x (1 − x) / 20,000) <= 0.0036."""
    x, n = torch.linspace(0, 1, 11), 20_000
    draws = binarize(x.expand(n, -1), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert ((draws.mean(0) - x).abs() <= 4 * (x * (1 - x) / n).sqrt()).all()


def test_binarize_takes_ends_as_certain_and_keeps_what_is_missing():
    ends = binarize(torch.tensor([0.0, 1.0, math.nan]).repeat(100_000, 1), torch.Generator().manual_seed(0))
    assert torch.equal(ends[:, :2], torch.tensor([0.0, 1.0]).repeat(100_000, 1))
    assert not ends[:, 0].signbit().any() and ends[:, 2].isnan().all()


def test_binarize_draws_from_the_generator_and_keeps_the_dtype():
    x = torch.full((100, 8), 0.5, dtype=torch.float64)
    state = torch.get_rng_state()
    first, again = (binarize(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == x.dtype and torch.equal(first, again)
    assert not torch.equal(binarize(x), binarize(x))


def test_static_binarization_is_fixed_by_its_seed():
    x = torch.full((100, 8), 0.5)
    state = torch.get_rng_state()
    assert torch.equal(static_binarization(x, 1), static_binarization(x, 1))
    assert not torch.equal(static_binarization(x, 1), static_binarization(x, 2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [-0.1, 1.5, 255.0, float("nan")])
def test_grey_is_checked(bad):
    x = torch.full((10, 3), 0.5)
    assert check_grey(x) is x
    x[7, 1] = bad
    for refuses in (check_grey, lambda x: static_binarization(x, 0)):
        with pytest.raises(SupportError, match=r"1 of 10 rows: 7 .* first in column 1\).*divide 0..255 pixels by 255"):
            refuses(x)
