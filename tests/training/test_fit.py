"""Training: equal to stock SVI step by step, logged in true ELBO, repeatable, and safe when it goes wrong."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import constraints

from pyro_vae import adam, binarize
from pyro_vae import fit as noisy_fit
from pyro_vae.errors import (
    DataConversionWarning,
    DataError,
    DeviceError,
    Interrupted,
    ProgramError,
    ShapeError,
    SupportError,
    UsageError,
)
from pyro_vae.training.step import Step
from pyro_vae.training.trainer import TrainingCallback
from tests.helpers.bits import same
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import mixture, numbers, rough

fit = partial(noisy_fit, verbose=False)
sgd = partial(torch.optim.SGD, lr=0.01)
still = partial(torch.optim.SGD, lr=0.0)


# one step

OBJECTIVES = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "4 particles": lambda: Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(),
    "RenyiELBO": lambda: RenyiELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1),
}


def check_like_svi(vae, other, x, objective, rate=0.01):
    """Losses and gradients of three steps, the noise being the same; SVI's gradients are read off its SGD steps."""
    svi = SVI(vae.model, vae.guide, pyro.optim.SGD({"lr": rate}), objective())
    step = Step(other.model, other.guide, objective(), partial(torch.optim.SGD, lr=rate))
    for seed in range(3):
        before = [p.detach().clone() for p in vae.parameters()]
        torch.manual_seed(seed)
        theirs = svi.step(x)
        gradients = [(b - p.detach()) / rate for b, p in zip(before, vae.parameters(), strict=True)]
        torch.manual_seed(seed)
        ours = step.loss_and_grads(x)
        assert float(ours) == pytest.approx(theirs, abs=1e-6)
        torch.testing.assert_close([p.grad for p in other.parameters()], gradients, rtol=0, atol=1e-6)
        step.update()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_is_stock_svis(name, device):
    vae = small_vae(device=device).double()
    check_like_svi(vae, copy.deepcopy(vae), binary(20, device, torch.float64), OBJECTIVES[name])


def test_another_loss_is_not_stock_svis():
    vae = small_vae().double()
    other = copy.deepcopy(vae)
    scaled = SimpleNamespace(
        model=poutine.scale(other.model, scale=0.9), guide=other.guide, parameters=other.parameters
    )
    with pytest.raises(AssertionError):
        check_like_svi(vae, scaled, binary(20, dtype=torch.float64), Trace_ELBO)


def test_gradients_left_by_earlier_work_do_not_enter():
    """A VAE that was trained before, or whose user called backward(), starts from a clean gradient."""
    vae, x = small_vae(), binary()
    clean = copy.deepcopy(vae)
    for p in vae.parameters():
        p.grad = torch.full_like(p, 1000.0)
    fit(vae, x, epochs=1, optimizer=sgd)
    fit(clean, x, epochs=1, optimizer=sgd)
    assert same(state_of(vae), state_of(clean))


def test_a_program_without_parameters_is_refused():
    lg = LinearGaussian()
    with pytest.raises(UsageError, match="declare no parameters"):
        fit((lg.model, lg.exact_guide), lg.x, epochs=1)


# repeatable, and nothing else touched


def test_the_same_seed_gives_the_same_run_whatever_ran_before(device):
    """Bit by bit on the CPU."""
    x, start = binary(device=device), small_vae(device=device)
    first, second, other = (copy.deepcopy(start) for _ in range(3))
    a = fit(first, x, validation=x[:7], epochs=3, batch_size=16)
    torch.randn(1000, device=device)
    b = fit(second, x, validation=x[:7], epochs=3, batch_size=16)
    fit(other, x, validation=x[:7], epochs=3, batch_size=16, seed=1)
    if device.type == "cpu":
        assert same(state_of(first), state_of(second)) and numbers(a) == numbers(b)
    torch.testing.assert_close(state_of(first), state_of(second))
    assert not same(state_of(first), state_of(other)) and not same(state_of(first), state_of(start))


def test_the_global_random_state_and_modes_are_unchanged(device):
    vae = small_vae(device=device).eval()
    vae.likelihood.train()
    flags = {n: m.training for n, m in vae.named_modules()}
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    during = []
    x = binary(device=device)
    fit(vae, x, epochs=2, transform=binarize, on_epoch=lambda r: during.append(vae.training))
    assert torch.equal(torch.get_rng_state(), cpu)
    assert cuda is None or torch.equal(torch.cuda.get_rng_state(device), cuda)
    assert {n: m.training for n, m in vae.named_modules()} == flags and during == [True, True]


