"""Whole steps one by one, on a CPU: with every optimizer and transform, and what of them is refused or not finite."""

import math
import sys
from functools import lru_cache, partial

import pytest
import torch
from torch.distributions import Distribution

from pyro_vae import MLP, Conditional, StandardNormal, adam, binarize, cosine, normal, warmup
from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.inductor import compiler
from pyro_vae.data import dequantize
from pyro_vae.data.binarize import check_grey
from pyro_vae.errors import DivergedError, SupportError
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.training.callbacks import TrainingCallback
from pyro_vae.training.engines import whole_step, whole_steps
from pyro_vae.training.engines.adam_update import AdamGroup, by_formula, by_kernel, by_lists
from pyro_vae.training.engines.verify import norms_of
from pyro_vae.training.engines.whole_step import WholeStepTracer
from pyro_vae.training.engines.whole_steps import WholeSteps
from tests.helpers.engines import noisy, plain
from tests.helpers.environment import HEAVY
from tests.helpers.small import small_vae
from tests.helpers.whole_steps import Trap, black_and_white, close_states, fit, grey

pytestmark = pytest.mark.usefixtures("examined")
LUCK = 0.6  # near numbers that are drawn: it is met first in the second epoch
FEW = 8 * 10 + 3  # rows: ten whole steps an epoch, and an uneven one
SGD = partial(torch.optim.SGD, lr=1e-3)
OPTIMIZERS = {
    "adam": adam(1e-2),
    "adam of other options": partial(
        torch.optim.Adam, lr=1e-2, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1, fused=True
    ),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1, fused=True),
    "adam unfused": partial(torch.optim.Adam, lr=1e-2),
    "adamw unfused": partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1),
    "amsgrad": partial(torch.optim.Adam, lr=1e-2, amsgrad=True, fused=True),
    "sgd": SGD,
}


def run_on(engine, make=plain, optimizer=None, **options):
    """A run, and what it leaves: weights and buffers, and the optimizer's moments."""
    torch.manual_seed(1)
    pair, *modules = make()
    made = []
    if optimizer is not None:
        options["optimizer"] = lambda parameters: made.append(optimizer(parameters)) or made[-1]
    run = fit(pair, grey()[:FEW].float(), engine=engine, **{"transform": binarize, "epochs": 2} | options)
    moments = made[0].state_dict()["state"] if made else {}
    tensors = [t for m in modules for t in m.state_dict().values()]
    return run, [t.clone() for t in tensors], [t for state in moments.values() for t in state.values()]


def check_whole(exact=True, tolerance=1e-5, **options):
    """The traced run is the eager one, moments included; return what it says of its engine."""
    (a, held, moments), (b, others, theirs) = run_on("eager", **options), run_on("trace", **options)
    if exact:
        assert all(map(torch.equal, held + moments, others + theirs))
        assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history]
    torch.testing.assert_close(others + theirs, held + moments, rtol=tolerance, atol=tolerance)
    assert "eager from here on" not in b.engine, b.engine
    return b.engine


# plain Adam is what every other test takes, and unfused Adam is unfused AdamW without a decay of weights
@pytest.mark.parametrize("name", OPTIMIZERS if HEAVY else [n for n in OPTIMIZERS if n not in ("adam", "adam unfused")])
def test_a_whole_step_is_that_of_every_optimizer(name, monkeypatch):
    used, make_one = [], WholeSteps.make_one
    monkeypatch.setattr(WholeSteps, "make_one", lambda self, *a: used.append(1) or make_one(self, *a))
    assert "no whole steps" not in check_whole(
        "unfused" not in name, optimizer=OPTIMIZERS[name], schedule=warmup(cosine, 0.3)
    )
    assert len(used) == (0 if name in ("amsgrad", "sgd") else 2 * 10 - 1)  # whose update stays outside of the graph


def frozen():
    vae = small_vae()
    vae.likelihood.net[0].weight.requires_grad_(False)
    return vae, vae


def unreached():
    """A parameter that no gradient reaches."""
    vae = small_vae()
    vae.idle = torch.nn.Parameter(torch.ones(3))
    return vae, vae


# that no gradient reaches one is also tested in groups, below
@pytest.mark.parametrize("make", [frozen, noisy, *([unreached] if HEAVY else [])])
def test_parameters_that_stand_still_and_buffers_are_eagers(make):
    assert "no whole steps" not in check_whole(make=make)


KINDS = {"adam": torch.optim.Adam, "adamw": partial(torch.optim.AdamW, weight_decay=0.1)}
GROUPS = [("adam", "first"), ("adamw", "last"), *([("adam", "last"), ("adamw", "first")] if HEAVY else [])]


