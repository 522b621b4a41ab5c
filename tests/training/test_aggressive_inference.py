"""The aggressive encoder: who moves when, when it ends, and that it keeps information where plain training loses it."""

import copy
from functools import partial
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyro_vae import MLP, VAE, Conditional, StandardNormal, adam, bernoulli, normal
from pyro_vae import fit as noisy_fit
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.errors import DivergedError, UsageError
from pyro_vae.posteriors import SemiAmortized
from pyro_vae.priors import VampPrior
from pyro_vae.programs.parameters import register
from pyro_vae.training.aggressive_inference import Aggressive, AggressiveInference, dependence
from pyro_vae.training.step import Step
from tests.helpers.bits import same
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import numbers

fit = partial(noisy_fit, verbose=False)


def moved(before, after):
    """Which roles of a VAE changed, bit by bit."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# whose parameters are whose


def names(vae, x):
    """Of the VAE's parameters: those that the model depends on, and those that the guide does."""
    by_tensor = {p: name for name, p in vae.named_parameters()}
    return tuple({by_tensor[p] for p in part} for part in dependence(vae.model, vae.guide, (x,), list(by_tensor)))


def roles(of):
    return {name.split(".")[0] for name in of}


def test_a_vae_that_declares_all_in_both_is_split_by_gradient():
    model, guide = names(small_vae(), binary())
    assert roles(model) == {"likelihood"} and roles(guide) == {"posterior"}
    assert len(model) == 4 and len(guide) == 4


def test_a_posterior_that_the_prior_holds_belongs_to_both():
    posterior = Conditional(MLP(6, 4, (8,)), normal)
    vae = VAE(VampPrior(posterior, 3, 6), Conditional(MLP(2, 6, (8,)), bernoulli), posterior)
    model, guide = names(vae, binary())
    assert model & guide == guide and "prior.raw" in model - guide and roles(model - guide) == {"prior", "likelihood"}


def test_a_refined_posterior_does_not_own_the_decoder_that_refines_it():
    likelihood = Conditional(MLP(2, 6, (8,)), bernoulli)
    q = SemiAmortized(Conditional(MLP(6, 4, (8,)), normal), likelihood, StandardNormal(2), steps=2)
    model, guide = names(VAE(StandardNormal(2), likelihood, q), binary())
    assert roles(model) == {"likelihood"} and not model & guide


def test_of_discrete_latents_by_hand():
    """No gradient through the draws: log q has one. Parameters of pyro.param, constrained ones too."""
    logits, rate = torch.zeros(3, requires_grad=True), torch.ones(3)

    def model(x):
        rates = pyro.param("rate", rate, constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Exponential(rates[k]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=pyro.param("logits", logits)))

    step = Step(model, guide, Trace_ELBO(), adam())
    step.loss_and_grads(torch.ones(5))
    of_model, of_guide = dependence(model, guide, (torch.ones(5),), step.parameters)
    declared = {name: pyro.param(name).unconstrained() for name in ("rate", "logits")}
    assert of_model == {declared["rate"]} and of_guide == {declared["logits"]}


def test_the_split_changes_nothing():
    encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6, (8,)), bernoulli), Conditional(encoder, normal)).train()
    before, state = state_of(vae), torch.get_rng_state()
    names(vae, binary())
    assert same(before, state_of(vae)) and torch.equal(torch.get_rng_state(), state) and vae.posterior.training
    assert all(p.grad is None for p in vae.parameters())


# who moves when


def watched(vae, monkeypatch):
    """Each update of a run: which roles it moved."""
    log, update = [], Step.update

    def logged(step, rate=1.0):
        before = state_of(vae)
        update(step, rate)
        log.append(moved(before, state_of(vae)))

    monkeypatch.setattr(Step, "update", logged)
    return log


