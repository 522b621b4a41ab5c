"""Hierarchies against two linear-Gaussian levels, of which everything is known; and every evaluation on them."""

from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.decomposition import FactorAnalysis

from pyro_vae import (
    MLP,
    VAE,
    BottomUp,
    Bound,
    Conditional,
    HierarchicalVAE,
    SkipUp,
    StandardNormal,
    TopDown,
    adam,
    ais,
    bdmc,
    bernoulli,
    bracket,
    check,
    cosine,
    decompose,
    elbo,
    encode,
    fit,
    fit_ensemble,
    gaps,
    interpolate,
    latents,
    linear_gaussian,
    log_likelihood,
    log_weights,
    normal,
    posteriors,
    reconstruct,
    sample,
    simulate,
    simulation_based_calibration,
    stl,
)
from pyro_vae.errors import ProgramError, UsageError
from pyro_vae.evidence.imputation import impute
from pyro_vae.likelihoods import SharedNormal
from pyro_vae.models.missing import SkipMissing, WithMask
from tests.helpers.engines import check_same, runs
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary
from tests.helpers.two_levels import TwoLevels
from tests.helpers.within import within

LEVELS = TwoLevels()
X, TRUTH = LEVELS.x, LEVELS.log_px(LEVELS.x)
QUIET = {"verbose": False}


def small(posterior="top-down", levels=2):
    """A trainable hierarchy on 6 columns of zeros and ones: 2 latents at the top, 3 below."""
    widths = [3] * (levels - 1) + [2]
    priors = [Conditional(MLP(w, 2 * v, (8,)), normal) for v, w in pairwise(widths)]
    made = {"top-down": top_down, "bottom-up": bottom_up, "skip": skip_up}[posterior](widths)
    return HierarchicalVAE([*priors, StandardNormal(2)], Conditional(MLP(widths[0], 6, (8,)), bernoulli), made)


def encoder(inputs, latents):
    return Conditional(MLP(inputs, 2 * latents, (8,)), normal)


def top_down(widths):
    return TopDown(*(encoder(6 + above, w) for w, above in zip(widths, [*widths[1:], 0], strict=True)))


def bottom_up(widths):
    return BottomUp(*(encoder(below, w) for w, below in zip(widths, [6, *widths[:-1]], strict=True)))


def skip_up(widths):
    return SkipUp(*(encoder(6 + sum(widths[:level]), w) for level, w in enumerate(widths)))


GUIDES = ["top-down", "bottom-up", "skip"]


# the oracle


@pytest.mark.parametrize("posterior", [LEVELS.top_down, LEVELS.bottom_up], ids=["top-down", "bottom-up"])
def test_every_weight_of_the_exact_posterior_is_p_of_x(posterior):
    vae = LEVELS.vae(posterior())
    log_w = log_weights(vae.model, vae.guide, X, num_particles=5)
    torch.testing.assert_close(log_w, TRUTH.expand(5, -1), rtol=0, atol=1e-6)


def test_a_top_down_guide_whose_z1_does_not_read_z2_has_other_weights():
    """Broken on purpose: p(z2 | x) p(z1 | x), each of them exact."""
    ignoring = LEVELS.vae(TopDown(lambda x, z2: LEVELS.bottom_up().z1(x), LEVELS.top_down().z2))
    log_w = log_weights(ignoring.model, ignoring.guide, X, num_particles=5)
    assert (log_w - TRUTH).abs().max() > 0.1


def test_the_oracles_of_the_package_agree():
    vae = LEVELS.vae(LEVELS.top_down())
    torch.testing.assert_close(linear_gaussian(vae.model, None, X).log_px, TRUTH, rtol=0, atol=1e-6)


@pytest.mark.parametrize("posterior", [LEVELS.top_down, LEVELS.bottom_up], ids=["top-down", "bottom-up"])
def test_importance_sampling(posterior):
    vae = LEVELS.vae(posterior(0.1, 1.2))
    found = log_likelihood(vae.model, vae.guide, X, num_samples=4000, **QUIET)
    within(found.log_px, TRUTH, found.mc_se)
    assert found.mc_se.max() < 0.05 and found.reliable.all()


