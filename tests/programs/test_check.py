"""check names what is wrong with a pair: one broken pair for each diagnosis, right ones without a finding."""

import copy
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from pyro_vae import MLP, VAE, CheckReport, Conditional, StandardNormal, bernoulli, normal
from pyro_vae.errors import ProgramError, ShapeError, SupportError
from pyro_vae.programs.check import check
from pyro_vae.programs.findings import Finding
from tests.helpers.small import FixedName, binary, small_vae


def rows_of(x, name="data", dim=None):
    return pyro.plate(name, len(x), dim=dim)


UNIT = dist.Normal(0.0, 1.0)


def pair(prior=UNIT, posterior=UNIT, likelihood=lambda z: dist.Normal(z, 1.0)):
    """One latent, one observation, each as given."""

    def model(x):
        with rows_of(x):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with rows_of(x):
            pyro.sample("z", posterior)

    return model, guide


MODEL, GUIDE = pair()


def constant(d):
    """A likelihood that does not look at z."""
    return pair(likelihood=lambda z: d)


def two_latents(x):
    with rows_of(x):
        pyro.sample("y", UNIT)
        pyro.sample("x", dist.Normal(pyro.sample("z", UNIT), 1.0), obs=x)


def also(name):
    def guide(x):
        with rows_of(x):
            pyro.sample("z", UNIT)
            pyro.sample(name, UNIT)

    return guide


def in_plate(size, name="data"):
    def guide(x):
        with pyro.plate(name, size(len(x))):
            pyro.sample("z", UNIT)

    return guide


def model_of(size):
    def model(x):
        with pyro.plate("data", size):
            pyro.sample("x", dist.Normal(pyro.sample("z", UNIT), 1.0), obs=x)

    return model


def no_plate(x):
    pyro.sample("x", dist.Normal(pyro.sample("z", UNIT), 1.0).expand(x.shape).to_event(1), obs=x)


def no_plate_guide(x):
    pyro.sample("z", UNIT)


def global_model(x):
    pyro.sample("g", UNIT)
    MODEL(x)


def global_guide(x):
    pyro.sample("g", UNIT)
    GUIDE(x)


def total_outside(x):
    MODEL(x)
    pyro.sample("total", UNIT, obs=x.sum())


def forgotten(x):
    with rows_of(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0))


def forgotten_guide(x):
    with rows_of(x):
        pyro.sample("z", dist.Normal(0.0, 1.0).expand((2,)).to_event(1))


def nothing_observed(x):
    GUIDE(x)


def nothing_drawn(x):
    with rows_of(x):
        pyro.sample("x", UNIT, obs=x)


def undeclared(width):
    def guide(x):
        with rows_of(x):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), width), 1.0))

    return guide


def wide(width):
    return dist.Normal(torch.zeros(width), 1.0).to_event(1)


def crash(x):
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def nan_guide(x):
    with rows_of(x):
        pyro.sample("z", dist.Normal(torch.full((len(x),), torch.nan), 1.0))


def in_60(x):
    with pyro.plate("data", 60):
        pyro.sample("z", dist.Normal(x, 1.0))


FIVE, GRID = torch.arange(5.0), torch.rand(5, 5)
SIMPLEX, WIDE = dist.Dirichlet(torch.ones(3)), wide(3)