def test_inner_steps_move_the_guide_and_model_steps_the_model(monkeypatch):
    vae = small_vae()
    log = watched(vae, monkeypatch)
    run = fit(vae, binary(), epochs=1, batch_size=20, aggressive=Aggressive(check_every=3, max_inner=3))
    assert log == [*[{"posterior"}] * 3, {"likelihood"}] * 2
    assert run.history[0] | {"step": 2, "aggressive": True, "inner_steps": 6} == run.history[0]


def test_without_freezing_all_would_move(monkeypatch):
    vae = small_vae()
    log = watched(vae, monkeypatch)
    monkeypatch.setattr(AggressiveInference, "split", lambda lagging, batch: ([], []))
    fit(vae, binary(), epochs=1, batch_size=20, aggressive=Aggressive(check_every=3, max_inner=3))
    assert all(roles == {"posterior", "likelihood"} for roles in log)


def test_a_shared_posterior_moves_in_both(monkeypatch):
    posterior = Conditional(MLP(6, 4, (8,)), normal)
    vae = VAE(VampPrior(posterior, 3, 6), Conditional(MLP(2, 6, (8,)), bernoulli), posterior)
    log = watched(vae, monkeypatch)
    fit(vae, binary(), epochs=1, aggressive=Aggressive(check_every=2, max_inner=2))
    raw = {"prior", "posterior"}  # the posterior is listed under both names
    assert log == [raw, raw, {"prior", "posterior", "likelihood"}]


def test_after_it_has_ended_all_move_as_ever(monkeypatch):
    vae = small_vae()
    log = watched(vae, monkeypatch)
    monkeypatch.setattr(
        AggressiveInference, "end_epoch", lambda lagging, information: setattr(lagging, "on", False) or {}
    )
    fit(vae, binary(), epochs=2, batch_size=40, aggressive=Aggressive(check_every=1, max_inner=1))
    assert log == [{"posterior"}, {"likelihood"}, {"posterior", "likelihood"}]


# when it ends


def caught_up(losses, **options):
    """How many guide-only updates are made while the loss of a batch of 10 rows goes as given."""
    lagging = AggressiveInference(Aggressive(**options), SimpleNamespace())
    losses, now = iter(losses), (torch.arange(10), ())
    lagging.catch_up(lambda rows, batch, frozen: next(losses), now, iter(lambda: now, None))
    return lagging.inner


@pytest.mark.parametrize(
    ("losses", "updates"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 8),  # falls throughout: to the cap
        ([9, 9, 9, 9, 1, 1], 4),  # stalls in the second pair
        ([9, 9, 8, 8, 8, 9, 1, 1], 6),  # rises in the third
        ([float("nan")] * 9, 2),
    ],
)
def test_inner_steps_go_on_while_their_loss_falls(losses, updates):
    assert caught_up(losses, check_every=2, max_inner=8) == updates


def test_the_cap_holds_between_looks():
    assert caught_up(range(100, 0, -1), check_every=10, max_inner=7) == 7
    assert caught_up(range(100, 0, -1), check_every=4, max_inner=10) == 10


@pytest.mark.parametrize(
    ("patience", "climb", "on"),
    [
        (1, [0.1, 0.2, 0.2, 0.3], [True, True, True, False]),
        (2, [0.1, 0.05, 0.2, 0.1, 0.2, 0.9], [True, True, True, True, True, False]),
        (1, [None, 0.5], [True, False]),
    ],
)
def test_it_ends_once_information_stops_climbing(patience, climb, on):
    lagging = AggressiveInference(Aggressive(patience=patience), SimpleNamespace())
    assert [lagging.end_epoch(information)["aggressive"] for information in climb] == on


def test_a_run_ends_it(monkeypatch):
    """At rate 0 nothing is learnt, so the second epoch is the last aggressive one."""
    still = partial(torch.optim.SGD, lr=0.0)
    run = fit(small_vae(), binary(), epochs=4, optimizer=still, aggressive=Aggressive(check_every=2, max_inner=4))
    assert [r["aggressive"] for r in run.history] == [True, True, False, False]
    assert [r["inner_steps"] > 0 for r in run.history] == [True, True, False, False]
    assert [r["step"] for r in run.history] == [1, 2, 3, 4]


