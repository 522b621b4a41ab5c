"""Posteriors' densities and their gradients in each feature, against sixty digits, where features are extreme."""

import math

import mpmath as mp
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions import correlated_normal
from pyro_vae.distributions.correlated_normal import ScaledLowRankNormal, ScaledMultivariateNormal
from pyro_vae.distributions.features import positive, softclip
from pyro_vae.distributions.mixtures import MixtureSameFamily
from pyro_vae.likelihoods import discretized_logistic_mixture
from pyro_vae.posteriors import (
    full_normal,
    logistic_normal,
    low_rank_normal,
    mixture_normal,
)
from tests.helpers import exact_posteriors as exact

REAL = [[1e4, 0.0, 1.0], [0.0, 0.5, -1.0], [-30.0, 2.0, 1e-3]]
SIMPLEX = [[1e-10, 0.3, 0.7], [0.2, 0.3, 0.5], [1e-18, 1e-3, 0.999]]
FAMILIES = {  # family, its density in sixty digits, features, values
    "low_rank_normal": (low_rank_normal(2), exact.low_rank_normal, 12, REAL),
    "full_normal": (full_normal(3), exact.full_normal, 9, REAL),
    "mixture_normal": (mixture_normal(2), exact.mixture_normal, 14, REAL),
    "logistic_normal": (logistic_normal, exact.logistic_normal, 6, SIMPLEX),
}
LEVELS = torch.tensor([-1e4, -50.0, -3.0, 0.0, 0.7, 50.0, 1e3, 1e4])


