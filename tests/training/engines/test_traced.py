"""Engines: the same run as eager, bit by bit where nothing is compiled; and what cannot be traced runs eager, by its reason."""

import json
import random
from contextlib import nullcontext
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import Distribution, constraints

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Conditional,
    StandardNormal,
    adam,
    bernoulli,
    capacity,
    constant,
    dreg,
    elbo,
    fit,
    free_bits,
    gdreg,
    iwae,
    normal,
    piwae,
    posteriors,
    priors,
    rws,
    vimco,
    warmup,
)
from pyro_vae.common import inductor
from pyro_vae.errors import UsageError
from pyro_vae.objectives.analytic_kl import analytic_kl
from pyro_vae.programs.parameters import register
from pyro_vae.training.engines import graph_tally, traced
from pyro_vae.training.engines.flat_graph import trace
from pyro_vae.training.engines.scheduled_values import ScheduledValues
from pyro_vae.training.engines.traced import TracedEngine
from pyro_vae.training.step import Step
from tests.helpers.engines import check_refused, check_same, noisy, plain, weights
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary, small_vae

pytestmark = pytest.mark.usefixtures("examined")
fit = partial(fit, verbose=False, epochs=2, batch_size=8, seed=5)
MLP8 = partial(MLP, hidden=(8,))


# the same run

OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "iwae": lambda: Bound(iwae, 3),
    "dreg": lambda: Bound(iwae, 3, estimator=dreg),
    "rws": lambda: Bound(iwae, 3, estimator=rws),
    "vimco": lambda: Bound(iwae, 3, estimator=vimco),
    "analytic_kl": lambda: Bound(elbo, estimator=analytic_kl()),
}
if HEAVY:  # the last two have numbers that move below; the others take the ways of those above
    OBJECTIVES |= {
        "4 particles": lambda: Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
        "iwae one by one": lambda: Bound(iwae, 2, vectorize_particles=False),
        "piwae": lambda: Bound(piwae, 2, num_groups=2),
        "elbo": Bound,
        "free bits": lambda: Bound(elbo, terms=[free_bits(0.2)]),
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_traced_run_is_the_eager_one_whatever_the_objective(name):
    check_same(plain, objective=OBJECTIVES[name])


def vamp():
    q = Conditional(MLP8(6, 4), normal)
    vae = small_vae(priors.VampPrior(q, 5, 6), posterior=q)
    return vae, vae


def flow():
    vae = small_vae(posterior=posteriors.FlowPosterior(MLP8(6, 64), 2, transforms=1))
    return vae, vae


def by_hand():
    """Plain programs, with a constrained parameter of Pyro's store."""
    encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return (model, guide), encoder, decoder


def coins():
    """A latent without a path: its score function is differentiated."""
    net = nn.Linear(6, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Bernoulli(logits=k.unsqueeze(-1).expand(*k.shape, 6)).to_event(1), obs=x)

    def guide(x):
        pyro.module(f"net{id(net)}", net)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=net(x).squeeze(-1)))

    return (model, guide), net


def halfway():
    """Batch norm in training mode, and after it a look at the numbers, where a trace stops."""

    class Looks(nn.Module):
        def forward(self, h):
            return h if h.mean() > -1e9 else -h

    vae = small_vae(posterior=Conditional(nn.Sequential(nn.BatchNorm1d(6), Looks(), nn.Linear(6, 4)), normal))
    return vae, vae


def test_a_trace_that_stops_halfway_leaves_no_buffer_behind_that_eager_would_not():
    check_refused(halfway, "", objective=Trace_ELBO)


@pytest.mark.parametrize("make", [vamp, flow, noisy, by_hand, coins])
def test_a_traced_run_is_the_eager_one_whatever_the_programs(make):
    check_same(make, objective=Trace_ELBO)


def test_a_trace_is_eager_for_100_steps_with_schedules():
    check_same(plain, epochs=10, batch_size=2, schedule=warmup(constant, 0.5), optimizer=adam(0.01))


