"""Priors p(z): densities that integrate to 1, draws that agree with them, exact log p(x), and each with its posteriors."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, log_likelihood, log_weights, normal
from pyro_vae.distributions.mixtures import MixtureSameFamily, NormalMixture, mixture
from pyro_vae.distributions.one_hot import LinearOneHot
from pyro_vae.errors import ShapeError, UsageError
from pyro_vae.posteriors import POSTERIORS
from pyro_vae.priors import (
    PRIORS,
    DiagonalNormal,
    Dirichlet,
    Laplace,
    Mixture,
    OneHot,
    StudentT,
    UniformSphere,
    VampPrior,
)
from pyro_vae.priors.flow import FlowPrior
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import encoder

DIM = 3
SMALL = {"hidden": (16,), "transforms": 2}
MAKES = {  # of `dim` latents
    "standard_normal": StandardNormal,
    "normal": DiagonalNormal,
    "laplace": lambda dim: Laplace(dim, learned=True),
    "student_t": lambda dim: StudentT(dim, 4.0, learned=True),
    "mixture": lambda dim: Mixture(dim, 4),
    "vamp": lambda dim: VampPrior(Conditional(MLP(6, 2 * dim, (8,), nn.Tanh), normal), 5, 6),
    "nsf": lambda dim: FlowPrior(dim, "nsf", **SMALL),
    "maf": lambda dim: FlowPrior(dim, "maf", **SMALL),
    "iaf": lambda dim: FlowPrior(dim, "iaf", **SMALL),
    "uniform_sphere": UniformSphere,
    "one_hot": lambda dim: OneHot(dim, learned=True),
    "dirichlet": lambda dim: Dirichlet(dim, 1.5, learned=True),
}
ON_THE_PLANE = ["normal", "laplace", "student_t", "mixture", "vamp", "nsf", "maf", "iaf"]


def jiggle(prior):
    """Parameters away from where they start."""
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return prior


def test_every_prior_of_the_table_is_tested():
    names = {"flow" if name in ("nsf", "maf", "iaf") else name for name in MAKES}
    assert names == set(PRIORS)
    for spec in PRIORS.values():
        assert spec.support in ("real", "simplex", "sphere", "one-hot", "any")
        if not spec.needs:
            assert spec.make(DIM, **spec.options)().has_rsample in (spec.reparameterised, True)


@pytest.mark.parametrize("name", MAKES)
def test_shapes_gradients_copies_and_ignored_context(name):
    prior = jiggle(MAKES[name](DIM))
    d = prior()
    assert (d.batch_shape, d.event_shape) == ((), (DIM,))
    if name != "vamp":
        z = d.sample()
        torch.testing.assert_close(prior(torch.zeros(5, 2)).log_prob(z), d.log_prob(z))
    for batch in [(), (5,), (7, 5)]:
        z = d.expand(batch).sample()
        assert z.shape == (*batch, DIM) and d.support.check(z).all()
        assert d.log_prob(z).shape == batch == d.expand(batch).log_prob(z).shape
    z = d.sample((50,))
    if list(prior.parameters()):
        d.log_prob(z).sum().backward()
    without = [n for n, p in prior.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    twin = MAKES[name](DIM)
    twin.load_state_dict(prior.state_dict())
    for copied in (twin, copy.deepcopy(prior)):
        torch.testing.assert_close(copied().log_prob(z), d.log_prob(z))
    assert type(prior).__name__ in repr(prior)


@pytest.mark.parametrize("name", ON_THE_PLANE)
def test_densities_on_the_plane_integrate_to_one(name):
    d = jiggle(MAKES[name](2)).double()()
    n = 300
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    line, weight = torch.tan((u - 0.5) * math.pi), math.pi / torch.cos((u - 0.5) * math.pi) ** 2 / n
    with torch.no_grad():
        density = d.log_prob(torch.cartesian_prod(line, line)).exp().reshape(n, n)
    assert float(weight @ density @ weight) == pytest.approx(1, abs=5e-3)


@pytest.mark.parametrize("kind", ["nsf", "maf", "iaf"])
def test_a_flow_of_one_latent_integrates_to_one(kind):
    d = FlowPrior(1, kind, **SMALL).double()()
    line = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    with torch.no_grad():
        assert float(d.log_prob(line[:, None]).exp().sum() * (line[1] - line[0])) == pytest.approx(1, abs=1e-3)


def agrees(d, draws=20_000):
    """Draws of d average p/d to 1, p a normal around one of them, within 4 standard errors."""
    with torch.no_grad():
        z, p = d.sample((draws,)), dist.Normal(d.sample(), 0.25).to_event(1)
        ratio = (p.log_prob(z) - d.log_prob(z)).exp()
    return bool(abs(ratio.mean() - 1) < 4 * ratio.std() / draws**0.5)


@pytest.mark.parametrize("name", ["standard_normal", *ON_THE_PLANE])
def test_draws_agree_with_the_density(name):
    assert agrees(jiggle(MAKES[name](2)).double()())


def test_other_draws_have_the_moments_of_their_formulas():
    n = 20_000
    z = UniformSphere(4)().sample((n,))
    assert (z.mean(0).abs() < 4 * 0.5 / n**0.5).all()  # E z z' = I / d
    assert ((z.square().mean(0) - 0.25).abs() < 4 * z.square().std(0) / n**0.5).all()
    z = Dirichlet(3, 2.0)().sample((n,))
    assert ((z.mean(0) - 1 / 3).abs() < 4 * z.std(0) / n**0.5).all()
    assert z[:, 0].var().item() == pytest.approx((1 / 3 * 2 / 3) / 7, rel=0.05)
    assert ((OneHot(3)().sample((n,)).mean(0) - 1 / 3).abs() < 4 * (2 / 9 / n) ** 0.5).all()


def test_learned_ones_start_where_the_fixed_ones_are():
    z = torch.randn(5, 3)
    torch.testing.assert_close(DiagonalNormal(3)().log_prob(z), StandardNormal(3)().log_prob(z))
    torch.testing.assert_close(Laplace(3)().log_prob(z), -z.abs().sum(-1) - 3 * math.log(2))
    by_hand = dist.StudentT(4.0, 0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(StudentT(3, 4.0)().log_prob(z), by_hand)
    for learned in (False, True):
        torch.testing.assert_close(
            Dirichlet(3, 80.0, learned)().concentration, torch.full((3,), 80.0), rtol=1e-4, atol=0
        )
        torch.testing.assert_close(OneHot(3, learned)().log_prob(torch.eye(3)), torch.full((3,), -math.log(3)))
    assert not list(Laplace(3).parameters()) and not list(OneHot(3).parameters()) and not Laplace(3).state_dict()


def test_linear_one_hot_is_the_stock_one_at_one_hot_vectors():
    logits = torch.randn(5, 4)
    z = LinearOneHot(logits=logits).sample((3,))
    torch.testing.assert_close(
        LinearOneHot(logits=logits).log_prob(z), dist.OneHotCategorical(logits=logits).log_prob(z)
    )
    with pytest.raises(ValueError, match="OneHot"):
        LinearOneHot(logits=logits).log_prob(z + 0.5)


# exact log p(x)


def test_a_mixture_prior_and_a_linear_decoder_are_a_mixture_of_gaussians():
    """log p(x) = logsumexp_k [log π_k + log N(x; mean + loc_k A, A' diag(scale_k²) A + noise)], within 4 standard errors."""
    exact = LinearGaussian()
    prior = Mixture(2, 3).double()
    with torch.no_grad():
        prior.logits += torch.tensor([0.5, -0.5, 0.0])
        prior.loc += torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
    d = prior().component_distribution.base_dist
    cov = exact.a.T @ torch.diag_embed(d.scale.square()) @ exact.a + exact.noise.diag()
    px = dist.MultivariateNormal(exact.mean + d.loc @ exact.a, cov)
    x = exact.x[:10]
    log_px = (px.log_prob(x[:, None]) + prior.logits.log_softmax(0)).logsumexp(-1).detach()

    wide = 2 * exact.precision.inverse()  # reaches further than the exact posterior of each component
    vae = VAE(prior, exact.likelihood, lambda x: dist.MultivariateNormal(exact.exact(x).loc, covariance_matrix=wide))
    w = (log_weights(vae.model, vae.guide, x, num_particles=20_000).detach() - log_px).exp()
    assert ((w.mean(0) - 1).abs() < 4 * w.std(0) / len(w) ** 0.5).all()
    assert not ((w.mean(0) / 1.1 - 1).abs() < 4 * w.std(0) / len(w) ** 0.5).all()


def vamp_by_hand(prior, z, context=()):
    q = prior.posterior(prior.pseudo_inputs, *context)
    return q.log_prob(z[..., None, :]).logsumexp(-1) - math.log(len(prior.raw))


def test_vamp_is_the_mixture_written_out():
    prior, z = MAKES["vamp"](2), torch.randn(7, 5, 2)
    torch.testing.assert_close(prior().log_prob(z), vamp_by_hand(prior, z))
    forgotten = vamp_by_hand(prior, z) + math.log(5)
    assert not torch.allclose(prior().log_prob(z), forgotten)
    z, w = prior().sample((20_000,)), dist.Normal(0.0, 0.3).expand((2,)).to_event(1)
    with torch.no_grad():
        ratio = (w.log_prob(z) - vamp_by_hand(prior, z)).exp()
    se = 4 * ratio.std() / len(z) ** 0.5
    assert abs(ratio.mean() - 1) < se and not abs(ratio.mean() / 5 - 1) < se  # without − log K


def test_vamp_takes_contexts():
    q = Conditional(MLP(6 + 2, 4, (8,)), normal)
    prior, c, z = VampPrior(q, 3, 6), torch.randn(5, 2), torch.randn(7, 5, 2)
    d = prior(c)
    assert (d.batch_shape, d.event_shape) == ((5,), (2,))
    rows = [vamp_by_hand(prior, z[:, i], [c[i]]) for i in range(5)]
    torch.testing.assert_close(d.log_prob(z), torch.stack(rows, -1))


def test_vamp_shares_its_posterior_with_the_vae():
    q = Conditional(encoder(2 * DIM), normal)
    vae = VAE(VampPrior(q, 4, 6), Conditional(MLP(DIM, 6, (8,)), bernoulli), q)
    own = list(q.parameters())
    assert sum(any(p is o for o in own) for p in vae.parameters()) == len(own)
    twin = copy.deepcopy(vae)
    assert twin.prior.posterior is twin.posterior and twin.posterior is not q
    assert len(list(twin.parameters())) == len(list(vae.parameters()))
    other = VAE(VampPrior(r := copy.deepcopy(q), 4, 6), Conditional(MLP(DIM, 6, (8,)), bernoulli), r)
    other.load_state_dict(vae.state_dict())
    z = torch.randn(5, DIM)
    torch.testing.assert_close(other.prior().log_prob(z), vae.prior().log_prob(z))
    x = torch.ones(4, 6).bernoulli()
    before = {n: p.clone() for n, p in vae.named_parameters()}
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert all((p != before[n]).any() for n, p in vae.named_parameters())
    stored = list(pyro.get_param_store().keys())
    assert len(stored) == len(before)


def test_vamp_starts_from_rows_and_keeps_within_bounds():
    q, rows = Conditional(MLP(6, 4), normal), torch.rand(4, 6) * 0.9 + 0.05
    for bounds in (None, (0.0, 1.0)):
        prior = VampPrior(q, 4, 6, initial=rows, bounds=bounds)
        torch.testing.assert_close(prior.pseudo_inputs, rows)
        assert prior.raw.data_ptr() != rows.data_ptr()
    with torch.no_grad():
        prior.raw.fill_(1e4)
    assert (prior.pseudo_inputs <= 1).all()
    inside = VampPrior(q, 400, (6,), bounds=(2.0, 5.0)).pseudo_inputs
    assert inside.min() >= 2 and inside.max() <= 5
    binary = VampPrior(q, 4, 6, initial=torch.ones(4, 6), bounds=(0, 1))
    assert binary.raw.isfinite().all()
    with pytest.raises(ShapeError, match=r"\(4, 6\), got \(3, 6\)"):
        VampPrior(q, 4, 6, initial=rows[:3])
    with pytest.raises(UsageError, match="low < high"):
        VampPrior(q, 4, 6, bounds=(1, 0))


def test_a_prior_given_a_context_is_a_conditional():
    prior = Conditional(MLP(2, 2 * DIM, (8,)), normal)
    vae = VAE(prior, Conditional(MLP(DIM + 2, 6, (8,)), bernoulli), Conditional(MLP(6 + 2, 2 * DIM, (8,)), normal))
    x, c = torch.ones(4, 6).bernoulli(), torch.randn(4, 2)
    assert prior(c).batch_shape == (4,)
    SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x, c)
    assert log_weights(vae.model, vae.guide, x, c, num_particles=7).shape == (7, 4)


PAIRS = [
    (prior, posterior)
    for prior in MAKES
    for posterior, spec in POSTERIORS.items()
    if not spec.needs and PRIORS.get(prior, PRIORS["flow"]).support in (spec.support, "any")
]


@pytest.mark.parametrize(("prior", "posterior"), PAIRS, ids="-".join)
def test_each_prior_with_each_posterior_of_its_support(prior, posterior):
    options = {"context_features": 6, **SMALL} if posterior == "flow" else {}
    q = POSTERIORS[posterior].make(encoder, DIM, **options)
    p = VampPrior(q, 4, 6) if prior == "vamp" else MAKES[prior](DIM)
    vae, x = VAE(p, Conditional(MLP(DIM, 6, (8,)), bernoulli), q), torch.ones(4, 6).bernoulli()
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    assert math.isfinite(SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), elbo).step(x))
    assert all(p.isfinite().all() for p in vae.parameters())
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=5)
    assert torch.as_tensor(evidence.log_px).isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiagonalNormal(0),
        lambda: Mixture(2, 0),
        lambda: StudentT(2, 0.0),
        lambda: UniformSphere(1),
        lambda: Dirichlet(1),
        lambda: Dirichlet(3, 0.0),
        lambda: OneHot(0),
        lambda: FlowPrior(2, "glow"),
    ],
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(UsageError):
        make()