# name: model, guide, x, kind, level, pattern of the line
BROKEN = {
    "in the model only": (two_latents, GUIDE, FIVE, "site", "error", "✗ site 'y': .*not in the guide.*Fix: give"),
    "in the guide only": (MODEL, also("g"), FIVE, "site", "error", "site 'g': it is in the guide but is no latent"),
    "guide draws x": (MODEL, also("x"), FIVE, "site", "error", "'x'.*the model observes it"),
    "another plate size": (MODEL, in_plate(lambda n: n + 1), FIVE, "plate", "error", "site 'z': plates differ.*size 6"),
    "another plate name": (MODEL, in_plate(lambda n: n, "rows"), FIVE, "plate", "error", "plates differ.*'rows'"),
    "plate of one program": (
        MODEL,
        no_plate_guide,
        FIVE,
        "plate",
        "error",
        "site 'z': plates differ.*none in the guide",
    ),
    "plate is not the rows": (
        model_of(3),
        in_plate(lambda n: 3),
        FIVE[:1],
        "plate",
        "error",
        "size 3, the batch 1 rows",
    ),
    "plate of the data set": (
        model_of(60),
        in_60,
        FIVE,
        "plate",
        "error",
        "where the plate 'data' has size 60. Fix: the batch has 5 rows",
    ),
    "no plate": (no_plate, no_plate_guide, FIVE, "plate", "error", "no data plate"),
    "latent outside": (
        global_model,
        global_guide,
        FIVE,
        "plate",
        "error",
        "site 'g': it lies outside the plate 'data'",
    ),
    "observation outside": (total_outside, GUIDE, FIVE, "plate", "error", "site 'total': it lies outside"),
    "obs forgotten": (forgotten, forgotten_guide, FIVE, "obs", "error", r"site 'x': .*forgotten.*obs=x\)"),
    "nothing observed": (nothing_observed, GUIDE, FIVE, "obs", "error", "model: it observes nothing"),
    "nothing drawn": (nothing_drawn, lambda x: None, FIVE, "site", "error", "model: it has no latent"),
    "event undeclared": (MODEL, undeclared(3), FIVE, "event", "error", r"site 'z': .*to_event\(1\)"),
    "event undeclared, square": (MODEL, undeclared(5), FIVE, "event", "error", r"site 'z': .*to_event\(1\)"),
    "event undeclared, one": (MODEL, undeclared(1), FIVE, "event", "error", r"site 'z': .*to_event\(1\)"),
    "widths": (*pair(wide(3), wide(2), lambda z: UNIT), FIVE, "width", "error", r"\(3,\), the posterior \(2,\)"),
    "real under simplex": (
        *pair(SIMPLEX, WIDE, lambda z: UNIT),
        FIVE,
        "support",
        "error",
        "prior lives on numbers .*sum to 1",
    ),
    "simplex under real": (*pair(WIDE, SIMPLEX, lambda z: UNIT), FIVE, "support", "error", "posterior on .*sum to 1"),
    "real under positive": (
        *pair(dist.Exponential(1.0), UNIT),
        FIVE,
        "support",
        "error",
        "draws where the prior has none",
    ),
    "positive under real": (
        *pair(UNIT, dist.Exponential(1.0)),
        FIVE,
        "reach",
        "warning",
        "! site 'z': the guide never draws what p\\(x, z\\) allows.*Fix: Give the guide",
    ),
    "grey under Bernoulli": (
        *constant(dist.Bernoulli(0.5)),
        FIVE / 4,
        "support",
        "error",
        r"3 of 5 rows.*rows 1, 2, 3",
    ),
    "label 256 of 256": (
        *constant(dist.Categorical(torch.ones(256))),
        FIVE + 252,
        "support",
        "error",
        "row 4 holds 256",
    ),
    "0 and 1 under Beta": (
        *constant(dist.Beta(1.0, 1.0)),
        FIVE / 4,
        "support",
        "error",
        "2 of 5 rows.*both excluded.*holds 0 .*0 to 1",
    ),
    "grey, in columns": (
        *constant(dist.Bernoulli(torch.full((6,), 0.5)).to_event(1)),
        torch.full((5, 6), 0.5),
        "support",
        "error",
        "holds 0.5 in column 0.*Fix: Grey values have no Bernoulli",
    ),
    "far from the likelihood": (
        *constant(dist.Normal(0.0, 1e-30)),
        FIVE,
        "density",
        "error",
        "not finite on this batch",
    ),
    "data of another shape": (*constant(UNIT), GRID[:, :3], "shape", "error", r"site 'x': the data has shape \(5, 3\)"),
    "pixels under Poisson": (*constant(dist.Poisson(3.0)), FIVE + 251, "pixels", "warning", "are these pixels"),
    "discrete latent": (
        *pair(dist.Bernoulli(0.5), dist.Bernoulli(0.5)),
        FIVE,
        "discrete",
        "warning",
        "site 'z'.*Bernoulli has no pathwise.*mean-field and IWAE.*TraceGraph_ELBO or Trace_ELBO.*TraceEnum_ELBO",
    ),
    "does not run": (MODEL, crash, FIVE, "run", "error", "guide: it does not run.*mat1 and mat2"),
    "NaN": (MODEL, nan_guide, FIVE, "nan", "error", "the guide draws NaN"),
}


