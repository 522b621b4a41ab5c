"""Training: equal to stock SVI step by step, logged in true ELBO, repeatable, and safe when it goes wrong."""

import copy
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    StandardNormal,
    adam,
    binarize,
    cosine,
    likelihoods,
    log_likelihood,
    normal,
    warmup,
)
from pyro_vae import fit as noisy_fit
from pyro_vae.common.random import seeded
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.errors import (
    DataConversionWarning,
    DataError,
    DeviceError,
    DivergedError,
    Interrupted,
    ProgramError,
    ShapeError,
    SupportError,
    UsageError,
)
from pyro_vae.programs.parameters import register
from pyro_vae.programs.support import check_support
from pyro_vae.training import metrics
from pyro_vae.training.metrics import LATENT_KEYS, collapsed, true_elbo
from pyro_vae.training.preflight import check_training
from pyro_vae.training.shuffle import ELBO_NOISE
from pyro_vae.training.step import Step
from pyro_vae.training.trainer import TrainingCallback
from tests.helpers.bits import same
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import binary, small_vae, state_of

fit = partial(noisy_fit, verbose=False)
sgd = partial(torch.optim.SGD, lr=0.01)
still = partial(torch.optim.SGD, lr=0.0)


def numbers(run):
    """The history without its clock."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in run.history]


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
        assert ours == pytest.approx(theirs, abs=1e-6)
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


# what is logged and kept


def check_logged(record, vae, x):
    """The true ELBO of each row from 50 other particles, within 4 standard errors: those of the logged single draw,
    sqrt(sum var(log w)) / N, and of the estimate, added in squares."""
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=50, seed=9, verbose=False)
    variance = evidence.elbo_se.square().sum() / len(x) ** 2
    se = (50 * variance + variance).sqrt().item()
    assert abs(record["elbo"] - evidence.elbo.mean().item()) < 4 * se
    assert record["elbo"] == pytest.approx(record["reconstruction"] - record["kl"], abs=1e-6)
    assert record["kl"] > 0


@pytest.mark.parametrize("objective", ["Trace_ELBO", "RenyiELBO", "scaled"])
def test_the_logged_elbo_is_the_true_one_whatever_is_trained(objective, device):
    vae, x = small_vae(device=device), binary(300, device)
    pair = vae
    if objective == "scaled":
        pair = poutine.scale(vae.model, scale=0.1), poutine.scale(vae.guide, scale=0.1)
    renyi = RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    run = fit(pair, x, validation=x[:200], epochs=8, objective=renyi if objective == "RenyiELBO" else None)
    check_logged(run.best, vae, x[:200])
    if objective == "scaled":
        with pytest.raises(AssertionError):
            check_logged(run.best | {"elbo": -run.best["loss"]}, vae, x[:200])
    assert run.history[-1]["elbo"] > run.history[0]["elbo"]


def test_without_validation_rows_the_training_rows_are_logged(device):
    vae, x = small_vae(device=device), binary(200, device)
    run = fit(vae, x, epochs=2)
    check_logged(run.history[-1], vae, x)
    assert run.best_epoch == 2 and run.history[-1]["elbo"] == run.history[-1]["train_elbo"]


def rough(done):
    """Learns for half of the time, then spoils it."""
    return 1.0 if done < 0.5 else 60.0


def check_held(run, vae, x):
    """The model holds the weights of the epoch with the best validation ELBO: evaluated again under the same noise."""
    best = max(run.history, key=lambda record: record["elbo"])
    assert run.best_epoch == best["epoch"] and run.best is best
    with seeded(0, ELBO_NOISE, device=x.device):
        again = true_elbo(Step(vae.model, vae.guide, Trace_ELBO(), sgd), (x,))["elbo"]
    assert again == best["elbo"]


def test_the_best_weights_are_held(device):
    vae, x = small_vae(device=device), binary(60, device)
    spoilt = copy.deepcopy(vae)
    last = {}
    run = fit(
        vae,
        x[:40],
        validation=x[40:],
        epochs=8,
        optimizer=adam(0.02),
        schedule=rough,
        batch_size=8,
        on_epoch=lambda r: last.update(state_of(vae)),
    )
    assert 1 <= run.best_epoch < 8 and len(run.history) == 8 and run.stopped == "8 epochs done"
    check_held(run, vae, x[40:])
    spoilt.load_state_dict(last)
    with pytest.raises(AssertionError):
        check_held(run, spoilt, x[40:])


def test_patience_stops(device):
    """Nothing is learnt at rate 0, so the first epoch stays the best."""
    vae, x = small_vae(device=device), binary(device=device)
    run = fit(vae, x, validation=x[:9], epochs=50, patience=3, optimizer=still)
    assert len(run.history) == 4 and run.best_epoch == 1 and run.stopped == "no better ELBO for 3 epochs"


def test_on_epoch_adds_to_the_record():
    run = fit(small_vae(), binary(), epochs=2, on_epoch=lambda r: {"twice": 2 * r["epoch"]})
    assert [r["twice"] for r in run.history] == [2, 4]


# what the latents carry


def test_the_record_says_what_the_latents_carry(device):
    vae, x = small_vae(device=device), binary(60, device)
    run = fit(vae, x[:40], validation=x[40:], epochs=2)
    found = latents(vae.model, vae.guide, x[40:])
    record = run.history[-1] if run.best_epoch == 2 else run.best
    assert record["active_units"] == found.active() and record["active_units_0.001"] == found.active(0.001)
    assert record["kl_per_unit"] == pytest.approx(found.kl_per_unit.tolist(), abs=1e-4)
    assert abs(record["mutual_information"] - found.mutual_information) < 6 * found.mutual_information_se


def test_latents_that_have_no_such_figures_get_none():
    x = torch.randn(20)
    run = fit((mixture, lambda x: None), x, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1)
    assert [run.best[key] for key in LATENT_KEYS] == [None] * 4 and run.warnings == []


def test_watching_the_latents_changes_no_run(monkeypatch):
    x, start = binary(), small_vae()
    watched, blind = copy.deepcopy(start), copy.deepcopy(start)
    a = fit(watched, x, validation=x[:9], epochs=6, batch_size=16)
    monkeypatch.setattr(metrics, "latent_use", lambda step, batch, seed: {"mutual_information": None})
    b = fit(blind, x, validation=x[:9], epochs=6, batch_size=16)
    assert same(state_of(watched), state_of(blind))
    assert [r["elbo"] for r in a.history] == [r["elbo"] for r in b.history]
    assert [r["loss"] for r in a.history] == [r["loss"] for r in b.history]


def deaf():
    """The encoder's last layer is 0 and stays so: q(z | x) = p(z), nearly."""
    vae = small_vae()
    for parameter in vae.posterior.net[-1].parameters():
        nn.init.zeros_(parameter).requires_grad_(False)
    return vae


