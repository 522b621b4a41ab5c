"""Gradient estimators: the same mean as an exact or a pathwise gradient, and less noise where that is the claim.

Each row of a batch carries its own copy of all parameters, so one backward pass gives one independent gradient a row. Means
are compared by t = mean / standard error, coordinate by coordinate, with |t| < 4, over 4,000 draws or more: some 900
coordinates are tested in all, so one correct suite in twenty would see one beyond (6e-5 each); seeds are fixed. A pair of
estimators is compared on the same noise, which makes the test sharper. Broken variants are rejected by the same test. Three
tests of whole networks, whose rows share their weights, make do with 80 to 100 draws.
"""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn.functional import softplus

from pyro_vae import Beta, Bound, dreg, elbo, gdreg, iwae, jackknife, miwae, pathwise, piwae, stl
from pyro_vae.errors import ProgramError, UsageError
from tests.helpers.exact import LinearGaussian
from tests.helpers.gradient_programs import (
    BOUNDS,
    MIXED,
    ONE,
    PROGRAMS,
    TWO,
    Exact,
    compare,
    gradients,
    loss_of,
    mixed_model,
    normal_first,
    one_guide,
    one_model,
    two_model,
    worst,
)

ROWS = 4000
X = torch.tensor([1.2, -0.4, 0.7], dtype=torch.float64)
F64 = {"dtype": torch.float64}
ENCODER = ("loc", "raw", "slope", "loc2", "raw2")


# the means: doubly reparameterised, sticking the landing


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", BOUNDS)
def test_dreg_has_the_mean_of_pathwise(name, program):
    bound, groups = BOUNDS[name]
    t, where = compare(bound, dreg, program, groups=groups)
    assert t < 4, where


@pytest.mark.parametrize("program", PROGRAMS)
def test_stl_has_the_mean_of_pathwise_for_the_elbo(program):
    t, where = compare(elbo, stl, program, k=2)
    assert t < 4, where


@pytest.mark.parametrize("estimator", [dreg, stl])
def test_one_run_for_each_particle_changes_nothing(estimator):
    """vectorize_particles=False: the same means, from other noise."""
    a, b = (
        gradients(Bound(elbo, 3, estimator=estimator, vectorize_particles=v), *PROGRAMS["two"], seed=v)
        for v in (False, True)
    )
    for name in a:
        error = ((a[name].var(0) + b[name].var(0)) / ROWS).sqrt()
        assert ((a[name].mean(0) - b[name].mean(0)).abs() <= 4 * error).all(), name


@pytest.mark.parametrize("program", PROGRAMS)
def test_dreg_of_the_elbo_is_stl(program):
    a, b = (gradients(Bound(elbo, 3, estimator=e), *PROGRAMS[program], rows=50) for e in (dreg, stl))
    for name in a:
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("estimator", [dreg, gdreg])
def test_dreg_under_beta(estimator, beta, program):
    """β weighs the score, and so what replaces it: the path's weight is F_k − β F_kk."""
    if (estimator, program) == (gdreg, "two"):
        return
    t, where = compare(iwae, estimator, program, wrap=Beta(beta))
    assert t < 4, where


