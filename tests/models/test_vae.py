"""The VAE as Pyro programs: stock Pyro trains it, twice in a process too, and importing it changes nothing."""

import copy
import gc
import subprocess
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import (
    MLP,
    VAE,
    Conditional,
    StandardNormal,
    bernoulli,
    encode,
    fit,
    interpolate,
    log_likelihood,
    log_weights,
    normal,
    reconstruct,
    sample,
)
from pyro_vae.errors import ProgramError, ShapeError, UsageError
from pyro_vae.programs.parameters import register
from tests.helpers.small import FixedName, binary, small_vae


def conditional_vae(device="cpu"):
    return VAE(
        prior=Conditional(MLP(3, 2 * 2, (8,)), normal),
        likelihood=Conditional(MLP(2 + 3, 6, (8,)), bernoulli),
        posterior=Conditional(MLP(6 + 3, 2 * 2, (8,)), normal),
    ).to(device)


def frozen_copy(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def still(module, before):
    return [name for name, p in module.named_parameters() if torch.equal(p, before[name])]


def check_trains(vae, x, loss=None, steps=3):
    """Stock SVI moves every parameter, with a finite loss."""
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), loss or Trace_ELBO())
    before = frozen_copy(vae)
    losses = [svi.step(x) for _ in range(steps)]
    assert torch.tensor(losses).isfinite().all()
    assert still(vae, before) == []


ELBOS = (Trace_ELBO, TraceMeanField_ELBO, RenyiELBO, TraceGraph_ELBO)


@pytest.mark.parametrize("vectorized", [False, True], ids=["looped", "vectorized"])
@pytest.mark.parametrize(
    ("kind", "particles"), [(e, k) for e in ELBOS for k in (1, 4) if (e, k) != (RenyiELBO, 1)]
)  # RenyiELBO wants 2 particles or more
def test_stock_pyro_trains_the_vae(kind, particles, vectorized, device):
    loss = kind(num_particles=particles, vectorize_particles=vectorized, max_plate_nesting=1)
    check_trains(small_vae(device=device), binary(20, device), loss)


def test_two_vaes_and_a_deep_copy_train_in_one_process(device):
    x = binary(20, device)
    first = small_vae(device=device)
    check_trains(first, x)
    check_trains(small_vae(device=device), x)
    check_trains(copy.deepcopy(first), x)
    check_trains(first, x)


def test_under_a_fixed_name_the_second_vae_is_never_trained():
    x = binary(20)
    first, second = small_vae(kind=FixedName), small_vae(kind=FixedName)
    check_trains(first, x)
    with pytest.raises(AssertionError):
        check_trains(second, x)
    check_trains(small_vae(), x)


def test_training_one_vae_leaves_the_other_alone():
    x = binary(20)
    first, second = small_vae(), small_vae()
    check_trains(first, x)
    before = frozen_copy(first)
    check_trains(second, x)
    assert still(first, before) == list(before)


def test_a_context_conditions_all_three(device):
    vae, x, c = conditional_vae(device), binary(20, device), torch.randn(20, 3, device=device)
    assert vae.model(x, c).shape == x.shape and vae.guide(x, c).shape == (20, 2)
    assert log_weights(vae.model, vae.guide, x, c, num_particles=4).shape == (4, 20)
    before = frozen_copy(vae)
    run = fit(vae, x, c, validation=(x[:5], c[:5]), epochs=2, verbose=False)
    assert len(run.history) == 2 and still(vae, before) == []
    evidence = log_likelihood(vae.model, vae.guide, x, c, num_samples=10, verbose=False)
    assert len(evidence) == 20 and evidence.log_px.isfinite().all()
    assert sample(vae, 20, c).shape == (20, 6)
    assert reconstruct(vae, x, c).shape == (20, 6) and encode(vae, x, c).shape == (20, 2)
    assert interpolate(vae, x[:4], x[4:8], c[:4], steps=3).shape == (3, 4, 6)
    assert not torch.allclose(reconstruct(vae, x, c), reconstruct(vae, x, c + 1))


def test_a_context_of_another_length_is_refused():
    vae, x = conditional_vae(), binary(20)
    for use in (
        lambda c: fit(vae, x, c, epochs=1, verbose=False),
        lambda c: log_likelihood(vae.model, vae.guide, x, c, verbose=False),
        lambda c: reconstruct(vae, x, c),
    ):
        with pytest.raises(ShapeError, match="x has 20 rows, context 0 has 19"):
            use(torch.randn(19, 3))
    with pytest.raises(UsageError, match="20 samples need a context of as many rows, got 19"):
        sample(vae, 20, torch.randn(19, 3))


def test_samples_come_from_the_model(device):
    """The mean of many samples is E[p(x | z)] within 4 standard errors, sd / sqrt(n); a seed repeats, another does not."""
    vae = small_vae(device=device)
    n = 20_000
    draws, means = sample(vae, n, seed=1), sample(vae, n, seed=2, mean=True)
    se = (draws.var(0) / n + means.var(0) / n).sqrt()
    assert ((draws.mean(0) - means.mean(0)).abs() < 4 * se).all()
    assert ((draws == 0) | (draws == 1)).all()
    assert torch.equal(sample(vae, 5, seed=3), sample(vae, 5, seed=3))
    assert not torch.equal(sample(vae, 5, seed=3, mean=True), sample(vae, 5, seed=4, mean=True))


