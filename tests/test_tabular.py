"""examples/tabular.py: the Gaussian marginals its peers are scored by, and that results/tabular holds what the code says."""

import json
import runpy

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture

from tests.helpers.environment import ROOT


@pytest.fixture(scope="module")
def tabular():
    return runpy.run_path(str(ROOT / "examples" / "tabular.py"), run_name="tabular")


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    return generator.normal(size=(60, 4)) @ generator.normal(size=(4, 4)) + generator.integers(0, 2, (60, 1)) * 3


def holed(rows):
    """A third of the entries NaN, one row with nothing left and one with everything."""
    x = np.where(np.random.default_rng(1).random(rows.shape) < 1 / 3, np.nan, rows)
    x[0], x[1] = np.nan, rows[1]
    return torch.from_numpy(x)


@pytest.mark.parametrize(
    "model",
    [
        FactorAnalysis(2),
        GaussianMixture(3, covariance_type="full", random_state=0),
        GaussianMixture(3, covariance_type="tied", random_state=0),
        GaussianMixture(3, covariance_type="diag", random_state=0),
    ],
    ids=lambda m: f"{type(m).__name__} {getattr(m, 'covariance_type', '')}",
)
def test_without_holes_the_score_is_sklearns(tabular, rows, model):
    mixture = tabular["gaussians"](model.fit(rows))
    got = tabular["mixture_log_prob"](torch.from_numpy(rows), *mixture)
    np.testing.assert_allclose(got, model.score_samples(rows), rtol=1e-9, atol=1e-9)


def test_a_marginal_is_that_of_the_columns_observed(tabular, rows):
    """Row by row: SciPy's density of the mixture with the other columns dropped."""
    mixture = tabular["gaussians"](GaussianMixture(3, random_state=0).fit(rows))
    x = holed(rows)
    got = tabular["mixture_log_prob"](x, *mixture)
    assert got[0].item() == pytest.approx(0.0, abs=1e-12)
    weights, means, covariances = (part.numpy() for part in mixture)
    for row, value in zip(x[1:].numpy(), got[1:], strict=True):
        o = ~np.isnan(row)
        parts = [
            w * multivariate_normal(m[o], c[o][:, o]).pdf(row[o])
            for w, m, c in zip(weights, means, covariances, strict=True)
        ]
        assert value.item() == pytest.approx(np.log(sum(parts)), abs=1e-9)


def test_a_marginal_is_the_integral_over_what_is_missing(tabular, rows):
    """log ∫ p(x) dx_2 on a grid, an exact sum but for what is beyond 10 standard deviations."""
    mixture = tabular["gaussians"](GaussianMixture(2, random_state=0).fit(rows))
    x = torch.from_numpy(rows[:1]).clone()
    grid = torch.linspace(-60, 60, 20001, dtype=torch.float64)
    full = x.repeat(len(grid), 1)
    full[:, 2] = grid
    integral = tabular["mixture_log_prob"](full, *mixture).logsumexp(0) + (grid[1] - grid[0]).log()
    x[0, 2] = torch.nan
    assert tabular["mixture_log_prob"](x, *mixture).item() == pytest.approx(integral.item(), abs=1e-9)


@pytest.mark.parametrize("log", [False, True], ids=["x", "e^x"])
def test_the_conditional_mean_is_the_integral(tabular, rows, log):
    """E[x_2 | rest] or E[e^x_2 | rest], by quadrature; what is observed comes back as it is (or its exponential)."""
    mixture = tabular["gaussians"](GaussianMixture(2, random_state=0).fit(rows / 4))
    x, logs = torch.from_numpy(rows[:1] / 4).clone(), torch.tensor([False, False, log, log])
    grid = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    full = x.repeat(len(grid), 1)
    full[:, 2] = grid
    weights = tabular["mixture_log_prob"](full, *mixture).softmax(0)
    expected = torch.where(logs, x.exp(), x)[0]
    expected[2] = (weights * (grid.exp() if log else grid)).sum()
    x[0, 2] = torch.nan
    got = tabular["mixture_mean"](x, *mixture, logs)[0]
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_the_family_of_a_column_is_the_one_it_was_drawn_from(tabular):
    generator = np.random.default_rng(0)
    columns = {
        "normal": generator.normal(size=2000),
        "student_t": generator.standard_t(5, size=2000),
        "log_normal": np.append(generator.lognormal(size=2000), np.nan),
    }
    assert {name: tabular["best_family"](column) for name, column in columns.items()} == {n: n for n in columns}


def test_a_standardised_log_normal_is_that_of_standardised_logs(tabular, rows):
    """log p(x) = log N((log x - m) / s; loc, scale) - log(s x), and at features 0 its log has mean m."""
    x, m, s = torch.from_numpy(rows).exp(), torch.tensor([0.0, 1.0, -2.0, 3.0]), torch.tensor([1.0, 0.5, 2.0, 0.1])
    h = torch.linspace(-1, 1, 8)
    d = tabular["standardised"](tabular["FAMILY"]["log_normal"], m, s)(h)
    unit = torch.distributions.Normal(h[:4], torch.nn.functional.softplus(h[4:]) + 1e-3)
    expected = unit.log_prob((x.log() - m) / s) - (s * x).log()
    torch.testing.assert_close(d.log_prob(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["columns", "student_t"])
def test_a_vae_starts_near_its_columns_and_takes_holes(tabular, rows, kind):
    """Before training: p(x_j | z) is within a unit or so of column j, log-normal or not, however far that lies from 0."""
    train = np.append(rows + 30, np.exp(rows[:, :1]) * 100, 1)
    names = np.array(["normal"] * 4 + ["log_normal"]) if kind == "columns" else np.full(5, "student_t")
    torch.manual_seed(0)
    vae = tabular["make"](names, train)
    units = tabular["to_logs"](train, names == "log_normal")
    drawn = tabular["to_logs"](vae.likelihood(torch.randn(500, 12)).sample().numpy(), names == "log_normal")
    assert (np.abs(np.median(drawn, 0) - units.mean(0)) < units.std(0)).all()
    x = train.copy()
    x[:, ::2] = np.nan
    assert tabular["score"](vae, x, 20).log_px.isfinite().all()


def test_a_fold_has_holes_where_they_were_made_and_no_row_twice(tabular):
    x = np.random.default_rng(0).normal(size=(50, 3)) * 5 + 2
    hole = np.random.default_rng(1).random(x.shape) < 0.3
    tests = []
    for fold in range(5):
        part = tabular["split"](x, hole, fold)
        tests += part["rows"].tolist()
        assert len(part["train"]) + len(part["validation"]) + len(part["test"]) == 50
        np.testing.assert_array_equal(np.isnan(part["test"]), hole[part["rows"]])
        np.testing.assert_array_equal(part["test"][~np.isnan(part["test"])], part["whole"][~hole[part["rows"]]])
    assert sorted(tests) == list(range(50))


def test_the_results_are_those_of_the_json(tabular):
    """No figure in table.md that results.json does not hold."""
    folder = ROOT / "results" / "tabular"
    results = json.loads((folder / "results.json").read_text())
    assert tabular["table"](results).strip() == (folder / "table.md").read_text().strip()
    assert results["command"] == tabular["COMMAND"]
