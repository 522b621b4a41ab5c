"""The Bernoullis' one logarithm for many elements, against Pyro's own and against float64."""

import pyro.distributions as dist
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyro_vae import bernoulli
from pyro_vae.distributions import bernoulli as module


def rows(count, shape=(5,), dtype=torch.float64, spread=3.0):
    generator = torch.Generator().manual_seed(count)
    h = spread * torch.randn(*shape, count, dtype=dtype, generator=generator)
    return h, (torch.rand(count, dtype=dtype, generator=generator) < 0.4).to(dtype)


@pytest.mark.parametrize("count", [1, 2, 119, 120, 121, 240, 241, 784])
def test_it_is_pyros(count):
    h, y = rows(count)
    torch.testing.assert_close(
        bernoulli(h).to_event(1).log_prob(y), dist.Bernoulli(logits=h).to_event(1).log_prob(y), rtol=1e-12, atol=1e-12
    )


def test_the_largest_products_stay_finite():
    """Every factor is ½, as many as there can be."""
    for count in (120, 784, 12000):
        got = bernoulli(torch.zeros(count)).to_event(1).log_prob(torch.ones(count))
        assert got.item() == pytest.approx(-count * 0.6931471805599453, rel=1e-6)


def test_too_long_a_product_is_found(monkeypatch):
    monkeypatch.setattr(module, "FACTORS", 160)
    assert not bernoulli(torch.zeros(160)).to_event(1).log_prob(torch.ones(160)).isfinite()


@pytest.mark.parametrize("shape", [(12,), (3, 12), (1, 3, 12), (7, 3, 12), (7, 1, 12)])
@pytest.mark.parametrize("given", [(12,), (3, 12), (7, 3, 12), (2, 7, 3, 12)])
@pytest.mark.parametrize("cached", [1, 40, 80, 10_000])
def test_pieces_that_fit_in_the_cache_give_the_same_bits(shape, given, cached, monkeypatch):
    h, _ = rows(12, shape[:-1], torch.float32)
    y = (torch.rand(given, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    whole = bernoulli(h.requires_grad_()).to_event(1).log_prob(y)
    monkeypatch.setattr(module, "CACHED", cached)
    with torch.no_grad():
        assert torch.equal(bernoulli(h).to_event(1).log_prob(y), whole)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 200.0, 1e4])
def test_float32_is_as_near_to_float64_as_pyros(size):
    h, y = rows(784, (64,), torch.float32)
    h = h * size
    exact = dist.Bernoulli(logits=h.double()).to_event(1).log_prob(y.double())
    pyros = dist.Bernoulli(logits=h).to_event(1).log_prob(y)
    ours = bernoulli(h).to_event(1).log_prob(y)
    scale = exact.abs() + 1
    assert ((ours - exact).abs() / scale).max() <= max(2 * ((pyros - exact).abs() / scale).max().item(), 1e-6)


def test_gradients_of_first_and_second_order():
    h, y = rows(7, (3, 2))
    y = y.expand(2, 7).clone()
    assert gradcheck(module.LogProb.apply, (h.requires_grad_(), y.requires_grad_()))
    assert gradgradcheck(module.LogProb.apply, (h, y))


def test_logits_that_all_rows_share_get_the_sum_of_their_gradients():
    h, _ = rows(6, ())
    y = torch.eye(6, dtype=h.dtype)
    wanted = torch.autograd.grad(dist.Bernoulli(logits=h.requires_grad_()).to_event(1).log_prob(y).sum(), h)
    assert torch.allclose(*torch.autograd.grad(bernoulli(h).to_event(1).log_prob(y).sum(), h), *wanted)


def test_events_of_two_dimensions_broadcasting_expansion_and_masks():
    h, y = rows(12, (4, 3))
    ours, pyros = bernoulli(h), dist.Bernoulli(logits=h)
    y = y.expand(5, 1, 3, 12)
    torch.testing.assert_close(ours.to_event(2).log_prob(y), pyros.to_event(2).log_prob(y))
    wide, mask = ours.to_event(1).expand([5, 4, 3]), torch.tensor([True, False, True])
    assert isinstance(wide, module.Bernoullis)
    torch.testing.assert_close(wide.mask(mask).log_prob(y), pyros.to_event(1).expand([5, 4, 3]).mask(mask).log_prob(y))
    assert ours.to_event(0).log_prob(y).shape == (5, 4, 3, 12)
    torch.testing.assert_close(ours.to_event(1).log_prob(y[..., :1]), pyros.to_event(1).log_prob(y[..., :1]))


def test_vmap():
    h, y = rows(12, (4, 3))
    torch.testing.assert_close(
        torch.vmap(lambda a: bernoulli(a).to_event(1).log_prob(y))(h), bernoulli(h).to_event(1).log_prob(y)
    )


def test_grey_is_still_refused():
    with pytest.raises(ValueError, match="within the support"):
        bernoulli(torch.zeros(3)).to_event(1).log_prob(torch.tensor([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("size", [3.0, 20.0, 100.0, 1e4])
def test_large_logits_of_the_right_sign_do_not_cancel(size):
    """Most elements are sure and right, and log p is what the others leave."""
    torch.manual_seed(0)
    h = torch.randn(100, 784) * size
    y = (h + 3 * torch.randn_like(h) > 0).float()
    exact = bernoulli(h.double()).to_event(1).log_prob(y.double())
    allowed = 1e-6 * exact.abs().clamp_min(1)
    assert ((bernoulli(h).to_event(1).log_prob(y) - exact).abs() <= allowed).all()
    two_sums = (h * y).sum(-1) - h.relu().sum(-1) + h.abs().sigmoid().log().sum(-1)  # broken
    assert size < 10 or ((two_sums - exact).abs() > allowed).any()


@pytest.mark.parametrize("size", [1.0, 30.0, 200.0])
@pytest.mark.parametrize("given", [(784,), (64, 784), (3, 64, 784)])
def test_what_a_gpu_computes_is_pyros(size, given):
    """Run here on a CPU: the same operations, with gradients that are written out for both."""
    h, _ = rows(784, (3, 64))
    h = size * h
    y = torch.rand(given, dtype=h.dtype, generator=torch.Generator().manual_seed(0)).round()
    exact = dist.Bernoulli(logits=h).to_event(1).log_prob(y)
    torch.testing.assert_close(module.by_logarithms(h, y), exact, rtol=1e-12, atol=1e-10)
    got = module.by_logarithms(h.float(), y.float())
    pyros = dist.Bernoulli(logits=h.float()).to_event(1).log_prob(y.float())
    exact = dist.Bernoulli(logits=h.float().double()).to_event(1).log_prob(y)
    off = ((got - exact).abs() / (exact.abs() + 1)).max().item()
    assert off <= max(2 * ((pyros - exact).abs() / (exact.abs() + 1)).max().item(), 1e-6)