def test_using_a_vae_changes_neither_its_mode_nor_the_random_state(device):
    vae = small_vae(device=device).train()
    vae.likelihood.net.eval()
    flags, state = [m.training for m in vae.modules()], torch.get_rng_state()
    x = binary(4, device)
    state = torch.get_rng_state()
    encode(vae, x), reconstruct(vae, x), interpolate(vae, x, x), sample(vae, 3)
    assert [m.training for m in vae.modules()] == flags and torch.equal(torch.get_rng_state(), state)
    assert not reconstruct(vae, x).requires_grad


def test_interpolation_ends_at_the_reconstructions():
    vae, x = small_vae(), binary(8)
    path = interpolate(vae, x[:4], x[4:], steps=5)
    torch.testing.assert_close(path[0], reconstruct(vae, x[:4]))
    torch.testing.assert_close(path[-1], reconstruct(vae, x[4:]))
    with pytest.raises(UsageError, match="at least 2 steps"):
        interpolate(vae, x, x, steps=1)


def test_a_posterior_without_a_mean_is_refused_by_its_role():
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [dist.transforms.Planar(2)])
    vae = VAE(StandardNormal(2), Conditional(MLP(2, 6), bernoulli), lambda x: flow.expand((len(x),)))
    with pytest.raises(ProgramError, match=r"site 'z' of the guide, q\(z \| x\) is a TransformedDistribution"):
        encode(vae, binary(3))


def test_parts_may_be_lambdas(device):
    vae = VAE(
        prior=lambda: dist.Laplace(torch.zeros(2, device=device), 1.0).to_event(1),
        likelihood=Conditional(MLP(2, 6), bernoulli),
        posterior=Conditional(MLP(6, 2 * 2), normal),
    ).to(device)
    check_trains(vae, binary(20, device))


def test_a_frozen_parameter_stays_without_a_warning():
    vae = small_vae()
    vae.likelihood.net[0].weight.requires_grad_(False)
    before = frozen_copy(vae)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        svi.step(binary(20))
        fit(vae, binary(20), epochs=1, verbose=False)
    assert still(vae, before) == ["likelihood.net.0.weight"]


def test_parameters_of_dead_modules_leave_the_store():
    store = pyro.get_param_store()
    kept, dead = nn.Linear(2, 2), nn.Linear(2, 2)
    register(kept), register(dead)
    assert len(store) == 4
    del dead
    gc.collect()
    assert len(store) == 2
    vae = small_vae()
    SVI(vae.model, vae.guide, pyro.optim.Adam({}), Trace_ELBO()).step(binary(4))
    del vae
    gc.collect()
    assert len(store) == 2 and all(name.startswith("Linear.") for name in store.keys())  # noqa: SIM118


def test_a_foreign_tensor_under_the_modules_name_is_refused():
    module = nn.Linear(2, 2)
    register(module)
    module.weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ProgramError, match=r"another tensor than the module for 'weight' of Linear\."):
        register(module)


def test_weights_loaded_into_the_module_are_the_ones_used():
    vae, other, x = small_vae(), small_vae(), binary(20)
    check_trains(vae, x)
    vae.load_state_dict(other.state_dict())
    torch.testing.assert_close(reconstruct(vae, x), reconstruct(other, x), rtol=0, atol=0)
    check_trains(vae, x)


# importing


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORTING = """
import torch, pyro, warnings, numpy, sys
def state():
    return pyro.settings.get() | {
        "torch validation": torch.distributions.Distribution._validate_args, "dtype": torch.get_default_dtype(),
        "rng": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()),
        "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled(), "filters": list(warnings.filters),
        "store": len(pyro.get_param_store()), "numpy errors": numpy.geterr()}
before = state()
import pyro_vae, pyro_vae.data
print([name for name, value in state().items() if value != before[name]])
print([m for m in ("matplotlib", "torchvision", "sklearn", "zuko") if m in sys.modules])
torch.manual_seed(3)
print([name for name, value in state().items() if value != before[name]])
import zuko
print([m for m in ("matplotlib", "torchvision", "sklearn", "zuko") if m in sys.modules])
"""


def test_importing_changes_nothing_and_leaves_the_heavy_libraries_alone():
    """And what changes something afterwards, or brings one in, is noticed."""
    assert run_python(IMPORTING).splitlines() == ["[]", "[]", "['rng']", "['zuko']"]


def test_forgetting_models_that_shared_a_parameter_is_quiet(monkeypatch):
    """Pyro's store keeps one name a tensor: two modules that share one are forgotten without an error in a finalizer."""
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    shared = nn.Linear(2, 1)
    first, second = nn.Sequential(shared), nn.Sequential(shared)
    register(first)
    register(second)
    before = len(pyro.get_param_store())
    del first, second
    gc.collect()
    assert raised == [] and len(pyro.get_param_store()) == before - 4