def test_annealing_and_both_ends_of_the_bracket():
    vae = LEVELS.vae(LEVELS.top_down(0.1, 1.2))
    annealed = ais(vae.model, vae.guide, X, num_temperatures=10, num_chains=16, leapfrog_steps=3, **QUIET)
    within(annealed.log_px, TRUTH, annealed.mc_se)
    options = {"num_samples": 500, "num_temperatures": 8, "num_chains": 8, "leapfrog_steps": 2}
    ends = bracket(vae.model, vae.guide, X, **options, **QUIET)
    within(ends.lower, TRUTH, ends.lower_se)
    drawn = bdmc(vae.model, vae.guide, X, num_rows=20, **options, **QUIET)
    truth = LEVELS.log_px(drawn.x)
    above, below = drawn.upper - truth, truth - drawn.lower
    for off in (above, below):  # of the mean over rows, whose chains are independent
        assert off.mean() > -4 * off.std() / len(off) ** 0.5
    assert drawn.strict and above.mean() < 0.1


def test_calibration_knows_the_exact_posterior_from_a_shifted_one():
    exact, off = LEVELS.vae(LEVELS.top_down()), LEVELS.vae(LEVELS.top_down(0.3))
    options = {"num_rows": 400, "num_draws": 19}
    assert simulation_based_calibration(exact.model, exact.guide, X, **options).passed
    rejected = simulation_based_calibration(off.model, off.guide, X, **options).rejected
    assert {name.partition("[")[0] for name in rejected} >= {"z1", "z2"}


def test_imputation_is_the_exact_conditional():
    """x_3 given the others: mean and sd of 4,000 imputations of one row, within 4 standard errors."""
    n, row = 2000, X[2].clone()
    row[3] = torch.nan
    vae = HierarchicalVAE([LEVELS.middle, LEVELS.top], SkipMissing(LEVELS.likelihood), Without(3))
    drawn = impute(vae, row.repeat(n, 1), num_samples=100)[0, :, 3]
    loc, cov = LEVELS.given((7,), ((4, 5, 6), row[:3]))
    sd = cov.sqrt().item()
    assert (drawn.mean() - loc).abs() < 4 * sd / n**0.5 and abs(drawn.std() / sd - 1) < 4 / (2 * n) ** 0.5


class Without(TopDown):
    """The exact posterior of rows that lack a column."""

    takes_missing = True

    def __init__(self, column):
        rest = [j for j in range(4) if j != column]
        where = tuple(4 + j for j in rest)
        super().__init__(
            lambda x, z2: gaussian(*LEVELS.given(LEVELS.Z1, (LEVELS.Z2, z2), (where, x[..., rest]))),
            lambda x: gaussian(*LEVELS.given(LEVELS.Z2, (where, x[..., rest]))),
        )


def gaussian(loc, cov):
    return dist.MultivariateNormal(loc, cov)


# training


def linear(inputs, outputs):
    return Conditional(MLP(inputs, outputs, ()), SharedNormal(outputs))


def test_training_ends_at_the_optimum():
    """Two linear levels are factor analysis: their best log p(x) is scikit-learn's, their best ELBO log p(x) itself."""
    x = torch.cat([X, TwoLevels(60).x[12:]])
    best = FactorAnalysis(2, tol=1e-8, max_iter=10_000).fit(x.numpy()).score(x.numpy())
    torch.manual_seed(0)
    full = posteriors.full_normal(2)
    vae = HierarchicalVAE(
        [linear(2, 2), StandardNormal(2)],
        linear(2, 4),
        TopDown(Conditional(MLP(6, 5, ()), full), Conditional(MLP(4, 5, ()), full)),
    ).double()
    fit(
        vae,
        x.repeat(25, 1),
        epochs=12,
        batch_size=60,
        optimizer=adam(0.05),
        schedule=cosine,
        objective=Bound(elbo, num_particles=2, estimator=stl),
        **QUIET,
    )
    exact = linear_gaussian(vae.model, None, x).log_px.mean().item()
    found = log_likelihood(vae.model, vae.guide, x, num_samples=2000, **QUIET)
    assert best - 0.02 < exact < best + 1e-6
    assert abs(found.elbo.mean().item() - best) < 0.02


@pytest.mark.parametrize("posterior", GUIDES if HEAVY else ["top-down", "skip"])
def test_engines_take_the_same_steps(posterior):
    """Bottom-up is skip with fewer inputs a level."""

    def make():
        vae = small(posterior)
        return vae, vae

    check_same(make)


