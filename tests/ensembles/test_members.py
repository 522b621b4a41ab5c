"""What is no ensemble is refused by name; what cannot be trained together is trained in turn; who diverges is frozen."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import adam, fit_ensemble
from pyro_vae.common.progress import Pace
from pyro_vae.ensembles import report
from pyro_vae.ensembles.members import check_seeds, make_members
from pyro_vae.errors import DivergedError, Interrupted, ProgramError, Terminated, UsageError
from pyro_vae.programs.pair import programs
from tests.ensembles.programs import MAKERS, Gammas, vae, with_network
from tests.ensembles.test_as_alone import alone, assert_same, rows, tensors
from tests.helpers.environment import HEAVY

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([], "seeds is empty"),
        ([0, 3, 0, 5, 3], "seeds has 0, 3 more than once"),
        (8, r"seeds=range\(8\)"),
        ([0, 1.5], r"seeds\[1\] must be a whole number"),
        ([0, -1], r"seeds\[1\] must be at least 0"),
        ([True], r"seeds\[0\] must be a whole number"),
        ("01", "several whole numbers"),
    ],
    ids=["empty", "twice", "a count", "fraction", "negative", "truth", "text"],
)
def test_seeds_that_are_none(seeds, said):
    with pytest.raises(UsageError, match=said):
        check_seeds(seeds)


def unlike(seed, change):
    return vae(hidden=4 + (seed == 1)) if change == "width" else with_network(lambda: [nn.ReLU()] * (1 + seed))()


def test_unlike_architectures_are_refused_naming_member_and_parameter():
    with pytest.raises(UsageError, match=r"'likelihood\.net\.0\.weight' of the member of seed 1 has shape \(5, 2\)"):
        fit_ensemble(partial(unlike, change="width"), rows(), seeds=[0, 1], verbose=False)
    with pytest.raises(UsageError, match=r"the first has '[\w.]+', which the member of seed 1 lacks"):
        fit_ensemble(partial(unlike, change="depth"), rows(), seeds=[0, 1], verbose=False)

    def half(seed):
        made = vae()
        made.prior.requires_grad_(False)
        made.likelihood.net[0].weight.requires_grad_(seed == 0)
        return made

    with pytest.raises(UsageError, match=r"'likelihood.net.0.weight' of the member of seed 7 has requires_grad False"):
        fit_ensemble(half, rows(), seeds=[0, 7], verbose=False)


def test_parameters_that_members_share_are_refused():
    one = vae()
    with pytest.raises(UsageError, match="seeds 0 and 1 share the parameter"):
        fit_ensemble(lambda: one, rows(), seeds=[0, 1], verbose=False)

    def of_the_store():
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Bernoulli(logits=z[:, None] + pyro.param("b", torch.zeros(6))).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 1.0))

        return model, guide

    with pytest.raises(UsageError, match=r"share the parameter '\w+'.*pyro.param has one of a name for all"):
        fit_ensemble(of_the_store, rows(), seeds=[0, 1], verbose=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"make": 3}, "make must be a function"),
        ({"make": lambda: vae}, "wanted a VAE"),
        ({"beta": [1.0, 2.0, 3.0]}, "beta lists 3 values for 2 seeds"),
        ({"beta": "4"}, "beta of member 0"),
        ({"optimizer": [adam()]}, "optimizer lists 1 values for 2 seeds"),
        ({"engine": "graph"}, "engine='graph'"),
        ({"epochs": 0}, "epochs must be at least 1"),
    ],
    ids=["no function", "no pair", "betas", "text", "optimizers", "engine", "epochs"],
)
def test_arguments_that_mean_nothing(options, said):
    make = options.pop("make", vae)
    with pytest.raises(UsageError, match=said):
        fit_ensemble(make, rows(), seeds=[0, 1], verbose=False, **options)


def test_make_gets_the_seed_only_where_it_asks_for_it():
    got = []

    def wants(seed):
        got.append(seed)
        return vae()

    def has_default(hidden=4):
        got.append(hidden)
        return vae(hidden=hidden)

    for make in (wants, has_default):
        make_members(make, [5, 6])
    assert got == [5, 6, 4, 4]


class Counting(nn.Module):
    """A number of its own that changes with each step, which a trace would freeze."""

    steps = 0

    def forward(self, x):
        if self.training:
            self.steps += 1
        return x * (1.0 + 1e-3 * self.steps)


def unfused(parameters):
    return torch.optim.SGD(parameters, lr=1e-3)


def by_seed(seed):
    return with_network(lambda: [nn.Dropout(0.1 * (1 + seed))])()


@pytest.mark.parametrize(
    ("make", "options", "why"),
    [
        (vae, {"optimizer": unfused}, "the optimizer is SGD"),
        (with_network(lambda: [Counting()]), {}, "two traces differ"),
        (by_seed, {}, "the step of seed 1 is not that of seed 0"),
        *([(vae, {"engine": "eager"}, "asked for")] if HEAVY else []),  # as by the optimizer
    ],
    ids=["optimizer", "changing number", "another number", *(["asked for"] if HEAVY else [])],
)
def test_what_cannot_be_mapped_is_trained_one_after_the_other(make, options, why):
    x, epochs = rows(20), {"epochs": 2, "batch_size": 10}
    ensemble = fit_ensemble(make, x, seeds=[0, 1], verbose=False, **epochs, **options)
    assert "one member after the other" in ensemble.results[1].engine and why in ensemble.results[1].engine
    if make is vae:
        options = {k: v for k, v in options.items() if k != "engine"}
        assert_same(ensemble, [alone(make, seed, x, **epochs, **options) for seed in (0, 1)])


def test_noise_that_depends_on_parameters_is_drawn_for_all_at_once_equal_in_law():
    """A gamma's, at a learning rate of 0 and equal weights: 64 losses of 4 members against 400 of one alone."""

    def make():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Gammas()

    x, options = rows(20), {"epochs": 16, "batch_size": 20, "optimizer": adam(0.0), "engine": "trace"}
    ensemble = fit_ensemble(make, x, seeds=range(4), verbose=False, **options)
    assert "noise of _standard_gamma is drawn for all members at once" in ensemble.results[0].engine
    losses = torch.tensor([[record["loss"] for record in result.history] for result in ensemble.results])
    assert len(set(losses.flatten().tolist())) == losses.numel(), "members share their draws"
    torch.manual_seed(1)
    alone = torch.tensor([Trace_ELBO().loss(*programs(ensemble[0]), x) / len(x) for _ in range(400)])
    error = (losses.var() / losses.numel() + alone.var() / len(alone)).sqrt()
    assert (losses.mean() - alone.mean()).abs() < 4 * error
    ratio, spread = (
        losses.std() / alone.std(),
        (0.5 / losses.numel() + 0.5 / len(alone)) ** 0.5,
    )  # of a log ratio, roughly
    assert ratio.log().abs() < 4 * 1.5 * spread


