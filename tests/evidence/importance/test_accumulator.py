"""Sums over particles: bias and jackknife, and how little is held."""

import math

import numpy as np
import pytest
import torch

from pyro_vae.evidence.importance.accumulator import RowBlock, WeightSums
from pyro_vae.evidence.importance.result import Evidence
from tests.helpers.importance import check_slopes, gaussian_weights

# bias


def test_bias_falls_as_1_over_k_and_the_jackknifes_as_1_over_k_squared():
    check_slopes()


def test_the_jackknife_is_leave_one_out():
    """Against K L_K − (K − 1) mean_k L of all but k, by hand; for K > 64 the smaller weights enter by their squares only."""
    for k, atol in ((2, 1e-12), (7, 1e-12), (64, 1e-12), (65, 2e-5), (400, 1e-6), (3000, 1e-7)):
        log_w = 2 * torch.randn(k, 5, dtype=torch.float64)
        moments = WeightSums(5, k)
        for part in log_w.split(17):
            moments.add(part)
        without = torch.stack([torch.cat([log_w[:i], log_w[i + 1 :]]).logsumexp(0) for i in range(k)]) - math.log(k - 1)
        direct = k * (log_w.logsumexp(0) - math.log(k)) - (k - 1) * without.mean(0)
        torch.testing.assert_close(moments.jackknife, direct, rtol=0, atol=atol)


def test_the_jackknife_of_one_weight_that_is_all():
    moments = WeightSums(1)
    moments.add(torch.tensor([[-900.0], [0.0], [-901.0]], dtype=torch.float64))
    without = [
        torch.tensor(w).logsumexp(0).item() - math.log(2) for w in ([0.0, -901.0], [-900.0, -901.0], [-900.0, 0.0])
    ]
    assert moments.jackknife.item() == pytest.approx(-3 * math.log(3) - 2 * np.mean(without), rel=1e-6)
    assert moments.max_share.item() == 1


def test_the_residual_bias_is_the_delta_methods():
    """−½ (1/ESS − 1/K) in the mean over repeats, against the bias that is known: −½ Var(w) / K, Var(w) = 4/√7 − 1."""
    moments = WeightSums(20_000, 200)
    moments.add(gaussian_weights(200, 20_000))
    ess = Evidence(*torch.zeros(5, 20_000), num_samples=200, seed=0)
    estimated = -0.5 * (1 / moments.ess - 1 / 200)
    assert estimated.mean() == pytest.approx(-0.5 * (4 / 7**0.5 - 1) / 200, rel=0.03)
    assert len(ess) == 20_000


# the same numbers, however they are run


def test_a_row_block_is_small():
    """Floats held after K particles, by row: they grow with √K at most."""

    def held(k):
        block_sums = RowBlock(range(64), k)
        for block in range(-(-k // block_sums.size)):
            block_sums.add(block, 0, torch.randn(block_sums.extent(block), 64, dtype=torch.float64))
        tensors = [block_sums.weight_sums.sums, block_sums.weight_sums.largest.values, *block_sums.waiting.values()]
        tensors += [p for pieces in block_sums.pieces.values() for p in pieces.values()]
        return sum(t.numel() for t in tensors) / 64

    few, many = held(1000), held(16_000)
    assert many < 2 * (3 * 16_000**0.5 + 64) + 64 + 10 and many < 4 * few
