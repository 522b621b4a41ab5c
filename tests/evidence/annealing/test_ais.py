"""Annealed importance sampling against closed forms, in the scale where it is unbiased; and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro

from pyro_vae import MLP, VAE, Conditional, bernoulli, priors
from pyro_vae import normal as normal_family
from pyro_vae.errors import ProgramError, SupportError, UsageError
from pyro_vae.evidence.annealing.densities import Densities
from pyro_vae.evidence.annealing.point import Point
from pyro_vae.evidence.annealing.result import AnnealedRun
from pyro_vae.evidence.annealing.schedule import AISSettings, AnnealingPath, adaptive, betas
from pyro_vae.priors.flow import FlowPrior
from pyro_vae.programs.problem import Problem
from tests.helpers.annealing import ais, check_frozen, check_unbiased, drawn, grouped, grouped_guide, quick
from tests.helpers.conjugate import PROBLEMS, GammaPoisson, NormalGamma
from tests.helpers.environment import HEAVY
from tests.helpers.exact import LinearGaussian
from tests.helpers.pilots import short_pilots
from tests.helpers.small import small_vae


def check_close(result, exact):
    """The mean within 4 Monte Carlo standard errors of exact, √Σ mc_se² / N; the bias −½ SE² of each row allowed for."""
    off = result.log_px - exact.cpu()
    se = result.mc_se.square().sum().sqrt() / len(off)
    bias = -result.mc_se.square().mean() / 2
    assert (off.mean() - bias).abs() < 4 * se, f"{off.mean():.4f} ± {se:.4f}"


@pytest.fixture
def short(monkeypatch):
    short_pilots(monkeypatch)


# truth


@pytest.mark.parametrize("start", ["prior", "guide"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_mean_weight_is_p_of_x(problem, start):
    p = problem()
    x = drawn(p, 600)
    result = quick(p.model, p.guide, x, start=start)
    check_unbiased((result.log_px - p.log_px(x)).exp())


@pytest.mark.parametrize("problem", PROBLEMS)
def test_with_the_exact_posterior_every_weight_is_p_of_x(problem):
    p = problem()
    x = drawn(p, 20)
    result = quick(p.model, p.exact_guide, x, start="guide")
    torch.testing.assert_close(result.log_w, p.log_px(x).expand(4, 20), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.ess, torch.full((20,), 4.0).double())
    assert (result.mc_se < 1e-5).all()


OF_16 = {"num_temperatures": 16, "leapfrog_steps": 3}
WALKS = [("sigmoid", "prior"), ("adaptive", "guide")]
if HEAVY:  # the other start of each
    WALKS += [("sigmoid", "guide"), ("adaptive", "prior"), ("linear", "prior"), ("linear", "guide")]


@pytest.mark.parametrize(("schedule", "start"), WALKS)
def test_linear_gaussian(device, schedule, start):
    lg = LinearGaussian(device=device)
    x = lg.x.repeat(5, 1)
    result = ais(lg.model, lg.mean_field_guide, x, start=start, schedule=schedule, **OF_16)
    check_close(result, lg.log_px(x))
    check_unbiased((result.log_px - lg.log_px(x).cpu()).exp())
    off = (result.acceptance - 0.65).abs()  # what the pilot aims at; over seeds 0.03 to 0.045, and 0.16 at most
    assert off.shape == (200,) and off.mean() < 0.06 and off.max() < 0.25


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("schedule", ["sigmoid", "adaptive", *(["linear"] if HEAVY else [])])
def test_linear_gaussian_from_its_posterior(device, schedule):
    lg = LinearGaussian(device=device)
    exact = ais(lg.model, lg.exact_guide, lg.x, start="guide", schedule=schedule, **OF_16)
    torch.testing.assert_close(exact.log_w, lg.log_px(lg.x).cpu().expand(16, 40), rtol=0, atol=1e-8)


@pytest.mark.usefixtures("short")
def test_a_users_program_goes_through_unchanged_in_float32():
    """Gamma prior, Poisson likelihood, hand-written LogNormal guide; 4 SE of the mean."""
    p = GammaPoisson()
    x = drawn(p, 40).float()
    for start in ("prior", "guide"):
        result = ais(p.model, p.guide, x, start=start, num_temperatures=20, leapfrog_steps=4)
        assert result.log_px.dtype == torch.float64
        check_close(result, p.log_px(x.double()))


def test_more_temperatures_tighten_the_bound():
    p = NormalGamma()
    x = drawn(p, 300)
    few, many = (quick(p.model, p.guide, x, num_temperatures=t).log_px for t in (1, 16))
    gain = many - few
    assert gain.mean() > 4 * gain.std() / 300**0.5


def test_without_temperatures_between_it_is_importance_sampling():
    """T = 1: the weights are p(x, z) / q(z | x) of the guide's draws, whatever the transition does after."""
    p = GammaPoisson()
    x = drawn(p, 5)
    a, b = (quick(p.model, p.guide, x, start="guide", num_temperatures=1, step_size=s).log_w for s in (0.1, 3.0))
    assert torch.equal(a, b) and a.std() > 0