def annealed(objective, beta):
    """The weights after a run in which β or a capacity moves at each step."""
    check = []
    for engine in ("eager", "trace"):
        torch.manual_seed(1)
        vae = small_vae()
        moved = beta()
        pair = moved.pair(vae) if isinstance(moved, Beta) else vae
        run = fit(pair, binary(20), objective=objective(moved), engine=engine, scheduled=[moved], batch_size=4)
        check.append((weights(vae), run))
    return check


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        (lambda b: Bound(), lambda: Beta(4.0, warmup(constant, 0.6))),
        (lambda b: Trace_ELBO(), lambda: Beta(1.0, warmup(constant, 0.6))),
        (lambda b: Bound(iwae, 3, estimator=dreg), lambda: Beta(2.0, lambda done: 1 - done)),
        *([(lambda b: Bound(iwae, 3, estimator=gdreg), lambda: Beta(2.0, lambda done: 1 - done))] if HEAVY else []),
        (lambda b: Bound(elbo, terms=[free_bits(0.1)]), lambda: Beta(2.0, lambda done: 1 - done)),
        (lambda c: Bound(elbo, terms=[c]), lambda: capacity(2.0, 5.0, lambda done: done)),
    ],
)
def test_numbers_that_move_are_followed(objective, beta):
    (held, _), (other, run) = annealed(objective, beta)
    assert "traced" in run.engine and "eager from here on" not in run.engine, run.engine
    torch.testing.assert_close(other, held, rtol=1e-5, atol=1e-7)


def test_a_frozen_number_is_another_run(monkeypatch):
    """What scheduled values are for: without them, and without the checks, β stays what it was when the step was traced."""
    monkeypatch.setattr(ScheduledValues, "traced", lambda self, like, answers: nullcontext())
    monkeypatch.setattr(TracedEngine, "why_untraceable", lambda self: None)
    monkeypatch.setattr(TracedEngine, "start_epoch", lambda self: None)
    (held, _), (other, _) = annealed(lambda b: Bound(), lambda: Beta(4.0, warmup(constant, 0.6)))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(other, held, rtol=1e-5, atol=1e-7)


def test_the_last_uneven_batch_runs_eager_and_a_frequent_one_is_traced():
    vae = small_vae()
    step = Step(vae.model, vae.guide, Trace_ELBO(), adam())
    step.engine = engine = TracedEngine(step, [vae], traced.ScheduledValues())
    step(binary(20))
    for rows in [8] * 3 + [5] * (traced.RARE - 1):
        step(binary(20)[:rows])
    assert len(engine.graphs) == 1
    step(binary(20)[:5])
    assert len(engine.graphs) == 2 and engine.eager_reason is None


def test_the_number_of_graphs_is_part_of_a_checkpoint(monkeypatch):
    """Kinds of 8 and 5 rows are traced before the cut, those of 6 after it: one too many, whoever traced the 5."""
    monkeypatch.setattr(graph_tally, "MOST", 2)

    def engine_of(state=None):
        vae = small_vae()
        step = Step(vae.model, vae.guide, Trace_ELBO(), adam())
        step.engine = engine = TracedEngine(step, [vae], ScheduledValues())
        step(binary(20))
        if state is not None:
            engine.load_state(state)
        return step, engine

    step, engine = engine_of()
    for rows in [8] + [5] * traced.RARE:
        step(binary(20)[:rows])
    saved = json.loads(json.dumps(engine.state()))
    assert len(set(saved["graphs"])) == 2
    resumed = engine_of(saved)
    for go_on, each in ((step, engine), resumed):
        for rows in [8] + [6] * traced.RARE:
            assert each.eager_reason is None
            go_on(binary(20)[:rows])
    assert engine.eager_reason == "more than 2 kinds of batch or of changing numbers"
    assert resumed[1].eager_reason == engine.eager_reason
    del saved["graphs"], saved["whole graphs"]  # as an older version left it
    assert engine_of(saved)[1].often == engine.often


# what is refused, and why


def spoilt(inside):
    """A VAE in whose model something is done with z, x and the module itself."""

    class Spoilt(VAE):
        times, tape = 0, torch.zeros(2)

        def model(self, x):
            register(self)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                z = inside(self, z, x)
                pyro.sample("x", self.likelihood(z), obs=x)

    def make():
        vae = Spoilt(StandardNormal(2), Conditional(MLP8(2, 6), bernoulli), Conditional(MLP8(6, 4), normal))
        return vae, vae

    return make


def counted(self, z, x):
    self.times += 1
    return z * (1 + 0.01 * self.times)


