"""VAEEstimator: scikit-learn's own checks, its tools around it, and numbers that are those of pyro_vae."""

import json
import pickle
import runpy
import warnings

import joblib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from pyro_vae import (
    VAE,
    Conditional,
    HierarchicalVAE,
    StandardNormal,
    TopDown,
    VAEEstimator,
    binomial,
    log_likelihood,
    normal,
    reconstruct,
)
from pyro_vae.errors import FlaggedWarning, PyroVAEError, SupportError, UsageError
from pyro_vae.models.networks import MLP
from pyro_vae.posteriors import full_normal
from tests.helpers import late_imports
from tests.helpers.children import printed_by
from tests.helpers.environment import ROOT
from tests.helpers.small import small_vae

TINY = {"hidden": (4,), "epochs": 1, "num_samples": 25, "random_state": 0}


def table(rows=30, columns=4, seed=0):
    g = np.random.default_rng(seed)
    return (g.normal(size=(rows, 2)) @ g.normal(size=(2, columns)) + 0.5 * g.normal(size=(rows, columns))) * 10 + 100


@parametrize_with_checks([VAEEstimator(**TINY)])
def test_the_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own of estimators, and of a model of one epoch
        check(estimator)


@pytest.fixture(scope="module")
def fitted():
    with torch.random.fork_rng():
        return VAEEstimator(hidden=(8,), epochs=4, num_samples=100, random_state=3).fit(table())


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.FlaggedWarning")
def test_its_numbers_are_those_of_the_package(fitted):
    x, vae = table(), fitted.vae_
    evidence = fitted.evidence(x)
    assert evidence.noise == "row" and np.array_equal(fitted.score_samples(x), evidence.log_px.numpy())
    assert fitted.score(x) == pytest.approx(evidence.summary()["log_px"], rel=1e-12)
    other = log_likelihood(vae.model, vae.guide, x, num_samples=100, seed=9, verbose=False)  # the noise of blocks
    error = torch.hypot(evidence.mc_se, other.mc_se)
    assert ((evidence.log_px - other.log_px).abs() < 5 * error).all()
    codes = fitted.transform(x)
    assert codes.shape == (30, 2) and codes.dtype == np.float64
    np.testing.assert_allclose(fitted.inverse_transform(codes), reconstruct(vae, x).numpy(), rtol=1e-12)
    assert fitted.history_[-1]["epoch"] == 4 and fitted.sample(7).shape == (7, 4)
    assert np.array_equal(fitted.sample(3), fitted.sample(3)) and not np.array_equal(
        fitted.sample(3), fitted.sample(3, 1)
    )


def test_its_score_is_that_of_factor_analysis_where_the_model_is_that():
    """Exact: with the posterior itself as guide each weight is p(x)."""
    x = table(30)
    fa = FactorAnalysis(2, random_state=0).fit(x)
    w, mean, noise = (torch.tensor(t) for t in (fa.components_, fa.mean_, fa.noise_variance_))
    cov = (torch.eye(2, dtype=torch.float64) + w / noise @ w.T).inverse()
    off = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def make(columns):
        held = nn.Module()
        held.off = off
        return VAE(
            lambda: dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1),
            lambda z: dist.Normal(z @ w + mean + held.off, noise.sqrt()).to_event(1),
            lambda x: dist.MultivariateNormal((x - mean) @ (cov @ (w / noise)).T + 0 * held.off, cov),
        )

    estimator = VAEEstimator(make=make, epochs=1, learning_rate=1e-12, num_samples=25, standardize=False).fit(x)
    np.testing.assert_allclose(estimator.score_samples(x), fa.score_samples(x), rtol=1e-9)
    np.testing.assert_allclose(estimator.transform(x), fa.transform(x), atol=1e-9)


def test_pipeline_search_in_two_processes_and_columns_by_name():
    pipeline = make_pipeline(StandardScaler(), VAEEstimator(**TINY))
    search = GridSearchCV(pipeline, {"vaeestimator__latent_dim": [1, 2]}, cv=2, n_jobs=2, error_score="raise")
    with warnings.catch_warnings(), joblib.parallel_backend("loky", inner_max_num_threads=1):
        warnings.simplefilter("ignore", FlaggedWarning)
        search.fit(table(20))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_[:].get_feature_names_out()[0] == "z0"
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert np.array_equal(again.transform(table()), search.best_estimator_.transform(table()))