@pytest.mark.parametrize(("name", "where"), GROUPS)
def test_a_group_that_no_gradient_reaches_keeps_whole_steps(name, where, monkeypatch):
    """It ended the run: "stack expects a non-empty TensorList"."""
    used, make_one = [], WholeSteps.make_one
    monkeypatch.setattr(WholeSteps, "make_one", lambda self, *a: used.append(1) or make_one(self, *a))

    def in_groups(parameters):
        idle, others = [p for p in parameters if p.shape == (3,)], [p for p in parameters if p.shape != (3,)]
        groups = [{"params": others, "lr": 1e-3}]
        groups.insert(len(groups) if where == "last" else 0, {"params": idle, "lr": 1e-2})
        return KINDS[name](groups, fused=True)

    assert "no whole steps" not in check_whole(make=unreached, optimizer=in_groups)
    assert used


def careful(x, generator):
    assert bool((x >= 0).all())
    return binarize(x, generator)


TRANSFORMS = {
    "reads": careful,
    "draws by the rows": lambda x, generator: torch.bernoulli(x, generator=generator),
    "draws twice": lambda x, generator: (binarize(x, generator) + torch.rand(x.shape, generator=generator)).floor(),
    "draws from the global generator": lambda x, generator: binarize(x),
    "draws in place": lambda x, generator: (torch.rand(x.shape, generator=generator).neg_().add_(x) > 0).to(x.dtype),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_draws_what_it_would(name):
    """Those that read numbers, or draw by the rows, outside of the graph."""
    assert "no whole steps" not in check_whole(transform=TRANSFORMS[name])


def dequantized(x, generator):
    return dequantize(2)(x.round(), generator).round()


def superstitious(x, generator):
    """Refuse a batch by what was drawn for it, so that it is one in the midst of training."""
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    if is_doubtful((near := (u - LUCK).abs() < 1e-4).any()):
        raise SupportError(f"{u[near].item():.9f} was drawn")
    return (x > u).to(x)


def checked(x, generator):
    return binarize(check_grey(x), generator)


ASKING = [dequantized, superstitious, *([checked] if HEAVY else [])]


@pytest.mark.parametrize("transform", ASKING, ids=lambda transform: transform.__name__)
def test_a_transform_that_asks_of_its_rows_is_in_the_graph(transform, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LUCK", math.inf)  # nothing is refused
    draws, found = WholeStepTracer.draws, []
    monkeypatch.setattr(WholeStepTracer, "draws", lambda self: found.append(draws(self)) or found[-1])
    assert "no whole steps" not in check_whole(transform=transform)
    assert found and all(found)


def refused_by_transform(engine):
    """What is said, the steps of the epochs before it, and the model."""
    vae, epochs = small_vae(seed=0).double(), []
    with pytest.raises(SupportError) as raised:
        fit(vae, grey(), engine=engine, transform=superstitious, on_epoch=epochs.append)
    return str(raised.value), [r["step"] for r in epochs], vae


eagerly_refused_by_transform = lru_cache(partial(refused_by_transform, "eager"))


@pytest.mark.parametrize("engine", ["trace", "graph"])
def test_a_step_that_a_transform_refuses_is_refused_as_by_eager(engine, on_device):
    """Its error is the one that it raises, and weights and steps are those before it."""
    *told, vae = eagerly_refused_by_transform()
    if engine == "graph":
        on_device()
    *found, other = refused_by_transform(engine)
    assert found == told and len(told[1]) == 1
    close_states(vae, other, 1e-12)


class Listens(TrainingCallback):
    """Notes each epoch's steps, its loss, and the noise after it."""

    interval = 1e9

    def __init__(self, states, losses):
        self.states, self.losses = states, losses

    def after_epoch(self, trainer):
        record = trainer.result.history[-1]
        self.losses.append(record["loss"])
        self.states.append((trainer.state.step, record.get("rows_skipped"), torch.get_rng_state().sum().item()))


def trapped(engine, bad_steps):
    """What a run with two bad rows is between epochs, what it leaves, and its losses."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 4))
    vae = Trap(StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), Conditional(layers, normal)).double()
    vae.armed.fill_(True)
    x, states, losses = black_and_white(), [], []
    x[[100, 40], 0] = 2.0
    callbacks = [Listens(states, losses)]
    try:
        fit(vae, x, engine=engine, bad_steps=bad_steps, validation=x[:30], epochs=2, callbacks=callbacks)
    except DivergedError as error:
        states.append(str(error))
    return states, vae.state_dict(), losses


trapped_in_eager = lru_cache(partial(trapped, "eager"))


TRAPS = [("trace", 8192, 3), ("graph", 8192, 1), ("graph", 7, 3)]  # engine, steps on the device, bad steps
EVERY = [(*way, bad) for way in (("trace", 8192), ("graph", 8192), ("graph", 7), ("graph", 1)) for bad in (1, 3)]


@pytest.mark.parametrize(("engine", "room", "bad_steps"), EVERY if HEAVY else TRAPS)
def test_a_step_that_is_not_finite_is_left_as_eager_leaves_it(engine, room, bad_steps, on_device, monkeypatch):
    monkeypatch.setattr(whole_steps, "ROOM", room)
    monkeypatch.setattr(WholeSteps, "room", room)
    states, tensors, losses = trapped_in_eager(bad_steps)
    if engine == "graph":
        on_device()
    found, others, theirs = trapped(engine, bad_steps)
    assert losses == pytest.approx(theirs, rel=1e-9) and len(losses) == (0 if bad_steps == 1 else 2)
    for name, value in tensors.items():
        torch.testing.assert_close(others[name], value, rtol=1e-9, atol=1e-9)
    assert states == found


def wrong_bias(group, gradients, numbers, skip):
    by_kernel(group, gradients, torch.cat([1.1 * numbers[:1], numbers[1:]]), skip)


def moments_only(group, gradients, numbers, skip):
    before = [p.detach().clone() for p in group.parameters]
    by_kernel(group, gradients, numbers, skip)
    for p, old in zip(group.parameters, before, strict=True):
        p.copy_(old)


def scaled_gradients(group, gradients, numbers, skip):
    by_kernel(group, [1.01 * g for g in gradients], numbers, skip)


def counted_twice(group, gradients, numbers, skip):
    by_kernel(group, gradients, numbers, skip)
    for count in group.steps:
        count.add_(1)


def not_a_number(group, gradients, numbers, skip):
    by_kernel(group, gradients, numbers, skip)
    group.means[0].view(-1)[0] = math.nan


WRONG = {
    not_a_number: "gradient",
    wrong_bias: "update",
    moments_only: "update",
    scaled_gradients: "gradient",
    counted_twice: "it counts another",
}


eager_adam = lru_cache(partial(run_on, "eager", optimizer=adam(1e-2)))


@pytest.mark.parametrize(
    "wrong", WRONG if HEAVY else [not_a_number, wrong_bias, counted_twice], ids=lambda wrong: wrong.__name__
)
def test_a_whole_step_that_is_not_adams_is_never_used(wrong, monkeypatch):
    _, held, moments = eager_adam()
    monkeypatch.setattr(whole_step, "by_kernel", wrong)
    run, others, theirs = run_on("trace", optimizer=adam(1e-2))
    assert "no whole steps: the captured step is not the eager one" in run.engine and WRONG[wrong] in run.engine
    assert all(map(torch.equal, held + moments, others + theirs))


def whole(group, gradients, numbers, skip):
    by_lists(group, gradients, numbers)


@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
def test_the_formula_is_the_kernel(decoupled):
    for skipped in (0.0, 1.0):
        groups = []
        for update in (by_kernel, by_formula, whole):
            draws = torch.Generator().manual_seed(1)
            p, g, m = (torch.randn(50, 3, generator=draws, dtype=torch.float64) for _ in range(3))
            v, t = torch.rand(50, 3, generator=draws, dtype=torch.float64), torch.tensor(7.0)
            group = AdamGroup([p], [m], [v], [t], (0.9, 0.99), 1e-3, 0.1, decoupled)
            update(group, [g], torch.tensor(group.numbers(0.05, 8.0), dtype=torch.float64), torch.tensor(skipped))
            groups.append(group)
        for group in groups[1:] if skipped == 0 else groups[1:2]:  # lists are never skipped
            torch.testing.assert_close(group.tensors, groups[0].tensors, rtol=1e-12, atol=1e-12)
        assert (groups[0].steps[0] == 8 - skipped).all()


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_a_compiled_whole_step_with_batch_norm_is_eagers():
    """Within rounding; and the compiler changes nothing of the process."""
    (eager, held, moments), noise = run_on("eager", noisy, adam(1e-3)), torch.get_rng_state()
    validate, threads = Distribution._validate_args, torch.get_num_threads()
    run, others, theirs = run_on("compile", noisy, adam(1e-3))
    assert "compiled in" in run.engine and "no whole steps" not in run.engine, run.engine
    assert "eager from here on" not in run.engine, run.engine
    torch.testing.assert_close(others + theirs, held + moments, rtol=1e-3, atol=1e-4)
    assert [r["loss"] for r in run.history] == pytest.approx([r["loss"] for r in eager.history], rel=1e-5)
    assert (Distribution._validate_args, torch.get_num_threads()) == (validate, threads)
    assert torch.equal(torch.get_rng_state(), noise)


def test_whoever_waits_for_a_signal_is_asked_often_enough():
    """Within 0.2 s."""
    assert Checkpointer("anywhere").interval + whole_steps.SLICE < 0.2


def test_norms_of_a_group_that_no_gradient_reaches_are_where_the_others_are():
    group, nothing = AdamGroup([], [], [], [], (0.9, 0.99), 1e-8, 0.0, False), ([], [], [], [])
    found = norms_of(group, (1.0, 1.0, 1.0, 1.0), (nothing, nothing, nothing), torch.zeros((), device="meta"))
    assert {norm.device.type for norm in found} == {"meta"}
