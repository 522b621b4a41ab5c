"""Rows of a memory-mapped file that somebody writes to, or cuts off, are refused by its name before they are read."""

import faulthandler
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch

from pyro_vae import ais, encode, fit, fit_ensemble, log_likelihood
from pyro_vae.common import mapped_files as module
from pyro_vae.common.mapped_files import mapped_files
from pyro_vae.errors import DataError
from tests.helpers import kills
from tests.helpers.environment import HEAVY
from tests.helpers.small import binary, small_vae

ROWS = 200  # four blocks of an evaluation


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "x.npy", binary(ROWS).numpy())
    return tmp_path / "x.npy"


def mapped(path, mode="r"):
    return np.load(path, mmap_mode=mode)


def cut(path):
    os.truncate(path, 200)


def written(path):
    with open(path, "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(0.0).tobytes())
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def longer(path):
    with open(path, "ab") as file:
        file.write(bytes(64))


def replaced(path):
    """As an editor saves: another file takes the name, and what was mapped stays."""
    np.save(path.with_suffix(".new.npy"), np.zeros((3, 6), np.float32))
    path.with_suffix(".new.npy").replace(path)


CHANGES = {"cut": cut, "written": written, "longer": longer}


def training(x, then):
    fit(small_vae(seed=0), x, epochs=3, batch_size=50, engine="eager", on_epoch=lambda record: then(), verbose=False)


def traced(x, then):
    fit(small_vae(seed=0), x, epochs=3, batch_size=50, engine="trace", on_epoch=lambda record: then(), verbose=False)


def validation(x, then):
    then_once = lambda record: then()  # noqa: E731
    fit(small_vae(seed=0), binary(50), validation=x, epochs=3, on_epoch=then_once, verbose=False)


def members(x, then):
    make = lambda seed: small_vae(seed=seed)  # noqa: E731
    fit_ensemble(make, x, seeds=[0, 1], epochs=3, on_epoch=lambda record: then() or {}, verbose=False)


def evaluation(x, then):
    vae = small_vae(seed=0)
    log_likelihood(vae.model, vae.guide, x, num_samples=64, on_block=lambda *_: then(), verbose=False)


WHILE = {f.__name__: f for f in (training, traced, validation, members, evaluation)}


# each change under one reading, and one change under each: what was mapped is looked at by one function
PAIRS = [(r, c) for r in WHILE for c in CHANGES if HEAVY or r == "evaluation" or c == "cut"]


@pytest.mark.parametrize(("reading", "change"), PAIRS)
def test_a_file_that_changes_while_its_rows_are_read_is_named(reading, change, path):
    with pytest.raises(DataError, match=rf"{path}, which rows are mapped from, changed") as caught:
        WHILE[reading](mapped(path), lambda: CHANGES[change](path))
    said = {"cut": "200 bytes now", "longer": "bytes now, and had 4,928", "written": "has been written to"}
    assert said[change] in str(caught.value)


@pytest.mark.parametrize("reading", WHILE)
def test_another_file_of_that_name_leaves_the_mapping_as_it_was(reading, path):
    WHILE[reading](mapped(path), lambda: path.exists() and replaced(path))


USES = {
    "fit": lambda vae, x: fit(vae, x, epochs=1, verbose=False),
    "log_likelihood": lambda vae, x: log_likelihood(vae.model, vae.guide, x, num_samples=2, verbose=False),
    "ais": lambda vae, x: ais(vae.model, vae.guide, x, num_chains=2, num_temperatures=2, verbose=False),
    "encode": encode,
}


@pytest.mark.parametrize("part", [slice(None), slice(100, None)], ids=["all", "part"])
@pytest.mark.parametrize("use", USES)
def test_a_file_that_was_cut_before_its_rows_are_read_is_named(use, part, path):
    x = mapped(path)[part]
    cut(path)
    with pytest.raises(DataError, match=rf"x is mapped from {path}, which has 200 bytes now"):
        USES[use](small_vae(seed=0), x)


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_evidence_of_mapped_rows_is_that_of_rows_in_memory_to_the_bit(mode, path):
    vae = small_vae(seed=0)
    evidence = [log_likelihood(vae.model, vae.guide, x, num_samples=80) for x in (binary(ROWS), mapped(path, mode))]
    assert torch.equal(evidence[0].log_px, evidence[1].log_px)


def test_tensors_that_torch_has_mapped_are_found_and_others_not(path):
    x = torch.from_file(str(path), shared=True, size=100)
    assert [file.path for file in mapped_files([x[3:], torch.zeros(9), torch.zeros(0)])] == [path]
    odd = path.with_name("a b\n.npy")
    path.rename(odd)
    assert [file.path for file in mapped_files([x])] == [odd]
    odd.unlink()
    assert mapped_files([x]) == ()


def test_without_the_looks_the_process_is_killed(path, monkeypatch):
    """What the looks are for: a process of its own, in which none is made, dies of SIGBUS."""
    monkeypatch.setattr(module, "MAPPINGS", path.with_name("nowhere"))

    def job(read):
        faulthandler.disable()
        read(mapped(path), lambda: cut(path))

    for read in (training, evaluation):
        np.save(path, binary(ROWS).numpy())
        assert kills.child(partial(job, read)) == -signal.SIGBUS