def test_latents_that_carry_nothing_are_warned_of_once(capsys):
    run = noisy_fit(deaf(), binary(), epochs=8)
    (warning,) = run.warnings
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: posterior collapse")]
    assert lines == [f"warning: {warning}"]
    assert warning.startswith("posterior collapse at epoch 5: no unit is active")
    for remedy in ("Beta", "free_bits", "Aggressive", "sticking-the-landing", "IWAE", "smaller decoder"):
        assert remedy in warning


def test_no_such_warning_before_the_fifth_epoch_or_of_latents_that_carry_something(capsys):
    assert fit(deaf(), binary(), epochs=4).warnings == []
    assert len(fit(deaf(), binary(), epochs=5).warnings) == 1
    told = {"active_units": 1, "mutual_information": 0.06, "kl": 0.2, "epoch": 9}
    assert collapsed(told) is None and collapsed(told | {"mutual_information": None, "kl": None}) is None
    for sign in ({"active_units": 0}, {"mutual_information": 0.04}, {"kl": 0.09}):
        assert collapsed(told | sign) is not None
    assert capsys.readouterr().err == ""


def test_the_record_counts_steps_and_rates():
    run = fit(small_vae(), binary(10), epochs=5, batch_size=4, optimizer=sgd, schedule=warmup(cosine, 0.2))
    assert [r["step"] for r in run.history] == [3, 6, 9, 12, 15]
    expected = [0.01 * min(1, t / 3) * (1 + math.cos(math.pi * t / 15)) / 2 for t in (3, 6, 9, 12, 15)]
    assert [r["lr"] for r in run.history] == pytest.approx(expected, abs=1e-12)


