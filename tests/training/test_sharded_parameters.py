"""Networks sharded by ``fully_shard`` train to the weights of whole ones, score the same rows alike, and gather their state."""

import os
import subprocess
import sys

import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import UsageError
from pyro_vae.runs.checkpointer import Checkpointer

distributed = pytest.importorskip("torch.distributed")
if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("processes talk by gloo", allow_module_level=True)


def vae():
    torch.manual_seed(0)
    likelihood = pv.Conditional(pv.MLP(2, 10, hidden=(8,)), pv.normal)
    return pv.VAE(pv.StandardNormal(2), likelihood, pv.Conditional(pv.MLP(5, 4, hidden=(8,)), pv.normal))


X = torch.randn(256, 5, generator=torch.Generator().manual_seed(1))
WHAT = {
    "encoder": lambda v: [v.posterior.net],
    "decoder": lambda v: [v.likelihood.net],
    "both": lambda v: [v.posterior.net, v.likelihood.net],
    "layers": lambda v: [v.posterior.net[0], v.posterior.net[2], v.posterior.net],
}


def trained(model, **options):
    return pv.fit(model, X, validation=X[:50], epochs=2, verbose=False, **options).history[-1]["elbo"]


def compare(what):
    """Train a sharded model and a whole one; compare what comes of them."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, one, sharded, again = init_device_mesh("cpu", (distributed.get_world_size(),)), vae(), vae(), vae()
    for part in WHAT[what](sharded):
        fully_shard(part, mesh=mesh)
    assert trained(sharded) == trained(one, engine="eager")
    scores = [
        pv.log_likelihood(v.model, v.guide, X[:64], num_samples=20, verbose=False).log_px for v in (sharded, one)
    ]
    assert torch.equal(*scores)
    state = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    if distributed.get_rank() == 0:  # where torch gathers it
        again.load_state_dict(state)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), one.parameters(), strict=True))
    return sharded


@pytest.fixture
def process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("what", WHAT)
def test_a_sharded_network_trains_as_a_whole_one(what, process, tmp_path):
    model = compare(what)
    with pytest.raises(UsageError, match="no trace"):
        trained(model, engine="trace")
    with pytest.raises(UsageError, match="each process holds a part"):
        trained(model, callbacks=[Checkpointer(tmp_path)])


@pytest.mark.skipif(not os.environ.get("PYRO_VAE_HEAVY"), reason="two processes, 10 s: PYRO_VAE_HEAVY=1")
@pytest.mark.parametrize("what", WHAT)
def test_on_two_processes(what):
    code = f"""
import torch.distributed as distributed
from tests.training.test_sharded_parameters import compare
distributed.init_process_group("gloo")
compare({what!r})
distributed.destroy_process_group()
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