@pytest.mark.parametrize("batch", [(), (4,), (3, 4)])
def test_normal_mixture_is_torchs_mixture(batch):
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    loc = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(6, 3, dtype=torch.float64).add(0.1).requires_grad_()
    z = torch.randn(*batch, 3, dtype=torch.float64, requires_grad=True)
    parts = dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1)
    ours, torchs = mixture(*parts), dist.MixtureSameFamily(*parts)
    assert isinstance(ours, NormalMixture) and isinstance(ours.expand(batch), NormalMixture)
    assert ours.expand(batch).batch_shape == batch
    mine, wanted = ours.expand(batch).log_prob(z), torchs.expand(batch).log_prob(z)
    assert torch.allclose(mine, wanted, rtol=1e-12)
    for a, b in zip(
        *(torch.autograd.grad(y.sum(), (logits, loc, scale, z), retain_graph=True) for y in (mine, wanted)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_normal_mixture_keeps_its_digits_in_float32():
    """Far out and with narrow components the exponents cancel: float32 products would be off by whole nats."""
    torch.manual_seed(0)
    loc, z = 1e3 + torch.randn(4, 50), 1e3 + torch.randn(20, 50)
    parts = dist.Categorical(logits=torch.zeros(4)), dist.Normal(loc, torch.full((4, 50), 0.5)).to_event(1)
    exact = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(4).double()), dist.Normal(loc.double(), 0.5).to_event(1)
    ).log_prob(z.double())
    assert torch.allclose(mixture(*parts).log_prob(z).double(), exact, rtol=1e-6)


