"""Several modalities against two linear-Gaussian blocks, of which everything is known; and every evaluation on them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.decomposition import FactorAnalysis
from torch import nn

from pyro_vae import (
    MLP,
    Bound,
    Conditional,
    MixtureOfExperts,
    MixtureOfProducts,
    MultimodalVAE,
    ProductOfExperts,
    SkipMissing,
    StandardNormal,
    WithMask,
    adam,
    ais,
    bdmc,
    bernoulli,
    bracket,
    check,
    compare,
    cosine,
    decompose,
    defensive,
    elbo,
    encode,
    every_subset,
    fit,
    fit_ensemble,
    gaps,
    impute,
    iwae,
    latents,
    linear_gaussian,
    log_likelihood,
    log_weights,
    normal,
    posterior_predictive_check,
    simulate,
    simulation_based_calibration,
    stl,
    widened,
)
from pyro_vae.errors import DataError, ProgramError, ShapeError, SupportError, UsageError
from pyro_vae.likelihoods import SharedNormal
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary
from tests.helpers.two_blocks import TwoBlocks
from tests.helpers.within import within

BLOCKS = TwoBlocks()
X, Y = BLOCKS.gaps
TRUTH = BLOCKS.log_px(X, Y)
QUIET = {"verbose": False}
nan = math.nan


def labels(rows=20, missing=(), seed=2):
    y = torch.randint(3, (rows,), generator=torch.Generator().manual_seed(seed)).float()
    y[list(missing)] = nan
    return y


def small(guide=ProductOfExperts, name="label"):
    """A trainable pair of modalities: 6 columns of zeros and ones, and one of three classes."""
    prior, decoder, table = StandardNormal(2), MLP(2, 3, (8,)), nn.Embedding(3, 4)
    return MultimodalVAE(
        prior,
        {
            "image": SkipMissing(Conditional(MLP(2, 6, (8,)), bernoulli)),
            name: SkipMissing(lambda z: dist.Categorical(logits=decoder(z))),
        },
        guide(
            prior,
            {
                "image": Conditional(WithMask(MLP(12, 4, (8,))), normal),
                name: Conditional(lambda y: table(y.long()), normal),
            },
        ),
    )


GUIDES = {"product": ProductOfExperts, "mixture": MixtureOfExperts, "mixture of products": MixtureOfProducts}
EACH = pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)


# the oracle


def test_every_weight_of_the_exact_posterior_is_p_of_what_a_row_has():
    vae = BLOCKS.vae()
    log_w = log_weights(vae.model, vae.guide, X, Y, num_particles=5)
    torch.testing.assert_close(log_w, TRUTH.expand(5, -1), rtol=0, atol=1e-6)
    torch.testing.assert_close(linear_gaussian(vae.model, None, X, Y).log_px, TRUTH, rtol=0, atol=1e-6)


@pytest.mark.parametrize("broken", ["prior left out", "prior twice", "absent ones counted"])
def test_other_products_have_other_weights(broken):
    """Broken on purpose: what the product multiplies."""
    wide = dist.Normal(torch.zeros(2).double(), {"prior left out": 1e3, "prior twice": 0.5**0.5}.get(broken, 1.0))
    prior = lambda: wide.to_event(1)  # noqa: E731
    product = ProductOfExperts(prior, BLOCKS.experts(alone=broken == "absent ones counted"))
    vae = BLOCKS.vae(product)
    assert (log_weights(vae.model, vae.guide, X, Y, num_particles=5) - TRUTH).abs().max() > 0.1


@EACH
def test_a_row_with_nothing_has_log_p_of_exactly_0(guide):
    prior = lambda: dist.Normal(torch.tensor([0.3, -2.0]), torch.tensor([0.7, 3.1])).to_event(1)  # noqa: E731
    experts = {name: Conditional(MLP(6, 4, (8,)), normal) for name in "ab"}
    decoders = {name: SkipMissing(Conditional(MLP(2, 6, (8,)), bernoulli)) for name in "ab"}
    vae, nothing = MultimodalVAE(prior, decoders, guide(prior, experts)), torch.full((3, 6), nan)
    found = log_likelihood(vae.model, vae.guide, nothing, nothing, num_samples=50, **QUIET)
    tiny = 0 if guide is ProductOfExperts else 1e-6  # Σ of equal shares of one density is rounded
    assert found.log_px.abs().max() <= tiny and found.mc_se.max() < 1e-6
    assert log_weights(vae.model, vae.guide, nothing, nothing, num_particles=4).abs().max() <= 10 * tiny


GUIDED = {
    "product": BLOCKS.product(0.1, 1.2),
    "mixture": BLOCKS.mixture(),
    "mixture of products": BLOCKS.products(0.2),
}


@pytest.mark.parametrize("posterior", GUIDED.values(), ids=GUIDED)
def test_importance_sampling(posterior):
    vae = BLOCKS.vae(posterior)
    found = log_likelihood(vae.model, vae.guide, X, Y, num_samples=4000, **QUIET)
    within(found.log_px, TRUTH, found.mc_se + 1e-9)
    assert found.mc_se.max() < 0.1 and found.measure == "continuous"


@pytest.mark.parametrize("proposal", [defensive(0.2), widened(1.5)], ids=["defensive", "widened"])
def test_other_proposals(proposal):
    vae = BLOCKS.vae(BLOCKS.product(0.2) if proposal.weight == 0 else BLOCKS.mixture())
    found = log_likelihood(vae.model, vae.guide, X, Y, num_samples=2000, proposal=proposal, **QUIET)
    within(found.log_px, TRUTH, found.mc_se + 1e-9)


@pytest.mark.parametrize("posterior", [GUIDED["product"], GUIDED["mixture of products"]], ids=["product", "mixture"])
def test_annealing(posterior):
    vae = BLOCKS.vae(posterior)
    found = ais(vae.model, vae.guide, X[:6], Y[:6], num_temperatures=8, num_chains=8, leapfrog_steps=2, **QUIET)
    within(found.log_px, TRUTH[:6], found.mc_se + 1e-6)


def test_both_ends_of_the_bracket():
    vae = BLOCKS.vae(GUIDED["product"])
    options = {"num_samples": 100, "num_temperatures": 8, "num_chains": 8, "leapfrog_steps": 2}
    ends = bracket(vae.model, vae.guide, X[:6], Y[:6], **options, **QUIET)
    within(ends.lower, TRUTH[:6], ends.lower_se + 1e-6)
    drawn = bdmc(vae.model, vae.guide, BLOCKS.x, BLOCKS.y, num_rows=6, **options, **QUIET)
    width = drawn.upper - drawn.lower  # of rows that are independent
    assert drawn.strict and -4 * width.std() / 6**0.5 < width.mean() < 0.2


def test_the_gap_is_the_guides_and_a_free_product_closes_it():
    """KL(q ‖ p(z | x)) in closed form of a product that is off, where both modalities are there."""
    off, vae = 0.3, BLOCKS.vae(BLOCKS.product(0.3))
    q, p = (BLOCKS.product(shift)(BLOCKS.x, BLOCKS.y) for shift in (off, 0.0))
    kl = torch.distributions.kl_divergence(q, p)
    found = gaps(vae.model, vae.guide, BLOCKS.x, BLOCKS.y, steps=60, num_samples=300, **QUIET)
    within(found.gap.mean(), kl.mean(), 4e-2, 1)
    assert found.approximation.mean() < 0.02 < found.amortisation.mean()


@EACH
def test_the_gap_of_every_guide_splits(guide):
    torch.manual_seed(0)
    vae = small(guide)
    found = gaps(vae.model, vae.guide, binary(6), labels(6, [1, 2]), steps=5, num_samples=100, **QUIET)
    assert found.gap.isfinite().all() and found.amortisation.isfinite().all()


def test_calibration_knows_the_exact_posterior_from_a_shifted_one():
    options = {"num_rows": 1000, "num_draws": 19}
    exact, off = BLOCKS.vae(), BLOCKS.vae(BLOCKS.product(0.5))
    assert simulation_based_calibration(exact.model, exact.guide, BLOCKS.x, BLOCKS.y, **options).passed
    assert simulation_based_calibration(off.model, off.guide, BLOCKS.x, BLOCKS.y, **options).rejected


def test_what_is_simulated_has_all_modalities():
    drawn = simulate(BLOCKS.vae().model, X, Y)
    assert drawn.args[0].shape == X.shape and drawn.args[1].shape == Y.shape
    assert all(part.isfinite().all() for part in drawn.args)


# mixtures


def grid_integral(q):
    """∫ q(z) dz of each row, two latents, on a grid."""
    line = torch.linspace(-9, 9, 361, dtype=torch.float64)
    z = torch.cartesian_prod(line, line).unsqueeze(1)
    return q.log_prob(z).exp().sum(0) * (line[1] - line[0]) ** 2


@pytest.mark.parametrize("posterior", [BLOCKS.mixture(), BLOCKS.products(0.2)], ids=["mixture", "mixture of products"])
def test_a_mixture_is_a_density_that_its_draws_have(posterior):
    """It integrates to 1 for every subset of modalities; mean and variance of 20,000 draws within 4.5 errors."""
    q = posterior(X, Y)
    torch.testing.assert_close(grid_integral(q), torch.ones(len(X)).double(), rtol=0, atol=1e-6)
    torch.manual_seed(0)
    z, n = q.sample((20_000,)), 20_000
    within(z.mean(0), q.mean, (q.variance / n).sqrt(), 4.5)
    fourth = (z - q.mean).pow(4).mean(0)
    within(z.var(0), q.variance, ((fourth - q.variance**2) / n).sqrt(), 4.5)


def test_a_mixture_is_of_the_experts_that_a_row_has():
    q, alone = BLOCKS.mixture()(X, Y), BLOCKS.experts(alone=True)
    z = torch.tensor([[0.5, -0.3]]).double()
    a, b = (alone[name](value.nan_to_num()).log_prob(z).exp() for name, value in (("a", X), ("b", Y)))
    wanted = 0.5 * (a + b)
    wanted[1], wanted[2], wanted[5] = a[1], b[2], BLOCKS.prior().log_prob(z).exp()[0]
    rows = [0, 1, 2, 5]
    torch.testing.assert_close(q.log_prob(z).exp()[rows], wanted[rows])


def test_a_mixture_of_products_has_every_subset():
    """At a point: the mean over {}, {a}, {b}, {a, b} of products, each written out; a row without b has {} and {a}."""
    z = torch.tensor([[0.5, -0.3]]).double()
    none, both = torch.full_like(BLOCKS.x, nan), BLOCKS.product()
    other = torch.full_like(BLOCKS.y, nan)
    pairs = [(none, other), (BLOCKS.x, other), (none, BLOCKS.y), (BLOCKS.x, BLOCKS.y)]
    each = torch.stack([both(x, y).log_prob(z).exp() for x, y in pairs])
    torch.testing.assert_close(BLOCKS.products()(BLOCKS.x, BLOCKS.y).log_prob(z).exp(), each.mean(0))
    torch.testing.assert_close(BLOCKS.products()(BLOCKS.x, other).log_prob(z).exp(), each[:2].mean(0))


@pytest.mark.parametrize("guide", [MixtureOfExperts, MixtureOfProducts], ids=["mixture", "mixture of products"])
def test_gradients_of_a_mixture_are_those_of_its_expectation(guide):
    """d/dθ E_q[Σ z³] in closed form against 40,000 reparameterised draws, row by row, within 4 errors; NaN in none."""
    shift = torch.tensor([0.4, -0.2, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
    experts = {
        "a": lambda x: dist.Normal(x[..., :2] + shift[:2], shift[2].exp()).to_event(1),
        "b": lambda y: dist.Normal(y - shift[:2], (0.5 * shift[3]).exp()).to_event(1),
    }
    n = 40_000
    for row in range(3):  # of both, of one, of the other
        q = guide(BLOCKS.prior, experts)(X[row : row + 1], Y[row : row + 1])
        loc, var = q.component_distribution.base_dist.loc, q.component_distribution.base_dist.variance
        exact = (q.mixture_distribution.probs.unsqueeze(-1) * (loc**3 + 3 * loc * var)).sum()
        wanted = torch.autograd.grad(exact, shift)[0]
        torch.manual_seed(row)
        parts = []
        for _ in range(20):
            q = guide(BLOCKS.prior, experts)(X[row : row + 1], Y[row : row + 1])
            parts.append(torch.autograd.grad(q.rsample((n // 20,)).pow(3).sum() / (n // 20), shift)[0])
        found = torch.stack(parts)
        within(found.mean(0), wanted, found.std(0) / 20**0.5 + 1e-12, 4.5)


@EACH
def test_no_gradient_is_nan_where_a_modality_is_missing(guide):
    torch.manual_seed(0)
    vae, x, y = small(guide), binary(6), labels(6, [0, 2])
    x[1] = x[2] = x[3, :2] = nan
    Bound(iwae, num_particles=3).differentiable_loss(vae.model, vae.guide, x, y).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())


def test_an_expert_learns_nothing_from_rows_that_lack_its_modality():
    vae, y = small(), torch.full((6,), nan)
    Bound(elbo).differentiable_loss(vae.model, vae.guide, binary(6), y).backward()
    of_label = {name: p for name, p in vae.named_parameters() if "table" in name or "decoder" in name}
    assert len(of_label) == 5 and all(p.grad is None or (p.grad == 0).all() for p in of_label.values())


# training


def linear(inputs, outputs, family):
    return Conditional(MLP(inputs, outputs, ()), family)


def test_training_ends_at_the_optimum_of_every_subset():
    """One factor over two blocks is factor analysis: the best log p(x) is scikit-learn's, and the product can be exact."""
    x = torch.cat([TwoBlocks(60).x, TwoBlocks(60).y], 1)
    best = FactorAnalysis(1, tol=1e-8, max_iter=10_000).fit(x.numpy()).score(x.numpy())
    torch.manual_seed(0)
    prior = StandardNormal(1)
    vae = MultimodalVAE(
        prior,
        {"a": SkipMissing(linear(1, 3, SharedNormal(3))), "b": SkipMissing(linear(1, 2, SharedNormal(2)))},
        ProductOfExperts(prior, {"a": linear(3, 2, normal), "b": linear(2, 2, normal)}),
    ).double()
    rows = (x[:, :3].repeat(25, 1), x[:, 3:].repeat(25, 1))
    options = {"batch_size": 60, "schedule": cosine, "objective": Bound(elbo, num_particles=2, estimator=stl)}
    fit(vae, *rows, epochs=9, optimizer=adam(0.05), **options, **QUIET)
    exact = linear_gaussian(vae.model, None, x[:, :3], x[:, 3:]).log_px.mean().item()
    found = log_likelihood(vae.model, vae.guide, x[:, :3], x[:, 3:], num_samples=1000, **QUIET)
    assert best - 0.02 < exact < best + 1e-6
    assert abs(found.elbo.mean().item() - best) < 0.02