def cases(features, count=18):
    """Features at all levels, some a little moved so that they are no ties."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        h = LEVELS[torch.randint(len(LEVELS), (features,), generator=generator)]
        yield h + torch.randn(features, generator=generator) if i % 3 == 0 else h


def error_of(family, density, h, z):
    """The largest relative error of log q and of its gradient in each feature; below 1e-3 of the largest, against that."""
    h, z = h.clone().requires_grad_(), torch.tensor(z, dtype=h.dtype)
    log_q = family(h).log_prob(z)
    (gradient,) = torch.autograd.grad(log_q, h)
    exact_h, exact_z = ([mp.mpf(v) for v in t.tolist()] for t in (h, z))
    truth = [density(exact_h, exact_z), *exact.derivatives(density, exact_h, exact_z)]
    found = [log_q.item(), *gradient.tolist()]
    return max(abs(a - float(b)) / (abs(float(b)) + 1e-3) for a, b in zip(found, truth, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_densities_and_gradients_at_extreme_features(name, dtype):
    """To 5e-4 in float32, whose rounding of a factor near ±10 counts (1 + |U|²)-fold."""
    family, density, features, values = FAMILIES[name]
    for i, h in enumerate(cases(features)):
        assert error_of(family, density, h.to(dtype), values[i % 3]) < (5e-4 if dtype is torch.float32 else 1e-9), h


SAMPLES = {  # the features of a fault that was reported; the derivative in the second raw scale is −0.974090
    "low_rank_normal": [-3.0, 0.0, 0.7, -1e4, -3.0, 0.0, -3.0, 0.7, 50.0, -50.0, 0.7, 0.0],
    "full_normal": [-3.0, 0.0, -50.0, -3.0, -3.0, 0.0, -1e4, -50.0, 1e4],
}


def slope_of_a_scale(family, h, dtype):
    h = torch.tensor(h, dtype=dtype, requires_grad=True)
    return torch.autograd.grad(family(h).log_prob(torch.tensor([1e4, 0.0, 1.0], dtype=dtype)), h)[0][4].item()


def torchs_low_rank(h):
    loc, raw, u = h.split([3, 3, 6], -1)
    scale = positive(raw)
    return dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * softclip(u).unflatten(-1, (3, 2)), scale.square())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_one_scale_beside_another_that_is_far_away(dtype):
    for name, h in SAMPLES.items():
        assert slope_of_a_scale(FAMILIES[name][0], h, dtype) == pytest.approx(-0.974090, abs=1e-6)
    assert not abs(slope_of_a_scale(torchs_low_rank, SAMPLES["low_rank_normal"], dtype) + 0.974090) < 1


def test_a_density_taken_at_z_would_show(monkeypatch):
    """The float32 of w, in place of float64, fails the table."""

    def in_float32(unit, loc, scale, value):
        w = ((value - loc) / scale).float().double()
        return (unit.log_prob(w).float() - scale.float().log().sum(-1)).to(value.dtype)

    family, density, features, values = FAMILIES["low_rank_normal"]
    monkeypatch.setattr(correlated_normal, "scaled_log_prob", in_float32)
    errors = [error_of(family, density, h.double(), values[i % 3]) for i, h in enumerate(cases(features))]
    assert max(errors) > 1e-9


@pytest.mark.parametrize("batch", [(), (5,), (4, 5)], ids=["alone", "rows", "particles"])
def test_they_are_torchs_normals_where_torchs_are_right(batch):
    loc, scale = torch.randn(*batch, 3).double(), torch.rand(*batch, 3).double() + 0.5
    unit, factor = (
        torch.randn(*batch, 3, 3).double().tril(-1) + torch.eye(3).double(),
        torch.randn(*batch, 3, 2).double(),
    )
    pairs = [
        (
            ScaledMultivariateNormal(loc, scale, unit),
            dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit),
        ),
        (
            ScaledLowRankNormal(loc, scale, factor),
            dist.LowRankMultivariateNormal(loc, scale.unsqueeze(-1) * factor, scale.square()),
        ),
    ]
    z = torch.randn(7, *batch, 3).double()
    other = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    for ours, torchs in pairs:
        torch.testing.assert_close(ours.log_prob(z), torchs.log_prob(z))
        torch.testing.assert_close(ours.expand((7, *batch)).log_prob(z), torchs.log_prob(z))
        assert type(ours.expand((7, *batch))) is type(ours) and ours.expand((7, *batch)).batch_shape == (7, *batch)
        torch.testing.assert_close(ours.entropy(), torchs.entropy())
        torch.testing.assert_close(ours.covariance_matrix, torchs.covariance_matrix)
        torch.testing.assert_close(
            torch.distributions.kl_divergence(ours, other.expand(batch)),
            torch.distributions.kl_divergence(torchs, other.expand(batch)),
        )
        torch.manual_seed(0)
        drawn = ours.rsample((2,))
        torch.manual_seed(0)
        torch.testing.assert_close(drawn, torchs.rsample((2,)))


def test_their_draws_and_densities_stay_in_the_dtype_of_the_features():
    for family, features in ((low_rank_normal(2), 12), (full_normal(3), 9)):
        for dtype in (torch.float32, torch.float64):
            q = family(torch.zeros(5, features, dtype=dtype))
            assert q.rsample().dtype == q.log_prob(q.sample()).dtype == q.covariance_matrix.dtype == dtype


# mixtures far from all their components


@pytest.mark.parametrize("far", [1e3, 1e5, 1e7])
def test_equal_components_share_the_gradient_however_far(far):
    """d log p / dy of two equal normals is −y; torch's own shares do not sum to 1, and double it in the end."""
    y = torch.tensor(far, requires_grad=True)
    parts = dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)
    assert torch.autograd.grad(MixtureSameFamily(*parts).log_prob(y), y)[0].item() == pytest.approx(-far, rel=1e-6)
    if far > 1e4:
        torchs = torch.autograd.grad(dist.MixtureSameFamily(*parts).log_prob(y), y)[0].item()
        assert abs(torchs / -far - 1) > 1e-2


def test_weights_count_in_full_however_far():
    """Of equal components the shares are their weights: at −10⁸ nats log π would be lost beside log p."""
    logits = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    d = MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(torch.zeros(3, requires_grad=True), 1.0))
    loc = d.component_distribution.loc
    for y in (0.5, 1e4):
        slopes = torch.autograd.grad(d.log_prob(torch.tensor(y)), loc, retain_graph=True)[0]
        torch.testing.assert_close(slopes / y, logits.detach().softmax(0), rtol=1e-6, atol=0)


def test_equal_components_of_grey_levels_share_the_gradient():
    """All features of ±1e4: the gradient in the locs sums to that of one component, within a hundred-thousandth."""
    mixed, one = discretized_logistic_mixture(256, 5), discretized_logistic_mixture(256, 1)
    for size in (1e4, -1e4, 300.0):
        raw = torch.full((5,), -1e4)
        h = torch.cat([torch.zeros(5), torch.full((5,), size), raw]).requires_grad_()
        single = torch.tensor([0.0, size, -1e4], requires_grad=True)
        for y in (torch.tensor([3.0]), torch.tensor([200.0])):
            (many,) = torch.autograd.grad(mixed(h).log_prob(y).sum(), h)
            (alone,) = torch.autograd.grad(one(single).log_prob(y).sum(), single)
            assert many[5:10].sum().item() == pytest.approx(alone[1].item(), rel=1e-5)
            assert math.isfinite(many.sum())
