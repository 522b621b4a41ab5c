"""Batches that do not fit: the parts' gradients are the batch's, whatever couples rows is refused, nothing else changes."""

import math
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import (
    Bound,
    adam,
    analytic_kl,
    capacity,
    dreg,
    free_bits,
    iwae,
    mmd,
    priors,
    stl,
    total_correlation,
    vimco,
)
from pyro_vae import fit as noisy_fit
from pyro_vae.errors import DeviceMemoryError
from pyro_vae.training.constant_noise import UnknownNoise, constant_noise
from pyro_vae.training.memory_forecast import SMALL, forecast, memory_notes
from pyro_vae.training.micro_batches import coupled
from pyro_vae.training.step import Step
from tests.helpers.bits import same
from tests.helpers.small import binary, small_vae, state_of

fit = partial(noisy_fit, verbose=False)
WORDS = "CUDA out of memory. Tried to allocate 20 GiB."


def step_of(vae, objective=None):
    return Step(vae.model, vae.guide, objective or Trace_ELBO(), adam())


def gradients(step, x, rows):
    """The loss, and each parameter's gradient, under constant noise."""
    step.micro_batches.rows = rows
    with constant_noise():
        loss = step.loss_and_grads(x)
    return [loss, *(torch.zeros_like(p) if p.grad is None else p.grad for p in step.parameters)]


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO(),
    "TraceMeanField_ELBO": TraceMeanField_ELBO(),
    "iwae": Bound(iwae, 4),
    "dreg": Bound(iwae, 4, estimator=dreg),
    "vimco": Bound(iwae, 4, estimator=vimco),
    "stl": Bound(estimator=stl),
    "capacity": Bound(estimator=analytic_kl(), terms=[capacity(2.0, 3.0)]),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_parts_gradients_add_up_to_the_batchs(name, device):
    vae, x = small_vae(device=device, seed=0).double(), binary(11, device, torch.float64)
    step = step_of(vae, OBJECTIVES[name])
    assert coupled(step, (x,)) is None  # before the first step, and after
    gradients(step, x, None)  # finds the parameters
    whole = gradients(step, x, None)
    for rows in (1, 4, 10):
        torch.testing.assert_close(gradients(step, x, rows), whole, rtol=1e-9, atol=1e-9)
    assert coupled(step, (x,)) is None
    with pytest.raises(AssertionError):  # a mean of parts' means is none
        torch.testing.assert_close([2 * t for t in gradients(step, x, 4)], whole, rtol=1e-9, atol=1e-9)


def test_a_split_step_has_the_law_of_the_whole_one():
    """Mean and standard deviation of the loss over 250 draws, within 4 standard errors of each other."""
    vae, x = small_vae(seed=0), binary(12)
    step = step_of(vae)
    step.loss_and_grads(x)
    losses = {}
    for rows in (None, 5):
        step.micro_batches.rows = rows
        torch.manual_seed(1)
        losses[rows] = torch.stack([step.loss_and_grads(x) for _ in range(250)]).double()
    whole, parts = losses[None], losses[5]
    assert abs(whole.mean() - parts.mean()) < 4 * (2 * whole.var() / 250).sqrt()
    assert abs((whole.std() / parts.std()).log()) < 4 / 250**0.5


# what is refused


def batch_norm():
    vae = small_vae()
    vae.posterior.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return vae, None


def with_term(term):
    return lambda: (small_vae(), Bound(terms=[term]))


class Pair:
    """A small pair with something odd in it."""

    def __init__(self, kind):
        self.kind, self.weight = kind, nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        if self.kind == "a shared latent":
            pyro.sample("shared", dist.Normal(0.0, 1.0))
        with self.rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            shift = x.mean() if self.kind == "a mean over rows" else 0.0
            pyro.sample("x", dist.Bernoulli(logits=(z + shift).unsqueeze(-1).expand(*z.shape, 6)).to_event(1), obs=x)
        if self.kind == "a penalty":
            pyro.factor("penalty", -(pyro.param("weight") * x).square().mean())

    def guide(self, x):
        weight = pyro.param("weight", lambda: torch.tensor(0.3))
        loc = weight * x.sum(-1)
        if self.kind == "a shared latent":
            pyro.sample("shared", dist.Normal(weight, 1.0))
        if self.kind == "noise for all":
            loc = loc + torch.randn(())
        with self.rows(x):
            pyro.sample("z", dist.Normal(loc, 0.5))

    def rows(self, x):
        if self.kind == "a subsampled plate":
            return pyro.plate("data", 100, subsample=torch.arange(len(x)))
        return pyro.plate("data", 80 if self.kind == "a plate of all rows" else len(x))


