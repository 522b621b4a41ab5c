"""Runs that several processes train into one folder: killed, stopped, and gone on with by another number of them."""

import json
import os
import random
import re
import signal
import time
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from pyro_vae.errors import DivergedError, RunFolderError, UsageError
from pyro_vae.runs import folder, several_processes
from pyro_vae.runs.checkpoint import Checkpoints
from pyro_vae.runs.config import Config
from pyro_vae.runs.replay_divergence import read_capsule, replay_step
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from tests.helpers.environment import HEAVY
from tests.helpers.pictures import without_rendering

from .launch import start, wait

CONFIG = Config(
    data="digits", binarization="dynamic", hidden=(16,), latent_dim=4, epochs=8, batch_size=128, shards=8, seed=3,
    kl="beta", kl_options={"beta": "2", "schedule": "constant"},
)  # fmt: skip
FLAGS = [
    *("--data", "digits", "--binarization", "dynamic", "--hidden", "16", "--latent-dim", "4", "--epochs", "8"),
    *("--batch-size", "128", "--shards", "8", "--seed", "3", "--kl", "beta", "--kl.beta", "2", "--kl.schedule", "constant"),
]  # fmt: skip
COMMAND = ["tests.helpers.command_line:quiet_command", "train", "--num-samples", "10", "--device", "cpu"]
OFTEN = ["--checkpoint-minutes", "0.0005"]


def left(path):
    """The weights, the last state, and the metrics less seconds, of a run."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    state = Checkpoints(path).newest()
    tensors = {f"{group}/{name}": t for group, named in state.groups.items() for name, t in named.items()}
    tensors |= load_file(path / "model.safetensors")
    return {n: t.tolist() for n, t in tensors.items()}, [
        {k: v for k, v in r.items() if k not in ("seconds", "sha256")} for r in lines
    ]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """As in the processes that are started: the curve of log p(x) is part of the metrics that are compared."""
    with pytest.MonkeyPatch.context() as patch:
        without_rendering(patch)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory, quick):
    """What one process leaves."""
    path = tmp_path_factory.mktemp("alone") / "run"
    train_run(CONFIG, path, num_samples=10, device="cpu")
    return left(path)


def until(ready, processes):
    """Wait until something is so, while all processes work."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and all(p.poll() is None for p in processes):
        if ready():
            return
        time.sleep(0.01)
    pytest.fail("\n".join(f"{e.out}\n{e.err}" for e in wait(processes, 5)))


def newest(path):
    """The number of the newest checkpoint, 0 where there is none."""
    return max(Checkpoints(path).numbers(), default=0)


def test_a_rank_that_dies_ends_the_others_by_name_and_one_process_goes_on_to_the_same_bits(tmp_path, alone):
    """In its heavy form ten times, each a few steps after the last: before every one a checkpoint more has been made."""
    path, moments = tmp_path / "run", random.Random(0)
    for killed in [moments.randrange(2) for _ in range(10)] if HEAVY else (1,):
        again = ["--resume", str(path)] if path.exists() else ["--run", str(path), *FLAGS]
        before = max(1, newest(path))  # the first is made before the first step
        ranks = start(2, *COMMAND, *again, *OFTEN)
        until(lambda before=before: newest(path) > before, ranks)
        time.sleep(moments.random() * 0.05)
        os.kill(ranks[killed].pid, signal.SIGKILL)
        killed_at = time.monotonic()
        ended = wait(ranks, 30)
        starved = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # processes that wait for each core
        assert time.monotonic() - killed_at < 10 * starved
        assert ended[killed].code == -9 and ended[1 - killed].code == 8
        assert f"rank {killed} has" in ended[1 - killed].err and "step" in ended[1 - killed].err
        how = rf"rank {1 - killed} of 2 stopped after step \d+\. .*go on .*with: pyro-vae train --resume {path} \(on any number"
        assert re.search(how, ended[1 - killed].err), ended[1 - killed].err
    assert len(alone[1]) == 8
    evidence = resume_run(path, num_samples=10, device="cpu")
    assert left(path) == alone and evidence["training"]["resumed"]["exact"]


def test_a_signal_to_one_rank_stops_all_at_one_step_and_two_processes_go_on(tmp_path, alone):
    path = tmp_path / "run"
    ranks = start(2, *COMMAND, "--run", path, *FLAGS)
    until(lambda: (path / "metrics.jsonl").is_file() and len(folder.read_lines(path / "metrics.jsonl")) >= 2, ranks)
    ranks[1].send_signal(signal.SIGTERM)
    ended = wait(ranks, 30)
    assert [e.code for e in ended] == [143, 143]
    assert ended[0].err.count("interrupted at step") == 1
    steps = {
        line.split("interrupted at step ")[1].split(";")[0] for e in ended for line in [e.err] if "at step" in line
    }
    assert len(steps) == 1
    ended = wait(start(2, *COMMAND, "--resume", path))
    assert [e.code for e in ended] == [0, 0], ended
    assert left(path) == alone
    assert "log p(x)" in ended[0].out and ended[1].out == ""


def test_shards_of_a_config_are_looked_at_before_a_folder_is_made(tmp_path):
    with pytest.raises(UsageError, match="power of two"):
        train_run(Config(data="digits", shards=6), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_process_does_not_see_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(several_processes, "share_text", lambda text, what: "of rank 0")
    monkeypatch.setattr(several_processes, "gather_text", lambda text, what: ["", text])
    with pytest.raises(
        RunFolderError, match=r"rank 1, on .*does not see .*config.json.*a file system that all processes share"
    ):
        several_processes.check_same_folder(tmp_path)


def test_a_step_of_shards_that_diverged_is_replayed_from_its_streams(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(DivergedError):
        train_run(replace(CONFIG, epochs=1, learning_rate=1e18), path, num_samples=5, device="cpu")
    assert read_capsule(path / "divergence")[0]["shards"] == 8
    assert replay_step(path).endswith("\nreproduced")
