"""Imputation against the exact conditional."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

import pyro_vae.evidence.imputation as imputation
from pyro_vae import MLP, Conditional, normal
from pyro_vae.distributions.missing import Observed
from pyro_vae.errors import ProgramError
from pyro_vae.evidence.imputation import impute, impute_mean
from pyro_vae.models.missing import SkipMissing, WithMask
from tests.helpers.missing import vae_of, with_gaps
from tests.helpers.observed_parts import MEAN, PARTS, SD, D, guide, inner_guide, posterior
from tests.helpers.small import binary

nan = math.nan


def replicas(gappy, n):
    """One row with two gaps, n times: each replica has particles of its own."""
    row = gappy.x[3].clone()
    row[[1, 3]] = nan
    return row, row.repeat(n, 1)


def check_conditional(gappy, row, draws):
    """Mean and covariance of draws (n, 2) against the exact conditional: 4 standard errors of each entry."""
    mean, cov = gappy.conditional(row)
    n = len(draws)
    assert ((draws.mean(0) - mean).abs() < 4 * (cov.diagonal() / n).sqrt()).all()
    se = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / n).sqrt()  # of a Gaussian's sample covariance
    assert ((draws.T.cov() - cov).abs() < 4 * se).all()


@pytest.mark.parametrize("posterior", ["exact", "wide"])
def test_imputations_have_the_conditionals_mean_and_covariance(gappy, posterior):
    row, x = replicas(gappy, 3000)
    drawn = impute(gappy.vae(getattr(gappy, posterior)), x, num_samples=200, chunk_size=100_000)
    assert drawn.shape == (1, 3000, 5) and torch.equal(drawn[0][~x.isnan()], x[~x.isnan()])
    check_conditional(gappy, row, drawn[0][:, [1, 3]])


def test_imputation_without_weights_is_caught(gappy, monkeypatch):
    row, x = replicas(gappy, 3000)
    monkeypatch.setattr(imputation, "checked", lambda log_w, *_: torch.zeros_like(log_w))
    drawn = impute(gappy.vae(gappy.wide), x, num_samples=50, chunk_size=100_000)
    with pytest.raises(AssertionError):
        check_conditional(gappy, row, drawn[0][:, [1, 3]])


def test_many_draws_of_one_row(gappy):
    """Draws that share particles (exact posterior): their mean errs by draws and by particles."""
    row, x = replicas(gappy, 1)
    drawn = impute(gappy.vae(gappy.exact), x, num_samples=4000, draws=4000)[:, 0, [1, 3]]
    mean, cov = gappy.conditional(row)
    assert ((drawn.mean(0) - mean).abs() < 4 * (2 * cov.diagonal() / 4000).sqrt()).all()
    assert len(drawn.unique(dim=0)) == 4000  # x is drawn anew, even where two draws share a particle


def test_the_imputed_mean_is_the_conditionals(gappy):
    row, x = replicas(gappy, 300)
    means = impute_mean(gappy.vae(gappy.wide), x, num_samples=1000, chunk_size=100_000)
    assert means.shape == x.shape and torch.equal(means[~x.isnan()], x[~x.isnan()])
    found = means[:, [1, 3]]
    assert ((found.mean(0) - gappy.conditional(row)[0]).abs() < 4 * found.std(0) / 300**0.5).all()
    off = impute_mean(gappy.vae(gappy.exact), gappy.gaps, num_samples=4000) - gappy.gaps.where(~gappy.gaps.isnan(), 0.0)
    for n in (0, 1, 2, 7):  # rows with gaps of their own, and one with nothing observed
        if (gap := gappy.gaps[n].isnan()).any():
            mean, cov = (gappy.conditional(gappy.gaps[n])) if (~gap).any() else (gappy.mean, gappy.cov)
            assert ((off[n][gap] - mean).abs() < 4 * (cov.diagonal() / 4000).sqrt()).all()


def test_imputation_leaves_everything_as_it_was(device):
    vae = vae_of().to(device)
    x = with_gaps(binary(9)).to(device)
    vae.likelihood.eval()
    flags, kept = [m.training for m in vae.modules()], x.clone()
    first = impute(vae, x, num_samples=20, draws=3, seed=1)
    torch.randn(10)
    assert torch.equal(impute(vae, x, num_samples=20, draws=3, seed=1), first)
    assert not torch.equal(impute(vae, x, num_samples=20, draws=3, seed=2), first)
    state = torch.get_rng_state()
    impute_mean(vae, x, num_samples=20)
    impute(vae, x, num_samples=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in vae.modules()] == flags and torch.equal(x.nan_to_num(), kept.nan_to_num())
    assert all(p.grad is None for p in vae.parameters())
    assert set(first[:, x.isnan()].unique().tolist()) <= {0.0, 1.0} and not first.isnan().any()


def test_any_pair_of_programs_with_contexts_levels_and_chunks():
    """Two levels and a label, in one chunk a row; x comes back whole where nothing is missing."""
    likelihood, level = SkipMissing(Conditional(MLP(2 + 3, 8, (8,)), normal)), Conditional(MLP(2, 4, (8,)), normal)
    encoder = Conditional(WithMask(MLP(8 + 3, 4, (8,))), normal)

    def model(x, c):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", level(z2))
            pyro.sample("x", likelihood(z1, c), obs=x)

    def guide(x, c):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", encoder(x, c))
            pyro.sample("z2", level(z1))

    x, c = torch.randn(5, 4), torch.eye(3)[[0, 1, 2, 0, 1]]
    x[1, 2], x[3] = nan, nan
    drawn = impute((model, guide), x, c, num_samples=30, draws=6, chunk_size=1)
    assert drawn.shape == (6, 5, 4) and drawn.isfinite().all()
    assert torch.equal(drawn[:, [0, 2, 4]], x[[0, 2, 4]].expand(6, 3, 4)) and drawn[:, 1, 2].std() > 0
    assert impute_mean((model, guide), x, c, num_samples=30).isfinite().all()


def test_a_model_that_observes_something_else_than_x_is_refused():
    vae = vae_of(normal, 6, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", vae.likelihood(pyro.sample("z", vae.prior())), obs=x + 1)

    with pytest.raises(ProgramError, match="site 'x' observes none of the arguments as it is"):
        impute((model, vae.guide), with_gaps(torch.randn(4, 6)), num_samples=3)


# x observed in parts, and gaps that masks leave out


class SkipGaps(Messenger):
    """The likelihoods of a program, with NaN left out."""

    def _pyro_sample(self, msg):
        if msg["is_observed"] and msg["name"] != "data":
            msg["fn"] = Observed(msg["fn"])


def skipping(model):
    return lambda *args: SkipGaps()(model)(*args)


def of_masked_gaps(x):
    """Gaps filled with 0 and left out by a mask."""
    with pyro.plate("data", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("entries", D, dim=-1), poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(z + MEAN, SD), obs=x.nan_to_num(0.0))


def of_masked_parts(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in range(D):
            pyro.sample(f"x_{t}", dist.Normal(z + MEAN[t], SD[t]).mask(~x[:, t].isnan()), obs=torch.nan_to_num(x[:, t]))


IN_PARTS = {name: (skipping(model), inner_guide if name == "inner plate" else guide, shape)
            for name, (model, _, shape) in PARTS.items() if name not in ("exclusive masks", "condition")}  # fmt: skip


def of_raw_gaps(x):
    """Gaps that stay NaN in what is observed, and are left out by a mask."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(z + MEAN, SD).mask(~x.isnan()).to_event(1), obs=x)


