"""log Σ e^v: torch's value, and shares that sum to 1."""

import math

import pytest
import torch

from pyro_vae.common.log_sums import log_sum_exp


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_the_value_is_torchs_to_the_bit(dim):
    torch.manual_seed(0)
    for size in (1.0, 1e2, 1e4, 1e8):
        v = size * torch.randn(5, 6)
        assert torch.equal(log_sum_exp(v, dim), v.logsumexp(dim))
        assert torch.equal(log_sum_exp(v - size, dim), (v - size).logsumexp(dim))


@pytest.mark.parametrize("at", [0.0, -90.0, -1e4, 1e8])
def test_shares_sum_to_1(at):
    v = (at + torch.linspace(0, 3, 7)).requires_grad_()
    (share,) = torch.autograd.grad(log_sum_exp(v, 0), v)
    torch.testing.assert_close(share, v.detach().softmax(0), rtol=1e-6, atol=0)
    if abs(at) > 1e3:
        (torchs,) = torch.autograd.grad(v.logsumexp(0), v)
        assert abs(torchs.sum().item() - 1) > 1e-5


def test_infinite_values():
    """−∞ has no share; nothing but −∞ sums to −∞, and +∞ to +∞."""
    v = torch.tensor([[-math.inf, -math.inf, 0.0], [1.0, -math.inf, math.inf]], requires_grad=True)
    assert log_sum_exp(v, 0).tolist() == [1.0, -math.inf, math.inf]
    assert torch.autograd.grad(log_sum_exp(v, 0)[0], v)[0][:, 0].tolist() == [0.0, 1.0]


def test_gradients_of_gradients():
    torch.manual_seed(0)
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda a: log_sum_exp(a, 0), v)
