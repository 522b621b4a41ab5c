"""A user's own program, a Gamma prior, a Poisson likelihood and a LogNormal guide, through every public function of `evaluate`.

None of them is told anything of it. log p(x) is negative binomial (by scipy), the ELBO and its terms of a LogNormal guide are
closed forms; whatever has a number is held against them, within 4 standard errors of what it says its error is.
"""

import importlib
import inspect
import math
import pkgutil

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import pyro_vae
from pyro_vae import (
    Evidence,
    Exact,
    ais,
    bdmc,
    bracket,
    compare,
    compare_runs,
    convergence,
    decompose,
    defensive,
    enumerate_latents,
    gaps,
    linear_gaussian,
    load_evidence,
    log_likelihood,
    log_weights,
    overfitting,
    pareto_khat,
    posterior_predictive_check,
    prior_predictive_check,
    quadrature,
    save_evidence,
    simulate,
    simulation_based_calibration,
    widened,
)
from pyro_vae.errors import ProgramError, UnreliableError
from pyro_vae.evidence.importance.proposals import GUIDE

A, B = 2.0, 0.5


def model(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(A, B))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def guide(x):
    loc, scale = location(x)
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(loc, scale))


def narrow_guide(x):
    loc, scale = location(x)
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(loc + 0.5, scale / 8))


def exact_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(A + x, B + 1))


# the same, in closed form


def location(x):
    """Of the guide, wider than the posterior Gamma(A + x, B + 1)."""
    return ((A + x) / (B + 1)).log(), 1.6 / (A + x).sqrt()


def exact(x):
    """log p(x): negative binomial."""
    return torch.as_tensor(stats.nbinom.logpmf(x.numpy(), A, B / (B + 1)), dtype=torch.float64)


def parts(x):
    """E log p(x | rate) and KL(q ‖ p) of the guide, ``(N,)`` each."""
    x = x.double()
    loc, scale = location(x)
    mean = (loc + scale.square() / 2).exp()
    reconstruction = x * loc - mean - (x + 1).lgamma()
    log_prior = (A - 1) * loc - B * mean + A * math.log(B) - math.lgamma(A)
    entropy = loc + (2 * math.pi * math.e * scale.square()).log() / 2
    return reconstruction, -entropy - log_prior


def elbo(x):
    reconstruction, kl = parts(x)
    return reconstruction - kl


def drawn(rows, seed=0):
    rng = torch.Generator().manual_seed(seed)
    rate = torch._standard_gamma(torch.full((rows,), A), generator=rng) / B
    return torch.poisson(rate, generator=rng)


X = drawn(60)
QUICK = {"num_temperatures": 12, "num_chains": 8, "leapfrog_steps": 4, "verbose": False}


# checks


def within(got, wanted, se, least=1e-6):
    """Row by row, or in the mean, within 4 standard errors."""
    got, wanted, se = (torch.as_tensor(v, dtype=torch.float64) for v in (got, wanted, se))
    off = (got - wanted).abs() / se.clamp_min(least)
    assert off.max() < 4, f"{off.max():.1f} standard errors off"


def is_one(ratio):
    """Ratios of independent rows have mean 1."""
    within(ratio.mean(), 1.0, ratio.std() / len(ratio) ** 0.5)


def enclosed(lower, truth, upper, lower_se, upper_se):
    """In the mean over rows."""
    rows = len(truth)
    below, above = (se.square().sum().sqrt() / rows for se in (lower_se, upper_se))
    assert (lower - truth).mean() < 4 * below and (truth - upper).mean() < 4 * above
    assert (upper - lower).mean() < 0.2  # and not by being far apart


# every public function


