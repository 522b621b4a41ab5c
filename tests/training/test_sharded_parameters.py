"""Networks sharded by ``fully_shard`` train to the weights of whole ones, score the same rows alike, and gather their state."""

import os
from functools import partial

import pytest
import torch

import pyro_vae as pv
from pyro_vae.common.digests import tensor_digest
from pyro_vae.common.processes import Processes, joined
from pyro_vae.common.safe_read import LIMIT
from pyro_vae.common.sharded import whole
from pyro_vae.errors import CheckpointError, UsageError
from pyro_vae.runs.checkpoint import GROUPS, Checkpoints
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.training import sharded_networks
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


def shard(model, what):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for part in WHAT[what](model):
        fully_shard(part, mesh=mesh)
    return model


def sharded(what):
    """Train a model with sharded networks; return it, its ELBO, and its weights gathered (on rank 0)."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = shard(vae(), what)
    elbo = trained(model)
    return model, elbo, get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


@pytest.fixture
def process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("what", WHAT)
def test_a_sharded_network_trains_as_a_whole_one(what, process):
    one, again = vae(), vae()
    model, elbo, state = sharded(what)
    assert elbo == trained(one, engine="eager") and torch.equal(score(model), score(one))
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), one.parameters(), strict=True))
    with pytest.raises(UsageError, match="no trace"):
        trained(model, engine="trace")
    with pytest.raises(UsageError, match=r"aggressive= with parameters that are sharded .* whole steps together"):
        trained(model, aggressive=pv.Aggressive())


def files_of(folder, number):
    return {p.name: p.read_bytes() for p in (folder / "checkpoints" / f"{number:06d}").glob("*.safetensors")}


def test_a_checkpoint_of_sharded_networks_is_that_of_whole_ones_and_each_goes_on_from_the_others(
    process, tmp_path, monkeypatch
):
    """Byte for byte, after one epoch and after two, the first the better one; and so are the weights that training leaves."""
    monkeypatch.setattr(Checkpoints, "prune", lambda self: None)
    loop = partial(torch.optim.Adam, lr=0.01, foreach=False)
    options = {
        "epochs": 2,
        "optimizer": loop,
        "schedule": lambda done: 1.0 if done <= 0.5 else 200.0,
        "engine": "eager",
    }
    made, best = {"whole": vae, "sharded": lambda: shard(vae(), "both")}, {}

    def fitted(model, **more):
        run = pv.fit(model, X[:96], validation=X[:50], batch_size=48, verbose=False, **(options | more))
        assert run.best_epoch == 1
        net = model.posterior.net(X[:9])  # by itself, which declares nothing
        return run, {name: whole(t).clone() for name, t in model.state_dict().items()}, net

    for name, make in made.items():
        checkpointer = Checkpointer(tmp_path / name, epochs=1)
        run, best[name], net = fitted(make(), callbacks=[checkpointer])
        assert all(torch.equal(t, best["whole"][key]) for key, t in best[name].items())
        assert torch.equal(net, vae_with(best[name]).posterior.net(X[:9]))
        assert run.exact
    for number in (2, 4):  # after an epoch, and at the end
        ours, theirs = (files_of(tmp_path / name, number) for name in made)
        assert ours == theirs and len(ours) == 4
    for name, other in zip(made, reversed(made), strict=True):
        saved = Checkpoints(tmp_path / other).read(2, GROUPS, LIMIT)
        run, weights, _ = fitted(made[name](), resume=saved)
        assert run.exact and all(torch.equal(t, best["whole"][key]) for key, t in weights.items())
    run, _, _ = fitted(vae(), resume=saved, optimizer=partial(torch.optim.Adam, lr=0.01, fused=True))
    assert not run.exact  # another kernel, which rounds otherwise


def vae_with(weights):
    model = vae()
    model.load_state_dict(weights)
    return model


def test_a_checkpoint_of_other_shapes_is_refused_by_its_first_tensor(process, tmp_path):
    wide = pv.VAE(pv.StandardNormal(2), pv.Conditional(pv.MLP(2, 10, hidden=(9,)), pv.normal), vae().posterior)
    pv.fit(wide, X[:32], epochs=1, callbacks=[checkpointer := Checkpointer(tmp_path)], verbose=False)
    with pytest.raises(
        CheckpointError, match=r"of another model: 'likelihood.net.0.bias' is \(\(9,\), torch.float32\) there"
    ):
        pv.fit(shard(vae(), "both"), X[:32], epochs=1, resume=checkpointer.newest(), fork=True, verbose=False)


def test_networks_sharded_over_others_than_those_that_train_are_refused(process, monkeypatch):
    model = shard(vae(), "encoder")
    monkeypatch.setattr(sharded_networks, "sharing", lambda: Processes(0, 2))
    with pytest.raises(UsageError, match=r"'posterior.net.0.weight' is sharded over 1 process, and 2 train together"):
        trained(model)


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