@EACH
@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_engines_take_the_same_steps(guide, engine):
    if not HEAVY and (engine == "compile" or guide is MixtureOfExperts):
        pytest.skip("takes its time: PYRO_VAE_HEAVY")
    runs = []
    for name in ("eager", engine):
        torch.manual_seed(1)
        vae, x, y = small(guide), binary(20), labels(20, [0, 7, 13])
        x[3] = x[5, 2] = nan
        run = fit(vae, x, y, epochs=2, batch_size=8, seed=5, engine=name, **QUIET)
        assert "eager from here on" not in run.engine, run.engine
        runs.append([p.detach().clone() for p in vae.parameters()])
    exact = {"rtol": 0, "atol": 0} if engine == "trace" else {"rtol": 1e-3, "atol": 1e-5}
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, **exact)


def test_an_ensemble_of_two_trains_as_one_graph():
    options = {"seeds": [0, 1], "epochs": 2, "batch_size": 10, "engine": "trace"}
    ensemble = fit_ensemble(small, binary(20), labels(20, [4]), **options, **QUIET)
    assert "2 members as one graph" in ensemble.results[0].engine


@EACH
def test_every_parameter_is_trained_and_everything_runs(guide):
    torch.manual_seed(0)
    vae, x, y = small(guide), binary(20), labels(20, [4, 5])
    x[6] = nan
    assert check(vae.model, vae.guide, x, y).ok
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    fit(vae, x, y, epochs=1, validation=(x, y), **QUIET)
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert latents(vae.model, vae.guide, x, y, batch=10).sites.keys() == {"z"}
    assert decompose(vae.model, vae.guide, x, y, num_samples=4, **QUIET).kl.value > -1
    assert encode(vae, x, y).shape == (20, 2) and encode(vae, x, y).isfinite().all()
    scored = [log_likelihood(vae.model, vae.guide, x, part, num_samples=50, **QUIET) for part in (y, y)]
    assert scored[0].measure == "binary x categories"
    assert compare({"one": scored[0], "two": scored[1]}).models[1].difference == 0


