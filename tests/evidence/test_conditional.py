"""log p(x2 | x1) against closed forms: to 1e-6 where exact, within its own errors where sampled; and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import SkipMissing, compare, conditional_log_likelihood, gaps, log_likelihood
from pyro_vae.errors import DataError, ProgramError, SupportError, UsageError
from pyro_vae.evidence.conditional import ConditionalEvidence
from tests.helpers.two_blocks import TwoBlocks, draws

BLOCKS = TwoBlocks()
X, Y = BLOCKS.gaps
NONE = {"a": torch.full_like(X, math.nan), "b": torch.full_like(Y, math.nan)}
QUIET = {"verbose": False}


def truth(site, x=X, y=Y, blocks=BLOCKS):
    """log p(site | the other one), in closed form."""
    without = (torch.full_like(x, math.nan), y) if site == "a" else (x, torch.full_like(y, math.nan))
    return blocks.log_px(x, y) - blocks.log_px(*without)


@pytest.mark.parametrize("site", ["a", "b"])
def test_the_exact_method_is_the_closed_form(site):
    vae = BLOCKS.vae()
    found = conditional_log_likelihood(vae.model, vae.guide, X, Y, site=site, method="exact")
    torch.testing.assert_close(found.log_px, truth(site), rtol=0, atol=1e-6)
    assert found.measure == "continuous" and "closed form" in str(found)


@pytest.mark.parametrize("site", ["a", "b"])
def test_every_weight_of_the_exact_guide_says_it(site):
    vae = BLOCKS.vae()
    found = conditional_log_likelihood(vae.model, vae.guide, X, Y, site=site, num_samples=30, **QUIET)
    torch.testing.assert_close(found.log_px, truth(site), rtol=0, atol=1e-6)


def test_its_errors_are_those_of_two_independent_terms():
    """200 rows: z-scores have an rms of 1 within 4 errors; not, if both terms share a stream, or one of them is left out.

    b tells little of z, so that with one stream both terms would have all but the same noise.
    """
    rows = TwoBlocks(200, slope=0.1)
    vae, wanted = rows.vae(rows.product(0.3, 1.3)), truth("b", rows.x, rows.y, rows)
    found = conditional_log_likelihood(vae.model, vae.guide, rows.x, rows.y, site="b", num_samples=500, **QUIET)

    def spread(log_px, se):
        return ((log_px - wanted) / se).square().mean().sqrt()

    assert abs(spread(found.log_px, found.mc_se) - 1) < 4 / 400**0.5
    assert abs(spread(found.log_px, found.joint.mc_se) - 1) > 4 / 400**0.5
    gone = torch.full_like(rows.y, math.nan)
    shared = log_likelihood(vae.model, vae.guide, rows.x, gone, num_samples=500, missing=True, **QUIET)
    assert spread(found.joint.log_px - shared.log_px, found.mc_se) < 0.5
    s = found.summary()
    assert s["log_px_mc_se"] == pytest.approx(found.mc_se.square().sum().sqrt().item() / 200)
    assert s["log_px_data_se"] == pytest.approx(found.log_px.std().item() / 200**0.5)
    assert abs(s["log_px"] - wanted.mean()) < 4 * s["log_px_mc_se"]


def test_rows_that_have_none_of_it_say_0_without_error():
    vae = BLOCKS.vae(BLOCKS.product(0.3))
    found = conditional_log_likelihood(vae.model, vae.guide, X, Y, site="b", num_samples=30, **QUIET)
    assert found.there.tolist() == [i not in (1, 5) for i in range(12)]
    assert (found.log_px[[1, 5]] == 0).all() and (found.mc_se[[1, 5]] == 0).all()
    assert found.summary()["rows_with_none"] == 2 and "2 without b" in str(found)


def test_given_nothing_it_is_log_p_of_the_site():
    vae = BLOCKS.vae()
    found = conditional_log_likelihood(vae.model, vae.guide, NONE["a"], Y, site="b", method="exact")
    torch.testing.assert_close(found.log_px, BLOCKS.log_px(NONE["a"], Y), rtol=0, atol=1e-6)
    both = conditional_log_likelihood(vae.model, vae.guide, X, Y, site=["a", "b"], method="exact")
    torch.testing.assert_close(both.log_px, BLOCKS.log_px(X, Y), rtol=0, atol=1e-6)


def test_the_chain_rule():
    """log p(a, b) = log p(a) + log p(b | a) = log p(b) + log p(a | b)."""
    vae = BLOCKS.vae()
    parts = [conditional_log_likelihood(vae.model, vae.guide, X, Y, site=s, method="exact") for s in "ab"]
    sums = [part.log_px + part.given.log_px for part in parts]
    torch.testing.assert_close(*sums, rtol=0, atol=1e-9)


def test_two_models_are_compared_by_it():
    right, wrong = BLOCKS.vae(), TwoBlocks()
    wrong.b.shift = wrong.b.shift + 3
    found = {
        name: conditional_log_likelihood(vae.model, vae.guide, BLOCKS.x, BLOCKS.y, site="b", num_samples=300, **QUIET)
        for name, vae in (("right", right), ("wrong", wrong.vae()))
    }
    assert isinstance(found["right"], ConditionalEvidence)
    assert [m.name for m in compare(found).models] == ["right", "wrong"]
    other = conditional_log_likelihood(
        right.model, right.guide, BLOCKS.x + 1, BLOCKS.y, site="b", num_samples=30, **QUIET
    )
    with pytest.raises(DataError, match="not of the same rows"):
        compare({"right": found["right"], "other": other})


def test_it_is_no_log_p_of_a_row_to_what_compares_or_takes_that():
    """Beside log p(x, y) it was the better model, decided; and `gaps` took it for log p(x, y)."""
    vae, rows = BLOCKS.vae(), (BLOCKS.x, BLOCKS.y)
    joint = log_likelihood(vae.model, vae.guide, *rows, num_samples=30, **QUIET)
    a, b = (conditional_log_likelihood(vae.model, vae.guide, *rows, site=s, num_samples=30, **QUIET) for s in "ab")
    for other, named in ((joint, r"log p\(x\)"), (b, r"log p\(b \| others\)")):
        with pytest.raises(DataError, match=rf"'one' is log p\(a \| others\) and 'other' is {named}"):
            compare({"one": a, "other": other})
    with pytest.raises(UsageError, match=r"log_px is log p\(a \| others\), and the gap is between"):
        gaps(vae.model, vae.guide, *rows, log_px=a, **QUIET)


def test_it_is_drawn_from_its_seed_and_nothing_else_moves():
    vae, state = BLOCKS.vae(BLOCKS.product(0.3)), torch.random.get_rng_state()
    runs = [
        conditional_log_likelihood(vae.model, vae.guide, X, Y, site="b", num_samples=30, seed=s, **QUIET)
        for s in (0, 0, 1)
    ]
    assert torch.equal(runs[0].log_px, runs[1].log_px) and not torch.equal(runs[0].log_px, runs[2].log_px)
    assert torch.equal(torch.random.get_rng_state(), state)


# any program, and what is refused


def pair(score, reads=False):
    """Two columns of one array at two sites; `score` says how the second one's gaps are taken."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            first = pyro.sample("first", dist.Normal(z, 1.0), obs=x[:, 0])
            score(z + first if reads else z, x[:, 1])

    def guide(x):
        with pyro.plate("data", len(x)):
            known = 1 + (~x[:, 1].isnan()).double()
            pyro.sample("z", dist.Normal(x.nan_to_num().sum(1) / (known + 1), (known + 1) ** -0.5))

    return model, guide