@pytest.mark.skipif(not HEAVY, reason="ten seconds of a compiler: PYRO_VAE_HEAVY=1")
def test_the_compiled_engine_trains_the_same():
    def make():
        vae = small()
        return vae, vae

    (a, held, _), (b, other, said) = runs(make, "eager"), runs(make, "compile")
    assert "eager from here on" not in said, said
    assert [r["elbo"] for r in a] == pytest.approx([r["elbo"] for r in b], abs=1e-4)
    for ours, theirs in zip(held, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_an_ensemble_of_two_trains_as_one_graph():
    ensemble = fit_ensemble(small, binary(20), seeds=[0, 1], epochs=2, batch_size=10, engine="trace", **QUIET)
    assert "2 members as one graph" in ensemble.results[0].engine


# three levels, contexts, roles that are functions


@pytest.mark.parametrize("posterior", GUIDES)
@pytest.mark.parametrize("levels", [1, 3])
def test_every_parameter_of_every_level_is_trained(posterior, levels):
    torch.manual_seed(0)
    vae, x = small(posterior, levels), binary(20)
    assert check(vae.model, vae.guide, x).ok
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    fit(vae, x, epochs=1, **QUIET)
    assert not [name for name, p in vae.named_parameters() if torch.equal(p, before[name])]
    assert list(latents(vae.model, vae.guide, x, batch=10).sites) == sorted(vae.priors.sites) or posterior == "top-down"


def test_one_level_is_a_vae():
    torch.manual_seed(0)
    one, x = small(levels=1), binary(20)
    plain, found = VAE(one.priors.z1, one.likelihood, one.posterior.z1), []
    for vae in (one, plain):
        torch.manual_seed(1)
        found.append(log_weights(vae.model, vae.guide, x, num_particles=3))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_a_context_conditions_every_level():
    torch.manual_seed(0)
    x, c = binary(20), torch.randn(20, 3)
    vae = HierarchicalVAE(
        [Conditional(MLP(2 + 3, 2 * 3, (8,)), normal), Conditional(MLP(3, 2 * 2, (8,)), normal)],
        Conditional(MLP(3 + 3, 6, (8,)), bernoulli),
        TopDown(encoder(6 + 2 + 3, 3), encoder(6 + 3, 2)),
    )
    ours, others = (log_likelihood(vae.model, vae.guide, x, c, num_samples=50, **QUIET).log_px for c in (c, c + 1))
    assert ours.isfinite().all() and not torch.allclose(ours, others)
    assert simulate(vae.model, x, c).latents.keys() == {"z1", "z2"}


def test_networks_that_a_level_closes_over_are_the_hierarchys():
    net, up = MLP(2, 2 * 3, (8,)), MLP(6, 2 * 2, (8,))
    vae = HierarchicalVAE(
        [lambda z2: normal(net(z2)).to_event(1), StandardNormal(2)],
        Conditional(MLP(3, 6, (8,)), bernoulli),
        TopDown(encoder(6 + 2, 3), lambda x: normal(up(x)).to_event(1)),
    )
    names = {name.rpartition(".")[0].rpartition(".")[0] for name in vae.state_dict()}
    assert names == {"priors.enclosed.z1_net", "likelihood.net", "posterior.z1.net", "posterior.enclosed.z2_up"}


# encode, reconstruct, sample, interpolate


@pytest.mark.parametrize("posterior", [LEVELS.top_down, LEVELS.bottom_up], ids=["top-down", "bottom-up"])
def test_a_row_is_encoded_by_the_mean_of_its_first_level(posterior):
    vae, loc = LEVELS.vae(posterior()), LEVELS.given(LEVELS.Z1, (LEVELS.X, X))[0]
    torch.testing.assert_close(encode(vae, X), loc)  # linear means: the path of means is E[z1 | x]
    torch.testing.assert_close(reconstruct(vae, X), LEVELS.likelihood(loc).mean)
    assert interpolate(vae, X[:3], X[3:6], steps=4).shape == (4, 3, 4)


def test_samples_are_of_all_levels():
    """Mean and covariance of 20,000 samples against p(x), within 4 standard errors each; with z2 always 0 they fail."""
    n, where = 20_000, list(LEVELS.X)
    mean, cov = LEVELS.mean[where], LEVELS.cov[where][:, where]

    def off(x):
        se = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / n).sqrt()
        return max(((x.mean(0) - mean).abs() / (cov.diagonal() / n).sqrt()).max(), ((x.T.cov() - cov).abs() / se).max())

    vae = LEVELS.vae(LEVELS.top_down())
    assert off(sample(vae, n, seed=1)) < 4 and torch.equal(sample(vae, 3, seed=2), sample(vae, 3, seed=2))
    flat = HierarchicalVAE([lambda: LEVELS.middle(torch.zeros(2).double())], LEVELS.likelihood, LEVELS.bottom_up)
    assert off(sample(flat, n, seed=1)) > 10


