"""Kernels chosen by timing: asked of a compiler where one is called, refused where none is, and nothing stops a training."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from pyro_vae import adam, constant
from pyro_vae import fit as fit_
from pyro_vae.cli.main import main
from pyro_vae.common import torch_private
from pyro_vae.common.inductor import compiler
from pyro_vae.errors import UsageError
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.runs.config import Config
from pyro_vae.training import fit as fit_module
from pyro_vae.training.aggressive_inference import Aggressive
from pyro_vae.training.engines import autotune, choose, traced
from pyro_vae.training.engines.autotune import check_autotune
from pyro_vae.training.engines.cuda_graph import Recorded
from pyro_vae.training.engines.flat_graph import Unfinished, Untraceable
from tests.helpers.bits import same
from tests.helpers.environment import ENV, HEAVY
from tests.helpers.recording import Again
from tests.helpers.small import binary, small_vae, state_of
from tests.helpers.training import numbers

pytestmark = pytest.mark.usefixtures("examined")
fit = partial(fit_, verbose=False, epochs=1, batch_size=8, seed=5)
CUDA = torch.device("cuda")
CHOSEN = "kernels of matrix products chosen by timing"

REFUSED = {
    "no CUDA": ({}, "needs a CUDA device, and the data is on cpu.*Leave autotune out"),
    "compiled, no CUDA": ({"engine": "compile"}, "needs a CUDA device, and the data is on cpu"),
    "eager": ({"engine": "eager"}, "engine='eager' compiles none: take 'compile', 'graph' or 'auto'"),
    "trace": ({"engine": "trace"}, "engine='trace' compiles none"),
    "shards": ({"shards": 2}, "shards=2: each process would choose kernels by its own clock"),
    "a name": ({"autotune": "gemm"}, "autotune must be True or False, got 'gemm'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_no_kernel_can_be_chosen_it_is_refused_by_name(case):
    options, said = REFUSED[case]
    vae = small_vae()
    start = state_of(vae)
    with pytest.raises(UsageError, match=said):
        fit(vae, binary(), **{"autotune": True} | options)
    assert same(start, state_of(vae))


def test_a_run_is_refused_before_its_folder_is_made(tmp_path, capsys):
    command = [
        "train",
        "--run",
        str(tmp_path / "run"),
        "--data",
        "digits",
        "--epochs",
        "1",
        "--autotune",
        "--device",
        "cpu",
    ]
    assert main(command) == 2
    assert "autotune=True needs a CUDA device" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert Config.of_run(Config(autotune=True).to_dict()).autotune and not Config.of_run({"data": "digits"}).autotune


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(autotune, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="compiler for CUDA, and triton is not installed"):
        check_autotune(True, "graph", 1, CUDA)
    monkeypatch.setattr(autotune, "find_spec", lambda name: name)
    check_autotune(True, "graph", 1, CUDA)
    find = torch_private.find
    for name in torch_private.INDUCTOR:
        monkeypatch.setattr(torch_private, "find", lambda path, gone=name: None if path == gone else find(path))
        with pytest.raises(UsageError, match=f"torch has no {name}"):
            check_autotune(True, "auto", 1, CUDA)
    monkeypatch.setattr(
        torch_private, "find", lambda path: object() if path == torch_private.INDUCTOR[0] else find(path)
    )
    with pytest.raises(UsageError, match="cannot be told to choose kernels"):
        check_autotune(True, "compile", 1, CUDA)


def switch():
    config = torch_private.find(torch_private.INDUCTOR[0])
    return config.max_autotune_gemm, config.max_autotune_gemm_backends


@pytest.fixture
def asked(monkeypatch):
    """As on CUDA, with a compiler that hands back the graph, and tells how it was called."""
    seen = []

    def compile_flat(flat, inputs):
        seen.append(switch())
        return flat.module.forward

    monkeypatch.setattr(fit_module, "check_autotune", lambda *given: None)
    monkeypatch.setattr(choose, "compiler", lambda: "g++")
    monkeypatch.setattr(choose, "find_spec", lambda name: name)
    resolve = choose.resolve
    monkeypatch.setattr(
        choose, "resolve", lambda engine, *a: (engine, "a test") if engine == "graph" else resolve(engine, *a)
    )
    monkeypatch.setitem(traced.ACCELERATORS, "compile", compile_flat)
    monkeypatch.setitem(traced.ACCELERATORS, "graph", lambda flat, batch: Recorded(flat, batch, Again()))
    monkeypatch.setattr("pyro_vae.training.engines.recorded_steps.CudaRecorder", Again)
    return seen


SGD = partial(torch.optim.SGD, lr=0.01)


@pytest.mark.parametrize("engine", ["compile", "graph"])
@pytest.mark.parametrize("optimizer", [adam(), SGD], ids=["whole steps", "single steps"])
def test_the_compiler_is_asked_to_choose_wherever_it_is_called(engine, optimizer, asked):
    before = switch()
    run = fit(small_vae(), binary(), engine=engine, optimizer=optimizer, autotune=True)
    compiled = engine == "compile" or optimizer is not SGD  # a graph of single steps is recorded as it is
    assert asked == [(True, "ATEN,TRITON")] * compiled and switch() == before and not before[0]
    assert (CHOSEN in run.engine) == compiled
    assert ("autotune=True changed nothing: no step was compiled" in run.engine) == (not compiled)
    asked.clear()
    run = fit(small_vae(), binary(), engine=engine, optimizer=optimizer)
    assert asked == [before] * (engine == "compile") and "autotun" not in run.engine and CHOSEN not in run.engine


@pytest.mark.parametrize("optimizer", [adam(), SGD], ids=["whole steps", "single steps"])
def test_timing_that_fails_leaves_the_librarys_kernels(optimizer, asked, monkeypatch):
    plain, ends = traced.ACCELERATORS["compile"], []

    def out_of_memory(flat, inputs):
        run = plain(flat, inputs)
        if switch()[0]:
            raise Untraceable("Inductor gave up: OutOfMemoryError: CUDA out of memory")
        return run

    for compile_flat, tuned in ((plain, False), (out_of_memory, True)):
        monkeypatch.setitem(traced.ACCELERATORS, "compile", compile_flat)
        vae = small_vae(seed=0)
        run = fit(vae, binary(), engine="compile", optimizer=optimizer, autotune=tuned)
        ends.append((state_of(vae), numbers(run)))
    assert [on for on, _ in asked] == [False, True, False]
    assert "stay the library's, as timing others failed: Inductor gave up: OutOfMemoryError" in run.engine
    assert "eager from here on" not in run.engine and "no whole steps" not in run.engine and CHOSEN not in run.engine
    assert same(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]


def test_what_no_compiler_can_hold_is_not_tried_twice(asked, monkeypatch):
    def unfinished(flat, inputs):
        asked.append(switch())
        raise Unfinished("it factorises matrices")

    monkeypatch.setitem(traced.ACCELERATORS, "compile", unfinished)
    run = fit(small_vae(), binary(), engine="compile", optimizer=SGD, autotune=True)
    assert len(asked) == 1 and "the trace goes on as it is: it factorises matrices" in run.engine
    assert "library's" not in run.engine


NOTHING = {
    "short": ({}, "auto: 5 steps are over before a trace pays"),
    "on_step": ({"engine": "compile", "on_step": lambda done: None}, "with on_step= no step is traced"),
    "aggressive": (
        {"engine": "graph", "aggressive": Aggressive()},
        "rows off the device, or aggressive=, leave steps to be",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_run_that_compiles_nothing_says_so_beforehand(case, asked, capsys):
    options, said = NOTHING[case]
    fit(small_vae(), binary(), autotune=True, verbose=True, **options)
    assert f"note: autotune=True changes nothing: {said}" in capsys.readouterr().err and not asked


def test_bits_after_a_resumption_are_promised_by_the_same_cache_alone(asked, tmp_path, capsys):
    vae, x, saved = small_vae(), binary(), Checkpointer(tmp_path)
    go_on = partial(fit, vae, x, schedule=constant, optimizer=SGD, engine="compile")
    assert go_on(callbacks=[saved], autotune=True).exact
    assert not go_on(resume=saved.newest(), autotune=True).exact
    assert "kernels  chosen by timing  the same, if by the same cache" in capsys.readouterr().err
    assert not go_on(resume=saved.newest()).exact
    assert "autotune  True        False" in capsys.readouterr().err
    earlier = saved.newest()
    del earlier.head["about"]["autotune"]  # of a version that had none
    assert go_on(resume=earlier).exact


def test_without_torchs_count_the_choice_is_told_all_the_same(asked, monkeypatch):
    find = torch_private.find
    monkeypatch.setattr(torch_private, "find", lambda path: None if path == torch_private.COUNTERS else find(path))
    run = fit(small_vae(), binary(), engine="compile", optimizer=SGD, autotune=True)
    assert CHOSEN in run.engine.splitlines() and torch_private.products_timed() is None


BATCHES = """
import torch
from pyro_vae.common import torch_private
from pyro_vae.common.flat_program import flattened
from pyro_vae.common.inductor import compile_flat
a, b = torch.randn(4, 96, 64), torch.randn(4, 64, 128)
flat = flattened(lambda x, w: [torch.bmm(x, w) + 1], [a, b])
with torch_private.choosing_kernels("CPP,ATEN"):
    run = compile_flat(flat, [a, b])
torch.testing.assert_close(run(a, b)[0], torch.bmm(a, b) + 1, rtol=1e-4, atol=1e-4)
print(torch_private.products_timed(), "timed")
"""


@pytest.mark.skipif(not HEAVY or compiler() is None, reason="two processes that compile: PYRO_VAE_HEAVY=1")
def test_kernels_are_timed_once_and_later_processes_take_the_times_from_the_disk(tmp_path):
    """Products of batches of matrices, for which Inductor has kernels of its own on a CPU, too."""
    said = []
    for _ in range(2):
        command, env = [sys.executable, "-W", "ignore", "-c", BATCHES], ENV | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        made = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        said.append(made.stdout)
        assert "AUTOTUNE" not in made.stderr and "Autotune" not in made.stderr
    assert said == ["1 timed\n", "0 timed\n"]
