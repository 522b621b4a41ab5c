"""Training on rows on disk: the same steps as in memory in the same order, in bounded memory, and exact where it goes on."""

import os
import re
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv
from pyro_vae.data import Stored, write_shards
from pyro_vae.errors import CheckpointError, DataError, Interrupted, ProgramError, SupportError, UsageError
from pyro_vae.models.standardize import column_units
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.training import training_rows
from pyro_vae.training.stored_source import StoredSource

X = np.random.default_rng(1).normal(size=(1500, 5)).astype(np.float32) * np.float32(2)


@pytest.fixture
def folder(tmp_path):
    write_shards(X, tmp_path / "rows", rows=400)
    return tmp_path / "rows"


def vae(seed=0, width=5):
    torch.manual_seed(seed)
    likelihood = pv.Conditional(pv.MLP(2, 2 * width, hidden=(8,)), pv.normal)
    return pv.VAE(pv.StandardNormal(2), likelihood, pv.Conditional(pv.MLP(width, 4, hidden=(8,)), pv.normal))


def train(x, model=None, **options):
    model = model or vae()
    options = {"epochs": 2, "batch_size": 100, "verbose": False, "optimizer": pv.adam(1e-2)} | options
    return model, pv.fit(model, x, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class InMemory(StoredSource):
    """The order of rows on disk, and rows from memory."""

    def gather(self, rows):
        return (torch.from_numpy(X)[rows],)


def test_steps_are_those_of_the_same_rows_in_memory(folder, monkeypatch):
    model, run = train(Stored(folder, memory="9 kB"), validation=Stored(folder))
    monkeypatch.setattr(training_rows, "StoredSource", InMemory)
    other, same = train(Stored(folder, memory="9 kB"), validation=torch.from_numpy(X))
    assert torch.equal(weights(model), weights(other))
    keys = ("elbo", "kl", "loss", "active_units", "mutual_information")
    assert [[r[k] for k in keys] for r in run.history] == [[r[k] for k in keys] for r in same.history]
    fewer, _ = train(Stored(folder, memory="30 kB"))
    assert not torch.equal(weights(model), weights(fewer))  # another window is another order


def test_contexts_in_memory_and_on_disk_go_with_their_rows(tmp_path):
    c = X.sum(1, keepdims=True)
    np.savez(tmp_path / "a.npz", x=X, c=c)

    def model(x, c):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            assert torch.allclose(c, x.sum(1, keepdim=True), atol=1e-5)  # a row beside another's context
            pyro.sample("x", dist.Normal(c + z[..., None], 2.0).expand([*c.shape[:-1], 5]).to_event(1), obs=x)

    def guide(x, c):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * c[..., 0], scale))

    with pyro.get_param_store().scope():
        for context in (torch.from_numpy(c), Stored(tmp_path / "a.npz", "c", memory="20 kB")):
            stored = Stored(tmp_path / "a.npz", "x", memory="20 kB")
            run = pv.fit((model, guide), stored, context, epochs=1, batch_size=64, verbose=False)
            assert len(run.history) == 1


def test_a_run_that_was_cut_goes_on_to_the_same_bits(folder, tmp_path):
    whole, _ = train(Stored(folder, memory="9 kB"))
    checkpointer = Checkpointer(tmp_path / "kept", minutes=0)

    steps = []

    def on_step(done):
        steps.append(done)
        if len(steps) == 22:  # in the second epoch, in the middle of a window
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(Stored(folder, memory="9 kB"), on_step=on_step, callbacks=[checkpointer])
    model, run = train(Stored(folder, memory="9 kB"), callbacks=[checkpointer], resume=checkpointer.newest())
    assert torch.equal(weights(model), weights(whole)) and run.exact
    with pytest.raises(CheckpointError, match="shuffled in"):
        train(Stored(folder, memory="20 kB"), callbacks=[checkpointer], resume=checkpointer.newest())