IN_PARTS |= {
    "raw gaps": (of_raw_gaps, guide, (D,)),
    "masked gaps": (of_masked_gaps, inner_guide, (D,)),
    "masked parts": (of_masked_parts, guide, (D,)),
}
ROW = torch.tensor([1.0, nan, 5.0, nan])


@pytest.mark.parametrize("name", IN_PARTS)
def test_gaps_of_x_in_parts_have_the_exact_conditional(name):
    """x_mis ~ N(m + 3 j, diag(s²) + v) for z | x_obs ~ N(m, v): 4 standard errors of 3,000 replicas' moments."""
    model, guide, shape = IN_PARTS[name]
    x = ROW.expand(3000, D).reshape(3000, *shape)
    drawn = impute((model, guide), x, num_samples=20, chunk_size=60_000)[0].reshape(3000, D)
    assert torch.equal(drawn[:, [0, 2]], ROW[[0, 2]].expand(3000, 2))
    gaps, z = drawn[:, [1, 3]], posterior(ROW[None])
    mean, cov = z.mean + MEAN[[1, 3]], torch.diag(SD[[1, 3]] ** 2) + z.variance
    assert ((gaps.mean(0) - mean).abs() < 4 * (cov.diagonal() / 3000).sqrt()).all()
    se = ((cov.diagonal()[:, None] * cov.diagonal() + cov.square()) / 3000).sqrt()
    assert ((gaps.T.cov() - cov).abs() < 4 * se).all()
    means = impute_mean((model, guide), x[:300], num_samples=500, chunk_size=150_000).reshape(300, D)[:, [1, 3]]
    assert ((means.mean(0) - mean).abs() < 4 * (z.variance / 500 / 300).sqrt()).all()


