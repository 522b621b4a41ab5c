"""Several whole steps to a replay, with a recorder that runs the function again: the run that single steps make."""

from functools import lru_cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import VAE, Beta, Bound, adam, binarize, constant, cosine, iwae, warmup
from pyro_vae.errors import DivergedError, Interrupted
from pyro_vae.programs.parameters import register
from pyro_vae.training import step
from pyro_vae.training.callbacks import TrainingCallback
from pyro_vae.training.engines import whole_steps
from pyro_vae.training.engines.recorded_steps import STEPS
from pyro_vae.training.engines.whole_steps import WholeSteps
from tests.helpers.environment import HEAVY
from tests.helpers.recording import Again, NumbersRead
from tests.helpers.small import small_vae
from tests.helpers.whole_steps import Trap, black_and_white, close_states, fit, grey, of_normals

pytestmark = pytest.mark.usefixtures("examined")
REPLAYS = 12  # in three epochs: in the first, two steps are made before, and 3 are left


def trained(engine, x=None, **options):
    vae = small_vae(seed=0).double()
    return vae, fit(vae, grey() if x is None else x, engine=engine, **{"transform": binarize} | options)


@lru_cache
def eager_run():
    """Eager's model and run that most tests compare with: only read."""
    return trained("eager")


def both(on_device, recorder=Again, eager=None, **options):
    """Eager's model and run (those of the same options, if none are given), and those of whole steps; how many replays."""
    eager = eager or trained("eager", **options)
    replays = on_device(recorder)
    return *eager, *trained("graph", **options), replays()


LOSSES = [Trace_ELBO, TraceMeanField_ELBO, Bound, partial(Bound, iwae, 3)]


@pytest.mark.parametrize(
    ("objective", "transform"),
    [*((loss, binarize) for loss in LOSSES), *((loss, None) for loss in (LOSSES if HEAVY else LOSSES[-1:]))],
)
def test_whole_steps_make_the_run_of_single_steps(objective, transform, on_device):
    x = None if transform else black_and_white()
    eager, a, several, b, replays = both(
        on_device, x=x, objective=objective(), transform=transform, schedule=warmup(cosine, 0.3), optimizer=adam(1e-2)
    )
    assert (
        replays == REPLAYS
        and f"{STEPS} whole steps to a replay" in b.engine
        and "eager" not in b.engine.splitlines()[0]
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
    eager, _, several, _, _ = both(on_device, Stuck, eager_run())
    with pytest.raises(AssertionError):
        close_states(eager, several, 1e-3)


def test_an_epoch_that_ends_with_a_replay_tells_the_rate_of_its_last_step(on_device):
    options = {"x": grey()[: 8 * STEPS], "schedule": warmup(cosine, 0.3), "optimizer": adam(1e-2)}
    _, a, _, b, replays = both(on_device, **options)
    assert replays > 1 and [r["lr"] for r in a.history] == [r["lr"] for r in b.history]


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
    assert b.engine.count("whole steps to a replay") == 1 and replays() == REPLAYS
    assert [r["beta"] for r in a.history] == [r["beta"] for r in b.history]  # nobody looks ahead of the epoch


def test_nothing_is_read_back_between_logging_points(on_device, monkeypatch):
    read, call = [], WholeSteps.make_replay

    def counted(self, *args):
        with NumbersRead() as mode:
            total = call(self, *args)
        read.append((total, mode.count))
        return total

    monkeypatch.setattr(WholeSteps, "make_replay", counted)
    both(on_device, eager=eager_run())
    counts = [count for went, count in read if went]
    assert counts == [0] * REPLAYS


class Turned(VAE):
    """A likelihood whose scale is a plain number, which a trace freezes."""

    scale = 1.0

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.likelihood(z).base_dist.loc, self.scale).to_event(1), obs=x)


def turned(engine, callbacks=()):
    """A run whose likelihood is another after each epoch."""
    vae = of_normals(Turned)

    def turn(record):
        vae.scale = 1.0 + record["epoch"]

    return vae, fit(vae, grey(), engine=engine, on_epoch=turn, callbacks=list(callbacks), transform=binarize)


turned_in_eager = lru_cache(partial(turned, "eager"))


@pytest.mark.parametrize("often", [False, True], ids=["never asked", "asked at each step"])
def test_a_program_that_somebody_has_changed_is_followed_though_it_is_looked_at_later(often, on_device):
    eager, a = turned_in_eager()
    replays = on_device()
    several, b = turned("graph", [Counted()] if often else [])
    close_states(eager, several)
    assert [r["loss"] for r in a.history] == pytest.approx([r["loss"] for r in b.history], rel=1e-6)
    assert b.engine.count("something changed between epochs, traced anew") == 2 and replays() >= REPLAYS


