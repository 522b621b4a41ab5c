"""What latents carry: KL a unit, active units and I(x; z), against encoders for which all three are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions.transforms import AffineTransform

from pyro_vae.diagnostics import latent_usage as module
from pyro_vae.diagnostics import mutual_information
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.errors import ProgramError, ShapeError, UsageError
from pyro_vae.programs.problem import Problem
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import small_vae

SLOPE, SCALE = torch.tensor([2.0, 0.3, 0.0]).double(), torch.tensor([0.5, 0.9, 1.0]).double()


def rows(count=200, width=3, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x):
    """z_u = slope_u x_u + scale_u ε: everything about it is known."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(SLOPE * x, SCALE).to_event(1))


def normal_kl(loc, scale):
    """KL(N(loc, scale²) ‖ N(0, 1)) in nats."""
    return 0.5 * (scale**2 + loc**2 - 1) - torch.as_tensor(scale).log()


def kl_of_rows(x):
    return normal_kl(SLOPE * x, SCALE).mean(0)


# KL and activity in closed form


def test_kl_of_each_unit_and_activity_are_exact():
    x = rows()
    found = latents(model, guide, x, chunk_size=100)
    torch.testing.assert_close(found.kl_per_unit, kl_of_rows(x))
    torch.testing.assert_close(found.activity, SLOPE**2 * x.var(0))
    assert found.sites["z"].analytic and found.sites["z"].closed_mean and found.sites["z"].factorised
    assert found.sites["z"].kl_mc_se.tolist() == [0, 0, 0]
    assert (found.active(), found.active(2.0), found.active(100.0), found.units) == (2, 1, 0, 3)
    assert found.share() == pytest.approx(2 / 3) and found.kl == pytest.approx(kl_of_rows(x).sum().item())
    assert str(found).startswith("2 of 3 units active")


@pytest.mark.parametrize("threshold", [0.01, 0.001])
def test_a_unit_is_active_above_the_threshold_only(threshold):
    x = rows()
    for factor, active in ((0.999, 0), (1.001, 1)):
        slope = (factor * threshold / x[:, :1].var(0)).sqrt()

        def by_threshold(x, slope=slope):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(slope * x * torch.tensor([1.0, 0, 0]), 1.0).to_event(1))

        assert latents(model, by_threshold, x).active(threshold) == active


def test_kl_by_draws_is_the_closed_form(monkeypatch):
    x = rows(100)
    monkeypatch.setattr(module, "closed_kl", lambda q, p: None)
    found = latents(model, guide, x, num_samples=200).sites["z"]
    assert not found.analytic and (found.kl_mc_se > 0)[:2].all()
    assert ((found.kl - kl_of_rows(x)).abs() <= 4 * found.kl_mc_se + 1e-12).all()
    assert (
        (found.kl[:2] - kl_of_rows(x)[:2] - 0.2).abs() > 4 * found.kl_mc_se[:2]
    ).all()  # and 0.2 nats off would show


def test_the_mean_of_draws_is_freed_of_their_noise():
    """A transformed normal has no mean in closed form: S = 2 draws have variance scale² / 2 about it."""

    def transformed(x):
        unit = dist.Normal(torch.zeros_like(x), 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(unit, AffineTransform(SLOPE * x, SCALE)).to_event(1))

    x = rows(4000)
    found = latents(model, transformed, x, num_samples=2, batch=10)
    exact, noise = SLOPE**2 * x.var(0), SCALE**2 / 2
    se = (2 * ((exact + noise) ** 2 + noise**2 * 2) / len(x)).sqrt()
    assert not found.sites["z"].closed_mean
    assert ((found.activity - exact).abs() < 4 * se).all()
    assert ((found.activity + noise - exact).abs() > 4 * se)[1:].all()  # left in, it would make every unit active


def test_the_total_is_the_kl_of_the_log_weights():
    torch.manual_seed(3)
    vae = small_vae()
    x = torch.bernoulli(torch.full((50, 6), 0.4))
    draws = Problem.on(vae.model, vae.guide, x).log_probs(400).kl.mean(1)
    found = latents(vae.model, vae.guide, x)
    assert abs(found.kl - draws.mean()) < 4 * draws.std() / 20
    assert found.kl > 0


# other families, and sites that do not factorise