# the rate–distortion curve


@pytest.mark.usefixtures("short")
def test_rate_distortion_of_the_linear_gaussian():
    """π_β = N(m_β, P_β^-1) with P_β = I + β A Ψ^-1 A'; R and D in closed form, means over rows; SE from 4 seeds."""
    lg = LinearGaussian()
    runs = [
        ais(lg.model, lg.mean_field_guide, lg.x, num_temperatures=20, leapfrog_steps=3, num_chains=30, seed=s)
        for s in range(4)
    ]
    curves = torch.stack([torch.stack(r.rate_distortion()) for r in runs])
    b, rate, distortion = curves.mean(0)
    for t in range(0, 21, 5):
        exact_rate, exact_distortion = closed_form(lg, b[t].item())
        for got, exact in ((rate, exact_rate), (distortion, exact_distortion)):
            field = 1 if got is rate else 2
            se = curves[:, field, t].std() / 2
            assert (got[t] - exact).abs() < 6 * se + 1e-6, (b[t], got[t], exact, se)  # 3 degrees of freedom: 6 SE
    total = torch.stack([r.log_px.mean() for r in runs]).mean()
    torch.testing.assert_close(rate[-1] + distortion[-1], -total)


def closed_form(lg, beta):
    precision = torch.eye(2).double() + beta * (lg.a / lg.noise) @ lg.a.T
    cov = precision.inverse()
    loc = beta * ((lg.x - lg.mean) / lg.noise) @ lg.a.T @ cov
    square = (lg.x - lg.mean - loc @ lg.a).square() + (lg.a.T @ cov @ lg.a).diagonal()
    distortion = 0.5 * (square / lg.noise + (2 * math.pi * lg.noise).log()).sum(-1).mean()
    rate = 0.5 * (cov.trace() + loc.square().sum(-1).mean() - 2 - cov.logdet())
    return rate, distortion


def test_rate_distortion_needs_the_prior():
    p = GammaPoisson()
    with pytest.raises(UsageError, match="started at the guide"):
        quick(p.model, p.guide, drawn(p, 3), start="guide").rate_distortion()


# coordinates


@pytest.mark.parametrize("problem", PROBLEMS)
def test_densities_integrate_and_gradients_match(problem):
    """log joint − log start does not depend on the coordinates; gradients agree with differences of 1e-6."""
    p = problem()
    x = drawn(p, 3)
    density = Densities(Problem.on(p.model, p.guide, x), "guide")
    u = density.draw(2)
    point = density(u)
    for d in range(u.shape[-1]):
        h = torch.zeros_like(u)
        h[..., d] = 1e-6
        for value, slope in (("start", point.d_start), ("ratio", point.d_ratio)):
            difference = (getattr(density(u + h), value) - getattr(density(u - h), value)) / 2e-6
            torch.testing.assert_close(slope[..., d], difference, rtol=1e-4, atol=1e-4)


def test_the_start_is_a_density_in_u():
    """∫ exp(start(u)) du = 1 on a grid, for one positive latent: the Jacobian is there, once."""
    p = GammaPoisson()
    x = drawn(p, 2)
    for start in ("prior", "guide"):
        density = Densities(Problem.on(p.model, p.guide, x), start)
        density.draw(1)
        u = torch.linspace(-30, 8, 40001).double()[:, None, None].expand(-1, 2, 1)
        mass = torch.trapezoid(density(u).start.exp(), u[:, 0, 0], dim=0)
        torch.testing.assert_close(mass, torch.ones(2).double(), rtol=0, atol=1e-5)


def test_inner_plates_and_several_sites():
    torch.manual_seed(0)
    x = torch.randn(50, 3).double()
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).sum(-1)
    result = quick(grouped, grouped_guide, x, start="guide")
    torch.testing.assert_close(result.log_w, exact.expand(4, 50), rtol=0, atol=1e-6)  # float32 scales
    check_unbiased((quick(grouped, grouped_guide, x, num_temperatures=8).log_px - exact).exp())


def test_scale_does_not_enter_and_masks_do():
    p = GammaPoisson()
    x = drawn(p, 4)
    plain = quick(p.model, p.guide, x, start="guide").log_w
    scaled = quick(poutine.scale(p.model, 7.0), poutine.scale(p.guide, 7.0), x, start="guide").log_w
    assert torch.equal(plain, scaled)
    masked = quick(poutine.mask(p.model, mask=False), poutine.mask(p.guide, mask=False), x, start="guide").log_w
    assert (masked == 0).all()


