"""VIMCO and DReG take the memory of the weights, K · N numbers, whatever the bound: not K copies of them."""

import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Bound, ciwae, dreg, elbo, iwae, miwae, piwae, renyi, tvo, vimco
from pyro_vae.objectives import leave_one_out
from pyro_vae.objectives.curvature import second
from pyro_vae.objectives.leave_one_out import without_one
from tests.helpers.environment import HEAVY, ROOT
from tests.helpers.memory_in_numbers import MemoryInNumbers

K, N = 400, 4


def one_of_ones_own(log_w):
    return log_w.exp().mean(0).log1p()


BOUNDS = {
    "elbo": elbo, "iwae": iwae, "miwae": miwae, "piwae": piwae, "ciwae": ciwae(0.3), "renyi": renyi(0.5), "tvo": tvo(),
    "one_of_ones_own": one_of_ones_own,
}  # fmt: skip
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of two copies of (K, N) weights, as large K · N have."""
    monkeypatch.setattr(leave_one_out, "AT_ONCE", 2 * K * N)


def copies_at_the_peak(function, bound, groups=False):
    log_w = torch.randn(K, N, dtype=torch.float64)
    with MemoryInNumbers() as memory:
        function(bound, log_w.unflatten(0, (2, -1)) if groups else log_w)
    return memory.peak / 8 / (K * N)


@every_bound
@pytest.mark.parametrize("function", [without_one, second])
def test_baselines_and_curvatures_take_a_few_copies_of_the_weights(function, bound, small_pieces):
    assert copies_at_the_peak(function, bound, bound in (miwae, piwae)) < 25


def a_copy_for_each(bound, log_w):
    """F_{−k} of K copies of the weights at once."""
    one = torch.eye(K, dtype=torch.bool).unsqueeze(-1)
    others = torch.where(one, 0.0, log_w).sum(1, keepdim=True) / (K - 1)
    return bound(torch.where(one, others, log_w).movedim(0, 1).reshape(K, -1)).reshape(K, N)


def a_row_of_the_hessian_for_each(bound, log_w):
    """F_kk from K derivatives of (K, N) at once."""
    leaf = log_w.detach().requires_grad_()
    slope = torch.autograd.grad(bound(leaf).sum(), leaf, create_graph=True)[0]
    each = torch.eye(K, dtype=torch.float64).unsqueeze(-1).expand(-1, -1, N)
    return (torch.autograd.grad(slope, leaf, each, is_grads_batched=True)[0] * each).sum(0)


@pytest.mark.parametrize("function", [a_copy_for_each, a_row_of_the_hessian_for_each])
def test_a_copy_for_each_particle_would_show(function):
    assert copies_at_the_peak(function, iwae) > K


def discrete(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.4)).expand(len(x))))


def smooth(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def smooth_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.4)).expand(len(x)), 1.0))


def peak_of_a_step(bound, estimator, particles):
    groups = {"num_groups": 2} if bound in (miwae, piwae) else {}
    programs = (discrete, discrete_guide) if estimator is vimco else (smooth, smooth_guide)
    objective = Bound(bound, particles // groups.get("num_groups", 1), estimator=estimator, **groups)
    objective.loss_and_grads(*programs, torch.zeros(N))  # finds the plates
    with MemoryInNumbers() as memory:
        objective.loss_and_grads(*programs, torch.zeros(N))
    return memory.peak


@every_bound
@pytest.mark.parametrize("estimator", [vimco, dreg], ids=repr)
def test_a_step_of_twice_the_particles_takes_twice_the_memory(estimator, bound, monkeypatch):
    pyro.clear_param_store()
    monkeypatch.setattr(leave_one_out, "AT_ONCE", 1)
    assert peak_of_a_step(bound, estimator, 200) < 2.3 * peak_of_a_step(bound, estimator, 100)


STEPS = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import torch
from pyro_vae import Bound, dreg, iwae, renyi, vimco
from tests.objectives import test_estimator_memory as here
torch.set_num_threads(1)
for bound, estimator, programs in ((iwae, vimco, (here.discrete, here.discrete_guide)),
                                   (renyi(0.5), dreg, (here.smooth, here.smooth_guide))):
    for particles in (100, 20_000):
        loss = Bound(bound, particles, estimator=estimator).loss_and_grads(*programs, torch.zeros(2))
        print(loss.item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_many_particles_in_numbers():
    """K² would be 3.2 GB a copy of 20,000 particles."""
    for bound, estimator in ((iwae, vimco), (renyi(0.5), dreg)):
        assert peak_of_a_step(bound, estimator, 20_000) < 100e6


@pytest.mark.skipif(not HEAVY, reason="a process of its own: PYRO_VAE_HEAVY=1")
def test_many_particles_in_the_resident_size_of_a_process():
    """K² N would be 3.2 GB a copy; what 20,000 particles add to 100 is below 100 MB."""
    run = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    sizes = [int(line.split()[1]) for line in run.stdout.splitlines()]
    assert sizes[1] - sizes[0] < 100_000 and sizes[3] - sizes[1] < 100_000