def test_progress_goes_to_standard_error(capsys):
    noisy_fit(small_vae(), binary(), epochs=2)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1].startswith("epoch 2/2  loss ")


# means over uneven batches


def noiseless(lg):
    """A pair without noise, with one parameter, so that every row's ELBO is known."""

    def model(x):
        shift = pyro.param("shift", lambda: torch.zeros((), dtype=x.dtype, device=x.device))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", lg.prior())
            pyro.sample("x", lg.likelihood(z + shift), obs=x)

    z = lg.exact(lg.x).loc
    rows = lg.likelihood(z).log_prob(lg.x) + lg.prior().log_prob(z) - z.sum(-1)
    return model, lg.delta_guide, rows


def check_mean(value, rows):
    assert value == pytest.approx(rows.mean().item(), abs=1e-9)


def test_the_loss_is_per_datum_with_an_uneven_last_batch(device):
    lg = LinearGaussian(device=device)
    model, guide, rows = noiseless(lg)
    run = fit((model, guide), lg.x, epochs=1, batch_size=17, optimizer=still)
    check_mean(-run.history[0]["loss"], rows)
    check_mean(run.history[0]["elbo"], rows)
    of_batches = torch.stack([batch.mean() for batch in rows.split(17)])
    with pytest.raises(AssertionError):
        check_mean(of_batches.mean().item(), rows)


@pytest.mark.parametrize("chunk_size", [1, 17, 39, 40, 1000])
def test_the_validation_elbo_is_a_mean_over_rows(chunk_size):
    lg = LinearGaussian()
    model, guide, rows = noiseless(lg)
    terms = true_elbo(Step(model, guide, Trace_ELBO(), sgd), (lg.x,), chunk_size=chunk_size)
    check_mean(terms["elbo"], rows)
    check_mean(terms["reconstruction"], lg.likelihood(lg.exact(lg.x).loc).log_prob(lg.x))


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


def test_an_autoguide_is_refused_by_its_site():
    """AutoNormal keeps parameters for each row of the first batch it sees; it amortizes nothing."""
    model, _ = by_hand("cpu")
    with pytest.raises(ProgramError, match="site 'z_unconstrained' is in the guide but is no latent of the model"):
        fit((model, AutoNormal(model)), binary(), epochs=1)


