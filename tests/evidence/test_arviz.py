"""Posterior draws, and evidence and draws in ArviZ's forms: against closed forms, and against ArviZ's own numbers."""

import math
from inspect import signature

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import (
    GMVAE,
    Classes,
    Conditional,
    Evidence,
    compare,
    log_likelihood,
    posterior_draws,
    simulation_based_calibration,
    to_datatree,
)
from pyro_vae.common.optional import imported
from pyro_vae.errors import MissingExtraError, ProgramError, UnreliableError
from pyro_vae.evidence.elpd import to_elpd
from pyro_vae.evidence.importance.pareto import pareto_khat
from pyro_vae.programs.problem import Problem
from tests.helpers.importance import Chain, GammaPoisson
from tests.helpers.missing import vae_of
from tests.helpers.small import binary, encoder, small_vae


class Normals:
    """z ~ N(0, 1), x ~ N(z, 1) in two columns; the posterior is N((x_1 + x_2) / 3, 1/3); a guide that is off."""

    def __init__(self, rows=20):
        self.x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample(
                "x",
                dist.Normal(z, 1.0).expand([len(x), 2]).to_event(1)
                if z.dim() == 2
                else dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1),
                obs=x,
            )

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True) / 2, 0.8).to_event(1))

    def log_px(self):
        cov = torch.ones(2, 2, dtype=torch.float64) + torch.eye(2, dtype=torch.float64)
        return dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov).log_prob(self.x)


def test_draws_are_of_the_posterior_and_not_of_the_guide():
    pair = Normals()
    found = posterior_draws(pair.model, pair.guide, pair.x, draws=4000, num_samples=4000)
    z, mean = found.values["z"], pair.x.sum(-1, keepdim=True) / 3
    assert z.shape == (4000, 20, 1) and len(found) == 4000 and found.reliable.all()
    off = (z.mean(0) - mean).squeeze(-1)
    se = (z.var(0).squeeze(-1) * (1 / 4000 + 1 / found.ess)).sqrt()
    assert (off.abs() < 4.5 * se).all() and abs(z.var(0).mean().item() * 3 - 1) < 0.05
    assert ((pair.x.mean(-1) / 2 - mean.squeeze(-1)).abs() > 4.5 * se).any()  # broken: the guide's mean
    assert "rows not to be believed" in repr(found)
    scored = log_likelihood(pair.model, pair.guide, pair.x, num_samples=4000, seed=1, verbose=False)
    assert ((found.log_px - scored.log_px).abs() < 5 * math.sqrt(2) * scored.mc_se).all()


def test_a_chain_keeps_its_latents_together():
    """z2 − z1 and z1 of the same particle: their joint posterior is normal, with covariance (2, 1; 1, 2) / 3."""
    pair = Chain(6)
    found = posterior_draws(pair.model, pair.guide, pair.x, draws=8000, num_samples=8000, seed=2)
    z = torch.stack([found.values["z1"], found.values["z2"]])
    covariance = torch.stack([torch.cov(z[:, :, n]) for n in range(6)]).mean(0)
    torch.testing.assert_close(covariance, torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double() / 3, atol=0.04, rtol=0)


def test_rows_that_have_no_posterior_draws_are_refused_by_number():
    pair = Normals(6)

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True) * 2 / 3 + 1.0, 0.08).to_event(1))

    with pytest.raises(UnreliableError, match=r"make no posterior in \d of 6 rows, the first \[") as caught:
        posterior_draws(pair.model, narrow, pair.x)
    result = caught.value.result
    assert not result.reliable.all() and result.values["z"].shape == (100, 6, 1)
    again = posterior_draws(pair.model, narrow, pair.x, strict=False)
    assert torch.equal(again.values["z"], result.values["z"])
    with pytest.raises(UnreliableError, match="K = 20"):
        posterior_draws(pair.model, pair.guide, pair.x, num_samples=20)  # too few for a k̂


def test_gaps_counts_and_classes():
    vae, x = vae_of(), binary(5).masked_fill(binary(5, seed=1) == 1, torch.nan)
    some = posterior_draws(vae.model, vae.guide, x, draws=3, strict=False)
    assert next(iter(some.values.values())).isfinite().all()
    mixture = GMVAE(
        Classes(2),
        Conditional(torch.nn.Linear(2, 4), lambda h: dist.Normal(h[..., :2], 1.0)),
        Conditional(torch.nn.Linear(2, 6), lambda h: dist.Bernoulli(logits=h)),
        Conditional(encoder(4), lambda h: dist.Normal(h[..., :2], 1.0)),
    )
    assert set(posterior_draws(mixture.model, mixture.guide, binary(4), draws=3, strict=False).values) == {"z"}


