"""Runs scored by several processes: the same files as by one, one writer, and what a rank that dies leaves to go on from."""

import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import torch

from pyro_vae.cli.main import main
from pyro_vae.common.processes import asked_of, joined
from pyro_vae.evidence.importance import row_block_rounds
from pyro_vae.runs import bracket_run, evaluate_run, gaps_run, particle_cache, train_run
from pyro_vae.runs.config import Config

from .launch import launch, start, wait

HERE = "tests.processes.test_evidence_runs"
TIMES = ("seconds", "time", "machine", "sha256", "csv_sha256", "date")
FEW = ("--num-samples", "100", "--device", "cpu")
ANNEALED = ("--num-temperatures", "3", "--num-chains", "4", "--chunk-size", "3")  # chains of a row in parts
COMMANDS = [
    ("evaluate", "RUN", *FEW),
    ("evaluate", "RUN", *FEW, "--split", "validation", "--proposal", "widened", "--seed", "3"),
    ("evaluate", "RUN", *FEW, "--rows", "70", "--out", "OUT"),
    ("evaluate", "RUN", "--device", "cpu", "--rows", "1", "--method", "annealing", *ANNEALED),
    ("bracket", "RUN", "--rows", "5", "--num-temperatures", "3", "--num-chains", "8", "--chunk-size", "24"),
    ("gaps", "RUN", "--rows", "9", "--steps", "5", "--chunk-size", "256"),
    ("show", "RUN"),
    ("sample", "RUN", "--num-samples", "3"),
]


def without_pictures():
    """Leave the figures and the page out: they take longer than the numbers, and are rank 0's alone."""
    evaluate_run.draw_khat = lambda *_, **__: None
    bracket_run.draw_all = gaps_run.draw_all = lambda *_: []
    train_run.draw_figures = lambda *_: None
    row_block_rounds.COLLECT = 0.0  # an exchange each round


def carry_out(*folders):
    """Run in each rank: all commands on the run in the first folder; go on with what was left in the others."""
    without_pictures()
    words = {"RUN": folders[0], "OUT": f"{folders[0]}-out"}
    with joined("cpu", timeout=60):  # one group for all, as each command is a process of its own elsewhere
        for command in COMMANDS:
            assert main([words.get(word, word) for word in command]) == 0, command
        for left in folders[1:]:
            assert main(["evaluate", left, *FEW, "--split", "train", "--resume"]) == 0
            assert main(["evaluate", folders[0], *FEW, "--split", "train"]) == 0


def alone(capsys, monkeypatch, *folders):
    """Carry all out in this process, on as many threads as the ranks have; return what it printed."""
    patched = (
        (evaluate_run, "draw_khat"),
        (bracket_run, "draw_all"),
        (gaps_run, "draw_all"),
        (train_run, "draw_figures"),
    )
    for module, name in (*patched, (row_block_rounds, "COLLECT")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back after the test
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        capsys.readouterr()
        carry_out(*map(str, folders))
        return capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)


def killed(folder):
    """Run in each rank: the last is killed at the third exchange."""
    without_pictures()
    particle_cache.SECONDS, particle_cache.SHARE = 0.0, 1e9
    rank, exchanged, exchange = asked_of(os.environ).rank, [], row_block_rounds.exchange

    def until(*args):
        exchanged.append(args)
        if rank == 1 and len(exchanged) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return exchange(*args)

    row_block_rounds.exchange = until
    raise SystemExit(main(["evaluate", folder, *FEW, "--split", "train"]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs on 900 rows of normals."""
    here = tmp_path_factory.mktemp("run")
    np.save(here / "x.npy", np.random.default_rng(0).normal(size=(900, 6)).astype(np.float32))
    config = Config(data=str(here / "x.npy"), hidden=(4,), latent_dim=2, epochs=1, batch_size=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run, "draw_figures", lambda *_: None)
        patch.setattr(evaluate_run, "draw_khat", lambda *_, **__: None)
        train_run.train_run(config, here / "run", num_samples=5, device="cpu")
    return here / "run"


def numbers(folder):
    """All files of evidence, by name, less their times."""
    files = sorted([*folder.glob("evidence*"), *folder.glob("bracket.json"), *folder.glob("gaps.json")])
    assert len(files) > 0
    return {file.name: told(file) for file in files}


def told(file):
    content = file.read_text()
    if file.suffix == ".csv":
        return content
    return json.dumps(without_times(json.loads(content)))


def without_times(record):
    if isinstance(record, dict):
        return {name: without_times(value) for name, value in record.items() if name not in TIMES}
    return record


def test_files_of_two_processes_are_those_of_one_and_a_killed_evaluation_goes_on(
    trained, tmp_path, capsys, monkeypatch
):
    runs = {name: shutil.copytree(trained, tmp_path / name) for name in ("one", "two", "left")}
    ranks = start(2, f"{HERE}:killed", runs["left"])
    first, second = wait(ranks)
    assert (first.code, second.code) == (8, -signal.SIGKILL)
    assert re.search(
        r"rank 0 waited at log p\(x\): rank 1 has died .*; the particles so far of rows 0 to 319", first.err
    )
    assert (runs["left"] / "particles-train.safetensors").exists()
    assert not list(runs["left"].glob("*.lock.json"))
    again = shutil.copytree(runs["left"], tmp_path / "again")
    one = alone(capsys, monkeypatch, runs["one"], runs["left"])
    printed, nothing = launch(2, f"{HERE}:carry_out", runs["two"], again)
    assert nothing == ""
    paths = re.compile(r"\S*/(one|two|left|again)\S*|[0-9.]+ s\b|\d\d:\d\d\S*")
    assert paths.sub("", one) == paths.sub("", printed)
    assert numbers(runs["one"]) == numbers(runs["two"])
    assert numbers(tmp_path / "one-out") == numbers(tmp_path / "two-out")
    whole = told(runs["one"] / "evidence-train.csv")
    assert whole == told(runs["left"] / "evidence-train.csv") == told(again / "evidence-train.csv")
    assert len((runs["two"] / "evaluations.jsonl").read_text().splitlines()) == len(
        (runs["one"] / "evaluations.jsonl").read_text().splitlines()
    )