def mixture(x):
    weight = pyro.param("weight", lambda: x.new_tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", lambda: x.new_tensor([-0.5, 0.5]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weight), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)


def test_enumerated_latents_train_with_trace_enum_elbo(device):
    """And the logged ELBO, that of the sum over components, is log p(x)."""
    x = torch.cat([torch.randn(50) - 3, torch.randn(30) + 3]).to(device)
    pair = mixture, lambda x: None
    run = fit(pair, x, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=100, batch_size=20, optimizer=adam(0.05))
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


# what a first check stops, what it says, and what it leaves alone


def crooked(prior=None, width=2):
    """A pair of programs whose prior is not the posterior's."""
    net = nn.Linear(6, 2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior or dist.Normal(torch.zeros(width), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6)).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    return model, guide


def test_the_range_is_that_of_all_rows_whatever_the_chunks():
    vae, x = small_vae(), binary()
    x[3, 1], x[17, 2], x[33, 0] = 0.5, 7.0, -2.0
    with pytest.raises(
        SupportError, match=r"3 of 40 rows.*row 3 holds 0.5 in column 1 \(rows 3, 17, 33; values go from -2 to 7"
    ):
        check_support(vae.model, vae.guide, x, chunk_size=10)


def test_programs_at_odds_are_refused_before_training():
    with pytest.raises(ShapeError, match=r"site 'z': the prior draws values of shape \(1,\), the posterior \(2,\)"):
        fit(crooked(width=1), binary())
    simplex = dist.Dirichlet(torch.ones(2))
    with pytest.raises(SupportError, match="the prior lives on numbers from 0 that sum to 1"):
        fit(crooked(simplex), binary())


def test_ghost_training_is_refused():
    """A second pair under a fixed name of pyro.module: its own encoder would never move."""
    fit(crooked(), binary(), epochs=1)
    with pytest.raises(ProgramError, match="ghost training"):
        fit(crooked(), binary(), epochs=1)


def test_what_may_be_meant_is_said_and_trains(capsys):
    vae = small_vae()
    vae.spare = nn.Linear(1, 7, bias=False)
    noisy_fit(vae, binary(), epochs=1)
    note = "note: parameter 'spare.weight': it gets no gradient: the ELBO does not depend on it."
    assert capsys.readouterr().err.count(note) == 1
    vae.spare.requires_grad_(False)
    noisy_fit(vae, binary(), epochs=1)
    fit(small_vae(), binary(), epochs=1)
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(("top", "said"), [(255, True), (40, False)])
def test_pixels_under_poisson_are_asked_about(top, said, capsys):
    vae = VAE(
        StandardNormal(2), Conditional(MLP(2, 6, (8,)), likelihoods.poisson), Conditional(MLP(6, 4, (8,)), normal)
    )
    noisy_fit(vae, torch.randint(0, top + 1, (100, 6)).float().clamp_min(top - 3), epochs=1)
    assert ("are these pixels? Fix: scale pixels to [0, 1]" in capsys.readouterr().err) == said


def discrete():
    """A Bernoulli latent, by score function."""
    net = nn.Linear(6, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Bernoulli(logits=z.unsqueeze(-1).expand(*z.shape, 6)).to_event(1), obs=x)

    def guide(x):
        pyro.module(f"net{id(net)}", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=net(x).squeeze(-1)))

    return model, guide


@pytest.mark.parametrize(("objective", "said"), [(Trace_ELBO, False), (TraceGraph_ELBO, False), (RenyiELBO, True)])
def test_discrete_latents_train_and_only_what_leaves_them_out_says_so(objective, said, capsys):
    noisy_fit(discrete(), binary(), epochs=1, objective=objective(**({"num_particles": 2} if said else {})))
    assert ("has no pathwise gradient" in capsys.readouterr().err) == said


def test_a_plate_of_fixed_size_trains_in_full_batches():
    """check's 64 rows do not fit it, the batch does."""

    def model(x):
        with pyro.plate("data", 100):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z.sum(-1, keepdim=True).expand(*z.shape[:-1], 6)).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", 100):
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    def trains(size):
        return check_training(model, guide, Trace_ELBO(), lambda n: (binary(100)[:n],), size)

    assert trains(100) == []
    with pytest.raises(ProgramError, match="size 100"):
        trains(50)


def test_the_first_check_leaves_the_training_as_it_was(monkeypatch):
    x, start = binary(100), small_vae()
    checked, unchecked = copy.deepcopy(start), copy.deepcopy(start)
    a = fit(checked, x, epochs=2, transform=binarize)
    monkeypatch.setattr("pyro_vae.training.fit.check_training", lambda *_: [])
    b = fit(unchecked, x, epochs=2, transform=binarize)
    assert same(state_of(checked), state_of(unchecked)) and numbers(a) == numbers(b)


