"""Whatever counts something is a whole number: each such argument of each public function is refused by its name otherwise."""

import inspect

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae
from pyro_vae import Evidence, iwae
from pyro_vae.common.optional import installed
from pyro_vae.data.dequantize import dequantize
from pyro_vae.diagnostics.elbo_decomposition import decompose
from pyro_vae.diagnostics.gradient_noise import gradient_report
from pyro_vae.diagnostics.inference_gaps import gaps
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.diagnostics.overfitting import overfitting
from pyro_vae.diagnostics.predictive_checks import posterior_predictive_check, prior_predictive_check
from pyro_vae.diagnostics.sbc import simulation_based_calibration
from pyro_vae.errors import UsageError
from pyro_vae.evidence.annealing.ais import ais
from pyro_vae.evidence.annealing.bracket import bdmc, bracket
from pyro_vae.evidence.exact.enumeration import enumerate_latents
from pyro_vae.evidence.exact.linear_gaussian import linear_gaussian
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.importance.convergence import convergence
from pyro_vae.evidence.importance.estimator import importance
from pyro_vae.evidence.imputation import impute, impute_mean
from pyro_vae.evidence.log_likelihood import log_likelihood
from tests.helpers.gaussian import gaussian
from tests.helpers.small import small_vae

X = torch.tensor([0.5, -1.0, 2.0])


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7))


def coded(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared(x):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shared_guide(x):
    pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))


def chain():
    def step(z, *_):
        return dist.Normal(z, 1.0).to_event(1)

    return pyro_vae.StateSpaceModel(
        pyro_vae.StandardNormal(1), step, step, lambda x, *_: x, lambda z, h: dist.Normal(z + 0 * h, 1.0).to_event(1)
    )


class Pair:
    model, guide = staticmethod(gaussian), staticmethod(guide)


ON_PAIR = [
    log_likelihood, importance, convergence, ais, bracket, bdmc, linear_gaussian, quadrature, gaps, decompose, latents,
    posterior_predictive_check, simulation_based_calibration, pyro_vae.posterior_draws,
    *([pyro_vae.to_datatree] if installed("xarray") else ()),
]  # fmt: skip
CALLS = {
    **{f.__name__: (f, lambda f, **n: f(gaussian, guide, X, **n)) for f in ON_PAIR},
    "log_likelihood, auto": (log_likelihood, lambda f, **n: f(gaussian, guide, X, method="auto", **n)),
    "enumerate_latents": (enumerate_latents, lambda f, **n: f(coded, None, X, **n)),
    "prior_predictive_check": (prior_predictive_check, lambda f, **n: f(gaussian, X, **n)),
    "overfitting": (overfitting, lambda f, **n: f(gaussian, guide, X, X, **n)),
    "impute": (impute, lambda f, **n: f(Pair, X, **n)),
    "impute_mean": (impute_mean, lambda f, **n: f(Pair, X, **n)),
    "class_posterior": (pyro_vae.class_posterior, lambda f, **n: f(coded, gaussian, X, site="z", **n)),
    "conditional_log_likelihood": (
        pyro_vae.conditional_log_likelihood,
        lambda f, **n: f(gaussian, guide, X, site="x", **n),
    ),
    "classification": (pyro_vae.classification, lambda f, **n: f(torch.full((2, 2), 0.5), [0, 1], **n)),
    "predictive_density": (pyro_vae.predictive_density, lambda f, **n: f(shared, shared_guide, X, **n)),
    "data_set_calibration": (pyro_vae.data_set_calibration, lambda f, **n: f(shared, lambda x: shared_guide, X, **n)),
    **{
        f.__name__: (
            f,
            lambda f, **n: f(chain(), torch.zeros(2, 3, 1), **({"steps": 1} if f is pyro_vae.forecast else {}) | n),
        )
        for f in (pyro_vae.particle_filter, pyro_vae.smooth, pyro_vae.forecast)
    },
    "gradient_report": (
        gradient_report,
        lambda f, **n: f(small_vae(), torch.ones(2, 9), objectives=[pyro_vae.Bound(iwae, 2)], **n),
    ),
}
NUMBERS = [
    (call, p.name)
    for call, (function, _) in CALLS.items()
    for p in inspect.signature(function).parameters.values()
    if "int" in str(p.annotation).split(" | ") and p.name != "budget"
]
BAD = {"fraction": 1.5, "text": "3", "truth value": True, "fraction of numpy": np.float64(2.5)}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("call", "name"), NUMBERS, ids=[f"{call}-{name}" for call, name in NUMBERS])
def test_it_is_refused_by_its_name(call, name, kind):
    function, run = CALLS[call]
    with pytest.raises(UsageError, match=f"^{name} must be a whole number"):
        run(function, **{name: BAD[kind]})


def test_all_that_counts_is_looked_at():
    """Signatures say "int": so many arguments of these, and every public function of evidence/ and diagnostics/ is here."""
    assert len(NUMBERS) > 60
    public = {n: f for n in pyro_vae.__all__ if inspect.isfunction(f := getattr(pyro_vae, n))}
    ours = [n for n, f in public.items() if f.__module__.split(".")[1] in ("evidence", "diagnostics")]
    counted = [n for n in ours if any(p.annotation == "int" for p in inspect.signature(public[n]).parameters.values())]
    assert set(counted) - {"to_datatree"} <= set(CALLS)  # which is here where xarray is


def test_whole_numbers_of_other_kinds_are_taken():
    found = log_likelihood(gaussian, guide, X, num_samples=np.int64(30), chunk_size=torch.tensor(64), verbose=False)
    assert found.num_samples == 30


@pytest.mark.parametrize("k", [1.5, "10"])
def test_numbers_of_a_curve_are_whole(k):
    with pytest.raises(UsageError, match=r"^samples must be a whole number"):
        convergence(gaussian, guide, X, samples=(1, k))


def test_numbers_of_results_are_whole():
    rows = torch.zeros(5, 1, dtype=torch.float64)
    evidence = Evidence(*rows, num_samples=1, seed=0, measure="continuous")
    for run, name in (
        (lambda: evidence.bits_per_dim(2.5), "event_size"),
        (lambda: evidence.of_counts(2.5, 3), "levels"),
        (lambda: evidence.of_counts(16, 2.5), "event_size"),
        (lambda: dequantize(16.5), "levels"),
    ):
        with pytest.raises(UsageError, match=f"^{name} must be a whole number"):
            run()
