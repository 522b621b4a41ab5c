"""log p(x) against exact oracles, its error bars against repetition, and what it leaves as it found it."""

import csv
import io
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import MLP, VAE, Conditional, Evidence, StandardNormal, bernoulli, binomial, fit, normal
from pyro_vae import log_likelihood as noisy_log_likelihood
from pyro_vae.errors import DataConversionWarning, ProgramError
from tests.helpers.bits import same
from tests.helpers.exact import LinearGaussian, counts
from tests.helpers.small import binary, small_vae

log_likelihood = partial(noisy_log_likelihood, verbose=False)


# truth


def check_exact(evidence, exact):
    """5 Monte Carlo standard errors in each row (many rows), 4 in the mean: its SE is sqrt(sum mc_se^2) / N."""
    off = evidence.log_px - exact.cpu()
    assert (off.abs() < 5 * evidence.mc_se).all()
    assert off.mean().abs() < 4 * evidence.mc_se.square().sum().sqrt() / len(off)


def test_log_px_is_sklearns(lg):
    exact = lg.log_px(lg.x)
    evidence = log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=4000)
    check_exact(evidence, exact)
    assert (evidence.mc_se > 0).all() and (evidence.ess < 4000).all() and (evidence.ess > 1).all()
    with pytest.raises(AssertionError):
        check_exact(log_likelihood(lg.model, lg.mean_field_guide, lg.x + 0.1, num_samples=4000), exact)


@pytest.mark.parametrize("pair", ["programs", "VAE"])
def test_with_the_exact_posterior_there_is_no_error(lg, pair):
    model, guide = (lg.model, lg.exact_guide) if pair == "programs" else (lg.vae().model, lg.vae().guide)
    evidence = log_likelihood(model, guide, lg.x, num_samples=50)
    torch.testing.assert_close(evidence.log_px, lg.log_px(lg.x).cpu(), rtol=0, atol=1e-8)
    torch.testing.assert_close(evidence.elbo, evidence.log_px, rtol=0, atol=1e-8)
    torch.testing.assert_close(evidence.ess, torch.full((40,), 50.0, dtype=torch.float64), rtol=1e-8, atol=0)
    assert (evidence.mc_se < 1e-6).all() and (evidence.elbo_se < 1e-6).all() and (evidence.gap.abs() < 1e-8).all()


def test_elbo_and_kl_add_up_to_log_px(lg):
    """In closed form to 1e-10, by sampling within 4 standard errors of the mean, sqrt(sum elbo_se^2) / N."""
    q = lg.mean_field(lg.x)
    exact_elbo = lg.elbo(lg.x, q)
    torch.testing.assert_close(exact_elbo + lg.kl_to_posterior(lg.x, q), lg.log_px(lg.x), rtol=0, atol=1e-10)
    torch.testing.assert_close(lg.elbo(lg.x, lg.exact(lg.x)), lg.log_px(lg.x), rtol=0, atol=1e-10)
    assert (lg.kl_to_posterior(lg.x, q) > 0.01).all()
    evidence = log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=2000)
    off = evidence.elbo - exact_elbo.cpu()
    assert (off.abs() < 5 * evidence.elbo_se).all()
    assert off.mean().abs() < 4 * evidence.elbo_se.square().sum().sqrt() / len(off)
    gap_se = (evidence.mc_se.square() + evidence.elbo_se.square()).sum().sqrt() / len(off)
    assert (evidence.gap.mean() - lg.kl_to_posterior(lg.x, q).mean()).abs() < 4 * gap_se


def check_rises(evidences):
    """log p is above the ELBO, and does not fall with K by 4 standard errors of the paired difference, sd(d) / sqrt(N)."""
    for evidence in evidences:
        assert (evidence.log_px >= evidence.elbo - 1e-9).all()
    for a, b in pairwise(evidences):
        d = b.log_px - a.log_px
        assert d.mean() > -4 * d.std() / len(d) ** 0.5


def test_the_bound_rises_with_k_in_the_linear_gaussian(lg):
    evidences = [log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=k) for k in (1, 10, 100, 1000)]
    check_rises(evidences)
    off = evidences[-1].log_px.mean() - lg.log_px(lg.x).mean().cpu()
    assert off < 4 * evidences[-1].mc_se.square().sum().sqrt() / 40


def test_the_bound_rises_with_k_in_a_trained_binomial_vae(device):
    vae = small_vae(likelihood=binomial(16), width=12, device=device)
    fit(vae, counts(300, device=device), epochs=15, batch_size=50, verbose=False)
    evidences = [
        log_likelihood(vae.model, vae.guide, counts(103, 1, device), num_samples=k) for k in (1, 10, 100, 1000)
    ]
    check_rises(evidences)
    assert evidences[-1].log_px.mean() > evidences[0].log_px.mean() + 0.1
    with pytest.raises(AssertionError):
        check_rises(evidences[::-1])


# error bars