# how it runs


@pytest.mark.usefixtures("short")
def test_nothing_changes_and_the_seed_decides():
    vae = small_vae(seed=0).train()
    x = torch.bernoulli(torch.full((7, 6), 0.3))
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    before = torch.random.get_rng_state()
    a, b, c = (ais(vae.model, vae.guide, x, num_temperatures=5, leapfrog_steps=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert vae.training and torch.is_grad_enabled() and all(p.grad is None for p in vae.parameters())
    assert torch.equal(a.log_w, b.log_w) and not torch.equal(a.log_w, c.log_w)
    assert torch.distributions.Distribution._validate_args


def bare_flow(flow):
    return lambda: ZukoToPyro(flow())


@pytest.mark.parametrize(
    "prior",
    [
        lambda q: priors.Mixture(2, 3),
        lambda q: priors.VampPrior(q, 4, 6),
        lambda q: priors.StudentT(2),
        lambda q: FlowPrior(2),
        lambda q: bare_flow(FlowPrior(2).flow),
    ],
)
def test_priors_of_the_package_go_through(prior):
    """Their densities have finite gradients, and chains move: the mean of p̂ from prior and guide agree within 4 SE."""
    torch.manual_seed(0)
    q = Conditional(MLP(6, 4, (8,)), normal_family)
    vae = VAE(prior(q), Conditional(MLP(2, 6, (8,)), bernoulli), q)
    x = torch.bernoulli(torch.full((20, 6), 0.3))
    a, b = (
        quick(vae.model, vae.guide, x, start=s, num_temperatures=10, num_chains=20, step_size=0.3)
        for s in ("prior", "guide")
    )
    assert a.acceptance.min() > 0.3 and b.acceptance.min() > 0.3
    se = (a.mc_se.square() + b.mc_se.square()).sum().sqrt() / 20
    assert (a.log_px - b.log_px).mean().abs() < 4 * se


def test_parameters_that_want_gradients_get_none():
    vae = small_vae(seed=0)
    ais(vae.model, vae.guide, torch.zeros(3, 6), num_temperatures=2, leapfrog_steps=1)
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())


def test_chunks_of_rows():
    p = GammaPoisson()
    x = drawn(p, 11)
    result = quick(p.model, p.exact_guide, x, start="guide", chunk_size=16)
    torch.testing.assert_close(result.log_w, p.log_px(x).expand(4, 11), rtol=0, atol=1e-9)
    assert result.steps.shape == (5, 11) and result.acceptance.shape == (11,) and len(result) == 11


@pytest.mark.usefixtures("short")
def test_chains_of_a_row_in_parts():
    p = GammaPoisson()
    x = drawn(p, 3)
    exact = quick(p.model, p.exact_guide, x, start="guide", num_chains=5, chunk_size=2)
    torch.testing.assert_close(exact.log_w, p.log_px(x).expand(5, 3), rtol=0, atol=1e-9)
    result = ais(p.model, p.guide, x, num_temperatures=4, num_chains=400, leapfrog_steps=3, chunk_size=100)
    assert ((result.log_px - p.log_px(x)).abs() < 4 * result.mc_se).all() and result.mc_se.max() < 0.1
    assert len(result.log_w.unique(dim=0)) == 400 and result.steps.shape == (5, 3)
    torch.testing.assert_close(result.log_z[-1], result.log_px)


def test_runs_of_some_chains_are_joined_to_that_of_all():
    made = torch.Generator().manual_seed(0)
    log_w, ratio = 3 * torch.randn(2, 4, 7, 2, generator=made).double()  # by temperature, chain and row
    log_w[0, :3, 1] = -torch.inf  # the first part of a row has no weight
    acceptance, steps = torch.rand(7, 2, generator=made).double(), torch.ones(2, 2).double()

    def run(chains, step):
        part = AnnealedRun(AnnealingPath(betas("linear", 1), step * steps), torch.zeros(1), torch.zeros(1))
        for t in range(2):
            zeros = torch.zeros_like(ratio[t, chains])
            point = Point(torch.zeros(*zeros.shape, 1), zeros, ratio[t, chains], zeros, zeros)
            part.add(point, log_w[t, chains], acceptance[chains] if t else None)
        return part

    whole = run(slice(None), 1.0)
    for parts in ([slice(0, 3), slice(3, 7)], [slice(0, 2), slice(2, 5), slice(5, 7)]):
        joined = AnnealedRun.of_all_chains([run(part, 1.0) for part in parts])
        assert torch.equal(joined.log_w, whole.log_w) and joined.u.shape == (7, 2, 1)
        for name in ("log_z", "ratio", "acceptance"):
            torch.testing.assert_close(torch.stack(getattr(joined, name)), torch.stack(getattr(whole, name)))
    assert AnnealedRun.of_all_chains([run(slice(0, 3), 1.0), run(slice(3, 7), 8.0)]).path.steps[0, 0] == 5.0


def test_the_weighted_run_uses_the_frozen_steps_only(monkeypatch):
    check_frozen(monkeypatch)


def test_print_and_summary():
    p = GammaPoisson()
    result = quick(p.model, p.guide, drawn(p, 5))
    assert str(result).startswith("log p(x) ≥ ") and "AIS from the prior, 4 chains × 4 temperatures" in str(result)
    s = result.summary()
    assert s["rows"] == 5 and s["log_px"] == result.log_px.mean().item() and "lower bound" in s["unit"]
    assert s["measure"] == "counts"
    assert quick(p.model, p.guide, drawn(p, 1), num_chains=1).summary()["log_px_mc_se"] is None


# paths


def test_schedules():
    for schedule in ("linear", "sigmoid"):
        b = betas(schedule, 10)
        assert b[0] == 0 and b[-1] == 1 and (b.diff() > 0).all() and len(b) == 11
        torch.testing.assert_close(b, 1 - b.flip(0))  # symmetric


def test_adaptive_is_dense_where_the_ratio_varies():
    b = torch.linspace(0, 1, 101).double()
    steep = adaptive(AnnealingPath(b, torch.ones(101, 1), torch.where(b < 0.1, 100.0, 1.0).double()), 20)
    assert steep[0] == 0 and steep[-1] == 1 and (steep.diff() > 0).all()
    assert (steep < 0.12).sum() > 12
    flat = adaptive(AnnealingPath(b, torch.ones(101, 1), torch.zeros(101).double()), 4)
    torch.testing.assert_close(flat, torch.linspace(0, 1, 5).double())


# what is refused


def program(latent):
    def run(x):
        with pyro.plate("data", len(x)):
            return pyro.sample("z", latent(x))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", latent(x))
            pyro.sample("x", dist.Normal(z.reshape(*z.shape[: z.dim() - latent(x).event_dim], -1).sum(-1), 1.0), obs=x)

    return model, run


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (lambda x: dist.Bernoulli(0 * x + 0.5), "'z'.*discrete.*enumeration"),
        (lambda x: dist.Delta(x), "'z'.*single point"),
        (lambda x: dist.ProjectedNormal(torch.ones(len(x), 3)), "'z'.*no smooth"),
    ],
)
def test_latents_without_a_density_on_the_line(latent, message):
    model, guide = program(latent)
    with pytest.raises(ProgramError, match=message):
        quick(model, guide, torch.zeros(3))