# as any other run


def test_the_seed_decides_and_without_it_nothing_changes():
    x, start, options = binary(), small_vae(), {"epochs": 3, "batch_size": 16, "validation": binary()[:9]}
    a, b, plain, default = (copy.deepcopy(start) for _ in range(4))
    first = fit(a, x, aggressive=Aggressive(max_inner=12), **options)
    torch.randn(100)
    second = fit(b, x, aggressive=Aggressive(max_inner=12), **options)
    assert same(state_of(a), state_of(b)) and numbers(first) == numbers(second)
    one, two = fit(plain, x, **options), fit(default, x, aggressive=None, **options)
    assert same(state_of(plain), state_of(default)) and numbers(one) == numbers(two)
    assert "aggressive" not in one.best and not same(state_of(a), state_of(plain))


def test_a_divergence_in_an_inner_step_names_its_own_rows():
    x = torch.randn(40, 6)
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), Conditional(MLP(6, 4, (8,)), normal))
    start, calls = state_of(vae), []

    def spoilt(batch, generator):  # the fifth batch, of the inner steps, holds a value that overflows
        calls.append(len(batch))
        return batch if len(calls) < 5 else batch.masked_fill(batch == x[13, 2], 1e30)

    with pytest.raises(DivergedError, match=r"on rows 13\. ") as caught:
        fit(vae, x, epochs=9, batch_size=40, transform=spoilt, aggressive=Aggressive(check_every=8, max_inner=8))
    assert "the model holds its starting weights" in str(caught.value) and same(state_of(vae), start)


def test_a_guide_without_parameters_is_refused():
    weight = torch.zeros(2, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(logits=pyro.param("w", weight)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)

    with pytest.raises(UsageError, match="no parameter has a gradient from the guide"):
        fit(
            (model, lambda x: None),
            torch.randn(8),
            objective=TraceEnum_ELBO(max_plate_nesting=1),
            aggressive=Aggressive(),
        )


@pytest.mark.parametrize("name", ["patience", "check_every", "max_inner"])
def test_numbers_out_of_range_are_refused(name):
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
        Aggressive(**{name: 0})


# what it is for


class Sequence(VAE):
    """p(x | z) = Π_t Bernoulli(x_t; logit (2 x_<t − 1) A + W z): models a Markov chain exactly, with no need of z."""

    def __init__(self, length):
        super().__init__(StandardNormal(1), nn.Linear(1, length), Conditional(MLP(length, 2, (16,)), normal))
        self.before = nn.Parameter(torch.zeros(length, length))
        nn.init.ones_(self.likelihood.weight)

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            logits = (2 * x - 1) @ self.before.triu(1) + self.likelihood(z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def markov(rows, length=10):
    """A fair coin, then a flip with probability 0.1 at each step."""
    chance = torch.cat([torch.full((rows, 1), 0.5), torch.full((rows, length - 1), 0.1)], 1)
    return torch.bernoulli(chance, generator=torch.Generator().manual_seed(0)).cumsum(1) % 2


def test_it_keeps_information_that_plain_training_loses():
    x, held = markov(2400).split([400, 2000])
    plain = Sequence(10)
    lagging = copy.deepcopy(plain)
    options = {"validation": held[:200], "epochs": 15, "batch_size": 100, "optimizer": adam(0.03)}
    fit(plain, x, **options)
    run = fit(lagging, x, aggressive=Aggressive(), **options)
    assert not run.history[-1]["aggressive"]
    a, b = (latents(vae.model, vae.guide, held, batch=2000) for vae in (lagging, plain))
    se = (a.mutual_information_se**2 + b.mutual_information_se**2) ** 0.5
    assert a.mutual_information > b.mutual_information + 4 * se