REFUSED = {
    "mmd": (with_term(mmd(1.0)), "the term mmd"),
    "total correlation": (with_term(total_correlation(2.0, 100)), "the term total_correlation"),
    "free bits": (with_term(free_bits(0.1)), "the term free_bits"),
    "a term of one's own": (with_term(lambda draw: draw.terms.log_w.mean(0)), "the term"),
    "batch norm": (batch_norm, "BatchNorm1d takes the statistics"),
    "RenyiELBO": (lambda: (small_vae(), RenyiELBO(num_particles=2)), "RenyiELBO computes gradients of its own"),
    "a shared latent": (lambda: (Pair("a shared latent"), None), "shared"),
    "a penalty": (lambda: (Pair("a penalty"), None), "penalty"),
    "a mean over rows": (lambda: (Pair("a mean over rows"), None), "not the sum of its parts'"),
    "a subsampled plate": (lambda: (Pair("a subsampled plate"), None), "not the sum of its parts'"),
    "a plate of all rows": (lambda: (Pair("a plate of all rows"), None), "not treated row by row|do not run on 5"),
    "noise for all": (lambda: (Pair("noise for all"), None), "noise that rows share"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_couples_rows_is_named(kind):
    make, words = REFUSED[kind]
    vae, objective = make()
    step, x = step_of(vae, objective), binary(80)
    before = torch.get_rng_state()
    assert re.search(words, coupled(step, (x,)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "kind",
    ["gamma", "dirichlet", "categories", "dropout", "vamp"],
)
def test_other_draws_are_looked_into(kind):
    """Nothing here couples rows, whatever is drawn: each row's noise is its own."""
    x = binary(20)
    if kind in ("dropout", "vamp"):
        vae = small_vae()
        if kind == "dropout":
            vae.posterior.net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 4))
        else:
            vae = small_vae(prior=priors.VampPrior(vae.posterior, 3, 6))
        assert coupled(step_of(vae), (x,)) is None
        return

    def q(x):
        one = pyro.param("one", lambda: torch.tensor(1.3))
        rows = one * (1 + x.sum(-1))
        return {
            "gamma": lambda: dist.Gamma(rows, 1.0),
            "dirichlet": lambda: dist.Dirichlet(rows.unsqueeze(-1).expand(len(x), 3)),
            "categories": lambda: dist.Categorical(logits=rows.unsqueeze(-1) * torch.arange(3.0)),
        }[kind]()

    p = {
        "gamma": dist.Gamma(1.0, 1.0),
        "dirichlet": dist.Dirichlet(torch.ones(3)),
        "categories": dist.Categorical(torch.ones(3)),
    }

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", p[kind])
            scale = z.sum(-1) if kind == "dirichlet" else z.float()
            pyro.sample("x", dist.Normal(scale.unsqueeze(-1), 1.0).expand([*scale.shape, 6]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q(x))

    assert coupled(Step(model, guide, Trace_ELBO(), adam()), (x,)) is None


@pytest.mark.parametrize("term", [mmd(1.0), total_correlation(2.0, 100)], ids=["mmd", "total correlation"])
def test_a_coupling_that_nobody_named_is_seen_in_the_numbers(term, monkeypatch):
    monkeypatch.setattr("pyro_vae.training.micro_batches.ROW_WISE", (object,))
    why = coupled(step_of(small_vae(seed=0), Bound(terms=[term])), (binary(20),))
    assert "not the sum of its parts'" in why


def test_noise_that_cannot_be_looked_into_is_refused():
    with pytest.raises(UnknownNoise, match="randint"), constant_noise():
        torch.randint(3, (2,))


# in a training


def limited(monkeypatch, most):
    """Memory for so many rows at a time; returns the sizes that were tried."""
    real, tried = Step.compute, []

    def compute(self, *batch):
        tried.append(len(batch[0]))
        if len(batch[0]) > most:
            torch.randn(3)  # an attempt draws noise before it fails
            raise torch.OutOfMemoryError(WORDS)
        return real(self, *batch)

    monkeypatch.setattr(Step, "compute", compute)
    return tried


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_training_goes_on_in_parts(engine, monkeypatch, device):
    x, start = binary(40, device), small_vae(seed=0, device=device)
    untouched = state_of(start)
    tried = limited(monkeypatch, 5)
    run = fit(start, x, epochs=3, batch_size=16, engine=engine)
    assert tried[:7] == [16, 8, 4, 4, 4, 4, 4] and max(tried[3:]) == 4
    assert (
        f"batches of 16 rows do not fit into memory ({WORDS.rstrip('.')}): they are computed in parts of 4"
        in run.engine
    )
    assert all(math.isfinite(r["loss"]) and math.isfinite(r["elbo"]) for r in run.history)
    again = small_vae(seed=0, device=device)
    assert same(state_of(again), untouched)
    monkeypatch.setattr("pyro_vae.training.micro_batches.MicroBatches.__init__", begun_with(4))
    fit(again, x, epochs=3, batch_size=16, engine=engine)
    assert same(state_of(again), state_of(start))  # the attempts that failed left nothing behind


def begun_with(rows):
    def init(self):
        self.rows, self.notes, self.fitted = rows, [], 0

    return init


def test_rows_that_do_not_fit_one_by_one_or_are_coupled_stop_it(monkeypatch):
    x = binary(20)
    limited(monkeypatch, 0)
    with pytest.raises(DeviceMemoryError, match=r"step 1: a batch of 8 rows .* as its rows are one"):
        fit(small_vae(), x, epochs=1, batch_size=8)
    limited(monkeypatch, 5)
    with pytest.raises(DeviceMemoryError, match=r"as the term mmd.* batch_size=4") as caught:
        fit(small_vae(), x, epochs=1, batch_size=8, objective=Bound(terms=[mmd(1.0)]))
    assert caught.value.exit_code == 7


# the forecast


def test_the_forecast_is_linear_in_rows_and_right_about_a_layer():
    """What a linear chain keeps is known: its inputs, one activation a layer and row."""
    vae, x = small_vae(hidden=64, width=6), binary(400)
    step = step_of(vae, Bound(iwae, 4))
    found = forecast(step, [vae], lambda rows: (x[:rows],))
    measured = forecast(step, [vae], lambda rows: (x[: 4 * rows],))
    assert found.per_row == pytest.approx(measured.per_row / 4, rel=0.02)
    decoder = 4 * 64 * 4  # of 4 particles, 64 hidden units, float32
    assert decoder < found.per_row < 8 * decoder
    assert found.fixed >= 3 * sum(p.nbytes for p in vae.parameters()) * 0.99
    assert found.rows_in(found.of(100)) in (99, 100) and found.rows_in(0.0) == 0


def test_a_batch_that_will_not_fit_is_said_before_training(monkeypatch):
    vae, x = small_vae(), binary(400)
    step, state = step_of(vae), torch.get_rng_state()
    assert memory_notes(step, [vae], lambda rows: (x[:rows],), 400) == []
    found = forecast(step, [vae], lambda rows: (x[:rows],))
    monkeypatch.setattr("pyro_vae.training.memory_forecast.free_bytes", lambda args: int(found.of(90)))
    (note,) = memory_notes(step, [vae], lambda rows: (x[:rows],), 400)
    assert note.startswith("a step on 400 rows needs about") and "batch_size=" in note
    assert memory_notes(step, [vae], lambda rows: (x[:rows],), 2 * SMALL[1]) == []
    assert torch.equal(torch.get_rng_state(), state) and all(p.grad is None for p in vae.parameters())


def test_programs_that_run_on_whole_batches_only_get_no_forecast_and_train():
    """A plate of a fixed size, and a guide of Pyro's that makes its parameters for the rows of its first run."""
    x = binary(80)
    assert forecast(step_of(Pair("a plate of all rows")), [], lambda rows: (x[:rows],)) is None
    vae = small_vae()
    guide = pyro.infer.autoguide.AutoNormal(vae.model)
    found = forecast(Step(vae.model, guide, Trace_ELBO(), adam()), [vae], lambda rows: (x[:rows],))
    assert guide.prototype_trace is None and found is not None
    fit((vae.model, guide), x, epochs=1, batch_size=80)
    assert len(guide.locs.z) == 80