def only(report, kind):
    assert {f.kind for f in report.findings} == {kind}, str(report)
    return report.findings[0]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pair_is_named(name):
    model, guide, x, kind, level, line = BROKEN[name]
    report = check(model, guide, x)
    assert only(report, kind).level == level
    assert report.ok == (level == "warning")
    assert any(re.search(line, f) for f in str(report).splitlines()), str(report)


RIGHT = {
    "plain": (MODEL, GUIDE, FIVE),
    "vectors": (*pair(wide(3), wide(3), lambda z: dist.Normal(z.sum(-1), 1.0)), FIVE),
    "same simplex": (*pair(SIMPLEX, SIMPLEX, lambda z: UNIT), FIVE),
    "counts": (*constant(dist.Poisson(3.0)), FIVE + 300),
    "bits": (*constant(dist.Bernoulli(0.5)), (FIVE > 2).float()),
    "labels": (*constant(dist.Categorical(torch.ones(256))), FIVE + 251),
    "handlers": (poutine.scale(MODEL, scale=0.1), poutine.scale(GUIDE, scale=0.1), FIVE),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pair_has_no_finding(name):
    report = check(*RIGHT[name])
    assert report.ok and report.findings == (), str(report)
    report.raise_if_bad()
    assert str(report) == "✓ nothing found"


def test_a_good_vae_has_no_finding():
    vae = small_vae()
    assert check(vae.model, vae.guide, binary(5), others=[small_vae(), copy.deepcopy(vae)]).findings == ()
    frozen = small_vae()
    frozen.likelihood.requires_grad_(False)
    assert check(frozen.model, frozen.guide, binary(5)).findings == ()


def test_two_latents_in_inner_plates_are_fine():
    def model(x):
        data, pixels = rows_of(x, dim=-2), pyro.plate("pixels", x.shape[1], dim=-1)
        with data:
            z = pyro.sample("z", UNIT)
            with pixels:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with rows_of(x, dim=-2):
            pyro.sample("z", UNIT)

    assert check(model, guide, torch.randn(5, 3)).findings == ()


# parameters


def test_a_parameter_without_gradient_is_named():
    vae = small_vae()
    vae.spare = nn.Linear(1, 1, bias=False)
    report = check(vae.model, vae.guide, binary(5))
    assert only(report, "gradient").where == "parameter 'spare.weight'" and report.ok
    assert len(report.findings) == 1


def test_a_detached_encoder_is_named():
    vae = small_vae(posterior=lambda features: normal(features.detach()))
    report = check(vae.model, vae.guide, binary(5))
    assert report.ok and {f.where for f in report.findings} == {
        f"parameter 'posterior.{n}'" for n, _ in vae.posterior.named_parameters()
    }


def test_a_zero_gradient_is_a_warning():
    vae = small_vae(likelihood=lambda features: bernoulli(0 * features))
    report = check(vae.model, vae.guide, binary(5))
    assert only(report, "gradient").level == "warning" and report.ok and "all zero" in str(report)


def test_a_gradient_that_is_not_finite_is_named():
    vae = small_vae(likelihood=lambda features: bernoulli(features * torch.inf))
    assert "not finite" in str(check(vae.model, vae.guide, binary(5)))


def test_parameters_of_plain_programs_are_found_in_the_store():
    def guide(x):
        pyro.param("spare", torch.ones(2))
        with rows_of(x):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    assert only(check(MODEL, guide, FIVE), "gradient").where == "parameter 'spare'"
    assert list(pyro.get_param_store().keys()) == []


def test_what_a_program_adds_to_the_store_is_forgotten_and_the_rest_stays():
    store, added = pyro.get_param_store(), []
    kept = pyro.param("kept", torch.ones(2), constraint=dist.constraints.positive)

    def guide(x):
        pyro.param("added", torch.zeros(1))
        added.append(torch.equal(pyro.param("kept"), kept))
        with rows_of(x):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    check(MODEL, guide, FIVE)
    assert added and all(added)
    assert list(store.keys()) == ["kept"] and torch.equal(pyro.param("kept"), kept)


def test_shared_parameters_are_named_in_both():
    a, b = small_vae(), small_vae()
    b.likelihood = a.likelihood
    report = check(a.model, a.guide, binary(5), others=[small_vae(), b])
    assert len(report.findings) == len(list(a.likelihood.parameters()))
    assert only(report, "shared").where == "parameter 'likelihood.net.0.weight'"
    assert "also 'likelihood.net.0.weight' of others[1] (VAE)" in str(report)
    assert not check(a.model, a.guide, binary(5), others=[(b.model, b.guide)]).ok


def test_ghost_training_is_named():
    """Pyro's fixed-name trap: after the first VAE's step, the second is not trained."""
    first, second, x = small_vae(kind=FixedName), small_vae(kind=FixedName), binary(5)
    assert check(second.model, second.guide, x).findings == ()
    SVI(first.model, first.guide, pyro.optim.Adam({}), Trace_ELBO()).step(x)
    assert check(first.model, first.guide, x).findings == ()
    finding = only(check(second.model, second.guide, x), "ghost")
    assert "ghost training" in finding.what and "pyro.module('vae'" in finding.what and finding.level == "error"


def test_ghost_training_to_come_is_named():
    first, second = small_vae(kind=FixedName), small_vae(kind=FixedName)
    report = check(first.model, first.guide, binary(5), others=[second])
    assert "of others[0]" in only(report, "ghost").where


# the report, and what stays as it was


def test_the_report_raises_the_class_of_its_first_error():
    def finding(kind, level="error"):
        return Finding(kind, "site 'x'", "it is so", "do so", level)

    for kind, error in (("support", SupportError), ("shape", ShapeError), ("plate", ProgramError)):
        with pytest.raises(error, match=r"✗ site 'x': it is so. Fix: do so"):
            CheckReport((finding("pixels", "warning"), finding(kind))).raise_if_bad()
    CheckReport((finding("pixels", "warning"),)).raise_if_bad()


class Restless(VAE):
    """Dropout and batch statistics, and one module in eval mode."""

    def __init__(self):
        super().__init__(
            StandardNormal(2),
            Conditional(MLP(2, 6, (8,)), bernoulli),
            Conditional(nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4)), normal),
        )
        self.likelihood.eval()


