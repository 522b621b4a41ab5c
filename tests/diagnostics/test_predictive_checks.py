"""Predictive p-values against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import chi2, kstest, norm

from pyro_vae.diagnostics import predictive_checks
from pyro_vae.diagnostics.predictive_checks import STATISTICS, posterior_predictive_check, prior_predictive_check
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import DataError, ProgramError, ShapeError, UsageError
from pyro_vae.programs.simulate import simulate
from tests.helpers.calibration import counts, counts_exact, counts_lognormal, guided, half, prior_guide
from tests.helpers.gaussian import gaussian
from tests.helpers.observed_parts import COV, MEAN, PARTS, SD, D, guide, inner_guide, posterior

IDENTITY = {"x": lambda x: x}
X = torch.tensor([-2.0, -0.3, 0.0, 1.0, 2.5])


def check_p(seen, exact, draws):
    """Within 4 Monte Carlo standard errors, √(p (1 − p) / S)."""
    exact = torch.as_tensor(exact)
    assert ((seen - exact).abs() < 4 * (exact * (1 - exact) / draws).sqrt()).all()


def test_posterior_predictive_p_values_in_closed_form():
    found = posterior_predictive_check(gaussian, guided(), X, statistics=IDENTITY, num_draws=4000)
    exact = norm.sf(X, X / 2, 1.5**0.5)
    check_p(found.statistics["x"].p_rows, exact, 4000)
    whole = norm.sf(X.mean(), X.mean() / 2, (1.5 / 5) ** 0.5)
    check_p(torch.tensor(found.statistics["x"].p), float(whole), 4000)
    assert found.statistics["x"].mc_se == pytest.approx((whole * (1 - whole) / 4000) ** 0.5, rel=0.1)
    with pytest.raises(AssertionError):  # replications of the prior
        check_p(found.statistics["x"].p_rows, norm.sf(X, 0, 2**0.5), 4000)
    with pytest.raises(AssertionError):  # the other tail
        check_p(found.statistics["x"].p_rows, 1 - exact, 4000)


def test_the_reconstruction_is_compared_at_the_same_z():
    """log p(x_rep | z) ≥ log p(x | z) where ε² ≤ (x − z)²: E F(χ²_1) over z ~ N(x / 2, 1 / 2), by Gauss-Hermite."""
    found = posterior_predictive_check(gaussian, guided(), X, statistics={}, num_draws=4000).statistics
    assert list(found) == ["log p(x | z)"]
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    weight = (-0.5 * grid.square()).exp()
    z = X.double().unsqueeze(1) / 2 + 0.5**0.5 * grid
    inside = torch.from_numpy(chi2.cdf((X.double().unsqueeze(1) - z).square().numpy(), 1))
    check_p(found["log p(x | z)"].p_rows, (inside * weight).sum(1) / weight.sum(), 4000)


def test_resampling_comes_from_a_poor_guide_to_the_posterior():
    """S = 1000 draws of K = 20,000 particles of the prior: their own error, of weights with ESS ≥ K / 20, is in the bound."""
    kw = {"statistics": IDENTITY, "num_draws": 1000}
    exact = torch.tensor(norm.sf(X, X / 2, 1.5**0.5))
    plain = posterior_predictive_check(gaussian, prior_guide, X, **kw).statistics["x"].p_rows
    better = posterior_predictive_check(gaussian, prior_guide, X, num_particles=20_000, **kw).statistics
    check_p(better["x"].p_rows, exact, 500)
    with pytest.raises(AssertionError):
        check_p(plain, exact, 500)
    exactly = posterior_predictive_check(gaussian, guided(), X, **kw).statistics["log p(x | z)"].p_rows
    assert ((better["log p(x | z)"].p_rows - exactly).abs() < 4 * (0.5 / 500) ** 0.5).all()


def test_posterior_p_values_are_not_uniform_and_prior_ones_are():
    """On 400 rows of the model: var of p is 1/12 if uniform; posterior p-values crowd around ½ (here var 0.0317, by hand)."""
    x = simulate(gaussian, torch.zeros(400), seed=5).x
    posterior = posterior_predictive_check(gaussian, guided(), x, statistics=IDENTITY, num_draws=400).statistics["x"]
    prior = prior_predictive_check(gaussian, x, statistics=IDENTITY, num_draws=400, chunk_size=4000).statistics["x"]
    assert kstest(prior.p_rows.numpy(), "uniform").pvalue > 0.01
    check_p(prior.p_rows, norm.sf(x, 0, 2**0.5), 400)
    assert kstest(posterior.p_rows.numpy(), "uniform").pvalue < 1e-6 and posterior.p_rows.var() < 0.05


def test_ties_and_statistics_of_all_rows():
    """The share of zeros of continuous data is always 0: p is 1, and nothing is extreme. Chunks of rows change nothing in T."""
    x = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(0))
    statistics = STATISTICS | {"largest row": lambda x: x.flatten(1).sum(1).max()}

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None, None].expand(*z.shape, 2, 3), 1.0).to_event(2), obs=x)

    guide = prior_guide
    found = posterior_predictive_check(model, guide, x, statistics=statistics, num_draws=50, chunk_size=400)
    assert list(found.statistics) == [*statistics, "log p(x | z)"]
    zeros, largest = found.statistics["share of zeros"], found.statistics["largest row"]
    assert zeros.p == 1 and not zeros.extreme and zeros.extreme_rows == 0
    assert largest.observed.shape == (1, 1) and largest.replicated.shape == (50, 1)
    assert largest.observed.item() == pytest.approx(x.flatten(1).sum(1).max().item(), rel=1e-6)
    assert found.statistics["max"].replicated.shape == (50, 30)
    torch.testing.assert_close(found.statistics["max"].observed[0], x.flatten(1).amax(1).double())
    assert "posterior predictive check, 30 rows, 50 replications" in str(found)
    prior = prior_predictive_check(model, x, statistics=statistics, num_draws=50, chunk_size=70)
    assert prior.statistics["largest row"].replicated.shape == (50, 1)
    assert prior.statistics["mean"].replicated.shape == (50, 30) and prior.kind == "prior"


def test_a_gamma_poisson_model_is_checked():
    x = simulate(counts, torch.zeros(300, 3), seed=4).x
    assert posterior_predictive_check(counts, counts_exact, x, num_draws=100).extreme == ()
    assert posterior_predictive_check(counts, counts_lognormal, x, num_draws=100).extreme != ()  # the guide's fault
    assert posterior_predictive_check(counts, counts_lognormal, x, num_draws=100, num_particles=2000).extreme == ()
    assert "share of zeros" in posterior_predictive_check(counts, counts_exact, 5 * x, num_draws=100).extreme


@pytest.mark.parametrize(
    ("statistic", "error", "message"),
    [
        (lambda x: x.unsqueeze(-1), ShapeError, r"'t' returned shape \(5, 1\) for 5 rows"),
        (lambda x: x[:2], ShapeError, r"'t' returned shape \(2,\) for 5 rows"),
        (lambda x: x.mean() if len(x) > 5 else x, ShapeError, r"'t' returned shape \(\)"),
        (lambda x: x / 0 * 0, DataError, "'t' is NaN in rows"),
    ],
)
def test_statistics_that_are_none(statistic, error, message):
    with pytest.raises(error, match=message):
        posterior_predictive_check(gaussian, guided(), X, statistics={"t": statistic})
    with pytest.raises(error, match=message):
        prior_predictive_check(gaussian, X, statistics={"t": statistic})


def test_predictive_checks_refuse():
    with pytest.raises(UsageError, match="must be 1 or more"):
        posterior_predictive_check(gaussian, guided(), X, num_draws=0)
    with pytest.raises(UsageError, match="must be 1 or more"):
        prior_predictive_check(gaussian, X, num_draws=0)
    with pytest.raises(ProgramError, match="site 'x' observes none"):
        posterior_predictive_check(half, guided(), X)


# x in parts, and what masks and gaps leave out: closed forms


def of_handler(x, m):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", D, dim=-1), poutine.mask(mask=m):
            pyro.sample("x", dist.Normal(z + MEAN, SD), obs=x)


def of_distribution(x, m):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(z + MEAN, SD).mask(m).to_event(1), obs=x)


def of_columns(x, m):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for j in range(D):
            with poutine.mask(mask=m[:, j]):
                pyro.sample(f"x_{j}", dist.Normal(z + MEAN[j], SD[j]), obs=x[:, j])


def of_skipped_gaps(x, m):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample("x", Observed(dist.Normal(z + MEAN, SD).to_event(1)), obs=x)


def of_masked_gaps(x, m):
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", D, dim=-1), poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(z + MEAN, SD), obs=x.nan_to_num(-50.0))


KEPT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
DATA = MEAN + torch.tensor([[0.3], [-1.0], [1.5], [2.0], [0.0]]) + torch.tensor([0.3, -0.5, 1.0, 2.0])
MASKS = {
    "handler": (of_handler, lambda x, m: inner_guide(x.where(m, torch.nan)), 100.0),
    "distribution": (of_distribution, lambda x, m: guide(x.where(m, torch.nan)), 100.0),
    "columns": (of_columns, lambda x, m: guide(x.where(m, torch.nan)), 100.0),
    "skipped gaps": (of_skipped_gaps, lambda x, m: guide(x), torch.nan),
    "masked gaps": (of_masked_gaps, lambda x, m: inner_guide(x), torch.nan),
}
TOTAL = {"kept total": lambda x: x.where(x != 100, 0.0).nansum(1)}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_masked_is_not_compared(name):
    """The sum T of k kept entries: x_rep has T ~ N(k m + Σ 3 j, k² v + Σ s²), z | x ~ N(m, v); a row without any has p = 1."""
    model, guide, filler = MASKS[name]
    x = DATA.where(KEPT, filler)
    found = posterior_predictive_check(model, guide, x, KEPT, statistics=TOTAL | STATISTICS, num_draws=4000).statistics
    z, k = posterior(x.where(KEPT, torch.nan)), KEPT.sum(1)
    total, variance = (torch.where(KEPT, t, 0.0).sum(1) for t in (DATA, SD**2 * KEPT))
    mean = k * z.mean + (MEAN * KEPT).sum(1)
    exact = torch.tensor(norm.sf(total, mean, (k**2 * z.variance + variance).sqrt().clamp_min(1e-30)))
    check_p(found["kept total"].p_rows[:4], exact[:4], 4000)
    assert found["kept total"].p_rows[4] == 1 == found["mean"].p_rows[4] and found["kept total"].extreme_rows <= 0.4
    filled = filler == 100  # or gaps: a mean is of what is there
    mean_of_row = (total[3] + 200) / D if filled else total[3] / k[3]
    assert found["mean"].observed[0, 3].item() == pytest.approx(mean_of_row.item(), rel=1e-6)
    both = found["log p(x | z)"]
    assert (both.observed[:, 4] == 0).all() and (both.replicated[:, 4] == 0).all()
    # log p(x_rep | z) = const - χ²_k / 2 whatever z: mean -k / 2 of the quadratic part, within 4 √(k / 2 / 4000)
    constant = (torch.where(KEPT, SD.log(), 0.0).sum(1) + 0.5 * k * torch.log(torch.tensor(2 * torch.pi))).double()
    quadratic = both.replicated.mean(0) + constant
    assert ((quadratic + k / 2).abs() <= 4 * (k / 2 / 4000).sqrt() + 1e-9).all()

    prior = prior_predictive_check(model, x, KEPT, statistics=TOTAL, num_draws=4000).statistics["kept total"]
    spread = torch.stack([(COV * m.outer(m)).sum() for m in KEPT.double()]).sqrt().clamp_min(1e-30)
    check_p(prior.p_rows[:4], norm.sf(total, (MEAN * KEPT).sum(1), spread)[:4], 4000)
    assert prior.p_rows[4] == 1


def test_compared_with_draws_of_what_is_masked_the_true_model_looks_false(monkeypatch):
    """The broken variant, as it was: 100 stands where nothing was observed, and the model draws no 100."""
    model, guide, _ = MASKS["handler"]
    x = DATA.where(KEPT, 100.0)[:4]
    assert posterior_predictive_check(model, guide, x, KEPT[:4]).extreme == ()
    monkeypatch.setattr(
        predictive_checks, "kept_entries", lambda site: torch.ones_like(site["value"], dtype=torch.bool)
    )
    assert "mean" in posterior_predictive_check(model, guide, x, KEPT[:4]).extreme


def test_a_true_model_with_masks_has_p_values_near_half():
    """x and x_rep are alike given z: E p = 1/2 in each row of the model, so over n rows within 4 √(1 / 12 n)."""
    m = torch.rand(300, D, generator=torch.Generator().manual_seed(3)) < 0.7
    x = simulate(of_distribution, torch.zeros(300, D), m, seed=2).x
    assert (x[~m] == 0).all()
    found = posterior_predictive_check(of_distribution, MASKS["distribution"][1], x, m)
    assert found.extreme == ()
    for name in ("mean", "log p(x | z)"):
        p = found.statistics[name].p_rows[m.any(1)]
        assert abs(p.mean() - 0.5) < 4 * (1 / 12 / len(p)) ** 0.5
    assert prior_predictive_check(of_distribution, x, m).extreme == ()


@pytest.mark.parametrize("name", PARTS)
def test_x_in_parts_is_replicated(name):
    """P(x_rep,j ≥ x_j), x_rep,j ~ N(m + 3 j, s_j² + v), entry by entry."""
    model, guide, shape = PARTS[name]
    x = DATA.reshape(-1, *shape)
    entry = {f"{j}": lambda x, j=j: x.reshape(len(x), -1)[:, j] for j in range(D)}
    found = posterior_predictive_check(model, guide, x, statistics=entry, num_draws=2000).statistics
    prior = prior_predictive_check(model, x, statistics=entry, num_draws=2000).statistics
    z = posterior(DATA)
    for j in range(D):
        exact = norm.sf(DATA[:, j], z.mean + MEAN[j], (z.variance + SD[j] ** 2).sqrt())
        check_p(found[f"{j}"].p_rows, exact, 2000)
        check_p(prior[f"{j}"].p_rows, norm.sf(DATA[:, j], MEAN[j], COV[j, j] ** 0.5), 2000)


def test_gaps_that_are_scored_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z + MEAN, SD).to_event(1), obs=x.nan_to_num())

    with pytest.raises(ProgramError, match="puts numbers in the place of missing values"):
        posterior_predictive_check(model, guide, DATA.where(KEPT, torch.nan))


def test_gaps_in_the_statistics_that_come_along():
    x = torch.tensor([[1.0, torch.nan, 0.0, 3.0], [torch.nan] * 4, [2.0, 2.0, 2.0, 2.0]])
    values = {name: statistic(x).tolist() for name, statistic in STATISTICS.items()}
    assert values["mean"] == pytest.approx([4 / 3, 0, 2]) and values["max"] == [3, 0, 2]
    assert values["share of zeros"] == pytest.approx([1 / 3, 0, 0])
    assert values["standard deviation"] == pytest.approx([(14 / 9) ** 0.5, 0, 0])
    full = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(STATISTICS["standard deviation"](full), full.std(1, correction=0))


def test_draws_that_are_nan_are_named():
    """Of x far out alone, which the data has not and draws have."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(z > -9, z, torch.nan), 1.0).expand(z.shape), obs=x)

    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(x > 2, -10.0, x), 1e-3))

    with pytest.raises((ProgramError, DataError), match=r"NaN|nan"):
        posterior_predictive_check(model, far, X)