def test_data_frames_in_and_out(fitted):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(table(), columns=list("abcd"))
    estimator = clone(fitted).set_params(**TINY).set_output(transform="pandas").fit(frame)
    codes = estimator.transform(frame)
    assert list(codes.columns) == ["z0", "z1"] and list(estimator.feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        estimator.score_samples(frame[list("dcba")])


def test_counts_and_families_of_options():
    g = np.random.default_rng(0)
    counts = g.poisson(3.0, size=(20, 3))
    for likelihood in ("poisson", "negative_binomial", binomial(20)):
        estimator = VAEEstimator(**TINY, likelihood=likelihood).fit(counts)
        evidence = estimator.evidence(counts)
        assert evidence.measure != "continuous" and (evidence.log_px < 0).all(), likelihood
        assert (estimator.inverse_transform(estimator.transform(counts)) > 0).all()
    with pytest.raises(SupportError, match="outside the support"):
        VAEEstimator(**TINY, likelihood="poisson").fit(table())


def make_hierarchy(columns):
    return HierarchicalVAE(
        priors=[Conditional(MLP(1, 2 * 2, (4,)), normal), StandardNormal(1)],
        likelihood=Conditional(MLP(2, 2 * columns, (4,)), normal),
        posterior=TopDown(
            Conditional(MLP(columns + 1, 2 * 2, (4,)), normal), Conditional(MLP(columns, 2, (4,)), normal)
        ),
    )


def make_full(columns):
    return small_vae(
        likelihood=normal, features=2, posterior=Conditional(MLP(columns, 5), full_normal(2)), width=columns
    )


def test_models_of_ones_own():
    x = table() / 50 - 2
    estimator = VAEEstimator(**TINY, make=make_full).fit(x)
    assert estimator.vae_.standardized and estimator.transform(x).dtype == np.float32
    hierarchy = pickle.loads(pickle.dumps(VAEEstimator(**TINY, make=make_hierarchy).fit(x)))
    assert hierarchy.transform(x).shape == (30, 2)
    with pytest.raises(PyroVAEError, match="latent site 'z2'"):
        hierarchy.inverse_transform(hierarchy.transform(x))


class Sideways(nn.Module):
    """x is about w for each of 4 columns, whose plate stands left of that of the rows."""

    def __init__(self, columns):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(columns, 1))

    def model(self, x):
        pyro.module("sideways", self)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("columns", 4, dim=-2):
            pyro.sample("x", dist.Normal(pyro.sample("w", dist.Normal(0.0, 1.0)), 0.1), obs=x.T)

    def guide(self, x):
        pyro.module("sideways", self)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("columns", 4, dim=-2):
            pyro.sample("w", dist.Normal(x.T + self.shift, 0.1))


def test_codes_and_what_is_decoded_of_them_are_rows():
    x = table() / 50 - 2
    estimator = VAEEstimator(**TINY, make=Sideways).fit(x)
    codes, shift = estimator.transform(x[:4]), estimator.vae_.shift.detach().numpy().T
    np.testing.assert_allclose(codes, x[:4] + shift, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(estimator.inverse_transform(codes), codes, rtol=1e-5)
    np.testing.assert_allclose(estimator.inverse_transform(codes[:3]), codes[:3], rtol=1e-5)


def test_what_is_loose_is_said():
    x = table()
    with pytest.warns(FlaggedWarning, match="not to be believed"):
        VAEEstimator(hidden=(4,), epochs=1, num_samples=20, random_state=0).fit(x).score(x)  # K below 25 has no k̂


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"latent_dim": 0}, "latent_dim must be at least 1"),
        ({"hidden": (0,)}, "a width of hidden must be at least 1"),
        ({"likelihood": "norml"}, "did you mean 'normal'"),
        ({"likelihood": "binomial"}, "takes options .total_count.: give the family itself"),
        ({"make": 3}, "make is called with the number of columns"),
        ({"num_samples": 1.5}, "num_samples must be a whole number"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"random_state": "now"}, "cannot be used to seed"),
        ({"random_state": True}, "random_state must be a whole number"),
        ({"hidden": 64}, r"hidden is the widths of the hidden layers, such as .64,.; got 64"),
        ({"hidden": "64"}, "hidden is the widths"),
        ({"learning_rate": -1.0}, "learning_rate must be a finite number above 0, got -1.0"),
        ({"learning_rate": True}, "learning_rate must be"),
        ({"learning_rate": float("nan")}, "learning_rate must be"),
        ({"standardize": "no"}, "standardize must be True or False, got 'no'"),
        ({"likelihood": ["normal"]}, "is none"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        VAEEstimator(**{**TINY, **arguments}).fit(table(20))


def test_codes_of_another_width_and_models_that_are_not_fitted(fitted):
    with pytest.raises(UsageError, match=r"codes of shape \(1, 3\): wanted \(rows, 2\)"):
        fitted.inverse_transform(np.zeros((1, 3)))
    for codes in (np.full((1, 2), np.nan), np.zeros((1, 2), complex), [["a", "b"]], [0.0, 1.0]):
        with pytest.raises(ValueError):  # scikit-learn's own, as of an X
            fitted.inverse_transform(codes)
    for call in (VAEEstimator().sample, VAEEstimator().get_feature_names_out):
        with pytest.raises(NotFittedError):
            call()


def test_the_package_alone_imports_no_scikit_learn():
    printed_by(late_imports.scikit_learn_comes_with_the_estimator)


def test_the_results_of_the_example_are_those_of_its_json():
    example, folder = runpy.run_path(str(ROOT / "examples" / "estimator.py")), ROOT / "results" / "estimator"
    results = json.loads((folder / "results.json").read_text())
    assert example["table"](results).strip() == (folder / "table.md").read_text().strip()
    assert results["command"] == example["COMMAND"] and results["plan"] == example["FULL"]
