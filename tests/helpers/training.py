"""What trainings are tested on."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import constraints

from pyro_vae.common.random import seeded
from pyro_vae.training.metrics import true_elbo
from pyro_vae.training.shuffle import ELBO_NOISE
from pyro_vae.training.step import Step

sgd = partial(torch.optim.SGD, lr=0.01)


def numbers(run):
    """The history without its clock."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in run.history]


def rough(done):
    """Learns for half of the time, then spoils it."""
    return 1.0 if done < 0.5 else 60.0


def check_held(run, vae, x):
    """The model holds the weights of the epoch with the best validation ELBO: evaluated again under the same noise."""
    best = max(run.history, key=lambda record: record["elbo"])
    assert run.best_epoch == best["epoch"] and run.best is best
    with seeded(0, ELBO_NOISE, device=x.device):
        again = true_elbo(Step(vae.model, vae.guide, Trace_ELBO(), sgd), (x,))["elbo"]
    assert again == pytest.approx(best["elbo"], rel=1e-6)  # data known to lie in the support is scored by a shorter way


def mixture(x):
    weight = pyro.param("weight", lambda: x.new_tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: x.new_tensor([-0.5, 0.5]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weight), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)
