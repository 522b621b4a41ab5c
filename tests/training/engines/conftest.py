"""What tests of engines start from."""

import pytest

from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem
from pyro_vae.training import step
from pyro_vae.training.engines import choose, recorded_steps, traced
from pyro_vae.training.engines.cuda_graph import Recorded
from pyro_vae.training.finite_checks import DeferredFiniteCheck, ImmediateFiniteCheck, can_skip
from tests.helpers.recording import Again


@pytest.fixture
def examined(monkeypatch):
    """Have `fit` take its programs as examined: they are those of many runs here, and half of a short one looks at them.

    What the first check and the probes of the logged ELBO find, and that they leave a training as it was, is tested in
    ``training/test_preflight.py``, ``training/test_metrics.py`` and ``programs``; other files of this folder make them.
    """

    def unprobed(step, batch):
        with quiet(step.model, step.guide, seed=0, device=batch[0].device):
            return Problem.unprobed(step.model, step.guide, tuple(a[:1] for a in batch), {})

    monkeypatch.setattr("pyro_vae.training.before_training.check_training", lambda *looked_at: [])
    monkeypatch.setattr("pyro_vae.training.metrics.problem_of", unprobed)


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
        monkeypatch.setattr(recorded_steps, "CudaRecorder", lambda *_: made.append(recorder()) or made[-1])
        return lambda: sum(one.replays for one in made)

    return use
