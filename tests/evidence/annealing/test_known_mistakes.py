"""Broken variants of annealing, as found in public code, each caught by the tests that the right one passes."""

import pytest
import torch

from pyro_vae.evidence.annealing import ais as ais_module
from pyro_vae.evidence.annealing import hmc
from pyro_vae.evidence.annealing.densities import Densities, total
from pyro_vae.programs.plates import sum_rows
from pyro_vae.programs.unconstrained import SubstituteLatents
from tests.helpers.annealing import check_frozen, check_unbiased, check_upper, drawn, narrow, quick
from tests.helpers.conjugate import BetaBernoulli, GammaPoisson, NormalGamma
from tests.helpers.environment import HEAVY


def forward(problem, **options):
    """The check of `test_the_mean_weight_is_p_of_x`, on more rows."""
    p = problem()
    x = drawn(p, 1000)
    check_unbiased((quick(p.model, p.guide, x, **options).log_px - p.log_px(x)).exp())


def backward(problem, **options):
    """The check of `test_reverse_mean_weight_is_one_over_p`, on more rows."""
    check_upper(problem(), narrow(problem(), 1000, **options))


def transition_first(density, frozen, t, point, log_w, leapfrogs):
    """microsoft/jackknife's order: the weight is taken after the transition."""
    before, beta = frozen.betas[t - 1].item(), frozen.betas[t].item()
    point, acceptance = hmc.transition(density, beta, point, frozen.steps[t], leapfrogs)
    return point, log_w + (beta - before) * point.ratio, acceptance


def one_drift_too_few(density, beta, point, momentum, step, leapfrogs):
    """A loop off by one: the momentum gets a step and a half at the end, so a trajectory is not reversible."""
    momentum = momentum + step / 2 * point.slope(beta)
    for _ in range(leapfrogs - 1):
        point = density(point.u + step * momentum)
        momentum = momentum + step * point.slope(beta)
    return point, momentum + step / 2 * point.slope(beta)


def stepping_by_its_gradient(density, beta, point, step, leapfrogs):
    """Each chain's step is adapted, within the weighted run, to where it is."""
    size = (step / (1 + point.slope(beta).norm(dim=-1)))[..., None]
    momentum = torch.randn_like(point.u)
    end, final = hmc.leapfrog(density, beta, point, momentum, size, leapfrogs)
    change = end.log_density(beta) - point.log_density(beta) + hmc.kinetic(momentum) - hmc.kinetic(final)
    return point.replaced(end, hmc.accepts(change)), change.clamp(max=0).exp()


def adapting_by_acceptance(density, frozen, t, point, log_w, leapfrogs, right=ais_module.advance):
    """Steps follow the acceptance of the weighted run, shared by chains: a bias too small to see; the steps show it."""
    point, log_w, acceptance = right(density, frozen, t, point, log_w, leapfrogs)
    if t + 1 < len(frozen.steps):
        frozen.steps[t + 1] = hmc.adapt(frozen.steps[t], acceptance, 0.65)
    return point, log_w, acceptance


def standard_normal(density, latents):
    """Every prior is N(0, 1)."""
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob
    return total(
        {name: sum_rows(name, log_prob(site["value"]), density.problem.plates) for name, site in latents.items()}
    )


def no_jacobian(placed, name, site):
    return sum_rows(name, torch.zeros_like(site["value"]), placed.layouts[name].plates)


def always(change):
    return torch.ones_like(change, dtype=torch.bool)


CHECKS = {
    "gamma": lambda: forward(GammaPoisson, step_size=0.9),
    "gamma, small steps": lambda: forward(GammaPoisson, step_size=0.5),
    "gamma from the guide": lambda: forward(GammaPoisson, step_size=0.7, start="guide"),
    "gamma, more temperatures": lambda: forward(GammaPoisson, step_size=0.9, num_temperatures=8),
    "beta": lambda: forward(BetaBernoulli, step_size=1.2),
    "beta, small steps": lambda: forward(BetaBernoulli, step_size=0.8),
    "two sites": lambda: forward(NormalGamma, start="guide", step_size=0.6),
    "two sites, back": lambda: backward(NormalGamma, step_size=0.5),
    "beta, back": lambda: backward(BetaBernoulli, step_size=1.2),
}
BROKEN = {
    "transition before weight": (ais_module, "advance", transition_first),
    "leapfrog off by one": (hmc, "leapfrog", one_drift_too_few),
    "prior hard-coded": (Densities, "log_prior", standard_normal),
    "Jacobian missing": (SubstituteLatents, "log_jacobian", no_jacobian),
    "no Metropolis correction": (hmc, "accepts", always),
    "step adapted inside the run": (ais_module, "transition", stepping_by_its_gradient),
}
CAUGHT = [
    ("transition before weight", "gamma"),
    ("transition before weight", "beta"),
    ("transition before weight", "two sites, back"),
    ("leapfrog off by one", "gamma from the guide"),
    ("leapfrog off by one", "beta, small steps"),
    ("leapfrog off by one", "two sites, back"),
    ("prior hard-coded", "gamma from the guide"),
    ("prior hard-coded", "two sites"),
    ("prior hard-coded", "beta"),
    ("Jacobian missing", "beta"),
    ("Jacobian missing", "two sites, back"),
    ("Jacobian missing", "beta, back"),
    ("no Metropolis correction", "gamma, small steps"),
    ("no Metropolis correction", "beta"),
    ("no Metropolis correction", "two sites, back"),
    ("step adapted inside the run", "gamma, more temperatures"),
    ("step adapted inside the run", "two sites, back"),
][:: 1 if HEAVY else 2]  # once each, at least; the heavy form by all that catch it


@pytest.mark.parametrize("check", CHECKS)
def test_the_right_one_passes(check):
    CHECKS[check]()


@pytest.mark.parametrize(("broken", "check"), CAUGHT)
def test_the_broken_one_fails(monkeypatch, broken, check):
    """By its mean, not by a standard error that is too large to tell."""
    monkeypatch.setattr(*BROKEN[broken])
    with pytest.raises(AssertionError, match="the mean is"):
        CHECKS[check]()


def test_every_broken_one_is_caught():
    assert {broken for broken, _ in CAUGHT} == set(BROKEN)


def test_steps_that_adapt_by_acceptance_are_seen(monkeypatch):
    check_frozen(monkeypatch)
    monkeypatch.setattr(ais_module, "advance", adapting_by_acceptance)
    with pytest.raises(AssertionError, match="not the steps"):
        check_frozen(monkeypatch)
