"""What every function of `evaluate` has in common: what must not enter the numbers, and what is refused, by name."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vae
from pyro_vae import (
    ais,
    bdmc,
    bracket,
    compare,
    convergence,
    decompose,
    defensive,
    enumerate_latents,
    gaps,
    linear_gaussian,
    log_likelihood,
    overfitting,
    posterior_predictive_check,
    prior_predictive_check,
    quadrature,
    simulate,
    simulation_based_calibration,
)
from pyro_vae.errors import ProgramError, SupportError
from tests.helpers.pilots import short_pilots

QUICK = {"num_temperatures": 4, "num_chains": 3, "leapfrog_steps": 2, "verbose": False}
SAMPLED = {"num_samples": 100, "verbose": False}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Annealing has short pilots: how long they are enters none of these questions."""
    with pytest.MonkeyPatch.context() as patch:
        short_pilots(patch)
        yield


def by_quadrature(model, guide, x):
    return quadrature(model, guide, x, tol=1e-3)


FUNCTIONS = {  # name: how it is run, and the numbers it finds, row by row or in the mean
    "importance": (partial(log_likelihood, **SAMPLED), lambda found: found.log_px),
    "defensive": (partial(log_likelihood, proposal=defensive(0.3), **SAMPLED), lambda found: found.log_px),
    "convergence": (partial(convergence, samples=(5, 20), verbose=False), lambda found: found[-1].log_px),
    "auto": (partial(log_likelihood, method="auto", **SAMPLED), lambda found: found.log_px),
    "linear_gaussian": (linear_gaussian, lambda found: found.log_px),
    "quadrature": (by_quadrature, lambda found: found.log_px),
    "ais": (partial(ais, **QUICK), lambda found: found.log_w),
    "ais from the guide": (partial(ais, start="guide", **QUICK), lambda found: found.log_w),
    "bracket": (partial(bracket, num_samples=50, **QUICK), lambda found: torch.stack([found.lower, found.upper])),
    "bdmc": (partial(bdmc, num_samples=50, **QUICK), lambda found: torch.stack([found.lower, found.upper])),
    "gaps": (partial(gaps, steps=5, **SAMPLED), lambda found: torch.stack([found.gap, found.amortisation])),
    "overfitting": (
        lambda model, guide, x: overfitting(model, guide, x, x, steps=5, **SAMPLED),
        lambda found: torch.tensor([found.encoder["value"], found.decoder["value"]]),
    ),
    "decompose": (
        partial(decompose, num_samples=4, verbose=False),
        lambda found: torch.tensor([part.value for part in (found.reconstruction, *found.parts().values())]),
    ),
    "simulation_based_calibration": (
        partial(simulation_based_calibration, num_rows=20, num_draws=9),
        lambda found: found.ranks,
    ),
    "posterior_predictive_check": (
        partial(posterior_predictive_check, num_draws=20),
        lambda found: torch.stack([d.p_rows for d in found.statistics.values()]),
    ),
    "prior_predictive_check": (
        lambda model, guide, x: prior_predictive_check(model, x, num_draws=20),
        lambda found: torch.stack([d.p_rows for d in found.statistics.values()]),
    ),
    "simulate": (lambda model, guide, x: simulate(model, x), lambda found: found.x),
}
GENERATED = {
    "bdmc",
    "simulation_based_calibration",
    "prior_predictive_check",
    "simulate",
}  # what draws x, or scores none
EVERY = pytest.mark.parametrize("name", FUNCTIONS)


def run(name, model, guide, x):
    function, numbers = FUNCTIONS[name]
    found = function(model, guide, x)
    return found, numbers(found)


def test_every_function_is_here():
    """But for enumeration, which takes another kind of model, and functions of results."""
    of_programs = {
        name for name in pyro_vae.__all__ if "pyro_vae.evidence" in str(getattr(getattr(pyro_vae, name), "__module__", ""))
        and isinstance(getattr(pyro_vae, name), type(ais))
    }  # fmt: skip
    proposals, results = {"defensive", "widened"}, {"compare", "pareto_khat", "save_evidence", "load_evidence"}
    missing = {"impute", "impute_mean"}
    drawn = {"posterior_draws", "to_datatree"}  # no numbers of rows
    kinds = {
        "particle_filter",
        "smooth",
        "forecast",
        "per_step",
        "class_posterior",
        "conditional_log_likelihood",
        "predictive_density",
    }  # of other programs
    named = {name.split()[0] for name in FUNCTIONS} - {"importance", "auto"} | {"log_likelihood", "enumerate_latents"}
    assert of_programs - results - proposals - missing - drawn - kinds <= named


def linear(plate):
    """z ~ N(0, 1), x ~ N(z, 1/4), with a guide that is off."""

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(0.8 * x - 0.1, 0.6))

    return model, guide


X = torch.tensor([-1.0, 0.2, 0.9, 2.0])


def plain(x):
    return pyro.plate("data", len(x))


def of_many(x):
    """A minibatch of 1000 rows."""
    return pyro.plate("data", 1000, subsample=torch.arange(len(x)))