class Refuses(Turned):
    """Raises an error of its own once it is told to."""

    def model(self, x):
        if self.scale > 2:
            raise KeyError("no such scale")
        return super().model(x)


def refused(engine):
    """A run that ends by the programs' own error: its model, and the step that it is of."""
    vae, seen = of_normals(Refuses), Failed()

    def turn(record):
        vae.scale = 1.0 + (record["epoch"] > 1) * 5

    with pytest.raises(KeyError, match="no such scale") as raised:
        fit(vae, grey(), engine=engine, on_epoch=turn, callbacks=[seen], transform=binarize)
    assert raised.value.__context__ is None
    return vae, seen.step


refused_in_eager = lru_cache(partial(refused, "eager"))


@pytest.mark.parametrize("behind", [1, 10_000])
def test_an_error_of_the_programs_own_is_shown_as_eager_shows_it(behind, on_device, monkeypatch):
    """With weights and steps as they were before the step that it is of."""
    monkeypatch.setattr(whole_steps, "BEHIND", behind)
    eager, at = refused_in_eager()
    on_device()
    several, step_of_graph = refused("graph")
    close_states(eager, several)
    assert at == step_of_graph == 2 * 38


class Failed(TrainingCallback):
    """Notes the step at which training fails."""

    interval = 1e9

    def on_error(self, trainer, error):
        self.step = trainer.state.step
        return ""


@pytest.mark.parametrize("behind", [1, 20, 10_000])
def test_a_graph_is_checked_once_an_epoch_however_late(behind, on_device, monkeypatch):
    monkeypatch.setattr(whole_steps, "BEHIND", behind)
    made, call = [], WholeSteps.check_behind
    monkeypatch.setattr(WholeSteps, "check_behind", lambda self, *args: made.append(1) or call(self, *args))
    eager, _, several, b, replays = both(on_device, eager=eager_run())
    close_states(eager, several)
    assert len(made) == 2 and replays == REPLAYS and "checked against eager 3 times" in b.engine


def test_who_is_interrupted_in_a_check_finds_all_as_it_was(on_device, monkeypatch):
    """The check runs from copies of where the epoch began."""
    held, call = [], whole_steps.eager_step

    def interrupted(engine, data, whole, order, wait=True):
        held.extend([] if wait else [1])
        if not wait and len(held) == 2:
            raise KeyboardInterrupt
        return call(engine, data, whole, order, wait)

    runs = []
    for engine in ("eager", "graph"):
        if engine == "graph":
            on_device()
            monkeypatch.setattr(whole_steps, "eager_step", interrupted)
        vae = small_vae(seed=0).double()
        epochs = {"epochs": 2} if engine == "eager" else {}
        try:
            fit(vae, grey(), engine=engine, transform=binarize, **epochs)
        except Interrupted as error:
            assert "interrupted at step 113" in str(error) and len(held) == 3, str(error)
        runs.append(vae)
    close_states(*runs)


def test_a_step_that_is_not_finite_is_named_though_it_was_in_the_middle_of_a_replay(on_device):
    x = black_and_white()
    x[100, 0] = 2.0
    said = []
    for engine in ("eager", "graph"):
        replays = on_device() if engine == "graph" else None
        vae = of_normals(Trap)

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
    eager, _, several, b, replays = both(on_device, Broken, eager_run())
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

    eager, _, several, b, replays = both(on_device, eager=eager_run(), on_epoch=move)
    close_states(eager, several)
    assert b.engine.count("whole steps to a replay") == 3
    assert replays == {"parameter": REPLAYS, "moment": REPLAYS - 2}[what]  # whose graph is new, and checked at once


def test_other_optimizers_have_their_steps_one_by_one(on_device):
    eager, _, several, _, replays = both(on_device, optimizer=partial(torch.optim.SGD, lr=1e-3))
    close_states(eager, several)
    assert replays == 0


class Counted(TrainingCallback):
    """Counts how often it is asked."""

    def __init__(self, interval=0.0):
        self.interval, self.asked = interval, 0

    def after_step(self, trainer):
        self.asked += 1
        assert trainer.between_steps


def test_callbacks_and_bad_steps_do_not_slow_it(on_device):
    seldom, often = Counted(1e9), Counted()
    eager, _, several, _, replays = both(on_device, eager=eager_run(), bad_steps=2, callbacks=[seldom, often])
    close_states(eager, several)
    assert replays == REPLAYS and seldom.asked == 1 and often.asked == 7 + 5 + 5