def bursting(engine):
    return {"optimizer": [adam(1e-3), adam(1e30)], "epochs": 3, "batch_size": 10, "engine": engine}


@pytest.mark.parametrize("engine", ["trace", "eager"])
def test_a_member_that_diverges_is_frozen_and_named_and_the_others_go_on(engine):
    x = rows(20)
    ensemble = fit_ensemble(vae, x, seeds=[0, 4], verbose=False, **bursting(engine))
    assert list(ensemble.diverged) == [4]
    assert "seed 4: step 2:" in ensemble.diverged[4] and "on rows" in ensemble.diverged[4]
    assert ensemble.results[1].stopped == "diverged" and ensemble.results[0].stopped == "3 epochs done"
    assert all(t.isfinite().all() for t in tensors(ensemble[1]))
    good, expected = alone(vae, 0, x, epochs=3, batch_size=10)
    assert len(ensemble.results[0].history) == len(expected.history) == 3
    for ours, theirs in zip(tensors(ensemble[0]), tensors(good), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)
    evidence = ensemble.log_likelihood(x, num_samples=30, verbose=False)
    assert evidence.seeds == (0,) and "left out: seed 4" in str(evidence) and evidence.seed_se is None


def test_a_member_whose_first_loss_is_not_finite_never_begins():
    def make(seed):
        made = vae()
        if seed == 1:
            with torch.no_grad():
                made.likelihood.net[2].bias.fill_(1e38).mul_(10)
        return made

    with pytest.raises(DivergedError, match=r"all members diverged\. seed 1: step 1"):
        fit_ensemble(make, rows(), seeds=[1], epochs=1, engine="trace", verbose=False)