def taped(self, z, x):
    type(self).tape.add_(1)
    return z


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (lambda self, z, x: z if z.mean() > 0 else -z, r"Tensor.__bool__() reads numbers back (after site 'z')"),
        (lambda self, z, x: z * x.sum().item(), "Tensor.item() reads numbers back (after site 'z')"),
        (lambda self, z, x: z * self.likelihood.net[0].bias.tolist()[0], "Tensor.tolist() reads numbers back"),
        (lambda self, z, x: z + 0 * x[x > 0].sum(), "aten.index.Tensor depends on the numbers in a tensor"),
        (lambda self, z, x: z * random.random(), "two traces differ: mul.Tensor takes"),
        (counted, "two traces differ: mul.Tensor takes"),
        (taped, "the programs change a tensor in place that is no buffer"),
    ],
)
def test_what_cannot_be_traced_runs_eager_and_says_why(inside, reason, monkeypatch):
    make = spoilt(inside)
    # which a check refuses, where it is no density, or one of all rows
    monkeypatch.setattr("pyro_vae.training.before_training.check_training", lambda *looked_at: [])
    if inside in (counted, taped) or "random" in inside.__code__.co_names:  # whose own state tracing moves on
        torch.manual_seed(1)
        vae, _ = make()
        assert reason.split("(")[0] in fit(vae, binary(20), engine="trace").engine.replace("aten.", "")
    else:
        check_refused(make, reason)


@pytest.mark.parametrize("shards", [2, 4])
def test_in_shards_a_first_step_that_is_computed_anew_counts_no_shard_twice(shards):
    """The first shard is computed before the optimizer is made, and the others are added to it in place."""
    make = spoilt(lambda self, z, x: z * self.likelihood.net[0].bias.tolist()[0])
    check_refused(make, "Tensor.tolist() reads numbers back", shards=shards)


def test_objectives_that_read_numbers_back_run_eager():
    check_refused(plain, "RenyiELBO reads numbers back", objective=partial(RenyiELBO, num_particles=2))


@pytest.mark.parametrize("on_step", [lambda done: None, Beta().at], ids=["function", "method"])
def test_an_on_step_that_may_do_anything_runs_eager(on_step):
    check_refused(plain, "on_step may change any number", on_step=on_step)


def test_a_function_is_called_after_what_is_scheduled_has_moved():
    beta, seen = Beta(2.0, lambda done: done), []
    fit(
        beta.pair(small_vae()),
        binary()[:16],
        scheduled=[beta],
        on_step=lambda done: seen.append((done, beta.value)),
        engine="trace",
    )
    assert seen == [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.75, 1.5)]


class Moved:
    """Keeps the contract of `Scheduled`, unless told otherwise."""

    scheduled_names = ("weight",)

    def __init__(self, weight=1.0, **others):
        self.weight = weight
        self.__dict__.update(others)

    def at(self, done):
        self.weight = 1.0 + done


def without_a_number():
    moved = Moved()
    del moved.weight
    return moved


@pytest.mark.parametrize(
    ("scheduled", "message"),
    [
        (lambda: Moved(), "scheduled must be a list, such as .* got a Moved"),
        (lambda: [Moved(), Moved().at], r"scheduled\[1\] is a method, .* give the Moved itself"),
        (lambda: [lambda done: None], r"scheduled\[0\] is a function, .* goes to on_step="),
        (lambda: [Beta], r"scheduled\[0\] is Beta, and wanted is an object"),
        (lambda: [object()], r"scheduled\[0\] is a object, .*`scheduled_names`"),
        (lambda: [Moved(scheduled_names=("weight", "wieght"))], "lists 'wieght'.* there is no such attribute"),
        (lambda: [without_a_number()], "lists 'weight'.* there is no such attribute"),
        (lambda: [Moved(torch.tensor(1.0))], "lists 'weight'.* it is a Tensor"),
        (lambda: [Moved(scheduled_names="weight")], "must be a tuple of names, .* got 'weight'"),
        (lambda: [Moved(scheduled_names=())], "must be a tuple of names"),
        (lambda: 2 * [Moved()], r"scheduled\[1\] is the same Moved as one before it"),
    ],
    ids=["alone", "method", "function", "class", "object", "typo", "unset", "tensor", "string", "nothing", "twice"],
)
@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_what_cannot_be_scheduled_is_refused_before_training(scheduled, message, engine):
    vae = small_vae()
    before = weights(vae)
    with pytest.raises(UsageError, match=message):
        fit(vae, binary(), engine=engine, scheduled=scheduled())
    torch.testing.assert_close(weights(vae), before, rtol=0, atol=0)


