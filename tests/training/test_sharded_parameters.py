"""Networks sharded by ``fully_shard`` train to the weights of whole ones, score the same rows alike, and gather their state."""

import os

import pytest
import torch

import pyro_vae as pv
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.processes import joined
from pyro_vae.errors import UsageError
from pyro_vae.runs.checkpointer import Checkpointer
from tests.processes.launch import launch

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


def score(model):
    return pv.log_likelihood(model.model, model.guide, X[:64], num_samples=20, verbose=False).log_px


def sharded(what):
    """Train a model with sharded networks; return it, its ELBO, and its weights gathered (on rank 0)."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, model = init_device_mesh("cpu", (distributed.get_world_size(),)), vae()
    for part in WHAT[what](model):
        fully_shard(part, mesh=mesh)
    elbo = trained(model)
    return model, elbo, get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


@pytest.fixture
def process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("what", WHAT)
def test_a_sharded_network_trains_as_a_whole_one(what, process, tmp_path):
    one, again = vae(), vae()
    model, elbo, state = sharded(what)
    assert elbo == trained(one, engine="eager") and torch.equal(score(model), score(one))
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), one.parameters(), strict=True))
    with pytest.raises(UsageError, match="no trace"):
        trained(model, engine="trace")
    with pytest.raises(UsageError, match="each process holds a part"):
        trained(model, callbacks=[Checkpointer(tmp_path)])


def on_two_processes():
    """What each of two processes does: rank 0 prints what came of it."""
    with joined() as here:
        for what in WHAT:
            model, elbo, state = sharded(what)
            with pytest.raises(UsageError, match="sharded over the processes"):
                score(model)
            if here.leads:
                print(what, elbo, tensor_digest(state))


@pytest.mark.skipif(not os.environ.get("PYRO_VAE_HEAVY"), reason="two processes, 15 s: PYRO_VAE_HEAVY=1")
def test_on_two_processes():
    out, _ = launch(2, "tests.training.test_sharded_parameters:on_two_processes")
    one = vae()
    elbo = trained(one, engine="eager")
    assert out.splitlines() == [f"{what} {elbo} {tensor_digest(one.state_dict())}" for what in WHAT]