def test_what_changes_between_epochs_is_refused():
    """A Python number of the programs, moved by on_epoch: each epoch's check sees that the graph has it no more."""
    made = []

    def make():
        made.append(with_network(lambda: [Scaled()])())
        return made[-1]

    def change(record):
        for member in made:
            member.posterior.net[1].by = 2.0

    with pytest.raises(ProgramError, match=r"step 3: the step of seed 0 among all.*engine='eager'"):
        fit_ensemble(
            make, rows(20), seeds=[0, 1], epochs=3, batch_size=10, on_epoch=change, engine="trace", verbose=False
        )
    assert all(p.is_leaf and p.untyped_storage().nbytes() == p.nbytes for member in made for p in member.parameters())


class Scaled(nn.Module):
    by = 1.0

    def forward(self, x):
        return x * self.by


def test_an_interruption_leaves_each_member_its_best_weights():
    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    x, options = rows(20), {"batch_size": 10, "engine": "trace", "verbose": False}
    with pytest.raises(Interrupted, match="each member holds its best weights") as caught:
        fit_ensemble(vae, x, seeds=[0, 1], epochs=5, on_epoch=stop, schedule=lambda done: 1.0, **options)
    ensemble = caught.value.result
    assert [(len(r.history), r.stopped) for r in ensemble.results] == [(1, "interrupted")] * 2
    other, _ = alone(vae, 1, x, epochs=1, batch_size=10)
    for ours, theirs in zip(tensors(ensemble[1]), tensors(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, Terminated])
def test_an_interruption_of_members_one_by_one_keeps_their_epochs_and_its_kind(kind):
    def stop(record):
        if (record["seed"], record["epoch"]) == (1, 2):
            raise kind("")

    options = {"batch_size": 10, "engine": "eager", "verbose": False}
    with pytest.raises(Interrupted) as caught:
        fit_ensemble(vae, rows(20), seeds=[0, 1, 2], epochs=3, on_epoch=stop, **options)
    assert type(caught.value) is (Interrupted if kind is KeyboardInterrupt else kind)  # its exit code, too
    assert [len(r.history) for r in caught.value.result.results] == [3, 1, 0]


def test_members_one_by_one_say_how_long_is_to_go(monkeypatch, capsys):
    seconds = iter(range(0, 1000, 10))  # of ten an epoch
    monkeypatch.setattr(report, "Pace", lambda total: Pace(total, lambda: next(seconds), long=99))
    fit_ensemble(vae, rows(20), seeds=[0, 1], epochs=2, batch_size=10, engine="eager")
    told = [line for line in capsys.readouterr().err.splitlines() if "to go" in line]
    assert told == ["training: about 20 s to go (2 of 4 epochs of all members done)"]


def test_on_epoch_sees_each_members_records_with_its_seed():
    seen = []

    def told(record):
        seen.append((record["seed"], record["epoch"]))
        return {"mine": record["seed"] + 1}

    ensemble = fit_ensemble(MAKERS["vae"], rows(), seeds=[2, 9], epochs=2, on_epoch=told, engine="trace", verbose=False)
    assert seen == [(2, 1), (9, 1), (2, 2), (9, 2)]
    assert [r.history[1]["mine"] for r in ensemble.results] == [3, 10]