def by_importance_sampling():
    for proposal in (GUIDE, defensive(0.2), widened(1.2)):
        found = log_likelihood(model, guide, X, num_samples=1000, proposal=proposal, verbose=False)
        within(found.log_px, exact(X), found.mc_se)
        is_one((found.log_px - exact(X)).exp())
        assert len(found.flagged) == 0 and found.measure == "counts" and str(proposal) in str(found)
    found = log_likelihood(model, guide, X, verbose=False)
    within(found.elbo, elbo(X), found.elbo_se)
    within(found.jackknife.mean(), exact(X).mean(), found.mc_se.square().sum().sqrt() / len(X))
    torch.testing.assert_close(found.bits_per_dim(1), -found.log_px / math.log(2))
    enough = log_likelihood(model, guide, X, num_samples=64, target_se=0.01, verbose=False)
    assert enough.num_samples > 64 and enough.mc_se.max() <= 0.01
    within(enough.log_px, exact(X), enough.mc_se)
    with pytest.raises(UnreliableError, match="not to be believed"):
        log_likelihood(model, narrow_guide, X, num_samples=500, strict=True, verbose=False)


def by_more_and_more_particles():
    """In the mean over rows and draws the bound rises with K, to log p(x)."""
    found = convergence(model, guide, drawn(1000), samples=(1, 10, 1000), verbose=False)
    one, ten, many = (e.log_px.mean() for e in found)
    assert one < ten < many
    within(many, exact(drawn(1000)).mean(), found[-1].mc_se.square().sum().sqrt() / 1000)


def by_whichever_method():
    for found in (log_likelihood(model, guide, X, method=m) for m in ("auto", "exact")):
        assert isinstance(found, Exact) and found.method == "quadrature in 1 dimensions" and found.measure == "counts"
        torch.testing.assert_close(found.log_px, exact(X), atol=1e-4, rtol=0)


def by_quadrature():
    found = quadrature(model, guide, X.double(), tol=1e-6)
    torch.testing.assert_close(found.log_px, exact(X), atol=1e-6, rtol=0)
    assert len(found.flagged) == 0


def not_by_enumeration():
    with pytest.raises(ProgramError, match="site 'rate' is continuous"):
        enumerate_latents(model, guide, X)


def not_in_closed_form():
    with pytest.raises(ProgramError, match="site 'rate' is a Gamma"):
        linear_gaussian(model, guide, X)


def by_annealing():
    for start in ("prior", "guide"):
        found = ais(model, guide, X, start=start, **QUICK)
        is_one((found.log_px - exact(X)).exp())
        assert (exact(X) - found.log_px).mean() < 0.3  # nor far below: 0.05 ± 0.06 over seeds
        assert found.method.endswith(start) and found.measure == "counts"
    found = ais(model, guide, X, **QUICK)
    betas, rate, distortion = found.rate_distortion()
    error = found.mc_se.square().sum().sqrt() / len(X)
    within(rate[-1] + distortion[-1], -exact(X).mean(), error)
    x = X.double()
    at_prior = x * (special.digamma(A) - math.log(B)) - A / B - (x + 1).lgamma()  # E log p(x | rate) under the prior
    within(distortion[0], -at_prior.mean(), found.ratio[0].sub(at_prior).std() / len(X) ** 0.5)
    a, b = A + x, torch.tensor(B + 1)  # of the posterior, at β = 1
    kl = torch.distributions.kl_divergence(torch.distributions.Gamma(a, b), torch.distributions.Gamma(A, B))
    assert (betas[0], rate[0], betas[-1]) == (0, 0, 1) and rate[-1] == pytest.approx(kl.mean().item(), abs=0.1)


def between_two_ends():
    found = bracket(model, guide, X, num_samples=300, **QUICK)
    enclosed(found.lower, exact(X), found.upper, found.lower_se, found.upper_se)
    assert not found.strict and "APPROXIMATE" in str(found)


def between_two_strict_ends():
    found = bdmc(model, exact_guide, X, num_samples=300, **QUICK)
    torch.testing.assert_close(found.upper, exact(found.x), atol=1e-4, rtol=0)
    found = bdmc(model, guide, X, num_samples=300, start="prior", seed=1, **QUICK | {"num_temperatures": 25})
    enclosed(found.lower, exact(found.x), found.upper, found.lower_se, found.upper_se)
    is_one((exact(found.x) - found.upper).exp())
    assert found.strict and found.x.shape == X.shape


def simulated():
    x = simulate(model, torch.zeros(4000), seed=1).x
    mean, variance = A / B, A / B * (1 + 1 / B)
    within(x.double().mean(), mean, (variance / len(x)) ** 0.5)