@EVERY
def test_plate_size_and_scale_do_not_enter(name):
    pair = linear(plain)
    _, wanted = run(name, *pair, X)
    _, minibatch = run(name, *linear(of_many), X)
    assert torch.equal(minibatch, wanted)
    _, scaled = run(name, *(poutine.scale(program, scale=0.1) for program in pair), X)
    assert torch.equal(scaled, wanted)


@pytest.mark.parametrize("name", ["linear_gaussian", "quadrature"])
def test_an_exact_row_does_not_depend_on_its_batch(name):
    pair = linear(plain)
    _, whole = run(name, *pair, X)
    _, turned = run(name, *pair, X.flip(0))
    _, alone = run(name, *pair, X[1:2])
    torch.testing.assert_close(turned.flip(0), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["importance", "defensive", "ais", "ais from the guide"])
def test_an_estimate_of_a_row_does_not_depend_on_its_batch(name):
    """With other draws, as rows share a stream: within 4 standard errors, which take some chains to be known."""
    pair, function = linear(plain), partial(FUNCTIONS[name][0], **({"num_chains": 40} if "ais" in name else {}))
    whole, turned, alone = (function(*pair, x) for x in (X, X.flip(0), X[1:2]))
    exact = linear_gaussian(*pair, X).log_px
    for found, truth in ((whole, exact), (turned, exact.flip(0)), (alone, exact[1:2])):
        assert ((found.log_px - truth).abs() < 4 * found.mc_se.clamp_min(0.02)).all()


# refused, by name


def with_a_global(x):
    scale = pyro.sample("shared", dist.Gamma(2.0, 1.0))
    with plain(x):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def global_guide(x):
    pyro.sample("shared", dist.Gamma(2.0, 1.0))
    with plain(x):
        pyro.sample("z", dist.Normal(x, 0.6))


@EVERY
def test_a_latent_outside_the_plate_is_refused_by_site(name):
    with pytest.raises(ProgramError, match="'shared'"):
        run(name, with_a_global, global_guide, X)


def grey_model(x):
    with plain(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(*z.shape, 3)).to_event(1), obs=x)


def grey_guide(x):
    with plain(x):
        pyro.sample("z", dist.Normal(x.sum(-1) - 1.5, 0.8))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in GENERATED])
def test_grey_data_has_no_bernoulli_likelihood(name):
    x = torch.tensor([[0.0, 1, 1], [1, 0.4, 0], [0, 0, 1]])
    with pytest.raises(SupportError, match="1"):  # the row, or the column
        run(name, grey_model, grey_guide, x)
    if name != "linear_gaussian":
        run(name, grey_model, grey_guide, x.round())


def with_a_factor(x):
    with plain(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        pyro.factor("penalty", -z.square() - x.square())


@EVERY
def test_a_factor_is_refused_or_makes_a_score(name):
    """What has no normalising constant gives no log p(x): either it is refused, by site, or the number says "score"."""
    try:
        found, _ = run(name, with_a_factor, linear(plain)[1], X)
    except ProgramError as error:
        assert "'penalty'" in str(error)
    else:
        found = found[-1] if isinstance(found, list) else getattr(found, "importance", found)
        assert found.measure == "continuous x score" and "score" in str(found)
        said = found.to_dict() if hasattr(found, "to_dict") else found.summary()
        assert said["measure"] == found.measure


def test_a_score_is_not_compared_with_a_log_likelihood():
    model, guide = linear(plain)
    score, density = (log_likelihood(m, guide, X, **SAMPLED) for m in (with_a_factor, model))
    with pytest.raises(pyro_vae.errors.DataError, match="'b' is 'continuous'"):
        compare({"a": score, "b": density})


# discrete latents: sampled or enumerated, not annealed


def classes(x):
    with plain(x):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        bit = pyro.sample("bit", dist.Bernoulli(0.2 + 0.3 * k))
        pyro.sample("x", dist.Normal(2.0 * k - bit, 1.0), obs=x)


def classes_guide(x):
    with plain(x):
        k = pyro.sample("k", dist.Categorical(logits=torch.stack([-x, 0 * x, x], -1) / 2))
        pyro.sample("bit", dist.Bernoulli(0.3 + 0.1 * k))


def test_importance_sampling_of_discrete_latents_is_enumerations():
    x = torch.linspace(-2, 5, 40)
    exact = enumerate_latents(classes, classes_guide, x)
    assert (log_likelihood(classes, classes_guide, x, method="auto").log_px == exact.log_px).all()
    for proposal in (pyro_vae.evidence.importance.proposals.GUIDE, defensive(0.2)):
        found = log_likelihood(classes, classes_guide, x, num_samples=2000, proposal=proposal, verbose=False)
        assert ((found.log_px - exact.log_px).abs() < 4 * found.mc_se).all()
        ratio = (found.log_px - exact.log_px).exp()
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(x) ** 0.5


@pytest.mark.parametrize("name", ["ais", "ais from the guide", "bracket", "bdmc", "quadrature"])
def test_gradients_in_discrete_latents_are_refused_by_site(name):
    with pytest.raises(ProgramError, match=r"'k( \(guide\))?'.*discrete") as caught:
        run(name, classes, classes_guide, X)
    assert "enumerat" in str(caught.value)
