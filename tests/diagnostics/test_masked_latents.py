"""Latents that some rows do not have (ragged sequences, missing sites): usage, information, gaps and decomposition."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import decompose, gaps, overfitting
from pyro_vae.diagnostics import aggregate_posterior, mutual_information
from pyro_vae.diagnostics import latent_usage as module
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.errors import ProgramError

ROWS = 120
STEPS = 2
LENGTH = torch.arange(ROWS) % 3  # 0, 1 or 2 steps: a third of the rows has no latent at all
HAS = torch.arange(STEPS) < LENGTH[:, None]


def data(seed=0):
    return 2 * torch.randn(ROWS, STEPS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_handler(name, fn, has):
    """One site in an inner plate of steps, under ``poutine.mask``."""
    with pyro.plate("steps", STEPS, dim=-2), poutine.mask(mask=has.T):
        return pyro.sample(name, fn(lambda t: t.T))


def by_distribution(name, fn, has):
    """One site in an inner plate of steps, masked by its distribution."""
    with pyro.plate("steps", STEPS, dim=-2):
        return pyro.sample(name, fn(lambda t: t.T).mask(has.T))


def by_unit(name, fn, has):
    """One site of two units, each masked by itself."""
    return pyro.sample(name, fn(lambda t: t).mask(has).to_event(1))


def by_site(name, fn, has):
    """A site for each step, the second within the first."""
    for t in range(STEPS):
        with poutine.mask(mask=has[:, t]):
            pyro.sample(f"{name}{t}", fn(lambda v, t=t: v[:, t]))


WAYS = [by_handler, by_distribution, by_unit, by_site]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)


def pair(way, prior, posterior, has=HAS):
    """z of each step given x of that step; the likelihood reads nothing of z, as I, KL and activity do not either."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            way("z", lambda arrange: prior(arrange(torch.zeros_like(x))), of_rows(x))
            pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            way("z", lambda arrange: posterior(arrange(x)), of_rows(x))

    def of_rows(x):
        """The mask of some of the rows, wherever they stand."""
        return torch.stack([has[(everyone == row).all(1)][0] for row in x])

    everyone = data()

    return model, guide


def coins(way):
    return pair(way, lambda zero: dist.Bernoulli(logits=zero), lambda x: dist.Bernoulli(logits=2 * x))


def normals(way):
    return pair(way, lambda zero: dist.Normal(zero, 1.0), lambda x: dist.Normal(0.8 * x, 0.6))


def information_of_coins(x, has):
    """I(n; z | mask), summed over all codes, of rows that have the same latents."""
    total = 0.0
    for pattern in has.unique(dim=0):
        group = x[(has == pattern).all(1)]
        q = torch.ones(len(group), 1, dtype=torch.float64)
        for t in range(STEPS):
            if pattern[t]:
                p = (2 * group[:, t]).sigmoid()[:, None]
                q = torch.cat([q * p, q * (1 - p)], 1)
        total += (q * (q / q.mean(0)).log()).sum().item()
    return total / len(x)


# information among the rows that have the same latents


@ways
def test_information_is_that_among_rows_with_the_same_latents(way):
    x = data()
    exact = information_of_coins(x, HAS)
    found = latents(*coins(way), x, batch=ROWS, num_samples=2)
    assert exact > 0.3 and found.mutual_information_se < 0.06
    assert abs(found.mutual_information - exact) < 4 * found.mutual_information_se
    assert found.information_limit == pytest.approx(math.log(ROWS / 3))
    assert "same latents only" in str(found)


def test_information_that_compares_all_rows_is_wrong(monkeypatch):
    """As before: rows without the latent, whose q is 1 there, stand among those that z is compared with."""
    x = data()
    monkeypatch.setattr(mutual_information, "same_latents", lambda sites, start, plates: [])  # no mask leaves one out
    found = latents(*normals(by_handler), x, batch=ROWS, num_samples=2)
    assert found.mutual_information < 0.1  # of the 0.4 nats and more that there are


def test_rows_that_have_no_latents_add_nothing_and_information_is_not_below_zero():
    """z of scale 10 is almost independent of x; a density of 1 beside those of 1/25 made the estimate −1."""

    def model(x, has):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 10.0).mask(has))
            pyro.sample("x", dist.Normal(z, 10.0).mask(has), obs=x)

    def guide(x, has):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 50.0**0.5).mask(has))

    x, has = data()[:, 0], torch.arange(ROWS) % 2 == 0
    found = latents(model, guide, x, has, batch=ROWS)
    assert abs(found.mutual_information) < 0.02 and found.mutual_information_se < 0.01
    assert found.sites["z"].rows.tolist() == [ROWS / 2]