def test_a_level_without_a_mean_is_refused_by_site():
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.Planar(2)])
    vae = HierarchicalVAE(
        [StandardNormal(2)], Conditional(MLP(2, 6), bernoulli), BottomUp(lambda x: flow.expand((len(x),)))
    )
    with pytest.raises(ProgramError, match=r"site 'z1' of the guide, q\(z \| x\) is a TransformedDistribution"):
        encode(vae, binary(3))


# what each level tells of x


def test_information_of_each_level_is_bounded_by_the_exact_one():
    """I(x; z_l) = 1/2 log |Cov z_l| / |Cov z_l | x|: the bound lies below, and within 0.3 nats where q is exact."""
    oracle, exact = TwoLevels(500), LEVELS.vae(LEVELS.top_down())
    usage = latents(exact.model, exact.guide, oracle.x, batch=500)
    for site, where in (("z1", LEVELS.Z1), ("z2", LEVELS.Z2)):
        alone = LEVELS.cov[list(where)][:, list(where)]
        information = 0.5 * (alone.logdet() - LEVELS.given(where, (LEVELS.X, X))[1].logdet()).item()
        bound, se = usage.information[site]
        assert information - 0.4 - 4 * se < bound < information + 4 * se, (site, information, bound, se)
    assert usage.information["z2"][0] < usage.information["z1"][0] < usage.mutual_information
    assert "z1: 2 of 2 units active" in str(usage) and "I(x; z2) >=" in str(usage)


def test_a_collapsed_level_is_told_from_one_in_use():
    """Broken on purpose: the top level's posterior is its prior."""
    collapsed = LEVELS.vae(TopDown(lambda x, z2: LEVELS.bottom_up().z1(x), lambda x: LEVELS.top().expand((len(x),))))
    usage = latents(collapsed.model, collapsed.guide, TwoLevels(200).x)
    assert usage.sites["z2"].kl.max() < 1e-6 and (usage.sites["z2"].activity < 0.01).all()
    assert abs(usage.information["z2"][0]) < 1e-6 and usage.information["z1"][0] > 0.5
    terms = decompose(collapsed.model, collapsed.guide, X, **QUIET)
    assert terms.active() == 2


# a guide that forgets a level


def forgetful(x):
    pyro.sample("z1", dist.Normal(x[..., :3], 1.0).to_event(1))


USES = {
    "fit": lambda vae, x: fit(vae, x, epochs=1, verbose=False),
    "evidence": lambda vae, x: log_likelihood(vae.model, vae.guide, x, verbose=False),
    "bracket": lambda vae, x: bracket(vae.model, vae.guide, x, verbose=False),
    "gaps": lambda vae, x: gaps(vae.model, vae.guide, x, verbose=False),
    "latents": lambda vae, x: latents(vae.model, vae.guide, x),
    "calibration": lambda vae, x: simulation_based_calibration(vae.model, vae.guide, x),
}


@pytest.mark.parametrize("use", USES)
def test_a_function_that_forgets_a_level_is_refused_by_site(use):
    priors = [Conditional(MLP(2, 2 * 3, (8,)), normal), StandardNormal(2)]
    vae = HierarchicalVAE(priors, Conditional(MLP(3, 6, (8,)), bernoulli), forgetful)
    with pytest.raises(ProgramError, match=r"site 'z2' is in the model but not in the guide"):
        USES[use](vae, binary(20))


def test_levels_that_do_not_match_are_refused_by_site():
    top = [lambda z3: None, lambda z3: None, StandardNormal(2)]
    with pytest.raises(UsageError, match=r"'z3': the TopDown posterior forgets this level: it has 2 roles.* 3 priors"):
        HierarchicalVAE(top, None, top_down([3, 2]))
    with pytest.raises(UsageError, match=r"'z2': the BottomUp posterior has a level that no prior draws"):
        HierarchicalVAE([StandardNormal(2)], None, bottom_up([3, 2]))
    with pytest.raises(UsageError, match="at least one prior"):
        HierarchicalVAE([], None, TopDown())


def test_missing_values_by_mask():
    x = binary(20)
    x[0, 1] = torch.nan
    vae = HierarchicalVAE(
        [Conditional(MLP(2, 2 * 3, (8,)), normal), StandardNormal(2)],
        SkipMissing(Conditional(MLP(3, 6, (8,)), bernoulli)),
        TopDown(
            Conditional(WithMask(MLP(12 + 2, 2 * 3, (8,))), normal), Conditional(WithMask(MLP(12, 4, (8,))), normal)
        ),
    )
    fit(vae, x, epochs=1, **QUIET)
    assert log_likelihood(vae.model, vae.guide, x, num_samples=20, **QUIET).log_px.isfinite().all()
