"""Ranks of the true z among draws of q, against exact posteriors; predictive p-values against closed forms; what is refused."""

import math
from itertools import product

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import kstest
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, bernoulli, normal
from pyro_vae.diagnostics import block_ranks
from pyro_vae.diagnostics.predictive_checks import posterior_predictive_check, prior_predictive_check
from pyro_vae.diagnostics.rank_uniformity import band, cumulative, holm, moments, p_values, tails
from pyro_vae.diagnostics.sbc import simulation_based_calibration as calibrate
from pyro_vae.errors import ProgramError
from pyro_vae.programs.data_map import DataMap
from pyro_vae.programs.simulate import simulate
from tests.helpers.calibration import counts, counts_exact, counts_lognormal, guided, prior_guide
from tests.helpers.environment import HEAVY
from tests.helpers.gaussian import gaussian
from tests.helpers.observed_parts import MEAN, PARTS

ONE = torch.zeros(1)


# the test of uniformity: exact


@pytest.mark.parametrize(("num", "num_ranks"), [(4, 3), (5, 4), (1, 2), (6, 2)])
def test_p_values_are_those_of_all_outcomes(num, num_ranks):
    """All (L + 1)^N equally likely samples enumerated: p = share of those whose γ is as small or smaller."""
    every = torch.tensor(list(product(range(num_ranks), repeat=num))).T
    gamma = tails(num, num_ranks).gather(1, cumulative(every, num_ranks).T).amin(0)
    exact = (gamma.unsqueeze(0) <= gamma.unsqueeze(1) * (1 + 1e-9)).double().mean(1)
    torch.testing.assert_close(p_values(every, num_ranks), exact, rtol=0, atol=1e-12)
    within, counts = band(num, num_ranks, 0.8), cumulative(every, num_ranks)
    inside = ((counts >= within.lower) & (counts <= within.upper)).all(1).double().mean()
    assert within.coverage >= 0.8
    torch.testing.assert_close(within.coverage, inside.item(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num", "num_ranks"), [(50, 20), (400, 10)])
def test_the_band_holds_whole_curves_as_often_as_it_says(num, num_ranks):
    """Within 4 standard errors, √(p (1 − p) / 4000); and a curve leaves it just where its p-value is at most 0.05."""
    torch.manual_seed(0)
    ranks = torch.randint(num_ranks, (num, 4000))
    within, counts = band(num, num_ranks), cumulative(ranks, num_ranks)
    outside = ((counts < within.lower) | (counts > within.upper)).any(1)
    assert 0.95 <= within.coverage < 0.96
    share, c = outside.double().mean().item(), within.coverage
    assert abs(share - (1 - c)) < 4 * (c * (1 - c) / 4000) ** 0.5
    assert torch.equal(outside[:300], p_values(ranks[:, :300], num_ranks) <= 0.05)


def test_a_pointwise_band_is_no_simultaneous_one():
    """What the band would be without the correction for its points: left by far more than 5 per cent of the curves."""
    torch.manual_seed(0)
    counts = cumulative(torch.randint(20, (50, 2000)), 20)
    pointwise = tails(50, 20).gather(1, counts.T).amin(0)
    assert (pointwise <= 0.05).double().mean() > 0.2


def test_p_values_of_far_off_ranks_are_small_and_not_0():
    p = p_values(torch.stack([torch.zeros(3000), torch.full((3000,), 9.0)], 1).long(), 10)
    assert (p > 0).all() and (p < 1e-100).all()


def test_holm_by_hand():
    p = torch.tensor([0.04, 0.01, 0.03, 0.9])
    torch.testing.assert_close(holm(p), torch.tensor([0.09, 0.04, 0.09, 0.9]))


def test_moments_are_standard_normal_under_uniform_ranks():
    """Over 4000 samples: mean 0 within 4 / √4000, variance 1 within 4 √(2 / 4000)."""
    torch.manual_seed(0)
    for z in moments(torch.randint(8, (200, 4000)), 8):
        assert abs(z.mean()) < 4 / 4000**0.5 and abs(z.var() - 1) < 4 * (2 / 4000) ** 0.5


# ranks: an exact posterior's are uniform


RUNS = 25  # of 400 rows each: as many rows as 83 runs of 120 have, and the cost of a run is mostly its checks


def p_of(pair, template, runs=RUNS, **kw):
    """p-values of independent runs, ``(runs, Q)``."""
    found = [calibrate(*pair, template, seed=s, **{"num_rows": 400, "num_draws": 29} | kw) for s in range(runs)]
    return torch.stack([c.p_value for c in found]), found


def check_uniform(p):
    """KS over the runs; a right pair fails with probability 1e-3 per quantity, at this fixed seed not at all."""
    for column in p.T:
        assert kstest(column.numpy(), "uniform").pvalue > 1e-3


def test_the_exact_posterior_has_uniform_p_values(lg):
    p, found = p_of((lg.model, lg.exact_guide), lg.x[:1])
    assert found[0].names == ("z[0]", "z[1]", "log p(x, z)")
    check_uniform(p)
    wrong = sum(not c.passed for c in found)  # at most Binomial(25, 0.05): 4 standard errors are 4.4
    assert wrong <= 5
    with pytest.raises(AssertionError):
        check_uniform(p_of((gaussian, guided(width=0.85)), ONE, runs=10)[0])


@pytest.mark.parametrize(
    ("guide", "words", "low_end", "high_end"),
    [
        (guided(width=0.7), "too narrow", 1, 1),
        (guided(width=1.4), "too wide", -1, -1),
        (guided(shift=0.4), "too high", 1, -1),
        (guided(shift=-0.4), "too low", -1, 1),
    ],
)
def test_wrong_guides_are_named(guide, words, low_end, high_end):
    """500 rows; ∪, ∩ and slopes: more or fewer ranks at either end than the 100 of uniform ones."""
    found = calibrate(gaussian, guide, ONE, num_rows=500, num_draws=24)
    assert not found.passed and found.words[0] == words and "z" in found.rejected
    ranks = found.ranks[:, 0]
    assert ((ranks < 5).sum() - 100) * low_end > 0 and ((ranks >= 20).sum() - 100) * high_end > 0
    assert f"z: {words} (adjusted p" in str(found)


def test_both_words_where_both_are_wrong():
    found = calibrate(gaussian, guided(width=0.7, shift=0.4), ONE)
    assert found.words[0] in ("too narrow and too high", "too high and too narrow")


def test_wrong_correlations_show_in_the_joint_alone(lg):
    """This mean-field guide has the right margins, so that no coordinate's rank can tell."""
    rows = 5000 if lg.x.is_cuda else 2000  # other draws there: of 2000 rows one seed in ten does not show it
    found = calibrate(lg.model, lg.mean_field_guide, lg.x[:1], num_rows=rows)
    assert found.rejected == ("log p(x, z)",) and found.words[:2] == ("uniform", "uniform")


def test_the_prior_as_guide_shows_in_the_joint_alone():
    """Nor do truth and draws share their noise, which would show in `z` here as the truth among the draws does."""
    found = calibrate(gaussian, prior_guide, ONE, num_rows=3000, num_draws=9)
    assert found.rejected == ("log p(x, z)",) and "too low" in found.words[1]


def switched(x):
    """A discrete latent: z ~ Bernoulli(0.4), x | z ~ N(2 z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)


def switched_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=2 * x - 2 + math.log(0.4 / 0.6)))


def test_discrete_latents_have_uniform_ranks(monkeypatch):
    """Only as ties are broken at random: the same ranks without it are rejected at 120 rows."""
    p, _ = p_of((switched, switched_guide), ONE)
    check_uniform(p)
    monkeypatch.setattr(block_ranks, "rank", lambda name, v, near=0.0: (v[1:] < v[0]).sum(0))
    p, found = p_of((switched, switched_guide), ONE, runs=5, num_rows=120)
    assert (p < 1e-6).all() and not any(c.passed for c in found)


def test_the_true_z_among_the_draws_is_found_out(monkeypatch):
    """The broken variant that counts the truth as one of the draws has half the ranks 0 and L that it should have."""
    right = block_ranks.rank
    monkeypatch.setattr(block_ranks, "rank", lambda name, v, near=0.0: right(name, torch.cat([v[:-1], v[:1]]), near))
    found = calibrate(gaussian, guided(), ONE, num_rows=3000, num_draws=9)
    assert found.rejected == ("z", "log p(x, z)") and found.words == ("too wide", "too wide")


def test_a_gamma_poisson_model_with_a_lognormal_guide():
    x = torch.zeros(1, 3)
    assert calibrate(counts, counts_exact, x).passed
    found = calibrate(counts, counts_lognormal, x)
    assert found.names == ("rate", "log p(x, z)") and "too narrow" in found.words[0]


def nested(x, c):
    """Two latent sites, one in a plate within the rows, and a context."""
    with pyro.plate("data", len(x), dim=-2):
        a = pyro.sample("a", dist.Normal(c.unsqueeze(-1), 1.0))
        with pyro.plate("inner", 3, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def nested_guide(x, c):
    """Exact: x_j | a ~ N(a, 2), so a | x has precision 1 + 3 / 2; b_j | a, x_j ~ N((a + x_j) / 2, 1 / 2)."""
    with pyro.plate("data", len(x), dim=-2):
        a = pyro.sample("a", dist.Normal((c + x.sum(-1) / 2).unsqueeze(-1) / 2.5, 2.5**-0.5))
        with pyro.plate("inner", 3, dim=-1):
            pyro.sample("b", dist.Normal((a + x) / 2, 0.5**0.5))


def test_several_sites_inner_plates_and_contexts():
    x, c = torch.zeros(7, 3), torch.linspace(-2, 5, 7)
    found = [calibrate(nested, nested_guide, x, c, num_rows=280, num_draws=19, seed=s) for s in range(20)]
    assert found[0].names == ("a", "b[0]", "b[1]", "b[2]", "log p(x, z)")
    check_uniform(torch.stack([f.p_value for f in found]))
    without = calibrate(nested, lambda x, c: nested_guide(x, 0 * c), x, c, num_rows=700)
    assert "a" in without.rejected


def test_programs_that_do_not_broadcast_are_looped_over():
    def stubborn(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            assert z.numel() == len(x)
            pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

    assert calibrate(stubborn, guided(), ONE, num_rows=100, num_draws=19, vectorize_particles=False).passed


# x in parts, masks, and what a guide observes


@pytest.mark.parametrize("name", PARTS)
def test_x_in_parts_has_uniform_ranks_under_the_exact_posterior(name):
    """One run of 1000 rows each; a guide that takes the columns in another order is found out."""
    model, guide, shape = PARTS[name]
    x = torch.zeros(2, *shape)
    assert calibrate(model, guide, x, seed=1).passed
    assert not calibrate(model, lambda x: guide((x.reshape(-1, 4) - MEAN).flip(-1) + MEAN), x).passed


def of_some_rows(x, has):
    """Rows without a latent, nor data: masked by a handler."""
    with pyro.plate("data", len(x)), poutine.mask(mask=has):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of_some_rows_by_distribution(x, has):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]).mask(has))
        pyro.sample("x", dist.Normal(z, 1.0).mask(has), obs=x)


def some_rows_guide(x, has):
    """Exact where there is a latent, and of no use elsewhere."""
    with pyro.plate("data", len(x)), poutine.mask(mask=has):
        pyro.sample("z", dist.Normal(torch.where(has, x, 0.0) / 2, 0.5**0.5))


@pytest.mark.parametrize("model", [of_some_rows, of_some_rows_by_distribution], ids=["handler", "distribution"])
def test_masked_rows_are_not_ranked(model, monkeypatch):
    has = torch.arange(200) % 2 == 0
    x = torch.zeros(200)
    found = calibrate(model, some_rows_guide, x, has, num_rows=400, num_draws=29)
    assert torch.equal(found.ranks == block_ranks.LEFT_OUT, ~has.repeat(2).unsqueeze(1).expand(400, 2))
    assert found.rows_ranked.tolist() == [200, 200] and found.passed and "no miscalibration" in str(found)
    if model is of_some_rows or HEAVY:  # the ranks of both are made alike
        runs = [calibrate(model, some_rows_guide, x, has, num_rows=600, num_draws=29, seed=s) for s in range(20)]
        check_uniform(torch.stack([c.p_value for c in runs]))
    plain = found.to_dict()
    assert plain["rows_ranked"] == [200, 200] and len(plain["lower_by_quantity"]) == 2
    assert plain["lower_by_quantity"][0][10] < plain["lower"][10]  # of fewer rows: wider
    monkeypatch.setattr(block_ranks, "kept_entries", lambda site: torch.ones_like(site["value"], dtype=torch.bool))
    assert not calibrate(
        model, some_rows_guide, x, has, num_rows=1000
    ).passed  # ranked as before: the draws look too narrow


def steps(x, length):
    """Three steps of which the first `length` are there: z_t ~ N(0, 1), x_t | z_t ~ N(z_t, 1)."""
    there = poutine.mask(mask=torch.arange(3) < length.unsqueeze(-1))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 3, dim=-1), there:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def steps_guide(x, length, width=1.0):
    there = poutine.mask(mask=torch.arange(3) < length.unsqueeze(-1))
    with pyro.plate("data", len(x), dim=-2), pyro.plate("steps", 3, dim=-1), there:
        pyro.sample("z", dist.Normal(x / 2, width * 0.5**0.5))


def test_steps_beyond_a_sequences_end_are_not_ranked():
    length = torch.tensor([0, 1, 2, 3])
    found = [
        calibrate(steps, steps_guide, torch.zeros(4, 3), length, num_rows=400, num_draws=19, seed=s) for s in range(20)
    ]
    assert found[0].names == ("z[0]", "z[1]", "z[2]", "log p(x, z)")
    assert found[0].rows_ranked.tolist() == [300, 200, 100, 300]
    check_uniform(torch.stack([f.p_value for f in found]))
    wrong = calibrate(steps, lambda x, c: steps_guide(x, c, 0.6), torch.zeros(4, 3), length, num_rows=2000)
    assert set(wrong.rejected) == set(wrong.names) and "too narrow" in wrong.words[2]
    never = calibrate(steps, steps_guide, torch.zeros(4, 3), length.clamp_max(2), num_rows=400)
    assert never.words[2] == "masked in all rows" and never.p_value[2] == 1 and never.passed


def counted(x):
    """As in Attend, Infer, Repeat: a latent that is there only if another one says so."""
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Normal(torch.zeros_like(n), 1.0).mask(n.bool()))
        pyro.sample("x", dist.Normal(n * z, 1.0), obs=x)


def counted_guide(x):
    """Exact: x ~ N(0, 2) if n = 1, else N(0, 1); where n = 0, z is drawn from anywhere."""
    logits = dist.Normal(0.0, 2**0.5).log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Bernoulli(logits=logits))
        pyro.sample("z", dist.Normal(n * x / 2 + 5 * (1 - n), 0.5**0.5).mask(n.bool()))


def test_latents_that_other_latents_mask(monkeypatch):
    p, found = p_of((counted, counted_guide), ONE)
    assert found[0].names == ("n", "z", "log p(x, z)")
    check_uniform(p)
    monkeypatch.setattr(block_ranks, "kept_entries", lambda site: torch.ones_like(site["value"], dtype=torch.bool))
    assert "z" in calibrate(counted, counted_guide, ONE).rejected  # ranked where it is masked, too


def zeros_where_masked(x, m):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 4]).mask(m).to_event(1), obs=x)


def zeros_guide(x, m):
    """Exact, if what is masked is 0 in x."""
    n = 1 + m.sum(-1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.sum(-1) / n, n**-0.5))


def test_a_guide_that_takes_masked_entries_for_zeros_gets_zeros(monkeypatch):
    m = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    assert calibrate(zeros_where_masked, zeros_guide, torch.zeros(100, 4), m).passed
    assert not calibrate(zeros_where_masked, zeros_guide, torch.ones(100, 4), m).passed  # another convention
    right = DataMap.fill
    monkeypatch.setattr(DataMap, "fill", lambda self, args, values, kept, draws=(): right(
        self, args, values, {name: torch.ones_like(k) for name, k in kept.items()}, draws))  # fmt: skip
    assert not calibrate(zeros_where_masked, zeros_guide, torch.zeros(100, 4), m).passed  # drawn, as before


def in_plate(x, extra):
    with pyro.plate("data", len(x)):
        extra(x)
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


EXTRAS = {
    "observed head": lambda x: pyro.sample("head", dist.Normal(0.0, 10.0), obs=x, infer={"is_auxiliary": True}),
    "observed label": lambda x: pyro.sample("y", dist.Bernoulli(0.5), obs=(x > 0).float()),
    "factor": lambda x: pyro.factor("loss", -5.0 * x.square(), has_rsample=False),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_a_guide_observes_is_neither_ranked_nor_drawn(name):
    def guide(x):
        in_plate(x, EXTRAS[name])

    found, plain = (calibrate(gaussian, g, ONE, num_rows=200, num_draws=19) for g in (guide, guided()))
    assert found.names == plain.names == ("z", "log p(x, z)") and torch.equal(found.ranks, plain.ranks)
    x, kw = torch.randn(5, generator=torch.Generator().manual_seed(0)), {"num_draws": 50, "num_particles": 200}
    one, other = (posterior_predictive_check(gaussian, g, x, **kw).to_dict() for g in (guide, guided()))
    assert one == other


# nothing is changed


def test_the_same_seed_is_the_same_and_nothing_is_changed():
    vae = VAE(StandardNormal(2), Conditional(nn.Sequential(MLP(2, 6), nn.Dropout(0.9)), bernoulli),
              Conditional(MLP(6, 4), normal)).train()  # fmt: skip
    x = torch.bernoulli(torch.full((5, 6), 0.3))
    before = {name: v.clone() for name, v in vae.state_dict().items()}
    state = torch.random.get_rng_state()
    a = calibrate(vae.model, vae.guide, x, num_rows=20, num_draws=5, seed=1)
    check = posterior_predictive_check(vae.model, vae.guide, x, num_draws=4)
    prior = prior_predictive_check(vae.model, x, num_draws=4)
    drawn = simulate(vae.model, x)
    assert torch.equal(state, torch.random.get_rng_state()) and all(m.training for m in vae.modules())
    assert all(torch.equal(v, before[name]) for name, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters()) and not drawn.x.requires_grad
    torch.rand(3)
    b = calibrate(vae.model, vae.guide, x.bool().float() * 0, num_rows=20, num_draws=5, seed=1)
    assert torch.equal(a.ranks, b.ranks), "the template's values count"
    assert not torch.equal(a.ranks, calibrate(vae.model, vae.guide, x, num_rows=20, num_draws=5, seed=2).ranks)
    assert str(check) == str(posterior_predictive_check(vae.model, vae.guide, x, num_draws=4))
    assert str(prior) == str(prior_predictive_check(vae.model, x, num_draws=4))


def test_what_it_says():
    found = calibrate(gaussian, guided(), ONE, num_rows=200, num_draws=19)
    assert found.passed and str(found).startswith("no miscalibration found in 2 quantities (200 simulated rows")
    plain = found.to_dict()
    assert len(plain["differences"]) == 2 and len(plain["differences"][0]) == 19 == len(plain["lower"])
    assert plain["words"] == ["uniform", "uniform"] and plain["passed"] and len(found) == 200
    assert all(low < 0 < high for low, high in zip(plain["lower"], plain["upper"], strict=True))


def coins(x):
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Beta(torch.ones(len(x)), 1.0))
        pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1)).expand([len(x), 3]).to_event(1), obs=x)


def parameters_of_rows(x):
    loc = pyro.param("loc", torch.zeros(4))
    with pyro.plate("data", len(x)):
        pyro.sample("p", dist.TransformedDistribution(dist.Normal(loc, 1.0), dist.transforms.SigmoidTransform()))


def a_plate_of_its_own_size(x):
    with pyro.plate("data", 4):
        pyro.sample("p", dist.Beta(torch.ones(4), 2.0))


def auto_unrun(x):
    return pyro.infer.autoguide.AutoNormal(coins)


def auto_run(x):
    guide = pyro.infer.autoguide.AutoNormal(coins)
    guide(x)
    return guide


@pytest.mark.parametrize("num_rows", [4, 20])
@pytest.mark.parametrize(
    "make",
    [auto_unrun, auto_run, lambda x: parameters_of_rows, lambda x: a_plate_of_its_own_size],
    ids=["AutoNormal, never run", "AutoNormal", "a parameter a row", "a plate of fixed size"],
)
def test_guides_with_rows_of_their_own_are_refused(make, num_rows):
    x = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]])
    with pytest.raises(ProgramError, match=r"plate 'data' has 4 rows of its own.*encoder"):
        calibrate(coins, make(x), x, num_rows=num_rows, num_draws=4)


def test_an_inner_plate_of_fixed_size_is_no_row_of_its_own():
    def model(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("pixels", 3, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = calibrate(model, guide, torch.zeros(1, 3), num_rows=200, num_draws=9)
    assert found.ranks.shape == (200, 4)
