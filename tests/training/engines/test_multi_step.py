"""Whole steps, several to a replay, with a recorder that runs the function again: the run that single steps make."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import (
    MLP,
    VAE,
    Beta,
    Bound,
    Conditional,
    StandardNormal,
    adam,
    binarize,
    constant,
    cosine,
    iwae,
    normal,
    warmup,
)
from pyro_vae import fit as fit_
from pyro_vae.errors import DivergedError
from pyro_vae.programs.parameters import register
from pyro_vae.training import step
from pyro_vae.training.engines import choose, multi_step, traced
from pyro_vae.training.engines.cuda_graph import Recorded
from pyro_vae.training.engines.multi_step import STEPS, MultiStep
from pyro_vae.training.finite_checks import DeferredFiniteCheck, ImmediateFiniteCheck, can_skip
from tests.helpers.recording import Again, NumbersRead
from tests.helpers.small import small_vae

fit = partial(fit_, verbose=False, epochs=3, batch_size=8, seed=5)
ROWS = 8 * (2 * STEPS + 5) + 3  # one step alone, two replays, four alone, an uneven one


@pytest.fixture
def on_device(monkeypatch):
    """What `fit` does on CUDA, on the CPU; what it returns counts the replays of several steps."""

    def use(recorder=Again):
        made = []
        monkeypatch.setattr(choose, "resolve", lambda engine, *_: (engine, "a test"))
        monkeypatch.setitem(traced.ACCELERATORS, "graph", lambda flat, batch: Recorded(flat, batch, Again()))
        monkeypatch.setattr(
            step,
            "choose_finite_check",
            lambda device, optimizer, prompt: (
                ImmediateFiniteCheck() if prompt or not can_skip(optimizer) else DeferredFiniteCheck(device)
            ),
        )
        monkeypatch.setattr(multi_step, "CudaRecorder", lambda *_: made.append(recorder()) or made[-1])
        return lambda: sum(one.replays for one in made)

    return use


def grey():
    return torch.rand(ROWS, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close_states(a, b, tolerance=1e-6):
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value, rtol=tolerance, atol=tolerance)


def black_and_white():
    return grey().round()


def both(on_device, recorder=Again, x=None, **options):
    """Eager's model and run, and those of whole steps; how many replays there were."""
    x = grey() if x is None else x
    made = []
    for engine in ("eager", "graph"):
        replays = on_device(recorder) if engine == "graph" else None
        vae = small_vae(seed=0).double()
        made += [vae, fit(vae, x, engine=engine, **{"transform": binarize} | options)]
    return *made, replays()


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, Bound, partial(Bound, iwae, 3)])
@pytest.mark.parametrize("transform", [None, binarize])
def test_whole_steps_make_the_run_of_single_steps(objective, transform, on_device):
    x = None if transform else black_and_white()
    eager, a, several, b, replays = both(
        on_device, x=x, objective=objective(), transform=transform, schedule=warmup(cosine, 0.3), optimizer=adam(1e-2)
    )
    assert (
        replays == 3 * 2 and f"{STEPS} whole steps to a replay" in b.engine and "eager" not in b.engine.splitlines()[0]
    )
    close_states(eager, several)
    for old, new in zip(a.history, b.history, strict=True):
        assert (old["step"], old["lr"]) == (new["step"], new["lr"])
        assert old["loss"] == pytest.approx(new["loss"], rel=1e-6) and old["elbo"] == pytest.approx(
            new["elbo"], rel=1e-6
        )


class Stuck(Again):
    """Replays nothing."""

    def replay(self):
        pass


def test_a_replay_that_does_nothing_is_another_run(on_device):
    eager, _, several, _, _ = both(on_device, Stuck)
    with pytest.raises(AssertionError):
        close_states(eager, several, 1e-3)


def test_numbers_that_move_are_followed_within_a_replay(on_device):
    runs = []
    for engine in ("eager", "graph"):
        replays = on_device() if engine == "graph" else None
        beta, vae = Beta(1.0, warmup(constant, 0.5)), small_vae(seed=0).double()
        run = fit(
            beta.pair(vae),
            grey(),
            engine=engine,
            transform=binarize,
            scheduled=[beta],
            on_epoch=lambda r, beta=beta: {"beta": beta.value},
        )
        runs.append((vae, run))
    (eager, a), (several, b) = runs
    close_states(eager, several)
    assert b.engine.count("whole steps to a replay") == 1 and replays() == 6
    assert [r["beta"] for r in a.history] == [r["beta"] for r in b.history]  # nobody looks ahead of the epoch


def test_nothing_is_read_back_between_logging_points(on_device, monkeypatch):
    read, call = [], MultiStep.__call__

    def counted(self, *args):
        with NumbersRead() as mode:
            total = call(self, *args)
        read.append((total is not None, mode.count))
        return total

    monkeypatch.setattr(MultiStep, "__call__", counted)
    both(on_device)
    counts = [count for went, count in read if went]
    assert counts == [0] * 6


class Trap(VAE):
    """Not finite at the one row that says so, once armed."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.register_buffer("armed", torch.tensor(False))

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            bad = (x[:, :1] > 1.5) & self.armed
            pyro.sample(
                "x", dist.Normal(self.likelihood(z).base_dist.loc.masked_fill(bad, math.nan), 1).to_event(1), obs=x
            )


def test_a_step_that_is_not_finite_is_named_though_it_was_in_the_middle_of_a_replay(on_device):
    x = black_and_white()
    x[100, 0] = 2.0
    said = []
    for engine in ("eager", "graph"):
        replays = on_device() if engine == "graph" else None
        torch.manual_seed(0)
        vae = Trap(
            StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), Conditional(MLP(6, 4, (8,)), normal)
        ).double()

        def arm(record, vae=vae):
            vae.armed.fill_(record["epoch"] == 2)

        with pytest.raises(DivergedError) as caught:
            fit(vae, x, engine=engine, epochs=4, on_epoch=arm)
        said.append((str(caught.value), vae))
    assert said[0][0] == said[1][0] and "on rows 100. " in said[0][0]
    close_states(said[0][1], said[1][1])
    assert replays() >= 4


class Broken(Again):
    def record(self, function):
        function()
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


def test_steps_that_cannot_be_recorded_go_one_by_one(on_device):
    eager, _, several, b, replays = both(on_device, Broken)
    close_states(eager, several)
    assert replays == 0 and "one by one: operation not permitted when stream is capturing\n" in b.engine + "\n"


@pytest.mark.parametrize("what", ["parameter", "moment"])
def test_what_has_moved_is_recorded_anew(what, on_device, monkeypatch):
    held = []
    monkeypatch.setattr(step.Step, "update", lambda self, *a, f=step.Step.update: held.append(self) or f(self, *a))

    def move(record):
        steps = held[-1]
        if what == "parameter":
            steps.parameters[0].data = steps.parameters[0].data.clone()
        else:
            state = steps.optimizer.state[steps.parameters[0]]
            state["exp_avg"] = state["exp_avg"].clone()

    eager, _, several, b, replays = both(on_device, on_epoch=move)
    close_states(eager, several)
    if what == "moment":  # parameters: the engine itself goes eager
        assert b.engine.count("whole steps to a replay") == 3 and replays == 6


def test_other_optimizers_and_callbacks_have_their_steps_one_by_one(on_device):
    eager, _, several, _, replays = both(on_device, optimizer=partial(torch.optim.SGD, lr=1e-3))
    close_states(eager, several)
    assert replays == 0
    eager, _, several, _, replays = both(on_device, bad_steps=2)
    close_states(eager, several)
    assert replays == 0
