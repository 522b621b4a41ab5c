"""Posteriors q(z | x): densities that integrate to 1, draws that agree with them, gradients, extremes, and stock SVI."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, log_likelihood, log_weights, normal
from pyro_vae.distributions.mixtures import MixtureNormal
from pyro_vae.distributions.simplex import SoftmaxNormal
from pyro_vae.distributions.sphere import PowerSpherical, SphereUniform, log_area
from pyro_vae.errors import ShapeError, UsageError
from pyro_vae.likelihoods import normal_fixed
from pyro_vae.posteriors import (
    POSTERIORS,
    SemiAmortized,
    full_normal,
    logistic_normal,
    low_rank_normal,
    mixture_normal,
    one_hot_categorical,
    one_hot_categorical_st,
    power_spherical,
)
from pyro_vae.posteriors.flow import FlowPosterior
from pyro_vae.priors import Dirichlet, OneHot, UniformSphere
from tests.helpers import late_imports
from tests.helpers.children import printed_by
from tests.helpers.small import encoder

DIM = 3
BATCHES = [(), (5,), (4, 5)]
SMALL = {"context_features": 6, "hidden": (16,), "transforms": 2}
MAKES = {
    **{name: {} for name in POSTERIORS if name not in ("flow", "semi_amortized")},
    "maf": SMALL | {"kind": "maf"},
    "iaf": SMALL | {"kind": "iaf"},
    "nsf": SMALL | {"kind": "nsf"},
}
FAMILIES = {  # family, features for 4 latents
    "low_rank_normal": (low_rank_normal(2), 16),
    "full_normal": (full_normal(4), 14),
    "mixture_normal": (mixture_normal(3), 27),
    "one_hot_categorical": (one_hot_categorical, 4),
    "one_hot_categorical_st": (one_hot_categorical_st, 4),
    "logistic_normal": (logistic_normal, 8),
    "power_spherical": (power_spherical, 5),
}
PRIOR_OF = {"real": StandardNormal, "simplex": Dirichlet, "sphere": UniformSphere, "one-hot": OneHot}


def make(name, dim=DIM):
    return POSTERIORS[name if name in POSTERIORS else "flow"].make(encoder, dim, **MAKES[name])


def support(name):
    return POSTERIORS[name if name in POSTERIORS else "flow"].support


def simplex_grid(steps=400):
    """Midpoints of a triangular grid on the simplex in R^3, and the area of a cell in the first two coordinates."""
    i, j = torch.meshgrid(*[torch.arange(steps, dtype=torch.float64)] * 2, indexing="ij")
    lower = torch.stack([i + 1 / 3, j + 1 / 3], -1)[i + j < steps]
    upper = torch.stack([i + 2 / 3, j + 2 / 3], -1)[i + j < steps - 1]
    z = torch.cat([lower, upper]) / steps
    return torch.cat([z, 1 - z.sum(-1, keepdim=True)], -1), 0.5 / steps**2


def plane_grid(limit=10.0, steps=300):
    line = torch.linspace(-limit, limit, steps, dtype=torch.float64)
    return torch.cartesian_prod(line, line), float(line[1] - line[0]) ** 2


def circle(steps=4000):
    angle = (torch.arange(steps, dtype=torch.float64) + 0.5) * 2 * math.pi / steps
    return torch.stack([angle.cos(), angle.sin()], -1), 2 * math.pi / steps


def integral(d, grid):
    z, cell = grid
    with torch.no_grad():
        return float(d.log_prob(z).exp().sum() * cell)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", MAKES)
def test_shapes_gradients_and_copies(name, batch):
    q_of = make(name)
    x = torch.randn(*batch, 6)
    d = q_of(x)
    assert (d.batch_shape, d.event_shape) == (batch, (DIM,))
    assert d.expand((7, *batch)).sample().shape == (7, *batch, DIM)
    z = d.sample()
    assert z.shape == (*batch, DIM) and not z.requires_grad
    assert d.support.check(z).all() and d.support.event_dim == 1
    assert d.log_prob(z).shape == batch and d.expand((7, *batch)).log_prob(z).shape == (7, *batch)
    d.log_prob(z).sum().backward()
    without = [n for n, p in q_of.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert d.has_rsample == POSTERIORS[name if name in POSTERIORS else "flow"].reparameterised

    twin = make(name)
    twin.load_state_dict(q_of.state_dict())
    for copied in (twin, copy.deepcopy(q_of)):
        torch.testing.assert_close(copied(x).log_prob(z), d.log_prob(z))


@pytest.mark.parametrize("name", [n for n in MAKES if n != "one_hot_categorical"])
def test_draws_carry_a_gradient_to_every_parameter(name):
    q_of = make(name)
    z = q_of(torch.randn(5, 6)).rsample((7,))
    (z * torch.randn_like(z)).sum().backward()
    without = [n for n, p in q_of.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("name", ["low_rank_normal", "full_normal", "mixture_normal", "maf", "iaf", "nsf"])
def test_densities_on_the_plane_integrate_to_one(name):
    q_of = make(name, dim=2).double()
    d = q_of(torch.randn(6, dtype=torch.float64))
    assert integral(d, plane_grid()) == pytest.approx(1, abs=2e-3)


def test_softmax_normal_integrates_to_one_on_the_simplex():
    loc, scale = torch.tensor([0.3, -0.2, 0.1]).double(), torch.tensor([0.9, 0.5, 0.7]).double()
    d = SoftmaxNormal(loc, scale)
    assert integral(d, simplex_grid()) == pytest.approx(1, abs=1e-4)
    assert integral(Dirichlet(3, 2.0).double()(), simplex_grid()) == pytest.approx(1, abs=1e-4)  # the same measure

    class NoJacobian(SoftmaxNormal):
        """Broken: a density of log-ratios, not of parts."""

        def log_prob(self, value):
            return super().log_prob(value) + value.log().sum(-1)

    assert integral(NoJacobian(loc, scale), simplex_grid()) != pytest.approx(1, abs=0.1)


def test_softmax_normal_is_torchs_logistic_normal_of_the_log_ratios():
    loc, scale = torch.randn(4, 3).double(), torch.rand(4, 3).double() + 0.3
    z = SoftmaxNormal(loc, scale).sample()
    contrast = torch.tensor([[1.0, 0, -1], [0, 1, -1]]).double()
    cov = contrast @ torch.diag_embed(scale.square()) @ contrast.T
    ratios = (z[:, :2] / z[:, 2:]).log()
    by_hand = dist.MultivariateNormal(loc @ contrast.T, cov).log_prob(ratios) - z.log().sum(-1)
    torch.testing.assert_close(SoftmaxNormal(loc, scale).log_prob(z), by_hand)


@pytest.mark.parametrize("concentration", [1e-4, 1.0, 30.0])
def test_power_spherical_integrates_to_one(concentration):
    loc = nn.functional.normalize(torch.tensor([0.6, -0.8]).double(), dim=0)
    d = PowerSpherical(loc, torch.tensor(concentration).double())
    assert integral(d, circle()) == pytest.approx(1, abs=1e-4)
    for dim in (3, 5):
        loc = nn.functional.normalize(torch.randn(dim).double(), dim=0)
        z = SphereUniform(loc).sample((200_000,))
        ratio = (PowerSpherical(loc, torch.tensor(concentration).double()).log_prob(z) + log_area(dim)).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(z) ** 0.5 + 1e-9


def test_the_area_of_the_sphere():
    assert math.exp(log_area(2)) == pytest.approx(2 * math.pi)
    assert math.exp(log_area(3)) == pytest.approx(4 * math.pi)
    assert math.exp(log_area(4)) == pytest.approx(2 * math.pi**2)
    assert integral(SphereUniform(torch.zeros(2).double()), circle()) == pytest.approx(1)


def agrees(d, other, draws=20_000):
    """E_d[p/d] = 1 over draws of d for a density p within d's reach, within 4 standard errors."""
    z = d.sample((draws,))
    ratio = (other.log_prob(z) - d.log_prob(z)).exp()
    return bool(abs(ratio.mean() - 1) < 4 * ratio.std() / draws**0.5)


