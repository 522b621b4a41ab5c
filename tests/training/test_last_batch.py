"""The shorter last batch of an epoch: named before training where the programs do not run on it, and dropped on request."""

import copy

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

from pyro_vae import Beta, Bound, Conditional, elbo, fit, iwae, normal
from pyro_vae.diagnostics.gradient_noise import gradient_report
from pyro_vae.errors import UsageError
from pyro_vae.objectives import bound_objective
from pyro_vae.training import before_training
from pyro_vae.training.shuffle import ShuffledBatches
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import numbers


def normed(device="cpu"):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    return small_vae(posterior=Conditional(net, normal), device=device)


class Centred(nn.Module):
    """Divides by the standard deviation of the batch: NaN of one row."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer((x - x.mean(0)) / (x.std(0) + 1) if self.training else x)


class Grouped(nn.Module):
    """Compares the rows of a batch in groups of eight while training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        groups = x.view(-1, 8, 6) if self.training else x
        return self.layer((groups - groups.mean(1, keepdim=True)).view(x.shape) if self.training else x)


FAILING = {
    "batch-norm": (
        normed,
        33,
        r"has 1 row \(33 in batches of 16\).*Expected more than 1 value per channel.*batch_size",
    ),
    "nan": (
        lambda: small_vae(posterior=Conditional(Centred(), normal)),
        33,
        "has 1 row .*'z' is not finite|has 1 row .*nan",
    ),
    "groups": (
        lambda: small_vae(posterior=Conditional(Grouped(), normal)),
        42,
        r"has 10 rows \(42 in batches of 16\).*shape",
    ),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_last_batch_that_does_not_run_is_named_before_training(kind):
    make, rows, words = FAILING[kind]
    epochs = []
    with pytest.raises(UsageError, match=words) as caught:
        fit(make(), binary(rows), epochs=2, batch_size=16, on_epoch=epochs.append, verbose=False)
    assert "drop_last=True" in str(caught.value) and not epochs
    run = fit(make(), binary(rows), epochs=2, batch_size=16, drop_last=True, verbose=False)
    assert run.history[-1]["step"] == 4


def test_the_batch_size_that_it_names_trains():
    with pytest.raises(UsageError, match=r"another batch_size, such as (\d+)") as caught:
        fit(normed(), binary(33), epochs=1, batch_size=16, verbose=False)
    other = int(str(caught.value).rsplit("such as ", 1)[1].rstrip("."))
    assert fit(normed(), binary(33), epochs=1, batch_size=other, verbose=False).history


@pytest.mark.parametrize(
    ("rows", "words"), [(1, "1 training row"), (8, "batch_size=1: a batch has 1 row.*batch_size=2")]
)
def test_batches_of_one_row(rows, words):
    with pytest.raises(UsageError, match=words):
        fit(normed(), binary(rows), epochs=1, batch_size=1, verbose=False)
    assert fit(small_vae(), binary(rows), epochs=1, batch_size=1, verbose=False).history


def test_dropped_rows_are_others_each_epoch(device):
    x, seen = binary(35, device), []
    order = ShuffledBatches(35, 16, seed=0, drop_last=True)
    for _ in range(2):
        seen.append(torch.cat(list(order.one_pass())))
    assert [len(s) for s in seen] == [32, 32] and set(seen[0].tolist()) != set(seen[1].tolist())
    vae = small_vae(device=device)
    run = fit(vae, x, epochs=3, batch_size=16, drop_last=True, verbose=False)
    assert [r["step"] for r in run.history] == [2, 4, 6]


def test_the_logged_loss_is_of_the_rows_that_were_taken():
    """At rate 0 the mean loss of 32 of 35 rows is the loss per row, not 32/35 of it."""
    vae, x = small_vae(), torch.ones(35, 6)
    still = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    options = {"epochs": 1, "batch_size": 16, "optimizer": still, "verbose": False, "objective": TraceMeanField_ELBO()}
    whole, dropped = (fit(vae, x, drop_last=drop, **options).history[0]["loss"] for drop in (False, True))
    assert dropped == pytest.approx(whole, rel=0.04) and dropped != pytest.approx(whole * 32 / 35, rel=0.04)


def test_where_batches_are_whole_dropping_changes_nothing():
    start = small_vae(seed=0)
    a, b = (
        numbers(fit(copy.deepcopy(start), binary(32), epochs=2, batch_size=16, drop_last=d, verbose=False))
        for d in (0, 1)
    )
    assert a == b


# looking changes no batch statistics

OBJECTIVES = {
    "trace": lambda: None,
    "mean-field": TraceMeanField_ELBO,
    "elbo": lambda: Bound(elbo),
    "one-by-one": lambda: Bound(iwae, num_particles=2, vectorize_particles=False),
    "many": lambda: Bound(elbo, num_particles=20, vectorize_particles=False),
}


LOOKED_AT = [(objective, "eager") for objective in OBJECTIVES]
# of "many", 20 copies of a step, which takes a trace 10 s: those of "one-by-one" are 2
LOOKED_AT += [(objective, "trace") for objective in (list(OBJECTIVES)[:-1] if HEAVY else ("trace", "one-by-one"))]


@pytest.mark.parametrize(("objective", "engine"), LOOKED_AT)
def test_batch_statistics_are_updated_once_a_run_of_a_step(objective, engine, device):
    vae = normed(device)
    own = OBJECTIVES[objective]()
    particles = own.num_particles if isinstance(own, Bound) and not own.vectorize_particles else 1
    fit(vae, binary(32, device), epochs=3, batch_size=16, objective=own, engine=engine, verbose=False)
    assert vae.posterior.net[1].num_batches_tracked.item() == 6 * particles


def test_batch_statistics_under_handlers_and_further_looks(device):
    vae, beta = normed(device), Beta(0.5)
    options = {"batch_size": 16, "epochs": 3, "verbose": False}
    fit(beta.pair(vae), binary(40, device), objective=Bound(elbo), **options)
    assert vae.posterior.net[1].num_batches_tracked.item() == 9
    before = state_of(vae.train())
    gradient_report(vae, binary(16, device), objectives={"a": Bound(elbo)}, draws=4)
    assert all(torch.equal(t, before[name]) for name, t in state_of(vae).items())


def test_a_variant_that_restores_nothing_is_found(monkeypatch):
    from contextlib import nullcontext

    monkeypatch.setattr(bound_objective, "buffers_restored", lambda *things: nullcontext())
    vae = normed()
    fit(vae, binary(32), epochs=3, batch_size=16, objective=Bound(elbo), verbose=False)
    assert vae.posterior.net[1].num_batches_tracked.item() == 7


def test_a_variant_that_does_not_look_fails_after_an_epoch(monkeypatch):
    monkeypatch.setattr(before_training, "check_last_batch", lambda *a: None)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel") as caught:
        fit(normed(), binary(33), epochs=1, batch_size=16, verbose=False)
    assert not isinstance(caught.value, UsageError)