def where_the_gap_comes_from():
    found = gaps(model, guide, X, log_px=log_likelihood(model, guide, X, method="exact"), steps=250, verbose=False)
    within(found.gap, exact(X) - elbo(X), found.gap_se)
    assert (found.approximation > -4 * found.approximation_se).all() and found.approximation.mean() > 0.001
    assert found.amortisation.mean() > 0.01 and found.converged.all()


def what_was_overfitted():
    train, test = X[:30], X[30:]
    found = overfitting(model, guide, train, test, log_px=(exact(train), exact(test)), steps=80, verbose=False)
    s = found.summary()
    assert s["decoder"]["value"] == pytest.approx((exact(train).mean() - exact(test).mean()).item())
    error = sum(g.gap_se.square().sum() / len(g) ** 2 for g in (found.train, found.test)) ** 0.5
    within(s["elbo"], elbo(train).mean() - elbo(test).mean(), error)


def the_elbo_taken_apart():
    found = decompose(model, guide, X, num_samples=200, verbose=False)
    reconstruction, kl = parts(X)
    within(found.reconstruction.value, reconstruction.mean(), found.reconstruction.mc_se)
    within(found.kl.value, kl.mean(), found.kl.mc_se)
    assert sum(part.value for part in found.parts().values()) == pytest.approx(found.kl.value)
    assert 0 < found.mutual_information.value < math.log(len(X)) and found.active() == 1


def compared():
    sampled = {name: log_likelihood(model, g, X, verbose=False) for name, g in (("a", guide), ("b", exact_guide))}
    made = compare(sampled | {"oracle": quadrature(model, guide, X), "annealed": ais(model, guide, X, **QUICK)})
    assert {m.name for m in made.models} == {"a", "b", "oracle", "annealed"} and made.rows == len(X)
    for m in made.models:  # one model: no method makes it another
        within(m.difference, 0.0, math.hypot(m.difference_se, m.difference_mc_se), least=1e-4)
    assert "oracle" in made.latex() and "quadrature" in made.csv()


def calibrated():
    found = simulation_based_calibration(model, exact_guide, X[:1], num_rows=300)
    assert found.passed and found.names == ("rate", "log p(x, z)")
    found = simulation_based_calibration(model, narrow_guide, X[:1], num_rows=300)
    assert "rate" in found.rejected and "too narrow" in found.words[0]


def drawn_from_the_posterior():
    """P(x_rep ≥ x) under the posterior is negative binomial, too, from A + x and B + 1."""
    found = posterior_predictive_check(
        model, guide, X, statistics={"x": lambda x: x}, num_draws=400, num_particles=4000
    ).statistics["x"]
    p = stats.nbinom.sf(X.numpy() - 1, A + X.numpy(), (B + 1) / (B + 2))
    within(found.p_rows, p, (p * (1 - p) / 400 + 1e-4) ** 0.5)


def drawn_from_the_prior():
    found = prior_predictive_check(model, X, statistics={"x": lambda x: x}, num_draws=400).statistics["x"]
    p = stats.nbinom.sf(X.numpy() - 1, A, B / (B + 1))
    within(found.p_rows, p, (p * (1 - p) / 400 + 1e-4) ** 0.5)
    assert not found.extreme
    assert prior_predictive_check(model, 3 * X, statistics={"x": lambda x: x}, num_draws=100).extreme == ("x",)


def tails():
    """k̂ of weights that anyone has computed."""
    flat, heavy = (pareto_khat(log_weights(model, g, X, num_particles=1000)) for g in (guide, narrow_guide))
    assert (flat < 0.7).all() and heavy.median() > 0.7


def kept_and_gone_on_with(folder):
    """On disk, merged and added to: the same bits as in one go."""
    whole = log_likelihood(model, guide, X, num_samples=500, verbose=False)
    halves = [
        log_likelihood(model, guide, X, num_samples=500, particles=p, verbose=False)
        for p in (range(250), range(250, 500))
    ]
    for i, half in enumerate(halves):
        save_evidence(half, folder / f"{i}.safetensors")
    first, second = (load_evidence(folder / f"{i}.safetensors") for i in range(2))
    merged = Evidence.merge([second, first])
    more = log_likelihood(model, guide, X, num_samples=500, resume=first, verbose=False)
    assert torch.equal(merged.log_px, whole.log_px) and torch.equal(more.log_px, whole.log_px)
    again = Evidence.from_csv(whole.rows_csv(), num_samples=500, seed=0)
    assert torch.equal(again.log_px, whole.log_px)