def test_a_mask_that_a_latent_decides_is_part_of_what_z_tells():
    """z2 is there where z1 is 1, as the objects of a scene are; the codes are z1 = 0, and (1, 0), (1, 1)."""

    def latent(logits, other):
        there = pyro.sample("z1", dist.Bernoulli(logits=logits))
        with poutine.mask(mask=there > 0):
            pyro.sample("z2", dist.Bernoulli(logits=other))

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            latent(torch.zeros_like(x), torch.zeros_like(x))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            latent(2 * x, -3 * x)

    x = data()[:, 0]
    p, r = (2 * x).sigmoid(), (-3 * x).sigmoid()
    q = torch.stack([1 - p, p * r, p * (1 - r)], 1)
    exact = (q * (q / q.mean(0)).log()).sum(1).mean().item()
    found = latents(model, guide, x, batch=ROWS, num_samples=64)
    assert abs(found.mutual_information - exact) < 4 * found.mutual_information_se
    kl = (q * (q / torch.tensor([0.5, 0.25, 0.25])).log()).sum(1).mean().item()
    se = sum(units.kl_mc_se.item() for units in found.sites.values())
    assert abs(found.kl - kl) < 4 * se and found.information_limit == pytest.approx(math.log(ROWS))
    assert found.sites["z2"].activity.isnan().all()  # a mean over the draws that have it is no E[z2 | x]


# KL, activity


@ways
def test_kl_counts_absent_units_as_nothing_and_activity_leaves_their_rows_out(way):
    x = data()
    found = latents(*normals(way), x, batch=10)
    kl = torch.where(HAS, 0.5 * (0.36 + (0.8 * x) ** 2 - 1) - math.log(0.6), 0.0).mean(0)
    activity = torch.stack([(0.8 * x[HAS[:, t], t]).var() for t in range(STEPS)])
    torch.testing.assert_close(found.kl_per_unit, kl)
    torch.testing.assert_close(found.activity, activity)
    assert all(units.analytic for units in found.sites.values())
    assert torch.cat([units.rows for units in found.sites.values()]).tolist() == HAS.sum(0).tolist()
    assert found.mutual_information <= found.kl + 4 * found.mutual_information_se


def test_means_of_draws_leave_absent_rows_out(monkeypatch):
    """A posterior without a mean in closed form: activity less the noise of its draws."""
    monkeypatch.setattr(module, "posterior_mean", lambda site: (site["value"], False))
    x = data()
    found = latents(*normals(by_handler), x, batch=10, num_samples=400)
    activity = torch.stack([(0.8 * x[HAS[:, t], t]).var() for t in range(STEPS)])
    torch.testing.assert_close(found.activity, activity, rtol=0.02, atol=0)  # of 400 draws and 40 rows


def test_masks_that_leave_nothing_out_change_nothing():
    full = torch.ones_like(HAS)
    plain = pair(by_handler, lambda zero: dist.Normal(zero, 1.0), lambda x: dist.Normal(0.8 * x, 0.6), full)
    ones = (latents(*plain, data()), decompose(*plain, data(), verbose=False))
    assert ones[0].information_limit == pytest.approx(math.log(ROWS)) and "same latents" not in str(ones[0])
    assert ones[1].total_correlation is not None


def test_nobody_has_a_unit():
    none = torch.zeros_like(HAS)
    none[:, 0] = True
    found = latents(*pair(by_unit, lambda z: dist.Normal(z, 1.0), lambda x: dist.Normal(0.8 * x, 0.6), none), data())
    assert found.kl_per_unit[1] == 0 and found.sites["z"].activity[1].isnan() and found.units == 1


# refused by name


def one(prior, posterior, decode=lambda z, x: 0 * x):
    def model(x):
        with pyro.plate("data", len(x)):
            z = prior(x)
            pyro.sample("x", dist.Normal(decode(z, x), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            posterior(x)

    return model, guide


def masked(x, *args):
    """Mask the rows with x < 0."""
    with poutine.mask(mask=x > 0):
        return pyro.sample("z", dist.Normal(*args))


SIGNED = torch.tensor([1.0, -1.0, 2.0, -0.5])
EVERY = {
    "latents": lambda pair: latents(*pair, SIGNED),
    "gaps": lambda pair: gaps(*pair, SIGNED, steps=2, verbose=False),
    "overfitting": lambda pair: overfitting(*pair, SIGNED, SIGNED, steps=2, verbose=False),
    "decompose": lambda pair: decompose(*pair, SIGNED, verbose=False),
}
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)


@every
def test_a_latent_masked_in_one_program_only_is_refused(function):
    plain = one(lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), lambda x: masked(x, x / 2, 0.5))
    with pytest.raises(ProgramError, match=r"'z' is masked in .*rows \[1, 3\]"):
        function(plain)
    with pytest.raises(ProgramError, match=r"'z' is masked in .*rows \[1, 3\]"):
        function(one(lambda x: masked(x, 0.0, 1.0), lambda x: pyro.sample("z", dist.Normal(x / 2, 0.5))))


@every
def test_a_masked_latent_whose_value_is_read_is_refused(function):
    with pytest.raises(ProgramError, match=r"'[xz]' .*rows \[1, 3\]"):
        function(one(lambda x: masked(x, 0.0, 1.0), lambda x: masked(x, x / 2, 0.5), lambda z, x: z))


