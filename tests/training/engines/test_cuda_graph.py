"""A CUDA graph, as far as it goes without a device."""

from functools import partial

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import adam, fit
from pyro_vae.training.engines import traced
from pyro_vae.training.engines.cuda_graph import Recorded
from pyro_vae.training.engines.traced import TracedEngine
from pyro_vae.training.step import Step
from tests.helpers.engines import check_refused, check_same, noisy, plain, runs
from tests.helpers.recording import Again
from tests.helpers.small import binary, small_vae

fit = partial(fit, verbose=False, epochs=2, batch_size=8, seed=5)

SGD = partial(torch.optim.SGD, lr=0.01)  # an update of its own, after the graph


class Stale(Again):
    """Gives the first results for ever."""

    def replay(self):
        pass


def recorded_by(recorder, monkeypatch):
    monkeypatch.setitem(traced.ACCELERATORS, "trace", lambda flat, batch: Recorded(flat, batch, recorder()))
    monkeypatch.setitem(traced.MADE, "trace", "recorded")


@pytest.mark.parametrize("make", [plain, noisy])
def test_a_recorded_run_is_the_eager_one(make, monkeypatch):
    recorded_by(Again, monkeypatch)
    check_same(make, objective=Trace_ELBO, optimizer=SGD)
    assert "recorded in" in runs(make, "trace", optimizer=SGD)[2]


def test_a_recording_that_does_not_run_again_is_refused(monkeypatch):
    recorded_by(Stale, monkeypatch)
    check_refused(plain, "the captured step is not the eager one", optimizer=SGD)


def test_auto_waits_with_what_takes_long(monkeypatch):
    made = []
    vae = small_vae()
    step = Step(vae.model, vae.guide, Trace_ELBO(), adam())

    def finish(flat, batch):
        made.append(engine.checks)
        return flat.module.forward

    step.engine = engine = TracedEngine(step, [vae], traced.ScheduledValues(), finish, "compile", patience=4)
    for _ in range(9):
        step(binary(20))
    assert made == [1] and engine.checks == 2 and engine.eager_reason is None


def test_parameters_that_moved_are_found(monkeypatch):
    recorded_by(Again, monkeypatch)
    vae = small_vae()

    def move(record):
        vae.likelihood.net[0].weight.data = vae.likelihood.net[0].weight.data.clone()

    assert (
        "eager from here on: a parameter or buffer has moved"
        in fit(vae, binary(20), engine="trace", on_epoch=move, optimizer=SGD).engine
    )