def test_several_objects_of_ones_own_are_followed():
    """Two numbers of two objects, read by the likelihood itself."""

    def run(engine):
        torch.manual_seed(1)
        one, two = Moved(), Moved()

        class Sharp(Conditional):
            def forward(self, *parents):
                return super().forward(*(one.weight * p / two.weight + two.weight for p in parents))

        vae = VAE(StandardNormal(2), Sharp(MLP8(2, 6), bernoulli), Conditional(MLP8(6, 4), normal))
        report = fit(vae, binary(), engine=engine, scheduled=(one, two))
        return weights(vae), report.engine

    (eager, _), (traced, report) = run("eager"), run("trace")
    assert "traced" in report and "eager from here on" not in report, report
    torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-7)


def test_training_inside_a_handler_runs_eager():
    vae = small_vae()
    with poutine.scale(scale=0.5):
        run = fit(vae, binary(20), engine="trace")
    assert "eager from here on: training runs inside other Pyro handlers" in run.engine


def scaled():
    """A VAE whose likelihood holds a plain number that on_epoch changes."""

    class Sharp(Conditional):
        sharp = 1.0

        def forward(self, *parents):
            return super().forward(*(self.sharp * p for p in parents))

    vae = VAE(StandardNormal(2), Sharp(MLP8(2, 6), bernoulli), Conditional(MLP8(6, 4), normal))
    return vae, vae


def test_what_changes_between_epochs_is_traced_anew():
    def on_epoch(vae, record):
        vae.likelihood.sharp = 1.0 + record["epoch"]

    def make():
        vae, _ = scaled()
        made.append(vae)
        return vae, vae

    made = []
    said = check_same(make, on_epoch=lambda record: on_epoch(made[-1], record))
    assert said.count("something changed between epochs, traced anew") == 1
    check_refused(
        make,
        "the captured step is not the eager one: its loss is",
        epochs=5,
        on_epoch=lambda record: on_epoch(made[-1], record),
    )


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_graph_that_is_not_the_step_is_never_used(wrong, monkeypatch):
    def crooked(loss_of, parameters, batch):
        flat = trace(loss_of, parameters, batch)

        def run(*inputs):
            loss, first, *others = flat.module.forward(*inputs)
            return (1.001 * loss, first, *others) if wrong == "loss" else (loss, 1.01 * first, *others)

        flat.run = run
        return flat

    monkeypatch.setattr(traced, "trace", crooked)
    alone = partial(torch.optim.SGD, lr=0.01)  # that is no part of a graph
    check_refused(plain, f"the captured step is not the eager one: its {wrong} is", optimizer=alone)


def test_two_traces_of_different_programs_differ():
    x = binary(4)
    w = torch.ones(6, requires_grad=True)
    a, same, b, c = (
        trace(f, [w], [x])
        for f in (
            lambda x: (2.0 * x * w).sum(),
            lambda x: (2.0 * x * w).sum(),
            lambda x: (3.0 * x * w).sum(),
            lambda x: (2.0 * x * w).exp().sum(),
        )
    )
    assert a.difference(same) is None
    assert "2.0 in one, 3.0 in the other" in a.difference(b) and "exp" in a.difference(c)


def test_nothing_is_left_of_a_trace(monkeypatch):
    vae, x = small_vae(), binary(20)
    store = dict(pyro.get_param_store().items())
    before = torch.get_rng_state(), torch.get_num_threads(), Distribution._validate_args
    fit(vae, x, engine="trace")
    assert torch.equal(before[0], torch.get_rng_state())
    assert (torch.get_num_threads(), Distribution._validate_args) == before[1:]
    assert all(type(p) is nn.Parameter for p in vae.parameters()) and store == {}
    beta = Beta(0.5, constant)
    fit(beta.pair(vae), x, engine="trace", scheduled=[beta])
    assert type(beta.value) is float


def test_the_compilers_log1p_is_exact_to_the_last_digits():
    x = torch.cat([torch.logspace(-40, 38, 4001), -torch.logspace(-40, -0.001, 1001)])
    exact = x.double().log1p()
    off = ((inductor.log1p(x).double() - exact) / exact).abs()
    assert off.max() < 4e-7 and ((x + 1).log().double() / exact - 1).abs().max() > 0.5