@pytest.mark.parametrize(
    ("likelihood", "spoil", "message"),
    [
        (likelihoods.beta, 0.0, r"\(0 < y < 1\): row 77 holds 0 in column 2 \(rows 77; values go from 0 to 0\.5\)"),
        (
            likelihoods.beta,
            1.0,
            r"row 77 holds 1 in column 2 \(rows 77; values go from 0\.5 to 1\)\. The density there is zero",
        ),
        (likelihoods.categorical(256), 256.0, r"row 77 holds 256 in column 2 \(rows 77; values go from 1 to 256\)"),
        (
            lambda h: dist.Dirichlet(softplus(h)),
            0.75,
            r"row 77 sums to 1\.625 \(rows 77; values go from 0\.125 to 0\.75\)",
        ),
    ],
)
def test_support_errors_give_row_and_range(likelihood, spoil, message):
    x = torch.full((100, 6), 1.0 if spoil > 200 else 0.5)
    if spoil == 0.75:
        x[:, :] = torch.tensor([0.25, 0.25, 0.125, 0.125, 0.125, 0.125])
    x[77, 2] = spoil
    features = 6 * 256 if spoil > 200 else 6 if spoil == 0.75 else 12
    vae = VAE(StandardNormal(2), Conditional(MLP(2, features), likelihood), Conditional(MLP(6, 4), normal))
    with pytest.raises(SupportError, match=f"1 of 100 rows.*{message}"):
        fit(vae, x)


# when it goes wrong


class Trap(VAE):
    """A VAE with BatchNorm and dropout that goes wrong, once armed, for the row that begins with 7."""

    def __init__(self, spoil):
        encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 4))
        super().__init__(StandardNormal(2), Conditional(MLP(2, 12, (8,)), normal), Conditional(encoder, normal))
        self.spoil, self.armed = spoil, False

    def model(self, x):
        register(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            d = self.likelihood(z).base_dist
            here = (x[:, :1] == 7) & torch.tensor(self.armed, device=x.device)
            pyro.sample("x", dist.Normal(self.spoil(d.loc, here, z), d.scale).to_event(1), obs=x)


def to_nan(loc, here, z):
    return loc.masked_fill(here, math.nan)


def to_infinity(loc, here, z):
    return loc.masked_fill(here, math.inf)


def steep(loc, here, z):
    """The same value, but the root of 0 has no finite slope."""
    return loc + (z[..., :1] * 0).abs().sqrt() if here.any() else loc


def trapped(spoil, device, arm_after=2, **options):
    """Trains until the trap snaps; the error, the model, and what it held after each epoch."""
    vae, x = Trap(spoil).to(device), torch.randn(40, 6).to(device)
    x[13, 0] = 7.0
    held = {0: state_of(vae)}
    vae.armed = arm_after == 0

    def on_epoch(record):
        held[record["epoch"]] = state_of(vae)
        vae.armed = record["epoch"] >= arm_after

    with pytest.raises(DivergedError) as caught:
        fit(vae, x, epochs=5, batch_size=10, on_epoch=on_epoch, **options)
    return caught.value, vae, held


def rows_named(error):
    return [int(row) for row in re.search(r"on rows ([\d, ]+)", str(error))[1].split(", ")]


@pytest.mark.parametrize(("spoil", "loss"), [(to_nan, "nan"), (to_infinity, "inf")])
def test_a_loss_that_is_not_finite_names_step_and_row(spoil, loss, device):
    error, vae, held = trapped(spoil, device)
    assert re.match(rf"step (9|10|11|12): the loss is {loss} on rows 13\. ", str(error))
    assert "the model holds the weights of epoch 2" in str(error) and error.exit_code == 5
    assert error.result.stopped == "diverged" and len(error.result.history) == 2
    assert same(state_of(vae), held[2]) and not same(state_of(vae), held[1])
    assert all(t.isfinite().all() for t in state_of(vae).values())  # and, warnings being errors here, Pyro stayed quiet


def test_a_gradient_that_is_not_finite_is_caught_with_the_loss_finite(device):
    error, vae, held = trapped(steep, device)
    assert re.match(r"step (9|10|11|12): a gradient is not finite on rows ", str(error))
    assert len(rows_named(error)) == 10 and 13 in rows_named(error)
    assert same(state_of(vae), held[2])


def test_a_divergence_in_the_first_step_leaves_the_start(device):
    """Buffers, too: the forward pass that diverged had moved the batch statistics."""
    error, vae, held = trapped(to_infinity, device, arm_after=0, optimizer=still)
    assert "the loss is inf on rows 13" in str(error)
    assert "the model holds its starting weights" in str(error) and same(state_of(vae), held[0])


def test_parameters_that_are_nan_in_the_first_step_are_a_divergence():
    """The first step runs under validation, which says more than a loss of NaN does."""
    vae, x = small_vae(), binary()
    with torch.no_grad():
        vae.likelihood.net[0].weight.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"step 1: .* not finite: Expected parameter logits"):
        fit(vae, x, epochs=1)


