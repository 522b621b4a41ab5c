"""Every public part, by one conformance test; and the families' numerics and closed-form KLs."""

import inspect
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import kl_divergence

import pyro_vae
from pyro_vae import (
    MLP,
    Conditional,
    ConvDecoder,
    ConvEncoder,
    SkipMissing,
    StandardNormal,
    WithMask,
    bernoulli,
    binomial,
    normal,
)
from pyro_vae.errors import ShapeError
from pyro_vae.models.networks import Tanh

SHAPE = (1, 8, 8)
BATCHES = [(), (5,), (3, 5)]
FAMILIES = {"bernoulli": (bernoulli, 1), "binomial": (binomial(16), 1), "normal": (normal, 2)}  # features an element

# What is tested: a module that returns a distribution when called, the widths of its inputs, and its event shape.
# A network stands behind a family, a family behind a network.
PARTS = {
    "bernoulli": lambda: (Conditional(MLP(3, 4, (6,)), bernoulli), (3,), (4,)),
    "binomial": lambda: (Conditional(MLP(3, 4, (6,)), binomial(16)), (3,), (4,)),
    "normal": lambda: (Conditional(MLP(3, 2 * 4, (6,)), normal), (3,), (4,)),
    "StandardNormal": lambda: (StandardNormal(4), (), (4,)),
    "MLP": lambda: (Conditional(MLP(3 + 2, 4), bernoulli), (3, 2), (4,)),
    "ConvEncoder": lambda: (Conditional(ConvEncoder(2 * 4, 2, width=3, shape=SHAPE), normal), (64, 2), (4,)),
    "ConvDecoder": lambda: (Conditional(ConvDecoder(3 + 2, width=3, shape=SHAPE), bernoulli), (3, 2), (64,)),
    "Conditional": lambda: (Conditional(nn.Linear(3, 4), bernoulli), (3,), (4,)),
    "SkipMissing": lambda: (SkipMissing(Conditional(MLP(3, 4, (6,)), bernoulli)), (3,), (4,)),
    "WithMask": lambda: (Conditional(WithMask(MLP(2 * 3 + 2, 2 * 4, (6,))), normal), (3, 2), (4,)),
}


def public_parts() -> set[str]:
    """What pyro_vae exports of its parts: classes and functions defined there."""
    here = {n: o for n, o in vars(pyro_vae).items() if not n.startswith("_") and callable(o)}
    folders = ("distributions.", "likelihoods.", "priors.", "posteriors.", "models.networks", "models.missing")
    return {
        n for n, o in here.items() if inspect.getmodule(o).__name__.startswith(tuple(f"pyro_vae.{f}" for f in folders))
    }


def missing(registry) -> set[str]:
    return public_parts() - set(registry)


def test_every_public_part_is_in_the_registry():
    assert missing(PARTS) == set()
    assert set(PARTS) == public_parts()


def test_a_part_left_out_of_the_registry_is_noticed():
    assert missing({name: make for name, make in PARTS.items() if name != "ConvDecoder"}) == {"ConvDecoder"}