@pytest.mark.parametrize("name", [n for n in MAKES if n not in ("one_hot_categorical", "one_hot_categorical_st")])
def test_draws_agree_with_the_density(name):
    """Draws of q average p/q to 1, for densities p narrower than q at two places."""
    with torch.no_grad():
        d = make(name).double()(torch.randn(6, dtype=torch.float64))
        for _ in range(2):
            at = d.sample()
            other = {
                "real": lambda at: dist.Normal(at, 0.25).to_event(1),
                "simplex": lambda at: dist.Dirichlet(20 * at + 2),
                "sphere": lambda at: PowerSpherical(at, torch.tensor(5.0).double()),
            }[support(name)](at)
            assert agrees(d, other)


def test_disagreement_is_noticed():
    class Shifted(SoftmaxNormal):
        def log_prob(self, value):
            return super().log_prob(value) - 0.1

    loc = torch.zeros(3).double()
    assert not agrees(Shifted(loc, torch.ones(3).double()), dist.Dirichlet(torch.full((3,), 5.0).double()))


def test_one_hot_draws_follow_the_weights():
    h = torch.tensor([0.5, -1.0, 1.0])
    for family in (one_hot_categorical, one_hot_categorical_st):
        frequency = family(h).sample((20_000,)).mean(0)
        assert ((frequency - h.softmax(0)).abs() < 4 * (0.25 / 20_000) ** 0.5).all()
        torch.testing.assert_close(family(h).log_prob(torch.eye(3)), h.log_softmax(0))


