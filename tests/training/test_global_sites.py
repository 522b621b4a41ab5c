"""`fit` of pairs with global parameters: to the evidence of the data set under mini-batches, on each engine; refusals."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from pyro_vae import Bound, GlobalGuide, adam, check, cosine, fit, fit_ensemble, iwae
from pyro_vae.errors import ProgramError
from tests.helpers.bayesian import DOUBLE, LearnedMean, LocalLatents, NormalMean, Regression, normal_rows
from tests.helpers.environment import HEAVY

AT_ONCE = {"vectorize_particles": True, "max_plate_nesting": 1}
QUICK = {"optimizer": adam(lr=0.05), "schedule": cosine, "verbose": False}


@pytest.mark.parametrize(
    ("size", "epochs", "particles"),
    [(10, 120, AT_ONCE), (100, 60, AT_ONCE), (1000, 25, {})],
    ids=["10", "100", "1000, one by one"],
)
def test_mini_batches_reach_the_evidence_of_the_data_set(size, epochs, particles):
    x, pair = normal_rows(size), LearnedMean(sd=size**-0.5)
    run = fit(
        pair, x, epochs=epochs, batch_size=max(4, size // 8), objective=TraceMeanField_ELBO(4, **particles), **QUICK
    )
    exact = NormalMean().log_evidence(x)
    assert exact - pair.elbo(x).item() < 0.02
    loc, sd = NormalMean().posterior(x)
    assert abs(pair.log_sd.exp().item() / sd - 1) < 0.15 and abs(pair.loc.item() - loc) < 0.3 * sd
    record = run.history[-1]
    assert abs(record["elbo_data_set"] - exact) < 4 * record["elbo_data_set_se"] + 0.02
    assert record["elbo"] * size == pytest.approx(record["elbo_data_set"]) and record["kl_global"] > 0
    of_a_batch = NormalMean().posterior(x[: max(4, size // 8)])[1]
    assert abs(pair.log_sd.exp().item() / of_a_batch - 1) > 0.3  # what a KL in each batch leads to


def test_the_loss_of_an_epoch_is_that_of_the_data_set():
    x, pair = normal_rows(100), LearnedMean()
    frozen = partial(torch.optim.SGD, lr=0.0)
    run = fit(
        pair,
        x,
        epochs=1,
        batch_size=30,
        objective=TraceMeanField_ELBO(num_particles=500, **AT_ONCE),
        optimizer=frozen,
        verbose=False,
    )
    assert run.history[-1]["loss"] == pytest.approx(-pair.elbo(x).item() / 100, abs=0.02)


def test_validation_rows_have_the_elbo_of_their_own_terms():
    """E_q(μ)[log p(x_new | μ)] in closed form: no KL(μ), which is the data set's."""
    x, new, pair = normal_rows(50), normal_rows(30, seed=1), LearnedMean(loc=0.5, sd=0.1)
    frozen = partial(torch.optim.SGD, lr=0.0)
    run = fit(pair, x, validation=new, epochs=1, optimizer=frozen, verbose=False)
    record, exact = (
        run.history[-1],
        dist.Normal(torch.tensor(0.5).double(), 1.0).log_prob(new).mean().item() - 0.1**2 / 2,
    )
    assert record["elbo"] == pytest.approx(exact, abs=4 * 0.1 * 0.5 / 4) and record["kl"] == 0
    assert record["train_elbo"] == pytest.approx(pair.elbo(x).item() / 50, abs=0.1)


AUTO = {
    "normal": (AutoNormal, Regression.mean_field_elbo),
    "multivariate": (AutoMultivariateNormal, Regression.log_evidence),
    "low-rank": (partial(AutoLowRankMultivariateNormal, rank=2), Regression.log_evidence),
}


@pytest.mark.parametrize("kind", AUTO)
def test_an_autoguide_reaches_the_best_of_its_family(kind):
    torch.manual_seed(0)
    auto, best = AUTO[kind]
    oracle = Regression()
    y, c = oracle.args(60)
    guide = GlobalGuide(oracle.model, auto)
    objective = Trace_ELBO(num_particles=10, **AT_ONCE)
    run = fit((oracle.model, guide), y, c, objective=objective, epochs=100, batch_size=20, **QUICK)
    record = run.history[-1]
    assert abs(record["elbo_data_set"] - best(oracle, y, c).item()) < 4 * record["elbo_data_set_se"] + 0.05


