"""What is logged and kept: the true ELBO, means over rows, what the latents carry, the best weights."""

import copy
import math
from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from torch import nn

from pyro_vae import adam, cosine, log_likelihood, warmup
from pyro_vae import fit as noisy_fit
from pyro_vae.diagnostics.latent_usage import latents
from pyro_vae.programs import pair as pairs
from pyro_vae.programs.vectorize_probe import ProbedOnce
from pyro_vae.training import metrics
from pyro_vae.training.metrics import LATENT_KEYS, collapsed, true_elbo
from pyro_vae.training.step import Step
from pyro_vae.training.trainer import TrainingCallback
from tests.helpers.bits import same
from tests.helpers.exact import LinearGaussian
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import check_held, mixture, rough

fit = partial(noisy_fit, verbose=False)
sgd = partial(torch.optim.SGD, lr=0.01)
still = partial(torch.optim.SGD, lr=0.0)


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


def logged(pair, x):
    """The record of an epoch at rate 0, and the metrics that made it."""

    class Held(TrainingCallback):
        def after_epoch(self, trainer):
            self.metrics = trainer.metrics

    held = Held()
    run = fit(pair, x, epochs=1, optimizer=still, callbacks=[held])
    return run.history[-1], held.metrics


def test_closed_forms_are_of_all_rows_and_cost_no_further_draw(device):
    """One run of the model an epoch, of the guide one for the ELBO and one for I(x; z)."""
    vae, x = small_vae(device=device), binary(700, device)
    record, at = logged(vae, x)
    found = latents(vae.model, vae.guide, x)
    assert record["kl_per_unit"] == pytest.approx(found.kl_per_unit.tolist(), abs=1e-4)
    few = latents(vae.model, vae.guide, x[:500])  # what draws would be made for
    assert record["kl_per_unit"] != pytest.approx(few.kl_per_unit.tolist(), abs=1e-4)
    runs = []

    def noted(program, role):
        return lambda *args: runs.append(role) or program(*args)

    at.pair, at.times = replace(at.pair, model=noted(vae.model, "model"), guide=noted(vae.guide, "guide")), 2
    again = at.elbo("again") | at.latents()
    assert runs == ["guide", "model", "guide"]
    assert again == {key: record[key] for key in again}  # plates found before or anew: the same draws


def awkward(kind):
    """A pair whose figures of the latents depend on the draw that they are taken from."""

    def model(x):
        on = x[:, 0] > 0 if kind == "masked" else torch.ones(len(x), dtype=torch.bool)
        with pyro.plate("data", len(x)):
            above = pyro.sample("above", dist.Normal(0.0, 1.0)) if kind == "two levels" else 0.0
            prior = dist.StudentT(5.0) if kind == "no closed form" else dist.Normal(above, 1.0)
            z = pyro.sample("z", prior.mask(on) if kind == "masked" else prior)
            logits = torch.where(on, z, 0.0).unsqueeze(-1).expand(*z.shape, 6)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.tensor(0.3)) * x.sum(-1)
        with pyro.plate("data", len(x)):
            if kind == "two levels":
                loc = loc + pyro.sample("above", dist.Normal(loc, 0.5))
            q = dist.Normal(loc + 0.1 * torch.randn(()) if kind == "noise on the way" else loc, 0.5)
            pyro.sample("z", q.mask(x[:, 0] > 0) if kind == "masked" else q)

    return model, guide


@pytest.mark.parametrize("kind", ["two levels", "masked", "no closed form", "noise on the way"])
def test_where_a_draw_matters_the_latents_get_draws_of_their_own(kind):
    """The pass over the rows has one draw, whose own noise nothing would take off."""
    x = binary(60)
    record, at = logged(awkward(kind), x)
    at.elbo("again")
    assert at.units is None and math.isfinite(record["elbo"])
    found = latents(*awkward(kind), x, num_samples=500)
    assert record["active_units"] == found.active()
    assert sum(record["kl_per_unit"]) == pytest.approx(found.kl, abs=0.5)


def test_validation_rows_alone_show_the_latents(monkeypatch):
    """The modules behind the programs are looked for once for the ELBO of both sets of rows, and once for the latents."""
    x, looks, closed = binary(60), [], []
    owners, without_noise = pairs.owners, metrics.without_noise
    monkeypatch.setattr(pairs, "owners", lambda *things: looks.append(things) or owners(*things))
    monkeypatch.setattr(metrics, "without_noise", lambda *of: closed.append(len(of[2])) or without_noise(*of))
    run = fit(small_vae(), x[:40], validation=x[40:], epochs=3, on_epoch=lambda r: {"looks": len(looks)})
    assert closed == [20] * 3
    assert run.history[2]["looks"] - run.history[1]["looks"] == 2


def test_latents_that_have_no_such_figures_get_none():
    x = torch.randn(20)
    run = fit((mixture, lambda x: None), x, objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1)
    assert [run.best[key] for key in LATENT_KEYS] == [None] * 5 and run.warnings == []


def test_watching_the_latents_changes_no_run(monkeypatch):
    x, start = binary(), small_vae()
    watched, blind = copy.deepcopy(start), copy.deepcopy(start)
    a = fit(watched, x, validation=x[:9], epochs=6, batch_size=16)
    monkeypatch.setattr(metrics, "latent_use", lambda *args: {"mutual_information": None})
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
    noisy = told | {"mutual_information": -0.07, "mutual_information_se": 0.08}
    assert collapsed(noisy) is None and collapsed(noisy | {"mutual_information_se": 0.05}) is not None
    assert collapsed(told | {"kl": 0.02, "kl_per_unit": [0.3, 0.0]}) is None  # a closed form has no noise
    for sign in ({"active_units": 0}, {"mutual_information": 0.04}, {"kl": 0.09}):
        assert collapsed(told | sign) is not None
    assert capsys.readouterr().err == ""


def carries(slope):
    """q(z | x) = N(slope x, 1 − slope²), x ~ N(0, 1): I(x; z) = −½ log(1 − slope²)."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, (1 - slope**2) ** 0.5))

    return model, guide


def test_the_alarm_of_latents_that_carry_a_seventh_of_a_nat_does_not_ring():
    """At 32 rows the estimate's noise alone puts one in seven below the threshold; nothing carried is told each time."""

    def found(slope):
        pair, draws = carries(slope), torch.Generator()
        with ProbedOnce():
            return [
                latents(*pair, torch.randn(32, generator=draws.manual_seed(seed)), num_samples=2, seed=seed)
                for seed in range(60)
            ]

    def alarms(found, errors):
        records = [{"mutual_information": f.mutual_information, "active_units": 1, "epoch": 9} for f in found]
        ses = [{"mutual_information_se": errors * f.mutual_information_se} for f in found]
        return sum(collapsed(record | se) is not None for record, se in zip(records, ses, strict=True))

    little, nothing = found(0.5), found(0.0)
    assert alarms(little, errors=1) == 0 and alarms(nothing, errors=1) == 60
    assert alarms(little, errors=0) > 3


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
    return model, lg.pinned_guide, rows


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


def test_the_support_of_the_data_is_looked_at_before_training_only(monkeypatch):
    looked = []

    def noted(fn, value, latent):
        looked.append(len(value))
        return fn.log_prob(value)

    class After(TrainingCallback):
        def after_epoch(self, trainer):
            assert trainer.metrics.inside == {"x"}

    monkeypatch.setattr("pyro_vae.programs.score_sites.inside_density", noted)
    fit(small_vae(), binary(64), epochs=2, validation=binary(32), callbacks=[After()])
    assert max(looked) < 32  # the probes' few rows