def skipping(z, y):
    pyro.sample("second", SkipMissing(lambda z: dist.Normal(z, 1.0))(z), obs=y)


def filling(z, y):
    pyro.sample("second", dist.Normal(z, 1.0), obs=y.nan_to_num())


def test_any_program_of_two_sites():
    x = draws(7, 2)
    found = conditional_log_likelihood(*pair(skipping), x, site="second", num_samples=30, **QUIET)
    joint = dist.MultivariateNormal(torch.zeros(2).double(), torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double())
    wanted = joint.log_prob(x) - dist.Normal(0.0, 2**0.5).log_prob(x[:, 0])
    torch.testing.assert_close(found.log_px, wanted, rtol=0, atol=1e-6)


def transformed(z, y):
    pyro.sample("second", dist.Normal(z, 1.0), obs=2 * y)


@pytest.mark.parametrize(
    ("programs", "site", "error", "message"),
    [
        (
            pair(filling),
            "second",
            ProgramError,
            r"site 'second': the model puts numbers in the place of missing values",
        ),
        (pair(skipping, reads=True), "first", (ProgramError, SupportError), "first|second"),
        (pair(skipping), "third", ProgramError, r"no observed site 'third': it observes 'first', 'second'"),
        (pair(skipping), "z", ProgramError, r"no observed site 'z'"),
        (pair(skipping), [], UsageError, "one at least"),
        (pair(transformed), "second", ProgramError, "'second' observes none of the arguments as it is"),
        (pair(skipping), "first", SupportError, r"site 'first': .* SkipMissing"),
    ],
    ids=["filled in", "read elsewhere", "no site", "latent", "none", "transformed", "plain"],
)
def test_what_has_no_conditional_is_refused_by_site(programs, site, error, message):
    with pytest.raises(error, match=message):
        conditional_log_likelihood(*programs, draws(7, 2), site=site, num_samples=5, **QUIET)


def by_pattern(prior=0.0, own=False):
    """A prior whose mean is moved by each number that is missing; or a latent of the second site alone."""

    def model(x):
        gone = x.isnan()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(prior * gone.sum(-1), 1.0))
            pyro.sample("first", dist.Normal(z, 1.0), obs=x[:, 0])
            with poutine.mask(mask=~gone[:, 1]):
                u = pyro.sample("u", dist.Normal(0.0, 1.0)) if own else 0.0
                pyro.sample("second", dist.Normal(z + u, 1.0), obs=x[:, 1].nan_to_num())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            if own:
                with poutine.mask(mask=~x[:, 1].isnan()):
                    pyro.sample("u", dist.Normal(0.0, 1.0))

    return model, guide


def test_a_prior_that_reads_what_is_missing_is_refused():
    with pytest.raises(ProgramError, match="site 'z' of the model has another density where what 'second' observes is"):
        conditional_log_likelihood(*by_pattern(1.0), draws(7, 2), site="second", num_samples=5, **QUIET)


@pytest.mark.parametrize("own", [False, True], ids=["shared latent", "and one of its own"])
def test_a_latent_that_goes_with_its_site_is_integrated_out(own):
    x = draws(7, 2)
    found = conditional_log_likelihood(*by_pattern(own=own), x, site="second", num_samples=2000, **QUIET)
    joint = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 1.0], [1.0, 2.0 + own]]))
    wanted = joint.log_prob(x) - dist.Normal(0.0, 2**0.5).log_prob(x[:, 0])
    assert ((found.log_px - wanted).abs() < 4 * found.mc_se).all()
