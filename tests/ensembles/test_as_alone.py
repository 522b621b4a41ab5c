"""Each member trains as it would alone: the same numbers, to rounding, whatever is in the step."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import Beta, Bound, adam, binarize, cosine, dreg, fit, fit_ensemble, iwae, warmup
from pyro_vae.common import torch_private
from pyro_vae.common.inductor import compiler
from pyro_vae.common.random import seeded
from pyro_vae.ensembles import lockstep, recorded_step, together
from pyro_vae.ensembles.fused_step import FusedStep
from pyro_vae.ensembles.lockstep import Lockstep
from pyro_vae.training.engines import noise_outside
from tests.ensembles.programs import MAKERS, D, vae
from tests.helpers.environment import HEAVY
from tests.helpers.recording import Again

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = [0, 3]
CLOSE = {"rtol": 1e-4, "atol": 2e-6}  # of float32 after a few steps of Adam


def rows(count=25, seed=1):
    return torch.bernoulli(torch.full((count, D), 0.4), generator=torch.Generator().manual_seed(seed))


def alone(make, seed, x, beta=None, **options):
    """The lone run of a seed, as its programs run."""
    with seeded(seed):
        made = make()
    handler = None if beta is None else Beta(beta)
    pair = made if handler is None else handler.pair(made)
    moved = [handler] if handler else []
    return made, fit(pair, x, seed=seed, engine="eager", scheduled=moved, verbose=False, **options)


def tensors(thing):
    return [t.detach() for t in thing.state_dict().values()]


def assert_same(ensemble, lone):
    """Weights, buffers and every number of the histories."""
    for member, result, (other, expected) in zip(ensemble, ensemble.results, lone, strict=True):
        for ours, theirs in zip(tensors(member), tensors(other), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)
        assert [r["epoch"] for r in result.history] == [r["epoch"] for r in expected.history]
        for ours, theirs in zip(result.history, expected.history, strict=True):
            assert ours.keys() == theirs.keys() and ours["step"] == theirs["step"]
            for name in ("loss", "elbo", "lr", "train_elbo"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
        assert (result.best_epoch, result.stopped) == (expected.best_epoch, expected.stopped)


SHORT = {"epochs": 2, "batch_size": 10}  # of 10, 10 and 5 rows: the short last batch, too


def record_fused_steps(patch):
    """Return a list of the fused steps that trainings make from now on, None where one makes none."""
    made = []
    patch.setattr(FusedStep, "of", classmethod(lambda cls, *a, of=FusedStep.of: made.append(of(*a)) or made[-1]))
    return made


@pytest.fixture(scope="module")
def plain():
    """VAEs of dense layers as one graph, and the fused steps that were made: trained once, only read."""
    with pytest.MonkeyPatch.context() as patch:
        made = record_fused_steps(patch)
        return fit_ensemble(vae, rows(), seeds=SEEDS, engine="trace", verbose=False, **SHORT), made


@pytest.fixture(scope="module")
def lone():
    """The same, each by itself."""
    return [alone(vae, seed, rows(), **SHORT) for seed in SEEDS]


def test_a_step_of_all_is_that_of_the_lone_run(plain, lone):
    ensemble, _ = plain
    assert "2 members as one graph" in ensemble.results[0].engine
    assert_same(ensemble, lone)


OTHERS = [name for name in MAKERS if name not in ("vae", "gamma")]


@pytest.mark.parametrize("name", OTHERS if HEAVY else [name for name in OTHERS if name not in ("vamp", "frozen")])
def test_each_kind_of_step_is_that_of_the_lone_run(name):
    x = rows()
    ensemble = fit_ensemble(MAKERS[name], x, seeds=SEEDS, engine="trace", verbose=False, **SHORT)
    assert "2 members as one graph" in ensemble.results[0].engine
    assert_same(ensemble, [alone(MAKERS[name], seed, x, **SHORT) for seed in SEEDS])


def test_without_torchs_kernel_adam_is_in_the_graph(monkeypatch, plain):
    """The same numbers, of operations in the place of the fused kernel; with it, that is what was made."""
    fused, made = plain
    assert (made[0] is not None) == torch_private.kernel_works()
    made = record_fused_steps(monkeypatch)
    monkeypatch.setattr(torch_private, "kernel_works", lambda: False)
    plain = fit_ensemble(vae, rows(), seeds=SEEDS, engine="trace", verbose=False, **SHORT)
    assert made == [None]
    for one, other in zip(fused, plain, strict=True):
        for ours, theirs in zip(tensors(one), tensors(other), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_rates_betas_and_weights_of_the_kl_are_each_members_own():
    x = rows()
    rates, moments, betas = [1e-3, 1e-2], [(0.9, 0.999), (0.8, 0.99)], [1.0, 4.0]
    optimizers = [adam(lr, b) for lr, b in zip(rates, moments, strict=True)]
    options = {"epochs": 2, "batch_size": 10, "schedule": warmup(cosine, 0.3), "validation": rows(11, 2)}
    ensemble = fit_ensemble(
        vae, x, seeds=SEEDS, optimizer=optimizers, beta=betas, engine="trace", verbose=False, **options
    )
    lone = [
        alone(vae, seed, x, beta, optimizer=optimizer, **options)
        for seed, beta, optimizer in zip(SEEDS, betas, optimizers, strict=True)
    ]
    assert_same(ensemble, lone)
    assert [r.history[-1]["lr"] > 0 for r in ensemble.results] == [False] * 2  # the cosine has ended


def test_rows_are_binarized_anew_by_each_members_own_stream():
    grey, options = torch.rand(20, D, generator=torch.Generator().manual_seed(4)), {"epochs": 2, "batch_size": 10}
    ensemble = fit_ensemble(vae, grey, seeds=SEEDS, transform=binarize, engine="trace", verbose=False, **options)
    assert_same(ensemble, [alone(vae, seed, grey, transform=binarize, **options) for seed in SEEDS])


@pytest.mark.parametrize(
    "objective",
    [
        partial(Bound, iwae, num_particles=3),
        partial(Bound, iwae, num_particles=3, estimator=dreg),
    ],
    ids=["iwae", "dreg"],
)
def test_bounds_and_estimators(objective):
    x, options = rows(20), {"epochs": 1, "batch_size": 10}
    ensemble = fit_ensemble(vae, x, seeds=[0, 1], objective=objective(), engine="trace", verbose=False, **options)
    assert "as one graph" in ensemble.results[0].engine
    assert_same(ensemble, [alone(vae, seed, x, objective=objective(), **options) for seed in (0, 1)])


def test_schedules_of_beta_are_followed_and_contexts_are_taken():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.enc, self.dec = nn.Linear(D + 2, 4), nn.Linear(2 + 2, D)

        def model(self, x, c):
            pyro.module(f"dec{id(self)}", self.dec)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.dec(torch.cat([z, c], -1))).to_event(1), obs=x)

        def guide(self, x, c):
            pyro.module(f"enc{id(self)}", self.enc)
            with pyro.plate("data", len(x)):
                loc, scale = self.enc(torch.cat([x, c], -1)).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    x, c = rows(20), torch.eye(2).repeat(10, 1)
    ensemble = fit_ensemble(
        Conditional, x, c, seeds=[0, 1], beta=Beta(2.0, warmup(lambda done: 1.0, 0.5)), epochs=2, batch_size=10,
        engine="trace", verbose=False,
    )  # fmt: skip
    for member, seed in zip(ensemble, (0, 1), strict=True):
        with seeded(seed):
            other = Conditional()
        beta = Beta(2.0, warmup(lambda done: 1.0, 0.5))
        fit(beta.pair(other), x, c, scheduled=[beta], epochs=2, batch_size=10, seed=seed, engine="eager", verbose=False)
        for ours, theirs in zip(tensors(member), tensors(other), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


def test_patience_stops_each_member_by_itself():
    x, v = rows(20), rows(20, 5)
    options = {"epochs": 12, "batch_size": 20, "validation": v, "patience": 1, "optimizer": adam(0.1)}
    ensemble = fit_ensemble(vae, x, seeds=SEEDS, engine="trace", verbose=False, **options)
    lone = [alone(vae, seed, x, **options) for seed in SEEDS]
    assert len({len(r.history) for r in ensemble.results}) > 1, "choose seeds that stop at different epochs"
    assert_same(ensemble, lone)


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_a_compiled_step_of_all_is_that_of_each():
    x = rows() if HEAVY else rows(20)  # a short last batch is a second graph to compile
    options, optimizers = {"epochs": 2, "batch_size": 10}, [adam(1e-3), adam(1e-2, (0.8, 0.99))]
    ensemble = fit_ensemble(vae, x, seeds=SEEDS, optimizer=optimizers, engine="compile", verbose=False, **options)
    assert "compiled in" in ensemble.results[0].engine
    lone = [alone(vae, s, x, optimizer=o, **options) for s, o in zip(SEEDS, optimizers, strict=True)]
    assert_same(ensemble, lone)


def test_members_are_usable_alone_and_own_their_tensors():
    ensemble = fit_ensemble(MAKERS["batch_norm"], rows(), seeds=SEEDS, epochs=1, engine="trace", verbose=False)
    memory = [t.untyped_storage().data_ptr() for member in ensemble for t in (*member.parameters(), *member.buffers())]
    assert len(set(memory)) == len(memory)
    before = [t.clone() for t in tensors(ensemble[1])]
    fit(ensemble[0], rows(), epochs=1, verbose=False)
    assert all(map(torch.equal, before, tensors(ensemble[1])))
    assert all(p.requires_grad and p.is_leaf for p in ensemble[0].parameters())


def test_nothing_outside_is_changed():
    torch.manual_seed(5)
    state, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    ensemble = fit_ensemble(vae, rows(), seeds=[0, 1], epochs=1, engine="trace", verbose=False)
    assert torch.equal(state, torch.get_rng_state())
    assert (dtype, threads) == (torch.get_default_dtype(), torch.get_num_threads())
    assert all(m.training for member in ensemble for m in member.modules())  # as they were made


def test_a_wrong_noise_would_be_seen(monkeypatch, lone):
    """The comparison above has teeth: one more draw a step, and no member is its lone run."""
    step = Lockstep.step

    def shifted(self, row, batch, noise, checked):
        torch.rand(1, generator=noise[0])
        step(self, row, batch, noise, checked)

    monkeypatch.setattr(Lockstep, "step", shifted)
    ensemble = fit_ensemble(vae, rows(), seeds=SEEDS, engine="trace", verbose=False, **SHORT)
    with pytest.raises(AssertionError):
        assert_same(ensemble, lone)


class Stale(Again):
    """Makes no step."""

    def replay(self):
        pass


@pytest.mark.parametrize("recorder", [Again, Stale], ids=["again", "stale"])
def test_a_recorded_step_is_that_of_the_lone_run(monkeypatch, recorder):
    """What happens on a GPU, by a recorder that runs the function again; one that does not is found out."""
    monkeypatch.setattr(lockstep, "is_recorded_on", lambda device: True)
    made = []
    monkeypatch.setattr(recorded_step, "CudaRecorder", lambda device, *generators: made.append(recorder()) or made[-1])
    monkeypatch.setattr(lockstep, "STEPS", 2)
    monkeypatch.setattr(recorded_step, "STEPS", 2)
    empty = noise_outside.Draw.buffer
    # what an empty tensor may hold: no step on it is finite, and one that does nothing is as good as any other
    monkeypatch.setattr(noise_outside.Draw, "buffer", lambda self, members: empty(self, members).fill_(math.nan))
    x, options = rows(), {"epochs": 3, "batch_size": 5, "transform": binarize}
    ensemble = fit_ensemble(vae, x, seeds=SEEDS, engine="trace", verbose=False, **options)
    note = (
        "one replay a step"
        if recorder is Again
        else "goes on as it is: the recorded step is not the one that was traced"
    )
    assert note in ensemble.results[0].engine
    if (
        recorder is Again
    ):  # of the first step of an epoch by itself, of the other four in twos; one more to compare each
        assert [one.replays for one in made] == [1 + 3, 1 + 3 * 2]
        assert "2 steps of all members to a replay" in ensemble.results[0].engine
    assert_same(ensemble, [alone(vae, seed, x, **options) for seed in SEEDS])


def test_an_unsound_member_is_found_in_its_turn(monkeypatch):
    """In the epochs between, one member's own step is looked at, in turn; in the last that of all."""
    seen = []
    monkeypatch.setattr(
        together.Together, "check", lambda self, batches, which=None, check=together.Together.check: (
            seen.append(which) or check(self, batches, which)
        )
    )  # fmt: skip
    fit_ensemble(vae, rows(), seeds=SEEDS, engine="trace", verbose=False, epochs=5, batch_size=10)
    assert [None if which is None else list(which) for which in seen] == [None, [0], [1], [0], [0, 1]]