class Amortised(nn.Module):
    """q(z | x) = N(a x + b, s²), the same for all rows."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1).double()
        self.log_sd = nn.Parameter(torch.zeros((), dtype=DOUBLE))

    def forward(self, x):
        pyro.module("amortised_of_a_test", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.line(x[:, None])[:, 0], self.log_sd.exp()))


def test_an_autoguide_beside_an_amortised_guide():
    torch.manual_seed(0)
    oracle = LocalLatents()
    (x,) = oracle.args(60)
    guide = GlobalGuide(oracle.model, AutoNormal, Amortised())
    run = fit((oracle.model, guide), x, objective=Trace_ELBO(4, **AT_ONCE), epochs=120, batch_size=20, **QUICK)
    record, exact = run.history[-1], oracle.log_evidence(x).item()
    # q(z | x) knows nothing of the draw of μ: the best of that family, by the normal's precision 60 + 1 beside 60 / 2 + 1
    best = exact - 0.5 * torch.tensor(61 / 31).log().item()
    assert (
        best - 0.1 - 4 * record["elbo_data_set_se"] < record["elbo_data_set"] < exact + 4 * record["elbo_data_set_se"]
    )


@pytest.mark.parametrize("engine", ["trace", *(["compile"] if HEAVY else [])])
def test_engines_train_alike(engine):
    x, runs = normal_rows(40), {}
    for name in ("eager", engine):
        pair = LearnedMean()
        run = fit(pair, x, epochs=5, batch_size=15, engine=name, **QUICK)
        runs[name] = torch.stack([pair.loc, pair.log_sd]).detach()
        assert run.engine.startswith(f"engine {name}"), run.engine
    assert torch.allclose(runs["eager"], runs[engine], rtol=1e-9)


def test_an_ensemble_trains_as_its_members_alone():
    x = normal_rows(40)
    ensemble = fit_ensemble(
        LearnedMean, x, seeds=[0, 1], epochs=4, batch_size=15, optimizer=adam(lr=0.05), verbose=False
    )
    for member, seed in zip(ensemble, ensemble.seeds, strict=True):
        alone = LearnedMean()
        fit(alone, x, epochs=4, batch_size=15, optimizer=adam(lr=0.05), seed=seed, verbose=False)
        assert torch.allclose(member.loc, alone.loc, rtol=1e-6)


# refusals


def global_mean(x):
    NormalMean().model(x)


def of_batch(x):
    """q(μ) of the batch's mean: another for each batch."""
    loc = pyro.param("weight_of_a_test", torch.tensor(1.0).double())
    pyro.sample("mu", dist.Normal(loc * x.mean(), 0.1))


def observed_outside(x):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    pyro.sample("total", dist.Normal(mu, 1.0), obs=x.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def of_another_size(x):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", 70, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def of_its_own_rows(x):
    mu, rows = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0)), normal_rows(60)
    with pyro.plate("data", len(rows)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=rows)


def model_inside(x):
    with pyro.plate("data", len(x)):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def learned(x):
    LearnedMean.guide(PAIR, x)


PAIR = LearnedMean()
REFUSED = {
    "iwae": (global_mean, learned, {"objective": Bound(iwae, num_particles=4)}, "site 'mu' lies outside.*Bound"),
    "renyi": (global_mean, learned, {"objective": RenyiELBO(num_particles=2)}, "site 'mu' lies outside.*RenyiELBO"),
    "posterior-of-the-batch": (global_mean, of_batch, {}, "site 'mu' of the guide.*another density.*batch_size=N"),
    "data-outside-the-plate": (observed_outside, learned, {}, "site 'total' of the model.*observes other values"),
    "another-size": (of_another_size, learned, {}, "site 'x': its plate 'data' says that the data set has 70 rows"),
    "rows-of-its-own": (of_its_own_rows, learned, {}, "site 'x': its plate 'data' has 60 rows in a batch of 20"),
    "global-inside-the-plate": (model_inside, learned, {}, "site 'mu' lies inside the plate 'data' in the model"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_by_name(why):
    model, guide, options, message = REFUSED[why]
    with pytest.raises(ProgramError, match=message):
        fit((model, guide), normal_rows(60), epochs=1, batch_size=20, verbose=False, **options)


class Layer(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

    def forward(self, y, c):
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(self.linear(c).squeeze(-1), 1.0), obs=y)


def test_weights_of_a_layer_inside_the_plate_are_named():
    model, (y, c) = Layer(), (torch.randn(20), torch.randn(20, 2))
    message = r"site 'linear.weight': a weight of a layer \(PyroSample\) is drawn inside the plate 'data'"
    with pytest.raises(ProgramError, match=message):
        fit((model, GlobalGuide(model, AutoNormal)), y, c, epochs=1, verbose=False)
    with pytest.raises(ProgramError, match=message):
        check(model, lambda y, c: None, y, c).raise_if_bad()