def test_every_subset_is_trained_on():
    x, y = every_subset(binary(3), torch.tensor([0, 1, 2]))
    assert x.shape == (9, 6) and y.shape == (9,)
    assert [(bool(a.isnan().all()), bool(b.isnan())) for a, b in zip(x, y, strict=True)] == [
        *[(False, False)] * 3, *[(False, True)] * 3, *[(True, False)] * 3
    ]  # fmt: skip
    assert every_subset(*[torch.zeros(2, 1)] * 3)[0].shape == (14, 1)
    x, y = every_subset([[1.0, 2.0], [nan, nan], [nan, 3.0], [nan, nan]], [7.0, 8.0, nan, nan])
    told = [[1, 2, 7], [1, 2, nan], [nan, 3, nan], [nan, nan, 7], [nan, nan, 8]]  # each subset of what a row has, once
    torch.testing.assert_close(torch.cat([x, y[:, None]], 1), torch.tensor(told), equal_nan=True)
    with pytest.raises(ShapeError, match="3 rows"):
        every_subset(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(UsageError, match="one at least"):
        every_subset()


# one modality given the others


def test_a_modality_is_imputed_from_the_others_as_the_exact_conditional():
    """b given a, mean and covariance of 4,000 draws of one row, within 4 errors; and a's gaps given what there is."""
    n, vae = 4000, BLOCKS.vae()
    for site, row in (("b", 1), ("a", 2), ("a", 4)):
        x, y = X[row].repeat(n, 1), Y[row].repeat(n, 1)
        drawn = impute(vae, x, y, site=site, num_samples=30)[0]
        whole = torch.cat([X[row], Y[row]])
        loc, cov = BLOCKS.conditional(whole)
        of = whole.isnan()[:3] if site == "a" else whole.isnan()[3:]
        part = slice(0, int(of.sum())) if site == "a" else slice(len(loc) - int(of.sum()), None)
        loc, cov = loc[part], cov[part, part]
        within(drawn[:, of].mean(0), loc, (cov.diagonal() / n).sqrt())
        se = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / n).sqrt()
        within(drawn[:, of].T.cov(), cov, se)
        assert torch.equal(drawn[:, ~of], (x if site == "a" else y)[:, ~of])