# one observed site


def of_two(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("a", dist.Normal(z, 1.0), obs=x)
        pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1).expand([len(x)]), obs=y[:, 1:])
        pyro.sample("c", dist.Normal(z, 1.0).mask(False), obs=y[:, 0])


def guide_of_two(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_p_values_of_one_site_in_closed_form():
    """b is N(0, 3²) whatever z is: P(b_rep ≥ b) of its first entry, and log p(b) alone, by χ²_2; a as without the site."""
    y = torch.stack([torch.zeros(5), X, X.flip(0)], 1)
    first = {"first": lambda b: b[:, 0]}
    exact, closer = norm.sf(X, 0, 3), chi2.cdf((y[:, 1:] / 3).square().sum(1), 2)
    for check in (
        posterior_predictive_check(of_two, guide_of_two, X, y, site="b", statistics=first, num_draws=4000),
        prior_predictive_check(of_two, X, y, site="b", statistics=first, num_draws=4000),
    ):
        check_p(check.statistics["first"].p_rows, exact, 4000)
        if check.kind == "posterior":
            check_p(check.statistics["log p(x | z)"].p_rows[[0, 1, 3, 4]], closer[[0, 1, 3, 4]], 4000)
    a = posterior_predictive_check(of_two, guide_of_two, X, y, site="a", statistics=IDENTITY, num_draws=4000)
    check_p(a.statistics["x"].p_rows, norm.sf(X, X / 2, 1.5**0.5), 4000)
    whole = posterior_predictive_check(of_two, guide_of_two, X, y, statistics=IDENTITY, num_draws=4000)
    with pytest.raises(AssertionError):  # log p of all sites
        check_p(whole.statistics["log p(x | z)"].p_rows[[0, 1, 3, 4]], closer[[0, 1, 3, 4]], 4000)
    for run in (
        lambda: posterior_predictive_check(of_two, guide_of_two, X, y, site="z"),
        lambda: prior_predictive_check(of_two, X, y, site="z"),
    ):
        with pytest.raises(ProgramError, match="no observed site 'z'"):
            run()