def one_site(prior, posterior, seen):
    """A pair with one latent, of which x sees `seen(z)`."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(seen(z), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def test_gammas_have_units_in_closed_form():
    """KL(Gamma(a, b) ‖ Exponential(1)) = (a − 1) ψ(a) − log Γ(a) + log b + a (1 − b) / b."""
    x = rows(20)[:, 0].exp()
    pair = one_site(
        lambda: dist.Gamma(torch.ones(2).double(), 1.0).to_event(1),
        lambda x: dist.Gamma(torch.stack([1 + x, 0 * x + 1], -1), 1 + x[:, None]).to_event(1),
        lambda z: z.sum(-1),
    )
    a, b = torch.stack([1 + x, 0 * x + 1], -1), 1 + x[:, None]
    exact = (a - 1) * a.digamma() - a.lgamma() + b.log() + a * (1 - b) / b
    found = latents(*pair, x)
    torch.testing.assert_close(found.kl_per_unit, exact.mean(0))
    torch.testing.assert_close(found.activity, (a / b).var(0))


def test_a_categorical_has_a_kl_but_no_activity():
    """With a posterior that is certain, 3 codes equally often: I(x; z) = KL = log 3 exactly."""
    x = torch.arange(60) % 3
    pair = one_site(
        lambda: dist.Categorical(torch.ones(3) / 3),
        lambda x: dist.Categorical(torch.nn.functional.one_hot(x.long(), 3).float()),
        lambda z: z.float(),
    )
    found = latents(*pair, x.float())
    assert found.kl == pytest.approx(math.log(3), abs=1e-5)
    assert found.mutual_information == pytest.approx(math.log(3), abs=1e-5)
    assert found.units == 0 and found.active() == 0 and math.isnan(found.share())


def test_a_posterior_with_correlations_has_one_kl():
    lg = LinearGaussian()
    q = lg.exact(lg.x)
    found = latents(lg.model, lg.exact_guide, lg.x, num_samples=500)
    exact = 0.5 * (q.cov.trace() + q.loc.square().sum(-1).mean() - 2 - q.cov.logdet()).item()
    site = found.sites["z"]
    assert not site.factorised and not site.analytic and found.kl_per_unit is None
    assert abs(found.kl - exact) < 4 * site.kl_mc_se.item() and site.kl_mc_se.item() < 0.05
    torch.testing.assert_close(found.activity, q.loc.var(0))


# several sites, plates and masks


def chain(order, down=0.5):
    """p(z1) p(z2 | z1) and, in either order, q(z1 | x) q(z2 | z1) or q(z2 | x) q(z1 | z2); returns model, guide, joint KL."""

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(down * z1, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z2[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            first = pyro.sample(order[0], dist.Normal(x[:, None], 0.5).to_event(1))
            pyro.sample(order[1], dist.Normal(0.8 * first, 0.6).to_event(1))

    def kl(x):
        loc = torch.stack([x, 0.8 * x], -1)
        cov = torch.tensor([[0.25, 0.2], [0.2, 0.16 + 0.36]]).double()
        if order[0] == "z2":
            loc, cov = loc.flip(-1), cov.flip(0, 1)
        prior = torch.tensor([[1.0, down], [down, down**2 + 1]]).double()
        q = dist.MultivariateNormal(loc, cov)
        return torch.distributions.kl_divergence(q, dist.MultivariateNormal(torch.zeros(2).double(), prior)).mean()

    return model, guide, kl


def check_chain(order):
    model, guide, kl = chain(order)
    x = rows(100)[:, 0]
    found = latents(model, guide, x, num_samples=300)
    se = sum(
        units.kl_mc_se.sum().item() for units in found.sites.values()
    )  # the sites' errors are correlated: not in squares
    assert se < 0.03 and abs(found.kl - kl(x).item()) < 4 * se
    return found


def test_a_hierarchy_in_the_models_order_is_closed_given_its_parents():
    found = check_chain(("z1", "z2"))
    assert all(units.analytic for units in found.sites.values()) and list(found.sites) == ["z1", "z2"]
    assert found.sites["z1"].kl_mc_se.item() == 0 and found.sites["z2"].kl_mc_se.item() > 0


def test_a_hierarchy_in_the_other_order_is_drawn(monkeypatch):
    """Its closed form given z2 would take p(z2 | z1) for free of the z1 that it is averaged over."""
    found = check_chain(("z2", "z1"))
    assert not any(units.analytic for units in found.sites.values())
    honest = module.drawn
    monkeypatch.setattr(module, "drawn", lambda q, p, plates, same_order, there: honest(q, p, plates, True, there))
    with pytest.raises(AssertionError):
        check_chain(("z2", "z1"))


def test_what_the_child_copies_of_its_parent_is_no_information():
    """I(x; z1, z2) = I(x; z1) where z2 depends on z1 alone: the terms of z2 cancel, pair by pair."""
    model, guide, _ = chain(("z1", "z2"))
    x = rows(80)[:, 0]
    both = latents(model, guide, x)
    z1 = latents(
        poutine.block(poutine.condition(model, {"z2": torch.zeros(1).double()}), hide=["z2"]),
        poutine.block(guide, hide=["z2"]),
        x,
    )
    assert both.mutual_information == pytest.approx(z1.mutual_information, abs=1e-9)


def test_units_of_an_inner_plate():
    def inner(x, program):
        with pyro.plate("units", 3, dim=-1), pyro.plate("data", len(x), dim=-2):
            program(x)

    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = rows(50)
    found = latents(
        lambda x: inner(x, model),
        lambda x: inner(x, lambda x: pyro.sample("z", dist.Normal(SLOPE * x, SCALE))),
        x,
    )
    torch.testing.assert_close(found.kl_per_unit, kl_of_rows(x))
    torch.testing.assert_close(found.activity, SLOPE**2 * x.var(0))


def test_masked_rows_have_no_kl():
    x = rows(400)
    on = torch.arange(400) % 2 == 0
    masked = [poutine.mask(program, mask=on) for program in (model, guide)]
    found = latents(*masked, x, num_samples=64, chunk_size=10**6)
    half = normal_kl(SLOPE * x, SCALE)[on].mean(0) / 2
    assert ((found.kl_per_unit - half).abs() <= 4 * found.sites["z"].kl_mc_se + 1e-12).all()


# mutual information


def channel(signal):
    """z = signal · x + ε with x, ε ~ N(0, 1): I(x; z) = ½ log(1 + signal²)."""
    pair = one_site(
        lambda: dist.Normal(torch.zeros(1).double(), 1.0).to_event(1),
        lambda x: dist.Normal(signal * x[:, None], 1.0).to_event(1),
        lambda z: z[..., 0],
    )
    return pair, 0.5 * math.log(1 + signal**2)


@pytest.mark.parametrize("signal", [0.0, 0.5, 3.0])
def test_information_of_a_gaussian_channel(signal):
    pair, exact = channel(signal)
    found = latents(*pair, rows(1500)[:, 0], batch=1500, num_samples=2)
    assert found.batch == 1500 and abs(found.mutual_information - exact) <= 4 * found.mutual_information_se + 1e-12
    assert found.mutual_information_se < 0.03 and (exact == 0 or exact > 4 * found.mutual_information_se)


def test_information_is_a_lower_bound_on_average_whatever_the_batch():
    pair, exact = channel(3.0)
    estimates = torch.tensor(
        [latents(*pair, rows(6, seed=seed)[:, 0], batch=6, num_samples=2).mutual_information for seed in range(40)]
    )
    se = estimates.std() / 40**0.5
    assert estimates.mean() < exact - 4 * se  # 6 rows are too few for 1.15 nats: below, and by more than chance
    assert estimates.max() <= math.log(6)


def test_information_never_exceeds_the_log_of_the_batch():
    pair, exact = channel(1e4)
    found = latents(*pair, rows(50)[:, 0], batch=20, num_samples=2)
    assert exact > 9 and found.batch == 20
    assert math.log(20) - 0.02 < found.mutual_information <= math.log(20)
    assert f"(at most log 20 = {math.log(20):.2f})" in str(found)


def test_a_posterior_that_draws_on_the_way_to_its_parameters_is_scored_as_drawn():
    """Scored under other draws, z would look as if it came from elsewhere."""

    def noisy(x):
        with pyro.plate("data", len(x)):
            loc = SLOPE * x + 10 * torch.randn(3).double()  # the same for all rows, but not from run to run
            pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))

    x = rows(300)
    plain, found = (latents(model, g, x, batch=300).mutual_information for g in (guide, noisy))
    se = latents(model, guide, x, batch=300).mutual_information_se
    assert abs(plain - found) < 4 * 2**0.5 * se


# a measurement, and no more


def test_nothing_is_changed_and_the_seed_decides():
    vae = small_vae()
    vae.posterior.eval()
    modes = {name: m.training for name, m in vae.named_modules()}
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    x, state = torch.bernoulli(torch.full((30, 6), 0.4)), torch.get_rng_state()
    first, again, other = (latents(vae.model, vae.guide, x, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: m.training for name, m in vae.named_modules()} == modes
    assert all(torch.equal(t, before[name]) and t.grad is None for name, t in vae.state_dict(keep_vars=True).items())
    assert first.mutual_information == again.mutual_information != other.mutual_information
    assert first.kl == other.kl  # nothing is drawn for it


def test_chunks_change_nothing_but_the_draws():
    x = rows(33)
    a, b = (latents(model, guide, x, chunk_size=size) for size in (16, 10**6))
    torch.testing.assert_close(a.kl_per_unit, b.kl_per_unit)
    torch.testing.assert_close(a.activity, b.activity)


def test_latents_that_are_nan_give_nan_and_no_error():
    def broken(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(SLOPE * x, torch.tensor([0.5, 0.9, math.nan]).double()).to_event(1))

    found = latents(model, broken, rows(20))
    assert found.kl_per_unit.isnan().tolist() == [False, False, True] and math.isnan(found.mutual_information)
    x = rows(20)
    x[3, 1] = math.nan  # a row that is lost to one unit
    found = latents(model, guide, x)
    assert found.kl_per_unit.isnan().tolist() == [False, True, False] and found.units == 2 and found.active() == 1


def test_one_row_has_a_kl_but_no_activity():
    x = rows(1)
    found = latents(model, guide, x)
    torch.testing.assert_close(found.kl_per_unit, kl_of_rows(x))
    assert found.units == 0 and found.mutual_information == 0.0


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match="num_samples must be at least 2"):
        latents(model, guide, rows(), num_samples=1)

    def without_plate(x):
        pyro.sample("z", dist.Normal(SLOPE * x, SCALE).to_event(2))

    with pytest.raises((ProgramError, ShapeError)):
        latents(model, without_plate, rows())


@pytest.mark.parametrize("kind", ["normal", "labels", "flow", "two sites", "noise on the way", "masked"])
def test_what_one_draw_shows_of_the_guide_is_what_a_run_at_all_draws_shows(kind, monkeypatch):
    """To the bit; and two sites, noise or a mask have the guide run at the draws, as what it shows then depends on them."""

    def model(x):
        with pyro.plate("data", len(x)):
            if kind == "labels":
                z = pyro.sample("z", dist.Categorical(logits=x.new_zeros(3))).double().unsqueeze(-1)
            else:
                z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1).mask(kind != "masked" or x[:, 0] > 0))
            if kind == "two sites":
                pyro.sample("further", dist.Normal(z[..., 0], 1.0))
            loc = torch.where(x[:, :1] > 0, z, 0.0) if kind == "masked" else z
            pyro.sample("x", dist.Normal(loc, 1.0).expand((*loc.shape[:-1], 3)).to_event(1), obs=x)

    def guide(x):
        loc = x * 2 + (torch.randn(()) if kind == "noise on the way" else 0.0)
        q = dist.Normal(loc, 0.5).to_event(1)
        if kind == "labels":
            q = dist.Categorical(logits=loc)
        if kind == "flow":
            q = dist.TransformedDistribution(
                dist.Normal(loc, 0.5).to_event(1), [AffineTransform(0.1, 2.0, event_dim=1)]
            )
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", q.mask(x[:, 0] > 0) if kind == "masked" else q)
            if kind == "two sites":
                pyro.sample("further", dist.Normal(z[..., 0], 1.0))

    x, runs = rows(20), []
    monkeypatch.setattr(
        mutual_information, "of_particles", lambda *of, f=mutual_information.of_particles: runs.append(1) or f(*of)
    )
    once = latents(model, guide, x)
    assert bool(runs) == (kind in ("normal", "labels", "flow"))
    monkeypatch.setattr(mutual_information, "one_of_rows", lambda *of: None)
    anew = latents(model, guide, x)
    assert (once.mutual_information, once.mutual_information_se) == (
        anew.mutual_information,
        anew.mutual_information_se,
    )