@pytest.mark.parametrize("make_q", [lambda h: mixture_normal(2)(h), lambda h: power_spherical(h)])
def test_gradients_of_draws_are_those_of_the_expectation(make_q):
    """The pathwise gradient of E[f(z)] against the score-function one, within 4 standard errors of their difference."""
    h = torch.tensor([0.5, -0.3, 1.0, 0.2, -0.7, -0.4, 0.3, -0.2, 0.1, 0.4]).double()
    h = h if make_q(h).event_shape == (2,) else h[:4]
    weights = torch.tensor([0.7, -0.5, 0.3]).double()
    rows = h.expand(40_000, -1).clone().requires_grad_()
    d = make_q(rows)

    def f(z):
        return (z * weights[: z.shape[-1]]).sum(-1).sin() + z[..., 0] * z[..., 1]

    (path,) = torch.autograd.grad(f(d.rsample()).sum(), rows, retain_graph=True)
    z = d.sample()
    (score,) = torch.autograd.grad((f(z) - f(z).mean()).detach() @ d.log_prob(z), rows)
    se = ((path.var(0) + score.var(0)) / len(rows)).sqrt()
    assert ((path.mean(0) - score.mean(0)).abs() < 4 * se).all()
    assert (path.std(0) > 0).all()


def test_straight_through_learns_from_the_kl():
    """Its gradient of E[log q(z) - log p(z)] is the exact one, in expectation; without one in z, it is 0."""
    h = torch.tensor([0.5, -1.0, 1.0], dtype=torch.float64).expand(20_000, 3).clone().requires_grad_()
    prior = OneHot(3).double()()
    exact = torch.tensor([0.5, -1.0, 1.0], dtype=torch.float64, requires_grad=True)
    log_q = exact.log_softmax(0)
    (wanted,) = torch.autograd.grad((log_q.exp() * (log_q + math.log(3))).sum(), exact)

    def estimate(q, p):
        z = q.rsample()
        (grad,) = torch.autograd.grad((q.log_prob(z) - p.log_prob(z)).sum(), h)
        return grad.mean(0), grad.std(0) / len(h) ** 0.5

    mean, se = estimate(one_hot_categorical_st(h), prior)
    assert ((mean - wanted).abs() < 4 * se + 1e-12).all()
    stock = dist.OneHotCategoricalStraightThrough(logits=h), dist.OneHotCategorical(logits=torch.zeros(3).double())
    mean, se = estimate(*stock)
    assert not ((mean - wanted).abs() < 4 * se).all()


