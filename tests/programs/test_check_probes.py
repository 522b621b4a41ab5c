"""What evaluators begin with, as findings: each probe on a wrong pair; right programs run, wrong ones do not train."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_vae import check, fit, log_likelihood
from pyro_vae.errors import PyroVAEError

X = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7])
UNIT = dist.Normal(0.0, 1.0)
NAN = torch.tensor([0.1, torch.nan, 1.0])


def plate(x):
    return pyro.plate("data", len(x))


def near(z, x):
    return dist.Normal(z, 1.0)


def half(x):
    return dist.Normal(x / 2, 0.7)


def pair(likelihood=near, posterior=half, prior=UNIT):
    """One latent and one observation a row, and a parameter that is trained."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with plate(x):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z + loc, x), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", posterior(x))

    return model, guide


def masked(where_model, where_guide, read=True):
    """A latent under a mask of each program; what hangs on it reads it where it is masked, or a zero."""

    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with plate(x):
            with poutine.mask(mask=where_model(x)):
                z = pyro.sample("z", UNIT)
            seen = z if read else torch.where(where_model(x), z, torch.zeros_like(z))
            pyro.sample("x", dist.Normal(seen + loc, 1.0), obs=x)

    def guide(x):
        with plate(x), poutine.mask(mask=where_guide(x)):
            pyro.sample("z", half(x))

    return model, guide


def everywhere(x):
    return torch.ones_like(x, dtype=torch.bool)


def above(x):
    return x > 0


def counted():
    """A program that raises when it is run for the third time."""
    runs = []

    def likelihood(z, x):
        runs.append(1)
        if len(runs) > 2:
            raise RuntimeError("the file is read")
        return dist.Normal(z, 1.0)

    return pair(likelihood)


def of_five_rows(z, x):
    return dist.Normal(z + 0 * x.view(5, -1).sum(-1), 1.0)


# name: pair, x, kind, pattern of the line
WRONG = {
    "softmax over rows": (
        pair(lambda z, x: dist.Normal(z.softmax(0), 1.0)),
        X,
        "rows",
        "site 'x' of the model: .*rows",
    ),
    "mean of the batch": (pair(lambda z, x: dist.Normal(z + x.mean(), 1.0)), X, "rows", "log p.x. does not split"),
    "no distribution": (pair(prior=None), X, "run", "wanted a Pyro distribution, got NoneType. Fix: return"),
    "standardized by the batch": (
        pair(lambda z, x: dist.Normal(z * (1 + len(x)), 1.0)),
        X,
        "rows",
        "Fix: Look for a softmax, norm or mean over the rows",
    ),
    "noise outside of sites": (
        pair(lambda z, x: dist.Normal(z + torch.randn(()), 1.0)),
        X,
        "rows",
        "site 'x' of the model: it has another density .*Fix: draw what is random by pyro.sample",
    ),
    "masked in the model": (
        masked(above, everywhere),
        X,
        "mask",
        "site 'z': it is masked in the model and not in the guide",
    ),
    "masked in the guide": (masked(everywhere, above), X, "mask", "site 'z': .*Fix: Mask both programs alike"),
    "masked and read": (
        masked(above, above),
        X,
        "rows",
        "site 'x' of the model: it reads the value of 'z' in rows .1, 3.",
    ),
    "scale below zero": (
        pair(lambda z, x: dist.Normal(z, z)),
        X,
        "parameters",
        "site 'x' of the model: Normal has scale -.*rows .*Fix: Pass the network's output through softplus",
    ),
    "scale of the guide": (
        pair(posterior=lambda x: dist.Normal(0 * x, x)),
        X,
        "parameters",
        "site 'z' of the guide: Normal",
    ),
    "rate below zero at some draws": (
        pair(lambda z, x: dist.Poisson(z + 3), posterior=lambda x: dist.Normal(0 * x, 1.7)),
        torch.zeros(9),
        "parameters",
        "site 'x' of the model: Poisson has rate -",
    ),
    "counts below zero": (
        pair(lambda z, x: dist.NegativeBinomial(torch.tensor(-2.5), logits=z)),
        torch.ones(3),
        "parameters",
        "NegativeBinomial has total_count -2.5 for rows .0, 1, 2.",
    ),
    "no number at some draws": (
        pair(lambda z, x: dist.Normal((z + 2.2).log(), 1.0), posterior=lambda x: dist.Normal(0 * x, 1.0)),
        torch.zeros(9),
        "undefined",
        "site 'x' of the model: its log-probability is nan at some draws, rows .*Fix: bound",
    ),
    "fixed rows": (pair(of_five_rows), X, "run", "ran on this batch once, and not again, or on a part of it"),
    "raises later": (counted(), X, "run", "the file is read"),
    "infinite": (pair(), torch.tensor([0.0, torch.inf]), "data", "✗ x: x has infinite values in 1 of 2 rows"),
    "no rows": (pair(), torch.zeros(0), "data", "✗ x: x is empty"),
    "words": (pair(), "abc", "data", "✗ x: x .a str. has dtype"),
    "one number": (pair(), torch.tensor(1.0), "shape", "✗ x: x is a single number.*Fix: Give one row as x.None."),
}