@pytest.mark.parametrize("broken", [False, True])
def test_nothing_is_changed(broken):
    vae, other, x = Restless(), small_vae(kind=FixedName), binary(5)
    SVI(other.model, other.guide, pyro.optim.Adam({}), Trace_ELBO()).step(x)
    for p in vae.likelihood.parameters():
        p.grad = torch.ones_like(p)
    store = pyro.get_param_store()

    def seen():
        state = copy.deepcopy([vae.state_dict(), other.state_dict()])
        return [
            *[t for s in state for t in s.values()],
            *[torch.zeros(0) if p.grad is None else p.grad.clone() for p in vae.parameters()],
            torch.tensor([m.training for m in [*vae.modules(), *other.modules()]]),
            torch.tensor([p.requires_grad for p in vae.parameters()]),
            torch.get_rng_state(),
            torch.tensor([id(store[k]) for k in store.keys()]),  # noqa: SIM118 (not a dict)
        ], list(store.keys())

    before, names = seen()
    report = check(vae.model, GUIDE if broken else vae.guide, x, others=[other])
    after, names_after = seen()
    assert report.ok is not broken, str(report)
    assert names == names_after and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.is_grad_enabled() and pyro.settings.get("validate_infer")


def test_the_same_report_twice():
    vae, x = small_vae(), binary(5) / 2
    assert check(vae.model, vae.guide, x, seed=1) == check(vae.model, vae.guide, x, seed=1)
