"""What is public is documented, and named in the tables that configs choose from; no row of these lacks its source."""

import importlib
import inspect
import re

import pytest

import pyro_vae
from pyro_vae.distributions.conditional import Conditional
from pyro_vae.posteriors import POSTERIORS
from pyro_vae.runs.objective_registry import GRADIENTS, OBJECTIVES
from pyro_vae.runs.registry import TABLES, names

MODULES = ("likelihoods", "priors", "posteriors")
TOLD = {"Evidence", "Latents", "Comparison", "GradientReport"}  # what is returned or listed
TOLD |= {"Exact", "Annealed", "Bracket", "Simulated", "Gaps", "Overfitting", "ElboDecomposition", "Calibration"}
TOLD |= {"PredictiveCheck", "PredictiveDensity", "FitResult", "ClassPosterior", "Classification"}  # returned, too
TOLD |= {"Filtered", "Smoothed", "Forecast"}  # of sequences
TOLD |= {"PosteriorDraws"}  # returned by posterior_draws
TOLD |= {"ConditionalEvidence"}  # returned by conditional_log_likelihood
TOLD |= {"TensorBoardTracker"}  # of an extra: in tests/runs/test_tracking.py
TOLD |= {"save_evidence"}  # the other half of load_evidence's example
TOLD |= {
    "load_run",
    "load_ensemble",
    "compare_runs",
    "train_run",
    "resume_run",
    "evaluate_run",
    "Config",
    "Data",
}  # of runs: in the docs


def public():
    """Name to object, of the package and of its modules of parts."""
    of_parts = [importlib.import_module(f"pyro_vae.{module}") for module in MODULES]
    found = {name: getattr(m, name) for m in (pyro_vae, *of_parts) for name in m.__all__}
    return {name: o for name, o in found.items() if callable(o)}


@pytest.mark.parametrize("name", public())
def test_what_is_public_is_documented_with_an_example(name):
    told = public()[name].__doc__ or ""
    assert len(told.splitlines()[0]) > 5
    assert ">>>" in told or name in TOLD, f"{name} has no example"


@pytest.mark.parametrize("role", TABLES)
def test_every_row_of_the_tables_has_formula_support_and_source(role):
    for name in names(role):
        spec = TABLES[role][name]
        assert spec.formula and spec.support, name
        assert spec.reference == "textbook" or re.search(r", \d{4}, https://", spec.reference), name


def posterior_of(spec):
    """The public name of what a spec makes."""
    needs = dict.fromkeys(spec.needs)
    made = spec.make(lambda features: None, 3, **needs)
    return made.family.__name__.partition("(")[0] if isinstance(made, Conditional) else type(made).__name__


def test_every_public_posterior_is_in_the_table():
    from pyro_vae import posteriors

    exported = {n for n in posteriors.__all__ if callable(getattr(posteriors, n))}
    assert exported | {"normal"} == {posterior_of(spec) for spec in POSTERIORS.values()}


def test_every_public_bound_and_estimator_is_in_the_tables():
    """A bound is a function of log weights or makes one; the mean-field ELBO is Bound(elbo, estimator=analytic_kl())."""
    here = {n: inspect.getmodule(o) for n, o in vars(pyro_vae).items() if callable(o)}
    files = ("objectives.bounds", "objectives.jackknife")
    bounds = {n for n, m in here.items() if m and m.__name__.endswith(files)}
    assert bounds | {"mean_field_elbo", "trace_enum"} == set(OBJECTIVES)
    estimators = {n for n, o in vars(pyro_vae).items() if type(o).__name__ == "Estimate"}
    assert estimators == set(GRADIENTS)