def test_what_is_wrong_with_a_program_is_left_to_pyro_to_say(device):
    """An error in the first step that is not about numbers is no divergence."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, device=x.device), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.ones(2, device=x.device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * scale, scale - 2.0).to_event(1))

    with pytest.raises(ValueError, match="Expected parameter scale") as caught:
        fit((model, guide), torch.zeros(5, 1, device=device), epochs=1)
    assert not isinstance(caught.value, DivergedError)


def test_labels_as_context_stay_whole_numbers(device):
    seen = []

    def model(x, c):
        seen.append(c.dtype)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, device=x.device), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x, c):
        loc = pyro.param("loc", torch.zeros(3, 1, device=x.device))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc[c], 1.0).to_event(1))

    x, c = torch.randn(6, 1, device=device), np.arange(6) % 3
    fit((model, guide), x, c, epochs=1, verbose=False)
    log_likelihood(model, guide, x, c, num_samples=2)
    assert set(seen) == {torch.int64}


def test_weights_that_blow_up_in_the_last_step_of_an_epoch_are_caught(device):
    vae, x = small_vae(device=device), binary(device=device)
    start = state_of(vae)
    with pytest.raises(DivergedError, match="the ELBO after epoch 1 is") as caught:
        fit(vae, x, epochs=3, optimizer=partial(torch.optim.SGD, lr=1e38))
    assert same(state_of(vae), start) and caught.value.result.history == []


def test_validation_holds_the_best_weights_through_a_divergence(device):
    vae, x = small_vae(device=device), binary(60, device)
    kept = {}

    def on_epoch(record):
        kept[record["epoch"]] = state_of(vae)

    with pytest.raises(DivergedError) as caught:
        fit(
            vae,
            x[:40],
            validation=x[40:],
            epochs=10,
            on_epoch=on_epoch,
            optimizer=adam(0.01),
            schedule=lambda done: 1.0 if done < 0.5 else math.inf,
        )
    run = caught.value.result
    assert len(run.history) >= 4 and same(state_of(vae), kept[run.best_epoch])
    check_held(run, vae, x[40:])


@pytest.mark.parametrize("at", ["epoch", "step"])
def test_ctrl_c_holds_the_best_weights(at, device):
    vae, x, kept = small_vae(device=device), binary(60, device), {}
    vae.eval()

    def on_epoch(record):
        kept[record["epoch"]] = state_of(vae)
        if record["epoch"] == 3 and at == "epoch":
            raise KeyboardInterrupt

    def transform(x, generator):
        if 3 in kept:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(vae, x[:40], validation=x[40:], epochs=9, on_epoch=on_epoch, transform=transform)
    error = caught.value
    assert isinstance(error, Interrupted) and error.exit_code == 130 and "interrupted at step 3" in str(error)
    complete = 2 if at == "epoch" else 3  # an epoch whose report was interrupted is neither kept nor recorded
    assert len(error.result.history) == complete and error.result.stopped == "interrupted"
    assert same(state_of(vae), kept[error.result.best_epoch]) and not vae.training
    check_held(error.result, vae, x[40:])


def test_any_other_error_of_the_users_passes_through_and_leaves_order():
    vae = small_vae().eval()

    def on_epoch(record):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        fit(vae, binary(), epochs=2, on_epoch=on_epoch)
    assert not vae.training


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