def test_the_guide_may_not_read_a_masked_latent_either():
    def posterior(x):
        z = masked(x, x / 2, 0.5)
        pyro.sample("y", dist.Normal(z, 1.0))

    def prior(x):
        pyro.sample("y", dist.Normal(torch.zeros_like(x), 1.0))
        return masked(x, 0.0, 1.0)

    with pytest.raises(ProgramError, match="site 'y' of the guide reads the value of 'z' in rows \\[1, 3\\]"):
        latents(*one(prior, posterior), SIGNED)


@ways
def test_decompose_names_masked_latents_wherever_their_rows_are(way):
    """Among the first rows, which the form is read off, none is masked."""
    late = torch.ones_like(HAS)
    late[-1, -1] = False
    programs = pair(way, lambda zero: dist.Normal(zero, 1.0), lambda x: dist.Normal(0.8 * x, 0.6), late)
    with pytest.raises(ProgramError, match=rf"masked in rows \[{ROWS - 1}\]"):
        decompose(*programs, data(), verbose=False)


def test_without_its_look_at_masks_decompose_names_none(monkeypatch):
    late = torch.ones_like(HAS)
    late[-1, -1] = False
    monkeypatch.setattr(aggregate_posterior, "refuse_masks", lambda *args: None)
    programs = pair(by_unit, lambda zero: dist.Normal(zero, 1.0), lambda x: dist.Normal(0.8 * x, 0.6), late)
    with pytest.raises(ProgramError, match="the prior is not the same for every row"):
        decompose(*programs, data(), verbose=False)


# gaps


def ragged(way):
    """z_t ~ N(0, 1), x_t ~ N(z_t, 1) where a row has step t, and nothing there where it has not; q is 0.3 off and too wide."""

    def latent(has, loc, scale):
        if way is by_distribution:
            return pyro.sample("z", dist.Normal(loc, scale).mask(has.T))
        with poutine.mask(mask=has.T):
            return pyro.sample("z", dist.Normal(loc, scale))

    def model(x, has):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("steps", STEPS, dim=-2):
            z = latent(has > 0, torch.zeros_like(x.T), 1.0)
            pyro.sample("x", dist.Normal(z, 1.0).mask((has > 0).T), obs=x.T)

    def guide(x, has):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("steps", STEPS, dim=-2):
            latent(has > 0, x.T / 2 + 0.3, 1.0)

    return model, guide


@pytest.mark.parametrize("way", [by_handler, by_distribution], ids=["handler", "distribution"])
def test_gaps_of_ragged_rows_are_of_the_steps_that_they_have(way):
    """Of each step KL(N(m + 0.3, 1) ‖ N(m, 1/2)) = 0.3² + 1 − 1/2 − ½ log 2; q* is exact, and log p(x) = Σ log N(x; 0, 2)."""
    x, has = data()[:9], HAS[:9]
    found = gaps(*ragged(way), x, has, steps=200, num_samples=500, verbose=False)
    steps = has.sum(1).double()
    log_px = torch.where(has, dist.Normal(0.0, 2**0.5).log_prob(x), 0.0).sum(1)
    torch.testing.assert_close(found.log_px, log_px, rtol=0, atol=2e-3)
    assert (found.approximation.abs() < 2e-3).all() and found.converged.all()
    off = found.amortisation - steps * (0.3**2 + 0.5 - 0.5 * math.log(2))
    assert (off.abs() <= 4 * found.amortisation_se + 2e-3).all()
    assert (found.gap[steps == 0] == 0).all()


def test_a_mask_that_draws_decide_has_no_best_distribution():
    """The mask of the first particle would have stood for that of all."""

    def latent(one, other):
        z1 = pyro.sample("z1", dist.Normal(*one))
        with poutine.mask(mask=z1 > 0):
            pyro.sample("z2", dist.Normal(*other))

    for program in (latent, lambda one, other: by_own_mask(one, other)):
        programs = one(lambda x, p=program: p((0 * x, 1.0), (0 * x, 1.0)), lambda x, p=program: p((x, 1.0), (x, 1.0)))
        with pytest.raises(ProgramError, match=r"'z2'.*its mask depends on the draws of other sites"):
            gaps(*programs, SIGNED, steps=2, verbose=False)


def by_own_mask(one, other):
    z1 = pyro.sample("z1", dist.Normal(*one))
    pyro.sample("z2", dist.Normal(*other).mask(z1 > 0))


def test_overfitting_of_ragged_rows_averages_what_they_have():
    x, has = data()[:6], HAS[:6]
    found = overfitting(*ragged(by_handler), (x, has), (x, has), steps=200, num_samples=300, verbose=False)
    assert abs(found.encoder["value"]) < 4 * found.encoder["mc_se"] + 2e-3
    assert abs(found.decoder["value"]) < 4 * found.decoder["mc_se"] + 2e-3