def refused(name):
    (model, guide), x, *_ = WRONG[name]
    return model, guide, x


@pytest.mark.parametrize("name", WRONG)
def test_what_evaluators_refuse_is_named(name):
    model, guide, x = refused(name)
    *_, kind, line = WRONG[name]
    report = check(model, guide, x)
    assert [f.kind for f in report.errors] == [kind], str(report)
    assert re.search(line, str(report)), str(report)


@pytest.mark.parametrize("name", [name for name in WRONG if name != "raises later"])
def test_what_a_check_calls_wrong_is_trained_by_nobody(name):
    """Not after an epoch, but before it: the parameter is as it was."""
    model, guide, x = refused(name)
    with pytest.raises(PyroVAEError):
        fit((model, guide), x, epochs=1, verbose=False)
    assert all(p.item() == 0 for _, p in pyro.get_param_store().items())


# name: pair, kind, pattern; it trains
WARNED = {
    "point": (pair(posterior=lambda x: dist.Delta(x / 2)), "weight", "site 'z': .*single point.*trains as it is"),
    "narrow": (pair(posterior=lambda x: dist.Uniform(x - 1, x + 1)), "reach", "site 'z': the guide never draws what"),
    "half of the line": (pair(posterior=lambda x: dist.Exponential(x.exp())), "reach", "defensive"),
    "part of the counts": (
        pair(prior=dist.Poisson(2.0), posterior=lambda x: dist.Binomial(2, probs=x.sigmoid())),
        "reach",
        "Give the guide the prior's support",
    ),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_trains_and_has_no_weight_is_a_warning(name):
    """It is trained, and log p(x) refuses it in the same words."""
    (model, guide), kind, line = WARNED[name]
    report = check(model, guide, X)
    (finding,) = [f for f in report.findings if f.kind == kind]
    assert report.ok and finding.level == "warning" and re.search(line, str(report)), str(report)
    with pytest.raises(PyroVAEError) as error:
        log_likelihood(model, guide, X, num_samples=5, verbose=False)
    assert finding.what.split(", as z")[0].removeprefix("it ") in str(error.value)
    fit((model, guide), X, epochs=1, verbose=False)


# right programs


def hidden_markov(x):
    """Two steps of two states, summed over."""
    stay = pyro.param("stay", torch.tensor([[0.9, 0.1], [0.2, 0.8]]), constraint=dist.constraints.simplex)
    with plate(x):
        state = torch.zeros((), dtype=torch.long)
        for t in pyro.markov(range(2)):
            state = pyro.sample(f"state{t}", dist.Categorical(stay[state]))
            pyro.sample(f"x{t}", dist.Normal(state.to(x.dtype), 1.0), obs=x)


def empty(x):
    pass


def without_size():
    def model(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data"):
            pyro.sample("z", half(x))

    return model, guide


class PerRow(EasyGuide):
    """Pyro's guide by hand: an auxiliary site, and a Delta that is made of it."""

    def guide(self, x):
        with self.plate("data", len(x)):
            group = self.group(match="z")
            shape = torch.Size((len(x), *group.event_shape))
            loc, scale = torch.zeros(shape), torch.ones(shape)
            group.sample("all", dist.Normal(loc, scale).to_event(1))


def labelled(x, y):
    """M2 where all labels are given: the classifier is not run."""
    classify, encode = nn.Linear(3, 2), nn.Linear(3, 2)
    decode = nn.Linear(2, 3)

    def model(x, y=None):
        pyro.module("decode", decode)
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(2) / 2), obs=y)
            pyro.sample("x", dist.Normal(decode(z + y), 1.0).to_event(1), obs=x)

    def guide(x, y=None):
        pyro.module("classify", classify)
        pyro.module("encode", encode)
        with plate(x):
            if y is None:
                pyro.sample("y", dist.OneHotCategorical(logits=classify(x)))
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    return model, guide, x, y