stats = pytest.importorskip("arviz_stats", reason="ArviZ is not installed (the extra arviz)")


def evidences():
    pair = Normals(50)

    def shifted(x):
        return pair.model(x + 0.1)

    options = {"num_samples": 200, "verbose": False}
    return {
        "a": log_likelihood(pair.model, pair.guide, pair.x, **options),
        "b": log_likelihood(shifted, pair.guide, pair.x, **options),
        "c": log_likelihood(lambda x: pair.model(1.1 * x), pair.guide, pair.x, **options),
    }


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # pandas 3, of ArviZ's own call
def test_compare_is_that_of_arviz():
    """But for N and the divisor of a variance: its sums and their errors, and our means and theirs."""
    found = evidences()
    raw = {"round_to": "none"} if "round_to" in signature(stats.compare).parameters else {}  # arviz-stats 1.3 on rounds
    ours, theirs = compare(found), stats.compare({name: e.to_elpd() for name, e in found.items()}, **raw)
    n = 50
    assert list(theirs.index) == [m.name for m in ours.models]
    for m in ours.models:
        row = theirs.loc[m.name]
        assert row["elpd"] / n == pytest.approx(m.log_px, abs=1e-6)
        assert -abs(row["elpd_diff"]) / n == pytest.approx(m.difference, abs=1e-6)
        assert row["se"] / n == pytest.approx(m.data_se * math.sqrt((n - 1) / n), abs=1e-6)
        assert row["dse"] / n == pytest.approx(m.difference_se * math.sqrt((n - 1) / n), abs=1e-6)


def test_an_elpd_has_khat_and_says_what_is_flagged():
    e = evidences()["a"]
    elpd = e.to_elpd()
    assert elpd.n_data_points == 50 and elpd.n_samples == 200 and elpd.p == 0 and elpd.scale == "log"
    assert torch.equal(torch.tensor(elpd.pareto_k.values).nan_to_num(9), e.khat.nan_to_num(9))
    assert bool(elpd.warning) == bool(len(e.flagged)) and "Computed from" in str(elpd)
    few = Evidence(*torch.zeros(5, 3).double().log(), num_samples=30, seed=0)
    with pytest.raises(Exception, match="not finite in 3 of 3 rows"):
        to_elpd(few)


def tree_of_terms(pair, k):
    """ArviZ's input for its own leave-one-out: log p(x | z) of K particles of the guide, and their log p(z) − log q − log K."""
    xarray = imported("xarray", "arviz", "a test")
    problem = Problem.of(pair.model, pair.guide, pair.x, seed=0)
    with problem.quiet(3):
        terms = problem.log_probs(k)
    log_lik = terms.reconstruction
    log_weights = terms.log_w - log_lik - math.log(k)
    dims = ("chain", "draw", "data")

    def array(values):
        return xarray.DataArray(values.unsqueeze(0).numpy(), dims=dims)

    posterior = xarray.Dataset({"z": array(torch.zeros_like(log_lik))})
    tree = xarray.DataTree.from_dict({"posterior": posterior, "log_likelihood": xarray.Dataset({"x": array(log_lik)})})
    khat = xarray.DataArray(pareto_khat(terms.log_w).numpy(), dims=("data",))
    return tree, array(log_weights), khat, terms.log_w.logsumexp(0) - math.log(k)


def test_loo_of_arviz_given_the_weights_is_log_p_and_without_them_is_far_too_high():
    pair = Normals(30)
    tree, log_weights, khat, log_px = tree_of_terms(pair, 2000)
    right = stats.loo(tree, pointwise=True, log_weights=log_weights, pareto_k=khat, reff=1.0)
    torch.testing.assert_close(torch.tensor(right.elpd_i.values), log_px, atol=1e-6, rtol=0)
    scored = log_likelihood(pair.model, pair.guide, pair.x, num_samples=2000, verbose=False)
    assert abs(right.elpd / 30 - scored.log_px.mean().item()) < 5 * math.sqrt(2) * scored.summary()["log_px_mc_se"]
    assert abs(right.elpd / 30 - pair.log_px().mean().item()) < 5 * scored.summary()["log_px_mc_se"]


class Sharp:
    """z ~ N(0, I), x ~ N(z, 0.01 I) in eight columns, with the posterior itself as guide."""

    x = 1.005 * torch.randn(30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.01, (0.01 / 1.01) ** 0.5).to_event(1))

    def log_px(self):
        return dist.Normal(0.0, 1.01**0.5).log_prob(self.x).sum(-1)