def check_part(make, batch, device="cpu"):
    """Shapes for any batch, a gradient for every parameter, a state_dict that holds all there is to hold."""
    part, widths, event = make()
    part.to(device)
    inputs = [torch.randn(*batch, w, device=device) for w in widths]
    d = part(*inputs)
    assert d.event_shape == event
    assert d.batch_shape == (batch if widths else ())
    d = d.expand(batch)
    y = d.sample()
    assert y.shape == batch + event and y.device.type == torch.device(device).type
    log_prob = d.log_prob(y)
    assert log_prob.shape == batch and log_prob.isfinite().all()
    assert d.expand((7, *batch)).log_prob(y).shape == (7, *batch)

    if list(part.parameters()):
        log_prob.sum().backward()
    without = [n for n, p in part.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == [], f"no gradient reaches {without}"

    copy = make()[0].to(device)
    copy.load_state_dict(part.state_dict())
    torch.testing.assert_close(copy(*inputs).expand(batch).log_prob(y), log_prob, rtol=0, atol=0)
    assert type(part).__name__ in repr(part)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_conformance(name, batch, device):
    check_part(PARTS[name], batch, device)


class Idle(Conditional):
    """Broken: a parameter that nothing uses."""

    def __init__(self, net, family):
        super().__init__(net, family)
        self.idle = nn.Parameter(torch.zeros(1))


class Forgetful(Conditional):
    """Broken: state that state_dict does not hold."""

    def __init__(self, net, family):
        super().__init__(net, family)
        self.shift = torch.randn(())

    def forward(self, *parents):
        return dist.Normal(super().forward(*parents).mean + self.shift, 1.0).to_event(1)


class Flat(Conditional):
    """Broken: one row is not one y."""

    def forward(self, *parents):
        return self.family(self.net(*parents))


@pytest.mark.parametrize("broken", [Idle, Forgetful, Flat])
def test_a_broken_part_does_not_conform(broken):
    with pytest.raises(AssertionError):
        check_part(lambda: (broken(MLP(3, 4, (6,)), bernoulli), (3,), (4,)), (5,))


def test_repr_names_the_family():
    assert "family=binomial(16), event_dim=1" in repr(PARTS["binomial"]()[0])
    assert repr(StandardNormal(4)) == "StandardNormal(dim=4)"
    assert "event_dim=1" in repr(Conditional(nn.Linear(1, 1), lambda h: dist.Laplace(h, 1.0)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_extreme_features_stay_finite_in_float32(name, size, device):
    family, features = FAMILIES[name]
    for y in (0.0, 1.0, 16.0):
        h = torch.full((3, 2 * features), size, device=device, requires_grad=True)
        d = family(h)
        if d.support.check(torch.tensor(y, device=device)).all():
            log_prob = d.log_prob(torch.full((3, 2), y, device=device))
            log_prob.sum().backward()
            assert log_prob.isfinite().all() and h.grad.isfinite().all()
        assert d.mean.isfinite().all()


def test_a_scale_without_its_floor_does_not_stay_finite():
    """Shows that the test above can fail: softplus underflows to 0 in float32."""

    def floorless(h):
        loc, scale = h.chunk(2, -1)
        return dist.Normal(loc, nn.functional.softplus(scale), validate_args=False)

    log_prob = floorless(torch.full((4,), -1e4)).log_prob(torch.zeros(2))
    assert not log_prob.isfinite().all()


def test_families_hold_what_their_formulas_say():
    h = torch.tensor([0.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(bernoulli(h).mean, 1 / (1 + torch.exp(-h)))
    torch.testing.assert_close(binomial(16)(h).mean, 16 / (1 + torch.exp(-h)))
    d = normal(h)
    torch.testing.assert_close(d.loc, h[:2])
    torch.testing.assert_close(d.scale, torch.log1p(torch.exp(h[2:])) + 1e-4)


@pytest.mark.parametrize(
    "shapes", [((7, 5, 3), (5, 2)), ((5, 3), (7, 5, 2)), ((7, 1, 3), (5, 2)), ((3,), (5, 2)), ((3,), (2,))], ids=str
)
def test_context_is_broadcast_as_particles_are(shapes):
    net = MLP(3 + 2, 4, (6,))
    z, c = (torch.randn(s) for s in shapes)
    batch = torch.broadcast_shapes(z.shape[:-1], c.shape[:-1])
    by_hand = net(torch.cat([z.expand(*batch, 3), c.expand(*batch, 2)], -1))
    assert net(z, c).shape == (*batch, 4)
    torch.testing.assert_close(net(z, c), by_hand, rtol=0, atol=0)


def test_convolutions_broadcast_context_and_take_particles():
    encoder = ConvEncoder(4, context_features=2, width=3, shape=SHAPE)
    decoder = ConvDecoder(3 + 2, width=3, shape=SHAPE)
    c = torch.randn(5, 2)
    x, z = torch.randn(5, 64), torch.randn(7, 5, 3)
    torch.testing.assert_close(encoder(x.expand(7, 5, 64), c)[3], encoder(x, c))
    torch.testing.assert_close(decoder(z, c)[3], decoder(z[3], c))


@pytest.mark.parametrize("shape", [(3, 27, 18), (1, 1, 1), (2, 5, 3), (1, 4, 6), (3, 32, 32)], ids=str)
def test_convolutions_of_any_size_see_and_paint_every_pixel(shape):
    size = math.prod(shape)
    torch.manual_seed(0)
    x = torch.randn(2, size, requires_grad=True)
    ConvEncoder(3, width=8, shape=shape)(x).square().sum().backward()
    assert (x.grad.abs().reshape(2, *shape).sum((0, 1)) > 0).all(), "each pixel reaches the code"
    z = torch.randn(64, 4)
    painted = ConvDecoder(4, width=8, shape=shape)(z)
    assert painted.shape == (64, size) and (painted.std(0) > 0).all(), "the code reaches each pixel"


def test_a_mirrored_pair_of_convolutions_keeps_two_features_an_element_apart():
    """(2 channels, h, w) flattened: chunk(2, -1) splits whole images into loc and scale."""
    d = Conditional(ConvDecoder(3, width=3, shape=(2, 8, 8)), normal)(torch.randn(5, 3))
    assert d.event_shape == (64,)


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (MLP(3, 4), [(5, 2)], r"MLP takes 3 features in the last dimension, got an input of shape \(5, 2\)"),
        (MLP(3, 4), [(5, 3), (5, 1)], r"MLP takes 3 features in the last dimension, got an input of shape \(5, 4\)"),
        (ConvEncoder(4, width=3, shape=SHAPE), [(5, 8, 8)], r"ConvEncoder takes 64 features .* \(5, 8, 8\)"),
        (ConvDecoder(3, width=3, shape=SHAPE), [(5, 4)], r"MLP takes 3 features .* \(5, 4\)"),
        (MLP(3, 4), [()], r"MLP takes 3 features .* shape \(\)"),
    ],
    ids=["MLP", "MLP with context", "ConvEncoder", "ConvDecoder", "a number"],
)
def test_a_wrong_width_is_refused_with_both_widths(net, inputs, message):
    with pytest.raises(ShapeError, match=message):
        net(*(torch.zeros(s) for s in inputs))


def test_mlp_without_hidden_layers_is_linear():
    assert [type(layer) for layer in MLP(3, 4, hidden=())] == [nn.Linear]


@pytest.mark.parametrize("event_dim", [0, 1, 2])
def test_event_dim_says_what_is_one_y(event_dim):
    d = Conditional(nn.Linear(3, 4), bernoulli, event_dim)(torch.randn(7, 5, 3))
    shape = (7, 5, 4)
    assert (d.batch_shape, d.event_shape) == (shape[: 3 - event_dim], shape[3 - event_dim :])


def test_event_dim_counts_what_the_family_already_made_event():
    def correlated(h):
        return dist.MultivariateNormal(h, torch.eye(h.shape[-1]))

    d = Conditional(nn.Linear(3, 4), correlated)(torch.randn(5, 3))
    assert (d.batch_shape, d.event_shape) == ((5,), (4,))


# closed-form KL against Monte Carlo


def diagonal(batch):
    loc, scale = torch.randn(2, *batch, 3, dtype=torch.float64)
    return dist.Normal(loc, scale.exp() * 0.5).to_event(1)


def full(batch):
    root = torch.randn(*batch, 3, 3, dtype=torch.float64) * 0.4 + torch.eye(3, dtype=torch.float64)
    cov = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    return dist.MultivariateNormal(torch.randn(*batch, 3, dtype=torch.float64), cov)


def check_kl(kl, q, p, draws=40_000):
    """KL(q || p) = E_q[log q - log p] within 4 standard errors, sd(log q - log p) / sqrt(draws), in every batch element."""
    z = q.sample((draws,))
    terms = q.log_prob(z) - p.log_prob(z)
    se = terms.std(0) / draws**0.5
    assert ((terms.mean(0) - kl).abs() < 4 * se).all()


def without_the_half(q, p):
    """KL between diagonal Gaussians with the factor 1/2 dropped."""
    ratio, off = q.base_dist.scale / p.base_dist.scale, (q.mean - p.mean) / p.base_dist.scale
    return (ratio.square() + off.square() - 1 - 2 * ratio.log()).sum(-1)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
@pytest.mark.parametrize("make", [diagonal, full])
def test_analytic_kl_is_the_monte_carlo_kl(make, batch):
    q, p = make(batch), make(batch)
    kl = kl_divergence(q, p)
    assert kl.shape == batch
    check_kl(kl, q, p)


def test_a_kl_without_its_half_is_caught():
    q, p = diagonal((4,)), diagonal((4,))
    torch.testing.assert_close(without_the_half(q, p) / 2, kl_divergence(q, p))
    with pytest.raises(AssertionError):
        check_kl(without_the_half(q, p), q, p)


def test_the_standard_normal_prior_has_its_closed_form_kl():
    q = Conditional(MLP(3, 2 * 2, (6,)), normal)(torch.randn(5, 3))
    kl = kl_divergence(q, StandardNormal(2)().expand((5,)))
    loc, scale = q.mean, q.stddev
    by_hand = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum(-1)
    torch.testing.assert_close(kl, by_hand)
    torch.testing.assert_close(kl_divergence(q, StandardNormal(2)()), by_hand)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_tanh_is_tanh(dtype, near):
    x = torch.cat([torch.linspace(-30, 30, 999, dtype=dtype), torch.tensor([0.0, math.inf, -math.inf], dtype=dtype)])
    before, exact = x.clone(), x.double().tanh()
    with torch.no_grad():
        assert (Tanh()(x) - exact).abs().max() < near and torch.equal(x, before)
    slope = torch.autograd.grad(Tanh()(x.requires_grad_()).sum(), x)[0]
    assert (slope - (1 - exact**2)).abs().max() < 4 * near
    y = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Tanh(), y) and torch.autograd.gradgradcheck(Tanh(), y)