def topics(x):
    """ProdLDA's decoder: a softmax over dimension 1, which is another one under a plate of particles."""
    beta = nn.Linear(2, x.shape[1], bias=False)

    def model(x):
        pyro.module("beta", beta)
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            words = torch.softmax(beta(torch.softmax(z, 1)), dim=1)
            pyro.sample("x", dist.Multinomial(6, words).to_event(0), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    return model, guide, x


def tank():
    """p(x | z) is 0 below x: a guide that starts there leaves nothing out."""

    def model(x):
        loc = pyro.param("loc", torch.ones(()))
        with plate(x):
            m = pyro.sample("m", dist.Pareto(loc, 3.0))
            pyro.sample("x", dist.Uniform(torch.zeros_like(m), m), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("m", dist.Pareto(x.clamp_min(1.0), 4.0))

    return model, guide, torch.tensor([0.3, 2.0, 40.0])


def frozen_by_no_grad():
    """A baseline that was trained before, and is run without a gradient (Pyro's CVAE)."""
    baseline = nn.Linear(1, 1)

    def likelihood(z, x):
        pyro.module("baseline", baseline)
        with torch.no_grad():
            shift = baseline(x[:, None])[:, 0]
        return dist.Normal(z + shift, 1.0)

    return pair(likelihood)


WORDS = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0], [0.0, 3.0, 3.0]])
RIGHT = {
    "plain": lambda: (*pair(), X),
    "rows of numpy": lambda: (*pair(), X.numpy()),
    "a list": lambda: (*pair(), X.tolist()),
    "plate without a size": lambda: (*without_size(), X),
    "AutoNormal": lambda: (pair()[0], AutoNormal(pair()[0]), X),
    "EasyGuide": lambda: (pair()[0], PerRow(pair()[0]), X),
    "labels given": lambda: labelled(torch.randn(4, 3), torch.eye(2)[[0, 1, 1, 0]]),
    "softmax of dim 1": lambda: topics(WORDS),
    "support of a latent": tank,
    "same mask": lambda: (*masked(above, above, read=False), X),
    "baseline without gradient": lambda: (*frozen_by_no_grad(), X),
    "one row": lambda: (*pair(), X[:1]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_check_calls_right_trains_and_has_a_log_likelihood(name):
    torch.manual_seed(0)
    model, guide, *args = RIGHT[name]()
    report = check(model, guide, *args)
    assert report.ok and {f.kind for f in report.findings} <= {"gradient"}, str(report)
    evidence = log_likelihood(model, guide, *args, num_samples=20, verbose=False)
    assert evidence.log_px.isfinite().all()
    run = fit((model, guide), *args, epochs=1, verbose=False)
    assert run.history[-1]["elbo"] is not None


@pytest.mark.parametrize("name", ["labels given", "baseline without gradient"])
def test_parameters_that_these_rows_do_not_use_are_warned_of(name):
    report = check(*RIGHT[name]())
    assert report.findings and all(f.level == "warning" and "this batch" in f.what for f in report.findings)


def test_how_particles_are_run_is_told_and_no_finding():
    report = check(*topics(WORDS))
    assert report.findings == () and report.notes == (
        "K particles of a row are run in a way that means the same as one (model as rows, guide as plate)",
    )
    assert str(report).splitlines() == ["✓ nothing found", f"· {report.notes[0]}"]
    assert check(*pair(), X).notes == ()


def test_latents_that_are_summed_over_are_told_and_train():
    """Of the model alone, and of the pair; an objective that draws what the model alone has is refused."""
    model = config_enumerate(hidden_markov)
    report = check(model, empty, X)
    assert report.ok and {f.kind for f in report.findings} == {"enumerated model"}, str(report)
    assert "site 'state0': it is marked for enumeration in the model" in str(report)
    fit((model, empty), X, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1, verbose=False)
    with pytest.raises(PyroVAEError, match=r"site 'state0' of the model is marked for enumeration.*TraceEnum_ELBO"):
        fit((model, empty), X, epochs=1, verbose=False)


def test_a_guide_that_sums_over_a_latent_is_told():
    model, guide = pair(prior=dist.Bernoulli(0.3), posterior=lambda x: dist.Bernoulli(x.sigmoid()))
    report = check(model, config_enumerate(guide), X)
    assert [(f.kind, f.level) for f in report.findings] == [("enumerated pair", "warning")], str(report)
    fit((model, config_enumerate(guide)), X, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1, verbose=False)


def test_a_model_that_is_summed_over_is_probed():
    def coupled(x):
        with plate(x):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(c + x.mean(), 1.0), obs=x)

    assert [f.kind for f in check(config_enumerate(coupled), empty, X).errors] == ["rows"]


def test_missing_values_are_asked_about():
    """They run where they are asked for."""
    _, guide = pair(posterior=lambda x: dist.Normal(x.nan_to_num() / 2, 0.7))

    def filled(x):
        with plate(x):
            z = pyro.sample("z", UNIT)
            pyro.sample("x", dist.Normal(z, 1.0).mask(~x.isnan()), obs=x.nan_to_num())

    report = check(filled, guide, NAN)
    assert report.ok and [f.kind for f in report.findings] == ["missing"] and "missing=True" in str(report)
    assert log_likelihood(filled, guide, NAN, num_samples=5, missing=True, verbose=False).log_px.isfinite().all()


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoMultivariateNormal])
def test_a_guide_of_pyros_is_not_set_up_by_a_check(kind):
    """Its parameters would be of the rows that were checked."""
    model, _ = pair()
    guide = kind(model)
    before = {name: value for name, value in vars(guide).items() if name != "_modules"}
    check(model, guide, X[:3])
    assert guide.prototype_trace is None and list(guide.parameters()) == []
    assert set(vars(guide)) - {"_modules"} == set(before)
    fit((model, guide), X, epochs=1, verbose=False)
