"""What tests of engines start from."""

import pytest

from pyro_vae.programs.pair import quiet
from pyro_vae.programs.problem import Problem


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
