"""A spike of the prior that neither the grid nor a draw touches: what p(z) integrates to tells that it is there."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.evidence.exact import quadrature as oracle
from pyro_vae.evidence.exact.quadrature import quadrature
from tests.helpers.environment import HEAVY

from .test_bounds import D, bounded, one, spiked


@pytest.mark.parametrize("weight", [1e-3, 1e-5, *([1e-4] if HEAVY else [])])  # above the tolerance, and below
@pytest.mark.parametrize(("width", "dims"), [(1e-4, 1), (1e-6, 1), (1e-4, 2)])
@pytest.mark.parametrize("rows", [2, 20], ids=["by_row", "shared"])
def test_a_spike_of_the_prior_that_nobody_finds_is_a_part_of_the_error(weight, width, dims, rows):
    """No draw falls into it, and the grid steps over it: p(z) integrates to 1 less its weight."""
    model, truth = spiked(weight, width, dims)
    x = torch.linspace(0.0, 1.2 * dims, rows, dtype=D)
    believed = bounded(quadrature(model, None, x), truth(x))
    assert believed > 0 if weight < 2e-5 else believed == 0


def test_without_the_mass_of_the_prior_a_spike_is_missed(monkeypatch):
    monkeypatch.setattr(oracle, "missed_share", lambda missing, joint, prior, log_px: torch.zeros_like(log_px))
    with pytest.raises(AssertionError):
        test_a_spike_of_the_prior_that_nobody_finds_is_a_part_of_the_error(1e-3, 1e-6, 1, 2)


def test_a_prior_with_kinks_and_heavy_tails_has_no_mass_unseen():
    prior = one(lambda x: dist.Laplace(x.new_zeros(()), 1.0), lambda z: dist.Bernoulli(logits=z))
    found = quadrature(prior, None, torch.tensor([0.0, 1.0], dtype=D))
    assert bounded(found, [math.log(0.5)] * 2) == 2