def check_honest(error, values):
    """The sd over 200 repetitions is the error that was given, within 20 % (4 standard errors of an sd: 4 / sqrt(400))."""
    assert ((values.std(0) / error.mean(0) - 1).abs() < 0.2).all()


def test_the_error_bars_are_what_repetition_shows(lg):
    """200 repetitions: 20 seeds, each row 10 times (rows have noise of their own)."""
    x = lg.x[:3].repeat(10, 1)
    runs = [log_likelihood(lg.model, lg.mean_field_guide, x, num_samples=300, seed=s) for s in range(20)]
    of = {f: torch.stack([getattr(r, f) for r in runs]).reshape(200, 3) for f in ("log_px", "mc_se", "elbo", "elbo_se")}
    check_honest(of["mc_se"], of["log_px"])
    check_honest(of["elbo_se"], of["elbo"])
    with pytest.raises(AssertionError):
        check_honest(of["mc_se"] * 300**0.5, of["log_px"])  # root K forgotten


def test_the_two_errors_are_kept_apart(lg):
    s = log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=100).summary()
    more = log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=6400).summary()
    data_se = lg.log_px(lg.x).std().item() / 40**0.5
    assert s["log_px_data_se"] == pytest.approx(data_se, rel=0.05)
    assert more["log_px_data_se"] == pytest.approx(data_se, rel=0.02)
    assert 4 < s["log_px_mc_se"] / more["log_px_mc_se"] < 16  # about sqrt(64)


def test_one_row_and_one_particle_leave_errors_unknown(lg):
    one_row = log_likelihood(lg.model, lg.mean_field_guide, lg.x[:1], num_samples=10)
    assert one_row.summary()["log_px_data_se"] is None and one_row.summary()["log_px_mc_se"] > 0
    one_particle = log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=1)
    s = one_particle.summary()
    assert s["log_px_mc_se"] is None and s["elbo_mc_se"] is None and s["log_px_data_se"] > 0
    assert torch.equal(one_particle.log_px, one_particle.elbo)
    believed = log_likelihood(lg.model, lg.mean_field_guide, lg.x[:1], num_samples=1000)
    assert "± unknown (data)" in str(believed) and "≥" in str(one_row)  # ten particles have no k̂
    assert (one_particle.ess == 1).all()


# what is left alone


def test_the_same_seed_gives_the_same_bits_whatever_ran_before(device):
    vae, x = small_vae(device=device), binary(7, device)
    first = log_likelihood(vae.model, vae.guide, x, num_samples=20, seed=5)
    torch.randn(1000, device=device)
    log_likelihood(vae.model, vae.guide, x, num_samples=3)
    assert same(log_likelihood(vae.model, vae.guide, x, num_samples=20, seed=5), first)
    assert not same(log_likelihood(vae.model, vae.guide, x, num_samples=20, seed=6), first)


def test_the_global_random_state_is_unchanged(device):
    vae, x = small_vae(device=device), binary(7, device)
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    log_likelihood(vae.model, vae.guide, x, num_samples=20)
    assert torch.equal(torch.get_rng_state(), cpu)
    assert cuda is None or torch.equal(torch.cuda.get_rng_state(device), cuda)


class Uneven(VAE):
    """BatchNorm in the encoder and dropout in the decoder, so that modes matter."""

    def __init__(self):
        encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        decoder = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 6))
        super().__init__(StandardNormal(2), Conditional(decoder, bernoulli), Conditional(encoder, normal))


def test_nothing_of_the_model_or_its_optimizer_changes(device):
    vae, x = Uneven().to(device), binary(7, device)
    optimizer = torch.optim.Adam(vae.parameters())
    vae.posterior(x).rsample().sum().backward()
    optimizer.step()
    vae.likelihood.eval()
    flags = {n: m.training for n, m in vae.named_modules()}
    state = {n: t.clone() for n, t in vae.state_dict().items()}
    grads = {n: p.grad.clone() for n, p in vae.named_parameters() if p.grad is not None}
    moments = [t.clone() for state in optimizer.state.values() for t in state.values()]
    store = dict(pyro.get_param_store().items())
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=20)
    assert {n: m.training for n, m in vae.named_modules()} == flags and flags["posterior.net.1"]
    assert all(torch.equal(t, state[n]) for n, t in vae.state_dict().items())
    assert all(torch.equal(p.grad, grads[n]) for n, p in vae.named_parameters() if n in grads)
    now = [t for state in optimizer.state.values() for t in state.values()]
    assert len(now) == len(moments) > 0 and all(map(torch.equal, now, moments))
    assert all(p.requires_grad for p in vae.parameters()) and store == {}
    assert not evidence.log_px.requires_grad


def test_scoring_runs_in_eval_mode_whatever_mode_the_model_is_in(device):
    vae, x = Uneven().to(device), binary(7, device)
    vae.train()
    vae.posterior(x)
    scores = {mode: log_likelihood(vae.train(mode).model, vae.guide, x, num_samples=20) for mode in (True, False)}
    assert same(scores[True], scores[False])


