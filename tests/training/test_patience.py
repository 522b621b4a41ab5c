"""Early stopping counts once what is scheduled stands still."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import Beta, Bound, constant, elbo, fit, warmup
from pyro_vae.errors import UsageError
from pyro_vae.training.optimizers import adam
from pyro_vae.training.patience import moved_by, moving_steps, settled_epoch
from pyro_vae.training.schedules import cyclical
from pyro_vae.training.step import Step
from pyro_vae.training.training_state import TrainingOptions
from tests.helpers.small import binary, small_vae

still = partial(torch.optim.SGD, lr=0.0)
SCHEDULES = {
    "warm-up": (warmup(constant, 0.5), 50),
    "constant": (constant, 0),
    "none": (None, 0),
    "cyclical": (cyclical(4), 88),  # the last rise ends at 7/8
    "to-the-end": (lambda done: 1 - done, 99),
    "late-step": (lambda done: float(done >= 0.8), 80),
    "there-and-back": (lambda done: float(0.2 < done < 0.4), 40),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_steps_until_a_schedule_stands_still(kind):
    schedule, steps = SCHEDULES[kind]
    beta = Beta(2.0, schedule)
    value = beta.value
    assert moving_steps([beta], planned=100) == steps
    assert moving_steps([Beta(), beta], planned=100) == steps and beta.value == value


def test_long_runs_are_looked_at_coarsely_and_no_sooner():
    assert 500_000 <= moving_steps([Beta(1.0, warmup(constant, 0.5))], planned=1_000_000) <= 500_200


TOLD = {
    "scheduled": lambda beta: {"scheduled": [beta]},
    "method": lambda beta: {"on_step": beta.at},
    "function": lambda beta: {"on_step": lambda done: beta.at(done)},
}


@pytest.mark.parametrize("way", TOLD)
def test_epochs_of_a_warm_up_do_not_count(way, device):
    """Nothing is learnt at rate 0, so the first epoch stays the best: 5 epochs of warm-up, then 3 of patience."""
    vae, x = small_vae(device=device), binary(device=device)
    beta = Beta(1.0, warmup(constant, 0.5))
    options = {"epochs": 10, "patience": 3, "optimizer": still, "batch_size": 10, "verbose": False}
    run = fit(beta.pair(vae), x, validation=x[:9], **options, **TOLD[way](beta))
    assert len(run.history) == 8 and run.best_epoch == 1 and run.stopped == "no better ELBO for 3 epochs"
    plain = fit(Beta(1.0).pair(vae), x, validation=x[:9], **options)
    assert len(plain.history) == 4


def test_a_capacity_in_the_objective_counts_as_scheduled():
    capacity = SimpleNamespace(value=0.0, scheduled_names=("value",))
    capacity.at = lambda done: setattr(capacity, "value", min(1.0, 2 * done))
    objective = Bound(elbo, terms=[capacity])
    vae = small_vae()
    step = Step(vae.model, vae.guide, objective, adam())
    options = TrainingOptions(epochs=10, patience=1, on_step=lambda done: capacity.at(done))
    assert moved_by(options, step) == [capacity] and settled_epoch(options, step, 7) == 5


def test_without_patience_or_schedules_nothing_is_asked():
    class Silent(Beta):
        def at(self, done):
            self.value = 1.0
            self.asked = getattr(self, "asked", 0) + 1

    vae, beta = small_vae(), Silent()
    step = Step(vae.model, vae.guide, Trace_ELBO(), adam())
    assert settled_epoch(TrainingOptions(scheduled=[beta]), step, 5) == 0 and beta.asked == 1
    assert settled_epoch(TrainingOptions(patience=2), step, 5) == 0


def test_what_cannot_be_asked_is_refused_as_everywhere():
    with pytest.raises(UsageError, match="scheduled_names"):
        fit(small_vae(), binary(), scheduled=[warmup(constant, 0.5)], patience=2, epochs=2, verbose=False)


def test_patience_without_validation_rows_is_named(capsys):
    run = fit(small_vae(), binary(), patience=1, epochs=2, optimizer=still)
    assert "training does not stop early" in run.warnings[0] and "patience=1" in capsys.readouterr().err
    assert fit(small_vae(), binary(), validation=binary(20), patience=1, epochs=2, verbose=False).warnings == []