def test_normal_mixture_draws_each_component_as_often_as_its_weight():
    torch.manual_seed(0)
    parts = dist.Categorical(torch.tensor([0.2, 0.8])), dist.Normal(torch.tensor([[-5.0], [5.0]]), 0.5).to_event(1)
    z = mixture(*parts).expand((10_000,)).sample().squeeze(-1)
    assert abs((z > 0).double().mean().item() - 0.8) < 4 * (0.8 * 0.2 / 10_000) ** 0.5
    assert abs(z[z > 0].std().item() - 0.5) < 0.02 and abs(z[z > 0].mean().item() - 5) < 0.03


def test_components_of_another_kind_are_a_mixture_of_any_kind():
    weights = dist.Categorical(torch.ones(2))
    assert type(mixture(weights, dist.Laplace(torch.zeros(2, 3), 1.0).to_event(1))) is MixtureSameFamily
    per_row = dist.Categorical(torch.ones(5, 2)), dist.Normal(torch.zeros(5, 2, 3), 1.0).to_event(1)
    assert type(mixture(*per_row)) is MixtureSameFamily


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("away", [1e2, 3e4, 1e6, 1e8])
def test_a_mixture_keeps_its_digits_far_from_the_origin(away, dtype):
    """log p(z + c) under components at loc + c is log p(z) under those at loc; clusters that far apart, each as if alone."""
    loc = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.25]], dtype=torch.float64)
    weights, z = dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)), loc + 0.5
    plain = NormalMixture(weights, dist.Normal(loc, 1.0).to_event(1)).log_prob(z)
    moved = NormalMixture(weights, dist.Normal(loc + away, 1.0).to_event(1)).log_prob((z + away).to(dtype))
    if dtype == torch.float64 or away <= 3e4:  # beyond, a z in single precision has no digits left for its place
        torch.testing.assert_close(moved.double(), plain, atol=1e-6 if dtype == torch.float64 else 0.02, rtol=0)
    if dtype == torch.float64:
        apart = dist.Normal(away * torch.eye(3, 2, dtype=dtype), 1.0).to_event(1)
        found = NormalMixture(weights, apart).log_prob(apart.base_dist.loc + 0.5)
        assert (found - (weights.probs.log() - math.log(2 * math.pi) - 0.25)).abs().max() < 1e-9