def test_a_prior_of_which_a_factor_is_a_part_is_not_drawn():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("narrower", -0.5 * z**2)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 3, 3**-0.5))

    with pytest.raises(ProgramError, match=r"site 'narrower' of the model is a pyro\.factor"):
        to_datatree(model, guide, torch.randn(5), draws=10, num_samples=200, strict=False)


def test_a_log_likelihood_group_would_be_nats_too_high_and_is_not_there():
    """The harmonic mean of p(x | z), by draws of the exact posterior; log p(x) itself is in the tree, to the digit."""
    xarray, pair = imported("xarray", "arviz", "a test"), Sharp()
    tree = to_datatree(pair.model, pair.guide, pair.x, draws=500)
    assert "log_likelihood" not in tree.children
    torch.testing.assert_close(torch.tensor(tree.sample_stats.log_px.values), pair.log_px(), atol=1e-5, rtol=0)
    conditional = dist.Normal(torch.tensor(tree.posterior.z.values[0]), 0.1).log_prob(pair.x).sum(-1)
    tree["log_likelihood"] = xarray.Dataset({"x": (("chain", "draw", "data"), conditional.unsqueeze(0).numpy())})
    with pytest.warns(UserWarning):
        too_high = stats.loo(tree, pointwise=True, reff=1.0)
    assert too_high.elpd / 30 - pair.log_px().mean().item() > 5


def test_a_tree_has_the_groups_and_is_read_back(tmp_path):
    xarray = imported("xarray", "arviz", "a test")
    pytest.importorskip("h5netcdf", reason="h5netcdf is not installed")
    pair = Normals(5)
    calibration = simulation_based_calibration(pair.model, pair.guide, pair.x[:4], num_rows=30, num_draws=9)
    tree = to_datatree(pair.model, pair.guide, pair.x, draws=400, calibration=calibration)
    groups = {
        "posterior",
        "posterior_predictive",
        "prior",
        "prior_predictive",
        "sample_stats",
        "observed_data",
        "prior_sbc",
    }
    assert set(tree.children) == groups
    assert dict(tree.posterior.sizes) == {"chain": 1, "draw": 400, "data": 5, "z_dim": 1}
    assert dict(tree.posterior_predictive.sizes) == {"chain": 1, "draw": 400, "data": 5, "x_dim": 2}
    assert (tree.observed_data.x.values == pair.x.numpy()).all()
    z = torch.tensor(tree.posterior.z.values[0])
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(z, 1.0).log_prob(pair.x).sum(-1)
    torch.testing.assert_close(torch.tensor(tree.sample_stats.lp.values[0]), joint)
    spread = tree.posterior_predictive.x.values - tree.posterior.z.values
    assert abs(spread.std() - 1) < 0.06 and abs(tree.prior_predictive.x.values.var() - 2) < 0.25
    assert set(tree.prior_sbc.data_vars) == set(calibration.names) and float(tree.prior_sbc["log p(x, z)"].max()) <= 1
    tree.to_netcdf(tmp_path / "tree.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "tree.nc", engine="h5netcdf") as again:
        assert again["posterior"].equals(tree["posterior"]) and again.attrs["num_samples"] == 2000
    rounded = stats.summary(tree, var_names=["z"], round_to="none") if hasattr(stats, "summary") else None
    assert rounded is None or abs(rounded["mean"].iloc[0] - z[:, 0].mean().item()) < 1e-9


def test_counts_are_whole_numbers_and_a_network_has_a_tree():
    pair = GammaPoisson()
    tree = to_datatree(pair.model, pair.guide, pair.x[:4], draws=20, strict=False)
    assert tree.posterior_predictive.x.dtype.kind == tree.observed_data.x.dtype.kind == "i"
    vae = small_vae()
    tree = to_datatree(vae.model, vae.guide, binary(3), draws=7, strict=False)
    assert tree.prior.z.shape == (1, 7, 3, 2) and tree.attrs["measure"] == "binary"


def test_a_model_that_reads_x_and_a_package_that_is_not_there_are_named():
    def reads(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.1 * x, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.55 * x, 0.8))

    with pytest.raises(ProgramError):
        to_datatree(reads, guide, Normals(4).x[:, 0])
    with pytest.raises(MissingExtraError, match=r"needs no_such_package, .* pip install 'pyro-vae\[arviz\]'"):
        imported("no_such_package.part", "arviz", "to_elpd")