def test_dreg_refuses_latents_weighed_unlike_one_another():
    def guide(p, x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z1 = pyro.sample("z1", dist.Normal(p["loc"], softplus(p["raw"])).to_event(1))
            pyro.sample("z2", dist.Normal(p["loc2"] + p["slope"] * z1, 1.0).to_event(1))

    with pytest.raises(ProgramError, match=r"'z1'.*'z2'.*pathwise"):
        gradients(Bound(iwae, 4, estimator=dreg), two_model, guide, TWO, rows=10)


def test_a_subsampled_plate_scales_the_gradient_of_dreg():
    """N / B weighs rows, from outside."""

    def sub(program):
        def run(x):
            with poutine.scale(scale=7.0):
                program(x)

        return run

    a, b = (gradients(Bound(iwae, 4, estimator=dreg), *PROGRAMS["two"], rows=20, wrap=w) for w in (sub, lambda f: f))
    for name in a:
        torch.testing.assert_close(a[name], 7 * b[name])


def inner_model(p, x, data=-1, inner=-2):
    """Two latents a row, in a plate within the row's; x given their sum."""
    with pyro.plate("data", len(x), dim=data) as rows:
        shape = (-1, 1) if data == -2 else (-1,)
        loc, raw = (p[n][rows, 0].reshape(shape) for n in ("prior_loc", "prior_raw"))
        with pyro.plate("inner", 2, dim=inner):
            z = pyro.sample("z", dist.Normal(loc, softplus(raw)))
        total = z.tanh().sum(inner, keepdim=True)
        pyro.sample("x", dist.Normal(total, 0.5), obs=x[:, 0].reshape(shape))


def inner_guide(p, x, data=-1, inner=-2):
    with pyro.plate("data", len(x), dim=data), pyro.plate("inner", 2, dim=inner):
        loc, width = p["loc"], softplus(p["raw"])  # (N, 2)
        pyro.sample("z", dist.Normal(*((loc, width) if data == -2 else (loc.T, width.T))))


@pytest.mark.parametrize("dims", [(-1, -2), (-2, -1)])
@pytest.mark.parametrize("estimator", [dreg, gdreg])
def test_dreg_of_a_plate_within_the_rows(estimator, dims):
    model, guide = (partial(f, data=dims[0], inner=dims[1]) for f in (inner_model, inner_guide))
    a, b = (gradients(Bound(iwae, 5, estimator=e), model, guide, ONE) for e in (estimator, pathwise))
    t, where = worst(a, b)
    assert t < 4, where
    assert not torch.equal(a["loc"], b["loc"])


# PIWAE


@pytest.mark.parametrize("program", PROGRAMS)
def test_piwae_is_iwae_for_the_model_and_miwae_for_the_guide(program):
    """On the same noise, to 1e-12: M = 3 groups of K = 4."""
    rows = {"rows": 50}
    mixed = gradients(Bound(piwae, 4, num_groups=3), *PROGRAMS[program], **rows)
    model = gradients(Bound(iwae, 12), *PROGRAMS[program], **rows)
    guide = gradients(Bound(miwae, 4, num_groups=3), *PROGRAMS[program], **rows)
    for name in mixed:
        want, other = (guide, model) if name in ENCODER else (model, guide)
        torch.testing.assert_close(mixed[name], want[name], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(mixed[name], other[name])


# the exact posterior as guide: no noise is left


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("name", ["iwae", "renyi", "ciwae", "tvo", "miwae", "piwae", "elbo"])
def test_nothing_is_left_at_the_exact_posterior(name, sites):
    bound, groups = BOUNDS[name]
    exact = Exact()
    for estimator in (stl, dreg):
        assert exact.largest(Bound(bound, 4, num_groups=groups, estimator=estimator), sites) < 1e-8
    assert exact.largest(Bound(bound, 4, num_groups=groups), sites) > 0.1


# signal to noise (Rainforth et al., 2018)


def snr(rows):
    """|mean| / standard deviation, averaged over coordinates."""
    return (rows.mean(0).abs() / rows.std(0)).mean().item()


def near_the_posterior():
    """One row of the linear-Gaussian model, and a guide that is half a standard deviation off."""
    truth = LinearGaussian()
    q = truth.exact(truth.x[:1])
    scale = torch.linalg.cholesky(q.cov)
    parameters = {"loc": q.loc[0] + 0.5 * scale.diagonal(), "tril": 1.05 * scale}

    def guide(p, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(p["loc"], scale_tril=p["tril"]))

    return {"model": lambda p, x: truth.model(x), "guide": guide, "parameters": parameters, "x": truth.x[0]}


def test_dregs_signal_does_not_fall_with_k_and_iwaes_does():
    """K from 4 to 64: IWAE's encoder loses more than half (theory: a factor √16 = 4), DReG's gains at least half.

    With 10,000 draws the error of a coordinate's signal-to-noise ratio is 0.01 (IWAE's are 0.17 and 0.04).
    """
    near = near_the_posterior()
    found = {
        (e, k): snr(gradients(Bound(iwae, k, estimator=e), **near, rows=10_000)["loc"])
        for e in (pathwise, dreg)
        for k in (4, 64)
    }
    assert found[pathwise, 64] < 0.5 * found[pathwise, 4]
    assert found[dreg, 64] > 1.5 * found[dreg, 4]
    assert found[dreg, 64] > 4 * found[pathwise, 64]


# errors


@pytest.mark.parametrize("estimator", [pathwise, stl, dreg, gdreg])
def test_a_site_without_a_path_is_named_with_what_can_treat_it(estimator):
    with pytest.raises(ProgramError, match=r"'z'.*OneHotCategorical.*(?s:vimco.*rws.*TraceEnum_ELBO)"):
        loss_of(Bound(iwae, 4, estimator=estimator))


def test_the_one_site_without_a_path_is_named():
    with pytest.raises(ProgramError, match="site 's'"):
        loss_of(Bound(iwae, 4), mixed_model, normal_first, MIXED)


@pytest.mark.parametrize("estimator", [dreg, gdreg])
def test_dreg_refuses_the_jackknife(estimator):
    with pytest.raises(UsageError, match=r"jackknife\(order=1\).*pathwise"):
        loss_of(Bound(jackknife(1), 4, estimator=estimator), one_model, one_guide, ONE)