def test_log_likelihood_is_that_of_rows_in_memory(folder):
    model = vae()
    options = {"num_samples": 10, "verbose": False, "noise": "block"}
    stored = pv.log_likelihood(model.model, model.guide, Stored(folder), **options)
    memory = pv.log_likelihood(model.model, model.guide, torch.from_numpy(X), **options)
    assert torch.equal(stored.log_px, memory.log_px) and torch.equal(stored.mc_se, memory.mc_se)
    assert stored.data_digest == memory.data_digest


def test_standard_units_are_taken_in_one_pass(folder):
    loc, scale = column_units(torch.from_numpy(X + 1000), torch.tensor(True))
    write_shards(X + 1000, folder.parent / "far", rows=400)
    one = column_units(Stored(folder.parent / "far", memory="9 kB"), torch.tensor(True))
    assert torch.allclose(one[0], loc, rtol=1e-6) and torch.allclose(one[1], scale, rtol=1e-6)
    model, _ = train(Stored(folder), standardize=True, epochs=1)
    assert torch.allclose(model.likelihood.units.scale, torch.from_numpy(X).std(0, correction=0), rtol=1e-5)


def test_a_row_that_is_not_finite_is_named_before_training(tmp_path):
    bad = X.copy()
    bad[1207, 2] = np.nan
    write_shards(bad, tmp_path / "rows", rows=400)
    with pytest.raises(DataError, match=r"00003.npy, row 7 \(row 1207 of all\), first in column 2"):
        train(Stored(tmp_path / "rows"))


def test_a_row_outside_the_support_is_named_before_training(folder):
    torch.manual_seed(0)
    model = pv.VAE(
        pv.StandardNormal(2), pv.Conditional(pv.MLP(2, 5), pv.bernoulli), pv.Conditional(pv.MLP(5, 4), pv.normal)
    )
    with pytest.raises(SupportError, match="1500 of 1500 rows"):
        train(Stored(folder), model)


def test_a_file_that_changes_while_training_stops_it(folder):
    def change(record):
        path = folder / "00001.npy"
        os.utime(path, ns=(1, 1))

    with pytest.raises(DataError, match="has changed since it was opened"):
        train(Stored(folder, memory="9 kB"), on_epoch=change)


def rows_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([*z.shape, 5]).to_event(1), obs=x)


def shared_model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).expand([len(x), 5]).to_event(1), obs=x)


def shared_guide(x):
    pyro.sample("w", dist.Normal(pyro.param("at", torch.tensor(0.0)), 1.0))


def test_what_needs_all_rows_at_once_is_refused_by_name(folder):
    stored = Stored(folder, memory="9 kB")
    with pyro.get_param_store().scope():
        with pytest.raises(ProgramError, match="parameters of each row"):
            pv.fit((rows_model, AutoNormal(rows_model)), stored, epochs=1, verbose=False)
        guide = AutoNormal(rows_model)
        guide(torch.from_numpy(X))
        with pytest.raises(ProgramError, match="each with its own parameters"):
            pv.fit((rows_model, guide), stored, epochs=1, verbose=False)
        with pytest.raises(UsageError, match="sites that all rows share"):
            pv.fit((shared_model, shared_guide), stored, epochs=1, batch_size=1500 // 10, verbose=False)
    with pytest.raises(UsageError, match="aggressive"):
        train(stored, aggressive=pv.Aggressive())
    with pytest.raises(UsageError, match="fewer than a batch"):
        train(stored, batch_size=1500)
    with pytest.raises(DataError, match="as a whole"):
        pv.reconstruct(vae(), stored)


def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def resident():
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory is asked of Linux")
def test_memory_stays_far_below_the_file(tmp_path):
    block = np.random.default_rng(0).normal(size=(12_500, 64)).astype(np.float32)
    write_shards((block + i for i in range(20)), tmp_path / "rows")  # 64 MB
    options = {"batch_size": 2_500, "epochs": 1, "engine": "eager"}
    train(torch.from_numpy(block[:5_000]), vae(width=64), **options)  # what torch takes once
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    _, run = train(Stored(tmp_path / "rows", memory="12 MB"), vae(width=64), **options)
    assert run.history[-1]["step"] == 100
    assert peak() - before < 24e6