GOES = {
    by_importance_sampling: [log_likelihood, defensive, widened],
    by_more_and_more_particles: [convergence],
    by_whichever_method: [log_likelihood],
    by_quadrature: [quadrature],
    not_by_enumeration: [enumerate_latents],
    not_in_closed_form: [linear_gaussian],
    by_annealing: [ais],
    between_two_ends: [bracket],
    between_two_strict_ends: [bdmc],
    simulated: [simulate],
    where_the_gap_comes_from: [gaps],
    what_was_overfitted: [overfitting],
    the_elbo_taken_apart: [decompose],
    compared: [compare],
    calibrated: [simulation_based_calibration],
    drawn_from_the_posterior: [posterior_predictive_check],
    drawn_from_the_prior: [prior_predictive_check],
    tails: [pareto_khat],
    kept_and_gone_on_with: [save_evidence, load_evidence],
}
ELSEWHERE = {  # what is no question to a program of one's own with complete data, and where it is tested
    pyro_vae.impute: "evidence/test_imputation.py",
    pyro_vae.impute_mean: "evidence/test_imputation.py",
    pyro_vae.class_posterior: "models/test_classes.py",
    pyro_vae.conditional_log_likelihood: "evidence/test_conditional.py",
    pyro_vae.predictive_density: "evidence/test_predictive.py",
    pyro_vae.data_set_calibration: "diagnostics/test_data_set_calibration.py",
    pyro_vae.classification: "diagnostics/test_classification.py",
    pyro_vae.particle_filter: "evidence/sequential/test_particle_filter.py",
    pyro_vae.smooth: "evidence/sequential/test_particle_filter.py",
    pyro_vae.forecast: "evidence/sequential/test_particle_filter.py",
    pyro_vae.per_step: "evidence/sequential/test_particle_filter.py",
    pyro_vae.posterior_draws: "evidence/test_arviz.py",
    pyro_vae.to_datatree: "evidence/test_arviz.py",
}
INNER = {
    "check_context_gaps",
    "importance",
    "exact",
    "measure_of",
    "on_tensors",
    "own_rows",
}  # reached by way of log_likelihood, and of what it says


@pytest.mark.parametrize("check", GOES, ids=lambda f: f.__name__)
def test_it_goes_through(check, tmp_path):
    state = torch.random.get_rng_state()
    check(tmp_path) if inspect.signature(check).parameters else check()
    assert (
        torch.equal(torch.random.get_rng_state(), state) or check is tails
    )  # bare weights are drawn from the user's state


def left_out(tried):
    """Public functions of evaluate that are not among those tried."""
    public = [getattr(pyro_vae, name) for name in pyro_vae.__all__]
    functions = {f for f in public if inspect.isfunction(f) and f.__module__.startswith("pyro_vae.evidence.")}
    return {f.__name__ for f in functions - set(tried) - set(ELSEWHERE)}


def test_no_public_function_is_left_out():
    tried = [f for functions in GOES.values() for f in functions]
    assert left_out(tried) == set()
    assert left_out([f for f in tried if f is not ais]) == {"ais"}
    assert compare_runs.__module__ == "pyro_vae.runs.compare_runs"  # of folders, not of programs


def test_every_function_of_programs_is_public():
    """Whatever takes a model and explains itself by an example is meant for users, and is exported."""
    packages = [importlib.import_module(f"pyro_vae.{name}") for name in ("evidence", "diagnostics", "programs")]
    names = [m.name for p in packages for m in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    own = [f for m in modules for _, f in inspect.getmembers(m, inspect.isfunction) if f.__module__ == m.__name__]
    of_programs = [f for f in own if next(iter(inspect.signature(f).parameters), "") == "model"]
    meant = {f.__name__ for f in of_programs if ">>>" in (f.__doc__ or "")}
    assert meant - INNER <= set(pyro_vae.__all__) and {"ais", "bracket", "gaps"} <= meant