def test_a_fit_inside_a_fit_changes_neither():
    x, start = binary(), small_vae()
    alone_a, alone_b, a, b = (copy.deepcopy(start) for _ in range(4))
    fit(alone_a, x, epochs=3, batch_size=16)
    fit(alone_b, x, epochs=2, batch_size=8, seed=4)
    fit(
        a,
        x,
        epochs=3,
        batch_size=16,
        on_epoch=lambda r: fit(b, x, epochs=2, batch_size=8, seed=4) and None if r["epoch"] == 2 else None,
    )
    assert same(state_of(a), state_of(alone_a)) and same(state_of(b), state_of(alone_b))


def test_fits_one_after_the_other_are_independent():
    x, start = binary(), small_vae()
    alone, after = copy.deepcopy(start), copy.deepcopy(start)
    fit(alone, x, epochs=2)
    fit(small_vae(), x, epochs=2)
    fit(after, x, epochs=2)
    assert same(state_of(alone), state_of(after))


# what can be trained


def by_hand(device):
    """None of our classes: pyro.module and pyro.param."""
    encoder, decoder = nn.Linear(6, 2).to(device), nn.Linear(2, 6).to(device)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", x.new_ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("kind", ["tuple", "object"])
def test_any_pair_of_programs_trains(kind, device):
    model, guide = by_hand(device)
    pair = (model, guide) if kind == "tuple" else SimpleNamespace(model=model, guide=guide)
    x = binary(100, device)
    run = fit(pair, x, validation=x, epochs=30, batch_size=20, optimizer=adam(0.01))
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 0.3
    assert set(pyro.get_param_store().keys()) >= {"scale", "encoder$$$weight", "decoder$$$bias"}
    assert not torch.equal(pyro.param("scale").detach(), torch.ones(2, device=device))


def test_of_programs_by_hand_the_best_parameters_are_held():
    """Those of pyro.param as well: they belong to no module."""
    pair, x, kept = by_hand("cpu"), binary(60), {}

    def keep(record):
        kept[record["epoch"]] = {n: p.detach().clone() for n, p in pyro.get_param_store().items()}

    run = fit(
        pair, x[:40], validation=x[40:], epochs=8, batch_size=8, optimizer=adam(0.03), schedule=rough, on_epoch=keep
    )
    now = {n: p.detach() for n, p in pyro.get_param_store().items()}
    assert run.best_epoch < 8 and same(now, kept[run.best_epoch]) and not same(now, kept[8])


def test_what_is_no_pair_is_refused():
    for thing in (nn.Linear(2, 2), (1, 2), SimpleNamespace(model=len), "vae"):
        with pytest.raises(UsageError, match=r"wanted a VAE, an object with \.model and \.guide, or a tuple"):
            fit(thing, binary())


def test_an_autoguide_trains_on_all_rows_at_once():
    """AutoNormal keeps parameters for each row of the first batch it sees; it amortizes nothing."""
    model, _ = by_hand("cpu")
    guide = AutoNormal(model)
    run = fit((model, guide), binary(), epochs=2)
    assert math.isfinite(run.history[-1]["elbo"])
    with pytest.raises(ProgramError, match=r"site 'z': plates differ.*parameters for each of 40 rows .*batch_size=40"):
        fit((model, AutoNormal(model)), binary(), batch_size=10, epochs=1)


def test_enumerated_latents_train_with_trace_enum_elbo(device):
    """And the logged ELBO, that of the sum over components, is log p(x)."""
    x = torch.cat([torch.randn(50) - 3, torch.randn(30) + 3]).to(device)
    pair = mixture, lambda x: None
    run = fit(pair, x, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=50, batch_size=20, optimizer=adam(0.05))
    weight, loc = pyro.param("weight").detach(), pyro.param("loc").detach()
    exact = (weight.log() + dist.Normal(loc, 1.0).log_prob(x[:, None])).logsumexp(-1).mean().item()
    assert run.history[-1]["elbo"] == pytest.approx(exact, abs=1e-4)
    assert run.history[-1]["reconstruction"] is None and run.history[-1]["kl"] is None
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 1
    with pytest.raises(ProgramError, match="site 'k' of the model is marked for enumeration"):
        fit(pair, x, epochs=1)


def test_one_row_trains(device):
    vae, x = small_vae(device=device), binary(1, device)
    start = state_of(vae)
    run = fit(vae, x, epochs=3)
    assert len(run.history) == 3 and not same(start, state_of(vae))


def test_dynamic_binarization_draws_anew_and_leaves_validation_fixed(device):
    vae, grey, drawn = small_vae(device=device), torch.full((30, 6), 0.5, device=device), []

    def transform(x, generator):
        drawn.append(binarize(x, generator))
        return drawn[-1]

    run = fit(vae, grey, validation=binary(20, device), epochs=4, transform=transform, optimizer=still)
    epochs = drawn[-4:]
    assert all(((x == 0) | (x == 1)).all() for x in drawn)
    assert all(not torch.equal(epochs[i], epochs[j]) for i in range(4) for j in range(i))
    assert len({r["elbo"] for r in run.history}) == len({r["train_elbo"] for r in run.history}) == 1
    assert len({r["loss"] for r in run.history}) == 4
    with pytest.raises(SupportError, match="binarize"):
        fit(vae, grey, validation=grey, epochs=1, transform=binarize)
    with pytest.raises(SupportError, match="30 of 30 rows"):
        fit(vae, grey, epochs=1)