def test_labels_are_drawn_as_labels_and_what_is_there_stays():
    vae, y = small(), labels(5, [1, 3])
    drawn = impute(vae, binary(5), y, site="label", num_samples=20, draws=40)
    assert drawn.shape == (40, 5) and set(drawn.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(drawn[:, [0, 2, 4]], y[[0, 2, 4]].expand(40, 3)) and drawn[:, 1].unique().numel() > 1
    assert torch.equal(impute(vae, binary(5), y), binary(5)[None])  # of x, which has no gaps


def test_a_check_by_site_finds_the_modality_that_the_model_misses():
    """b of twice its spread: every statistic of a is as it should be."""
    oracle = TwoBlocks(200)
    y = oracle.b.shift + 2.5 * (oracle.y - oracle.b.shift)
    vae = oracle.vae()
    found = {s: posterior_predictive_check(vae.model, vae.guide, oracle.x, y, site=s, num_draws=100) for s in "ab"}
    assert "log p(x | z)" in found["b"].extreme and not found["a"].statistics["mean"].extreme
    missing = posterior_predictive_check(vae.model, vae.guide, X, Y, site="b", num_draws=30)
    assert missing.statistics["mean"].observed.shape == (1, len(X))


# what is refused


def test_a_modality_missing_in_every_row_is_the_evidence_of_the_others():
    x, none = BLOCKS.x, torch.full_like(BLOCKS.y, nan)
    vae = BLOCKS.vae(BLOCKS.product(0.1, 1.2))
    found = log_likelihood(vae.model, vae.guide, x, none, num_samples=3000, **QUIET)
    within(found.log_px, BLOCKS.log_px(x, none), found.mc_se)


USES = {
    "fit": lambda vae, *x: fit(vae, *x, epochs=1, verbose=False),
    "evidence": lambda vae, *x: log_likelihood(vae.model, vae.guide, *x, verbose=False),
    "impute": impute,
}


@pytest.mark.parametrize("use", USES)
def test_a_plain_likelihood_is_refused_by_site_and_row(use):
    vae = small()
    vae.likelihoods.of_label = Conditional(MLP(2, 3), lambda h: dist.Categorical(logits=h), event_dim=0)
    with pytest.raises(SupportError, match=r"site 'label': 1 of 5 rows .* row 3 holds nan.* SkipMissing"):
        USES[use](vae, binary(5), labels(5, [3]))


@pytest.mark.parametrize("use", USES)
def test_an_expert_that_does_not_take_single_gaps_is_refused(use):
    vae, x = small(), binary(5)
    vae.posterior.of_image = Conditional(MLP(6, 4), normal)
    x[2, 3] = nan
    with pytest.raises(ProgramError, match=r"site 'z': .*NaN for rows \[2\], which have missing values.* WithMask"):
        USES[use](vae, x, labels(5))
    x[2] = nan  # a whole modality is left out of the product
    USES[use](vae, x, labels(5))


@pytest.mark.parametrize("use", ["fit", "evidence"])
def test_a_modality_of_another_shape_is_refused(use):
    with pytest.raises(ShapeError, match=r"expert 'image'.* MLP takes 12 features"):
        USES[use](small(), binary(5)[:, :4], labels(5))
    with pytest.raises(ShapeError, match=r"x has 5 rows, context 0 has 4"):
        USES[use](small(), binary(5), labels(4))
    with pytest.raises(
        UsageError, match=r"each of the 2 modalities, in the order 'image', 'label'; got 1; 'label' is missing"
    ):
        USES[use](small(), binary(5))


def test_labels_out_of_range_are_refused_by_site():
    vae, y = small(), torch.tensor([0.0, 1, -1, 2, nan])
    with pytest.raises(DataError, match="An index is larger than its table"):  # the user's own embedding, in an expert
        log_likelihood(vae.model, vae.guide, binary(5), y, **QUIET)
    net = MLP(1, 4)
    vae.posterior.of_label = Conditional(lambda y: net(y.unsqueeze(-1)), normal)
    with pytest.raises(SupportError, match=r"site 'label': 1 of 5 rows.*row 2 holds -1"):
        log_likelihood(vae.model, vae.guide, binary(5), y, **QUIET)


def test_names_that_clash_are_refused():
    for name, message in (("z", "latent site"), ("data", "plate"), ("a.b", "without a dot"), (3, "a string")):
        with pytest.raises(UsageError, match=message):
            MultimodalVAE(StandardNormal(2), {name: bernoulli}, None)
    with pytest.raises(UsageError, match="one at least"):
        MultimodalVAE(StandardNormal(2), {}, None)
    assert check(*programs(small(name="forward")), binary(5), labels(5)).ok  # a module's own method


def programs(vae):
    return vae.model, vae.guide


@EACH
def test_experts_that_do_not_match_the_likelihoods_are_refused_by_site(guide):
    prior, role = StandardNormal(2), Conditional(MLP(6, 4), normal)
    both = {"image": role, "label": role}
    for experts, message in (
        ({"image": role}, r"site 'label': the \w+ forgets this modality"),
        (both | {"sound": role}, r"site 'sound': .* no likelihood draws"),
        ({"label": role, "image": role}, "in the order label, image"),
    ):
        with pytest.raises(UsageError, match=message):
            MultimodalVAE(prior, both, guide(prior, experts))


def test_experts_that_have_no_product_are_refused_by_name():
    for prior, expert, error, message in (
        (StandardNormal(2), lambda x: dist.Laplace(x[..., :2], 1.0).to_event(1), ProgramError, "'a' is a Laplace"),
        (StandardNormal(2), lambda x: dist.Normal(x, 1.0).to_event(1), ShapeError, "'a' has 6 .* prior has 2"),
        (lambda: dist.Gamma(torch.ones(2), 1.0).to_event(1), lambda x: None, ProgramError, "the prior is a Gamma"),
        (lambda: dist.Normal(0.0, 1.0), lambda x: None, ProgramError, r"event shape \(\)"),
    ):
        vae = MultimodalVAE(prior, {"a": bernoulli}, ProductOfExperts(prior, {"a": expert}))
        with pytest.raises(error, match=rf"site 'z': .*{message}"):
            vae.posterior(binary(5))
    with pytest.raises(UsageError, match="up to 8 modalities; got 9"):
        MixtureOfProducts(StandardNormal(2), dict.fromkeys("abcdefghi", bernoulli))


def test_a_covariate_that_is_missing_is_refused_and_a_modality_is_not():
    """Three arrays: x and y are observed, and c is read."""
    blocks, takes = BLOCKS, SkipMissing(BLOCKS.b.likelihood)

    def model(x, y, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", blocks.prior())
            pyro.sample("a", SkipMissing(blocks.a.likelihood)(z + c.unsqueeze(-1)), obs=x)
            pyro.sample("b", takes(z), obs=y)

    def guide(x, y, c):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1).expand([len(x)]))

    c = torch.zeros(len(X)).double()
    found = log_likelihood(model, guide, X, Y, c, num_samples=4000, missing=True, **QUIET)
    within(found.log_px, TRUTH, found.mc_se + 1e-9, 5)
    c[[2, 7]] = nan
    for run in (
        lambda: log_likelihood(model, guide, X, Y, c, missing=True),
        lambda: fit((model, guide), X, Y, c, missing=True, epochs=1),
        lambda: impute((model, guide), X, Y, c, site="b"),
        lambda: simulate(model, X, Y, c),
        lambda: simulation_based_calibration(model, guide, X, Y, c),
    ):
        with pytest.raises(DataError, match=r"context 1 has NaN or infinite values in 2 of 12 rows: 2, 7 .* no site"):
            run()