@pytest.mark.parametrize("pattern", ["low", "high", "mixed", "zero"])
@pytest.mark.parametrize("name", FAMILIES)
def test_extreme_features_stay_finite_in_float32(name, pattern):
    family, features = FAMILIES[name]
    signs = {"low": -1.0, "high": 1.0, "zero": 0.0, "mixed": torch.randn(5, features).sign()}[pattern]
    h = (torch.ones(5, features) * 1e4 * signs).requires_grad_()
    d = family(h)
    z = d.rsample((3,)) if d.has_rsample else d.sample((3,))
    assert d.support.check(z).all()
    prior = PRIOR_OF[POSTERIORS[name].support](4)()
    (d.log_prob(z) - prior.log_prob(z)).sum().backward()
    assert d.log_prob(z).isfinite().all() and prior.log_prob(z).isfinite().all() and h.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["maf", "iaf", "nsf"])
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_flows_stay_finite_at_extreme_features(kind, size):
    q_of = FlowPosterior(nn.Identity(), 4, kind, context_features=6)
    h = torch.full((5, 6), size, requires_grad=True)
    d = q_of(h)
    z = d((3,))
    log_prob = d.log_prob(z)
    log_prob.sum().backward()
    assert z.isfinite().all() and log_prob.isfinite().all() and h.grad.isfinite().all()


def test_sixteen_latents_stay_finite_under_a_full_covariance():
    d = full_normal(16)(torch.full((3, 152), 1e4))
    assert d.log_prob(d.sample()).isfinite().all()


@pytest.mark.parametrize("kind", ["maf", "iaf", "nsf"])
def test_a_flow_scores_its_draws_as_it_scores_values(kind):
    q_of = FlowPosterior(encoder(6), 3, kind, context_features=6, transforms=2, hidden=(16,)).double()
    d = q_of(torch.randn(5, 6).double())
    z = d((7,))
    assert z in d.cache
    torch.testing.assert_close(d.log_prob(z), d.log_prob(z.clone()))
    assert d.log_prob(d.sample()).requires_grad  # not the value kept from a draw without gradients


@pytest.mark.parametrize("name", [*MAKES, "semi_amortized"])
def test_stock_svi_and_log_likelihood(name):
    prior = PRIOR_OF["real" if name == "semi_amortized" else support(name)](DIM)
    likelihood = Conditional(MLP(DIM, 6, (8,)), bernoulli)
    if name == "semi_amortized":
        q = POSTERIORS[name].make(encoder, DIM, likelihood=likelihood, prior=prior, steps=2)
    else:
        q = make(name)
    vae = VAE(prior, likelihood, q)
    x = torch.ones(4, 6).bernoulli()
    before = [p.clone() for p in vae.posterior.parameters()]
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    loss = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), elbo).step(x)
    assert math.isfinite(loss)
    assert any((p != b).any() for p, b in zip(vae.posterior.parameters(), before, strict=True))
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=20)
    assert evidence.log_px.shape == (4,) and torch.as_tensor(evidence.log_px).isfinite().all()


def test_one_hot_latents_enumerated_are_the_brute_force_sum():
    prior, likelihood = OneHot(3, learned=True), Conditional(nn.Linear(3, 6), bernoulli)
    nn.init.normal_(prior.logits)
    vae = VAE(prior, likelihood, Conditional(encoder(3), one_hot_categorical))
    x = torch.ones(4, 6).bernoulli()
    brute = torch.logsumexp(
        likelihood(torch.eye(3)[:, None]).log_prob(x) + prior.logits.log_softmax(0)[:, None], 0
    ).detach()

    model = config_enumerate(vae.model, "parallel")
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, x)
    assert -loss == pytest.approx(float(brute.sum()), rel=1e-5)

    log_w = log_weights(vae.model, vae.guide, x, num_particles=4000).detach()
    w = (log_w - brute).exp()
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / 4000**0.5).all()