def test_float64_data_is_converted_with_a_warning_and_left_as_it_was():
    vae, array = small_vae(), binary().numpy().astype(np.float64)
    before = array.copy()
    with pytest.warns(DataConversionWarning, match="x: converted from numpy float64 to torch.float32"):
        fit(vae, array, epochs=1)
    assert array.dtype == np.float64 and (array == before).all()
    tensor = torch.from_numpy(array)
    with pytest.warns(DataConversionWarning, match="validation x: converted from torch.float64"):
        fit(vae, binary(), validation=tensor, epochs=1)
    assert tensor.dtype == torch.float64


# refusals before anything is trained


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 41}, r"batch_size=41 with 40 training rows: choose 1 to 40 \(40 is full-batch\)"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        fit(small_vae(), binary(), **wrong)


def test_devices_that_are_not_there_are_refused(monkeypatch):
    vae, x = small_vae(), binary()
    with pytest.raises(DeviceError, match="'nonsense' is no device"):
        fit(vae, x, device="nonsense")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="'cuda' was asked for, but torch sees no CUDA here"):
        fit(vae, x, device="cuda")
    assert len(fit(vae, x, device="auto", epochs=1).history) == 1


def test_the_model_moves_to_the_device_that_is_asked_for(device):
    vae = small_vae()
    fit(vae, binary(), epochs=1, device=device)
    assert {p.device.type for p in vae.parameters()} == {device.type}


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.full((4, 6), math.nan), DataError, "x has NaN or infinite values"),
        (torch.zeros(0, 6), DataError, "x is empty"),
        (torch.zeros(4, 5), ShapeError, "MLP takes 6 features"),
        (torch.full((4, 6), 2.0), SupportError, "4 of 4 rows"),
    ],
)
def test_data_that_cannot_be_used_is_refused_before_training(x, error, message):
    vae = small_vae()
    start = state_of(vae)
    with pytest.raises(error, match=message):
        fit(vae, x, epochs=1)
    with pytest.raises(error, match=message):
        fit(vae, binary(), validation=x, epochs=1)
    assert same(state_of(vae), start)


# callbacks


class Listed(TrainingCallback):
    """Lists when it is called, and what is known then."""

    def __init__(self):
        self.calls = []

    def before_training(self, trainer):
        self.calls.append(("before_training", trainer.state.step))

    def after_step(self, trainer):
        self.calls.append(("after_step", trainer.state.step, trainer.state.position.batches_taken["order"]))

    def after_epoch(self, trainer):
        self.calls.append(("after_epoch", len(trainer.result.history)))

    def after_training(self, trainer):
        self.calls.append(("after_training", trainer.result.stopped))

    def on_error(self, trainer, error):
        self.calls.append(("on_error", repr(error)))
        return ". Noted"


def test_callbacks_are_called_in_their_order_and_change_nothing():
    class Idle(TrainingCallback):
        """Need not define anything."""

    vae, other = small_vae(), Listed()
    alone = copy.deepcopy(vae)
    fit(vae, binary(), epochs=2, batch_size=20, callbacks=[Idle(), other])
    assert other.calls == [
        ("before_training", 0),
        ("after_step", 1, 1),
        ("after_step", 2, 2),
        ("after_epoch", 1),
        ("after_step", 3, 1),
        ("after_step", 4, 2),
        ("after_epoch", 2),
        ("after_training", "2 epochs done"),
    ]
    fit(alone, binary(), epochs=2, batch_size=20)
    assert same(state_of(vae), state_of(alone))


def test_what_callbacks_say_of_an_interruption_is_in_the_message():
    def interrupt(record):
        raise KeyboardInterrupt

    listed = Listed()
    with pytest.raises(
        Interrupted, match=r"interrupted at step 1; the model holds its starting weights\. Noted\. Noted$"
    ):
        fit(small_vae(), binary(), epochs=2, batch_size=40, callbacks=[listed, Listed()], on_epoch=interrupt)
    assert listed.calls[-1] == ("on_error", "KeyboardInterrupt()")


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (Listed(), "callbacks must be a list, .* got a Listed"),
        ([Listed], r"callbacks\[0\] is <class .*Listed'>, which lacks"),
        ([Listed(), print], r"callbacks\[1\] is <built-in function print>, which lacks .* on_epoch="),
    ],
    ids=["alone", "class", "function"],
)
def test_what_is_no_callback_is_refused_before_training(callbacks, message):
    with pytest.raises(UsageError, match=message):
        fit(small_vae(), binary(), callbacks=callbacks)