class Marked(nn.Module):
    """A class and a code; the guide marks the class for enumeration. Runs on rows of 4 columns alone."""

    def __init__(self):
        super().__init__()
        self.classifier, self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(4, 1), nn.Linear(1, 4)
        self.centers = nn.Parameter(torch.randn(3, 4))

    def model(self, x):
        pyro.module(f"marked{id(self)}", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x.new_zeros(3)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.centers[y] + self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module(f"marked{id(self)}", self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.classifier(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


def test_marked_latents_are_summed_over_though_a_transform_makes_rows_of_another_shape():
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    options = {"epochs": 2, "batch_size": 10, "transform": lambda x, generator: x[:, :4]}
    ensemble = fit_ensemble(Marked, x, seeds=SEEDS, engine="trace", verbose=False, **options)
    assert "members as one graph" in ensemble.results[0].engine
    assert_same(ensemble, [alone(Marked, seed, x, **options) for seed in SEEDS])


@pytest.mark.parametrize(
    ("off", "together_still"),
    [("one row's gradient", True), ("one row's loss", False), ("each row's gradient", False)],
)
def test_a_kink_in_one_row_does_not_end_a_training(off, together_still, monkeypatch):
    """A ReLU at 0 lies on one side alone and on the other among all, on a GPU above all: the loss is the same."""
    x, run = rows(20), together.run_eager
    x[7] = 1.0

    def with_kink(member, batch):
        loss, gradients = run(member, batch)
        if off.startswith("each") or (batch[0] == 1).all(1).any():
            if off.endswith("gradient"):
                gradients[0] = gradients[0] * 1.01
            else:
                loss = loss * 1.01
        return loss, gradients

    monkeypatch.setattr(together, "run_eager", with_kink)
    ensemble = fit_ensemble(vae, x, seeds=SEEDS, engine="trace", verbose=False, epochs=3, batch_size=20)
    assert ("2 members as one graph" in ensemble.results[0].engine) == together_still
    if off == "each row's gradient":
        assert "its gradient is off by 0.0" in ensemble.results[0].engine