@pytest.mark.parametrize("wrap", [lambda p: poutine.scale(p, scale=0.5), lambda p: partial(p), poutine.condition])
def test_effect_handlers_do_not_hide_the_modules(wrap):
    """Dropout is off under poutine.scale(vae.model, ...), too."""
    vae, x = Uneven(), binary(7)
    wrap = partial(poutine.condition, data={}) if wrap is poutine.condition else wrap
    plain = log_likelihood(vae.model, vae.guide, x, num_samples=20)
    assert same(log_likelihood(wrap(vae.model), wrap(vae.guide), x, num_samples=20), plain)
    assert vae.posterior.net.training


def test_validation_switches_come_back_one_by_one(monkeypatch):
    """Torch's switch off, Pyro's on (as importing some libraries leaves them): Pyro's own handler would set both alike."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    before = pyro.settings.get()
    vae = small_vae()
    log_likelihood(vae.model, vae.guide, binary(7), num_samples=2)
    fit(vae, binary(7), epochs=1, verbose=False)
    assert pyro.settings.get() == before
    with pyro.validation_enabled(False):
        pass
    assert pyro.settings.get() != before


class NaNFor(VAE):
    """Puts out NaN for rows that begin with `value`."""

    def __init__(self, value):
        super().__init__(StandardNormal(2), self.decode, Conditional(MLP(6, 4, (8,)), normal))
        self.value, self.net = value, MLP(2, 6, (8,))

    def decode(self, z):
        return dist.Normal(self.net(z), 1.0).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            loc = torch.where(x[:, :1] == self.value, math.nan, self.net(z))
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


def test_rows_whose_weights_are_nan_are_named():
    """After which conftest.py checks that the validation switches are back."""
    vae, x = NaNFor(7.0), torch.randn(50, 6)
    x[[31, 34], 0] = 7.0
    with pytest.raises(ProgramError, match=r"NaN or \+inf for rows \[31, 34\]"):
        log_likelihood(vae.model, vae.guide, x, num_samples=4, chunk_size=40)


def test_a_model_of_nan_is_refused():
    vae = small_vae()
    with torch.no_grad():
        vae.likelihood.net[0].weight.fill_(math.nan)
    with pytest.raises(ProgramError, match=r"NaN or \+inf for rows \[0, 1"):
        log_likelihood(vae.model, vae.guide, binary(7), num_samples=2)


def test_a_model_without_values_is_refused_before_its_device_is_asked():
    vae = small_vae().to("meta")
    with pytest.raises(ProgramError, match="on the meta device, and has a shape, but no values"):
        log_likelihood(vae.model, vae.guide, binary(7), device="cpu")


# what is taken, and what is handed back


@pytest.mark.parametrize("kind", [np.float64, np.uint8, np.bool_])
def test_numpy_is_converted_with_a_warning_and_left_as_it_was(kind, device):
    vae = small_vae(device=device)
    array = binary(7).numpy().astype(kind)
    before = array.copy()
    with pytest.warns(DataConversionWarning, match=r"to torch.float32 \(a copy; your array is unchanged\)"):
        evidence = log_likelihood(vae.model, vae.guide, array, num_samples=5)
    assert array.dtype == kind and (array == before).all()
    assert same(evidence, log_likelihood(vae.model, vae.guide, binary_from(before, device), num_samples=5))


def binary_from(array, device):
    return torch.tensor(array.astype(np.float32), device=device)


def test_rows_csv_keeps_floats_to_the_last_bit(lg):
    for k in (1, 20):
        evidence = log_likelihood(lg.model, lg.mean_field_guide, lg.x, num_samples=k)
        rows = list(csv.DictReader(io.StringIO(evidence.rows_csv())))
        assert [int(r["row"]) for r in rows] == list(range(40))
        for field in ("log_px", "mc_se", "ess", "elbo", "elbo_se"):
            read = torch.tensor([float(r[field]) for r in rows], dtype=torch.float64)
            torch.testing.assert_close(read, getattr(evidence, field), rtol=0, atol=0, equal_nan=True)


def test_evidence_is_float64_on_the_cpu(device):
    vae = small_vae(device=device)
    evidence = log_likelihood(vae.model, vae.guide, binary(7, device), num_samples=5)
    assert isinstance(evidence, Evidence)
    assert evidence.log_px.dtype == torch.float64 and evidence.log_px.device.type == "cpu"


def test_float32_is_as_good_as_its_digits(lg):
    """The same pair in float32: within 1e-4 of exact, as its 7 digits allow."""
    single = LinearGaussian(device=lg.x.device)
    single.x, single.a, single.noise, single.mean = (t.float() for t in (lg.x, lg.a, lg.noise, lg.mean))
    evidence = log_likelihood(single.model, single.exact_guide, single.x, num_samples=20)
    torch.testing.assert_close(evidence.log_px, lg.log_px(lg.x).cpu(), rtol=0, atol=1e-4)