def test_masks_of_a_context_are_no_evidence_and_nothing_is_filled_in_there():
    """Entries masked out hold 100, as wrong as can be; the gap is drawn from what is left, and 100 stays."""
    m = torch.tensor([True, True, True, False]).expand(2000, D)

    def model(x, m):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
            pyro.sample("x", dist.Normal(z + MEAN, SD).mask(m & ~x.isnan()).to_event(1), obs=x.nan_to_num())

    x = torch.tensor([1.0, nan, 5.0, 100.0]).expand(2000, D)
    drawn = impute((model, lambda x, m: guide(x.where(m, nan))), x, m, num_samples=20)[0]
    assert (drawn[:, 3] == 100).all() and torch.equal(drawn[:, [0, 2]], x[:, [0, 2]])
    z = posterior(ROW[None])
    assert abs(drawn[:, 1].mean() - z.mean - 3) < 4 * ((1 + z.variance) / 2000) ** 0.5


def filled_in(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample("x", dist.Normal(z + MEAN, SD).to_event(1), obs=x.nan_to_num(0.0))


def covariates(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample(
            "x",
            Observed(dist.Normal(z + x[:, 3:].nan_to_num(), 1.0).expand([*z.shape[:-1], 3]).to_event(1)),
            obs=x[:, :3],
        )


def passed_on(x):
    """The second entry's density depends on the first one, which is missing in some rows."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        first = pyro.sample("first", dist.Normal(z, 1.0).mask(~x[:, 0].isnan()), obs=x[:, 0].nan_to_num())
        pyro.sample(
            "rest",
            Observed(dist.Normal((z + first).unsqueeze(-1), 1.0).expand([*z.shape, 3]).to_event(1)),
            obs=x[:, 1:],
        )


def autoregressive(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        before = torch.nn.functional.pad(x.nan_to_num()[:, :-1], (1, 0))
        pyro.sample("x", Observed(dist.Normal(z + before, 1.0).to_event(1)), obs=x)


def seen_twice(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        for name in ("a", "b"):
            pyro.sample(name, Observed(dist.Normal(z + MEAN, SD).to_event(1)), obs=x)


@pytest.mark.parametrize(
    ("model", "gap", "message"),
    [
        (filled_in, 1, r"site 'x': the model puts numbers in the place of missing values \(NaN\) in rows \[1\]"),
        (covariates, 3, r"x has gaps \(NaN\) in rows \[1\] that the model observes at no site"),
        (passed_on, 0, "site 'rest': its density depends on what is missing"),
        (autoregressive, 1, "reads the data's values"),
        (seen_twice, 2, "site 'b' observes what another site observes already"),
    ],
)
def test_gaps_that_are_no_gaps_are_refused(model, gap, message):
    x = torch.ones(3, D)
    x[1, gap] = nan
    with pytest.raises(ProgramError, match=message):
        impute((model, guide), x, num_samples=5)


@pytest.mark.parametrize(("model", "gap"), [(covariates, 0), (passed_on, 1)])
def test_the_same_models_fill_gaps_that_nothing_hangs_on(model, gap):
    x = torch.ones(3, D)
    x[1, gap] = nan
    drawn = impute((model, guide), x, num_samples=5)[0]
    assert drawn.isfinite().all() and (drawn != 1).sum() == 1


def test_numpy_goes_in(device):
    x = np.where(np.random.default_rng(0).random((4, 6)) < 0.3, np.nan, 1.0).astype(np.float32)
    assert impute(vae_of().to(device), x, num_samples=4).device.type == device.type


def test_gaps_scored_as_zeros_would_draw_from_another_conditional(monkeypatch):
    """The broken variant that takes what the model fills in for evidence: 0 in the place of 3 + z pulls z down."""
    monkeypatch.setattr(imputation, "check_gaps_left_out", lambda *_: None)
    x = ROW.expand(2000, D)
    drawn = impute((filled_in, guide), x, num_samples=200, chunk_size=400_000)[0][:, 1]
    z = posterior(ROW[None])
    with pytest.raises(AssertionError):
        assert abs(drawn.mean() - z.mean - 3) < 4 * ((1 + z.variance) / 2000) ** 0.5


# one observed site, given the others


def two_arrays(x, y):
    """z ~ N(0, 1); x and y, an argument each, with the third entry of y under a site of its own."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0)).unsqueeze(-1)
        pyro.sample("a", Observed(dist.Normal(z + MEAN, SD).to_event(1)), obs=x)
        pyro.sample("b", Observed(dist.Normal(2 * z, 1.0).expand([*z.shape[:-1], 2]).to_event(1)), obs=y[:, :2])
        pyro.sample("c", Observed(dist.Normal(z.squeeze(-1), 0.1)), obs=y[:, 2])


def of_two_arrays(x, y):
    """The exact posterior, of what is there."""
    slope, noise = (
        torch.cat([torch.ones(D), torch.tensor([2.0, 2.0, 1.0])]),
        torch.cat([SD, torch.tensor([1.0, 1.0, 0.1])]),
    )
    rows, shift = torch.cat([x, y], 1), torch.cat([MEAN, torch.zeros(3)])
    weight = (~rows.isnan()).float() * slope / noise**2
    precision = 1 + (weight * slope).sum(1)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((weight * (rows - shift).nan_to_num()).sum(1) / precision, precision**-0.5))


@pytest.mark.parametrize(("site", "entries"), [("a", ()), ("b", (2,)), ("c", ())])
def test_one_site_of_any_program_is_drawn_given_the_others(site, entries):
    """Mean and sd of 3,000 draws against N(slope m + shift, noise² + slope² v), z | rest ~ N(m, v): 4 standard errors."""
    x, y = torch.tensor([1.0, nan, 5.0, 7.0]), torch.tensor([0.5, nan, nan])
    args = (x.expand(3000, D), y.expand(3000, 3))
    drawn = impute((two_arrays, of_two_arrays), *args, site=site, num_samples=20, chunk_size=60_000)[0]
    gap, slope, shift, noise = {"a": (1, 1, MEAN[1], SD[1]), "b": (1, 2, 0, 1), "c": (None, 1, 0, 0.1)}[site]
    assert drawn.shape == (3000, *{"a": (D,), "b": (2,), "c": ()}[site])
    q = poutine.trace(of_two_arrays).get_trace(x[None], y[None]).nodes["z"]["fn"]
    loc, sd = slope * q.loc + shift, (noise**2 + slope**2 * q.variance) ** 0.5
    values = drawn if gap is None else drawn[:, gap]
    assert abs(values.mean() - loc) < 4 * sd / 3000**0.5 and abs(values.std() / sd - 1) < 4 / 6000**0.5
    if gap is not None:
        assert torch.equal(drawn[:, 0], (x if site == "a" else y)[0].expand(3000))
    mean = impute_mean((two_arrays, of_two_arrays), *args, site=site, num_samples=200, chunk_size=600_000)
    mean = mean if gap is None else mean[:, gap]
    assert abs(mean.mean() - loc) < 4 * (slope**2 * q.variance / 200 / 3000) ** 0.5 + 1e-5


def test_a_site_that_is_whole_comes_back_and_one_that_is_none_is_refused():
    x, y = torch.ones(3, D), torch.ones(3, 3)
    x[1] = nan
    assert torch.equal(impute((two_arrays, of_two_arrays), x, y, site="b", num_samples=3), y[None, :, :2])
    for site, message in (("z", "no observed site 'z': it observes 'a', 'b', 'c'"), ("q", "no observed site 'q'")):
        with pytest.raises(ProgramError, match=message):
            impute((two_arrays, of_two_arrays), x, y, site=site, num_samples=3)


def test_gaps_of_a_context_that_are_scored_are_refused_by_site():
    def filling(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", Observed(dist.Normal(z, 1.0)), obs=x)
            pyro.sample("b", dist.Normal(z, 1.0), obs=y.nan_to_num())

    def prior(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    y = torch.tensor([0.0, nan, 1.0])
    with pytest.raises(
        ProgramError, match=r"site 'b': the model puts numbers in the place of missing values \(NaN\) in rows \[1"
    ):
        impute((filling, prior), torch.tensor([0.0, 1.0, nan]), y, num_samples=3)
