"""Processes that work together: what they tell each other, and who is named where one is missing."""

import os
import signal
import socket
import time

import pytest
import torch

from pyro_vae.common import torch_private
from pyro_vae.common.processes import (
    Processes,
    agree,
    asked_of,
    explain,
    gather,
    gather_text,
    joined,
    processes,
    share_text,
)
from pyro_vae.errors import ProcessesError, UsageError

from .launch import environments, launch, start_function

HERE = "tests.processes.test_processes"


def exchange():
    """Run in each rank: everything that ranks can tell each other."""
    assert processes() == Processes(0, 1)
    with joined("cpu", timeout=20) as here:
        assert here == processes() and here.leads == (here.rank == 0)
        with joined("cpu") as again:  # inside another: nothing is opened twice
            assert again == here
        parts = gather(torch.arange(3.0).double() + here.rank, "step 1")
        assert [p.tolist() for p in parts] == [[r, r + 1, r + 2] for r in range(here.world)]
        assert gather_text("é\n" * here.rank, "texts") == ["", "é\n"]
        assert gather_text("", "nothing") == ["", ""]
        assert share_text("from rank 0" if here.leads else None, "one") == "from rank 0"
        assert share_text("", "none") == ""
        agree("seed", {"a": 1, "b": [2.5, None]})
        with pytest.raises(UsageError, match="config must be the same on each rank: rank 1 has 1, and rank 0 has 0"):
            agree("config", here.rank)
        agree("seed", 3)  # all ranks raised, so the group is as it was
    assert processes() == Processes(0, 1)
    print("well")


def leave(how):
    """Run in each rank: rank 1 does not come to the second step."""
    with joined("cpu", timeout=3) as here:
        gather(torch.zeros(1), "step 1")
        if here.rank == 1:
            if how == "raises":
                raise ValueError("rows are odd\nand more")
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGSTOP)
        gather(torch.zeros(1), "step 2 of epoch 1")


def test_two_ranks_exchange_tensors_and_texts():
    assert launch(2, f"{HERE}:exchange") == ["well\n", "well\n"]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("raises", "rank 1 ended with ValueError: rows are odd"),
        ("dies", "rank 1 has died (process "),
        ("hangs", "rank 1 has not come: it was last seen at step 1"),
    ],
)
def test_a_missing_rank_is_named_with_the_step(how, named):
    ranks = start_function(2, f"{HERE}:leave", how)
    start_of_wait = time.monotonic()
    try:
        _, err = ranks[0].communicate(timeout=60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert time.monotonic() - start_of_wait < 40
    assert "ProcessesError: rank 0 waited at step 2 of epoch 1: " + named in err


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = environments(2, taken.getsockname()[1])[0]
        said = pytest.raises(ProcessesError, match=r"rank 0 of 2 did not meet the others at .*: the port is in use")
        with said, joined("cpu", timeout=2, environment=env):
            pass


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR"),
        ({"RANK": "a", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "RANK='a'"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, "ranks are 0 to WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "has WORLD_SIZE but no RANK"),
    ],
)
def test_an_environment_that_torchrun_would_not_make_is_refused(environment, said):
    with pytest.raises(UsageError, match=said), joined("cpu", environment=environment):
        pass


def test_one_process_needs_no_group():
    assert asked_of({"RANK": "0", "WORLD_SIZE": "1"}) == Processes()
    with joined("cpu", environment=environments(1)[0]) as here:
        assert here == Processes()
        assert torch.equal(gather(torch.ones(2), "x")[0], torch.ones(2))
        agree("anything", object.__name__)


def test_a_torch_that_does_not_tell_its_store_names_no_rank(monkeypatch):
    monkeypatch.setattr(torch_private, "find", lambda path: None)
    with pytest.raises(ProcessesError, match=r"rank 0 waited at step 3: a rank did not come \(closed\)"):
        explain("step 3", RuntimeError("[gloo/pair.cc:1] closed\nmore"))