def test_semi_amortized_steps_raise_the_elbo_and_leave_gradients_alone():
    prior, likelihood = StandardNormal(2), Conditional(MLP(2, 6, (8,), nn.Tanh), normal_of_known_scale)
    q = Conditional(encoder(4), normal)
    x = torch.randn(50, 6) * 2
    refined = SemiAmortized(q, likelihood, prior, steps=20, lr=0.03)
    vaes = [VAE(*copy.deepcopy([prior, likelihood, posterior])) for posterior in (q, refined)]
    plain, better = (log_weights(v.model, v.guide, x, num_particles=50).mean().item() for v in vaes)
    assert better > plain
    assert all(p.grad is None for p in refined.parameters())
    unchanged = SemiAmortized(q, likelihood, prior, steps=0)(x)
    torch.testing.assert_close(unchanged.base_dist.loc, q(x).base_dist.loc)
    with torch.no_grad():
        assert not refined(x).base_dist.loc.requires_grad
    with pytest.raises(UsageError, match="Conditional"):
        SemiAmortized(lambda x: None, likelihood, prior)
    with pytest.raises(UsageError, match="reparameterised"):
        SemiAmortized(Conditional(encoder(2), one_hot_categorical), likelihood, OneHot(2))(x)


def normal_of_known_scale(h):
    return dist.Normal(h, 0.5)


def test_semi_amortized_steps_do_not_run_away_under_a_sharp_likelihood():
    """Uncut, the first step at scale 1e-3 throws z some thousands away, and the next ends in NaN."""
    torch.manual_seed(0)
    prior, likelihood = StandardNormal(2), Conditional(MLP(2, 6), normal_fixed(1e-3))
    q = SemiAmortized(Conditional(MLP(6, 4), normal), likelihood, prior, steps=20)
    x = torch.rand(50, 6)
    start, refined = q.posterior(x), q(x)
    assert (refined.mean - start.mean).norm(dim=-1).max() <= 20 * 0.1 * 5
    z = refined.sample()
    assert likelihood(z).log_prob(x).mean() > likelihood(start.sample()).log_prob(x).mean()


def test_a_mixture_of_one_is_a_normal():
    h = torch.randn(5, 7).double()
    d = mixture_normal(1)(h)
    z = d.rsample((3,))
    assert isinstance(d, MixtureNormal)
    by_hand = normal(h[:, 1:]).to_event(1).log_prob(z)
    torch.testing.assert_close(d.log_prob(z), by_hand)


@pytest.mark.parametrize(
    ("family", "features", "message"),
    [
        (low_rank_normal(2), 7, "low_rank_normal"),
        (full_normal(3), 8, "takes 9 features"),
        (mixture_normal(2), 9, "mixture_normal"),
        (logistic_normal, 5, "logistic_normal"),
        (power_spherical, 2, "d at least 2"),
    ],
)
def test_wrong_widths_are_refused(family, features, message):
    with pytest.raises(ShapeError, match=message):
        family(torch.zeros(5, features))


def test_wrong_flows_are_refused():
    with pytest.raises(UsageError, match="kind 'naf'"):
        FlowPosterior(encoder(6), 3, "naf", context_features=6)
    with pytest.raises(UsageError, match="context_features"):
        FlowPosterior(encoder(6), 3, context_features=0)
    with pytest.raises(UsageError, match="1,000,000,000 transforms: at most 1,000 are built"):
        FlowPosterior(MLP(3, 4), 2, transforms=10**9, context_features=4)
    with pytest.raises(UsageError, match="at least 1 dimension"):
        FlowPosterior(encoder(6), 0, context_features=6)
    with pytest.raises(UsageError, match="rank must be at least 1"):
        low_rank_normal(0)


def test_zuko_is_imported_late_and_changes_no_switch():
    printed_by(late_imports.zuko_comes_with_the_first_flow)
