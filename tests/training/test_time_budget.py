"""Training that ends when its caller says so, or when its time is used up."""

import math

import pytest
import torch

from pyro_vae import MLP, VAE, Conditional, StandardNormal, StopTraining, TimeBudget, adam, fit, fit_ensemble, normal
from pyro_vae.errors import UsageError
from tests.helpers.environment import HEAVY

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


def make():
    return VAE(StandardNormal(1), Conditional(MLP(1, 6, (4,)), normal), Conditional(MLP(3, 2, (4,)), normal))


def made(seed=0):
    torch.manual_seed(seed)
    return make()


def stop_at(epoch, **of):
    def watch(record):
        if record["epoch"] == epoch and all(record[name] == value for name, value in of.items()):
            raise StopTraining("enough")

    return watch


@pytest.mark.parametrize("engine", ["eager", "trace", *(["compile"] if HEAVY else [])])
def test_a_stopped_training_is_as_one_of_so_many_epochs(engine):
    """The same weights, records and best epoch, to the bit; the last record is not lost."""
    options = {"batch_size": 10, "engine": engine, "validation": X[:10], "verbose": False}
    one, two = made(), made()
    whole, stopped = fit(one, X, epochs=3, **options), fit(two, X, epochs=9, on_epoch=stop_at(3), **options)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert [r["elbo"] for r in whole.history] == [r["elbo"] for r in stopped.history] and len(stopped.history) == 3
    assert stopped.best_epoch == whole.best_epoch and (whole.stopped, stopped.stopped) == ("3 epochs done", "enough")


def test_a_stopped_training_holds_its_best_weights():
    """Where the last epoch made it worse, the weights are of the one before, as at any other end."""
    vae, kept = made(), []

    def watch(record):
        kept.append([p.detach().clone() for p in vae.parameters()])
        if len(kept) == 1:  # from here on it gets worse
            result_rate[0] = 1.0
        if len(kept) == 3:
            raise StopTraining

    result_rate = [0.0]
    result = fit(
        vae, X, validation=X[:10], epochs=9, batch_size=10, optimizer=adam(30.0), schedule=lambda done: result_rate[0],
        on_epoch=watch, verbose=False,
    )  # fmt: skip
    assert result.best_epoch == 1 and result.stopped == "stopped by on_epoch"
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), kept[0], strict=True))


@pytest.mark.parametrize("engine", ["trace", "eager"])
def test_one_member_of_an_ensemble_ends_and_the_others_go_on(engine):
    ensemble = fit_ensemble(
        make, X, seeds=(0, 1, 2), epochs=3, batch_size=10, engine=engine, on_epoch=stop_at(2, seed=1), verbose=False
    )
    assert [len(r.history) for r in ensemble.results] == [3, 2, 3]
    assert [r.stopped for r in ensemble.results] == ["3 epochs done", "enough", "3 epochs done"]
    alone = fit_ensemble(make, X, seeds=(0, 2), epochs=3, batch_size=10, engine=engine, verbose=False)
    for i, j in ((0, 0), (2, 1)):  # who goes on does so as without it
        assert [r["elbo"] for r in ensemble.results[i].history] == pytest.approx(
            [r["elbo"] for r in alone.results[j].history], rel=1e-5
        )


def test_a_budget_ends_training_and_leads_its_rate():
    """A clock that goes on by one each time it is asked: the rate follows it, and the epoch beyond it is the last."""
    times, rates = iter(range(1000)), []
    budget = TimeBudget(20, clock=times.__next__)

    def rate(done):
        rates.append(done)
        return 1.0 - done

    result = fit(
        made(),
        X,
        epochs=100,
        batch_size=10,
        schedule=budget.schedule(rate),
        on_epoch=budget,
        engine="eager",
        verbose=False,
    )
    assert result.stopped == "20 s are used up" and 2 < len(result.history) < 10
    assert rates == sorted(rates) and rates[0] <= 0.1 and max(rates) <= 1.0


def test_other_errors_of_on_epoch_are_shown_as_they_are():
    def watch(record):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(made(), X, epochs=2, on_epoch=watch, verbose=False)


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan, "10", None, True], ids=str)
def test_seconds_are_a_number_above_zero(seconds):
    with pytest.raises(UsageError, match="seconds must be a finite number above 0"):
        TimeBudget(seconds)