def test_a_guide_that_is_a_point():
    model, _ = program(lambda x: dist.Normal(x, 1.0))
    _, point = program(lambda x: dist.Delta(x))
    with pytest.raises(ProgramError, match=r"'z'.*single point"):
        quick(model, point, torch.zeros(3), start="guide")
    quick(model, point, torch.zeros(3), start="prior")  # only asked for where chains start there


def test_a_guide_outside_the_support_of_the_prior():
    model, _ = program(lambda x: dist.Gamma(x + 2, 1.0))
    _, negative = program(lambda x: dist.Normal(x - 5, 0.1))
    with pytest.raises(ProgramError, match=r"'z'.*rows.*edge of the support"):
        quick(model, negative, torch.zeros(3), start="guide")


def test_bad_rows_and_nan():
    p = GammaPoisson()
    with pytest.raises(SupportError, match="'x'"):
        quick(p.model, p.guide, torch.tensor([1.0, -1.0]))

    def broken(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
            pyro.sample("x", dist.Normal(z, torch.where(x > 1, torch.nan, 1.0)), obs=x)

    _, guide = program(lambda x: dist.Normal(x, 1.0))
    with pytest.raises(ProgramError, match=r"NaN or \+inf for rows \[1\]"):
        quick(broken, guide, torch.tensor([0.0, 2.0]))


def test_a_subsampling_plate():
    def half(x):
        with pyro.plate("data", len(x), subsample_size=max(1, len(x) // 2)) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=max(1, len(x) // 2)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="2 rows where x has 4"):
        quick(half, guide, torch.zeros(4))


@pytest.mark.parametrize(
    "options",
    [
        {"start": "posterior"},
        {"schedule": "cosine"},
        {"num_temperatures": 0},
        {"num_chains": 0},
        {"leapfrog_steps": 0},
        {"chunk_size": 0},
        {"step_size": 0.0},
        {"step_size": math.inf},
        {"target_acceptance": 1.0},
        {"schedule": "adaptive", "num_chains": 1},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        AISSettings(**options)
