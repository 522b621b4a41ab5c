"""Processes that work together: what they tell each other, and who is named where one is missing."""

import os
import re
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import pyro_vae
from pyro_vae.common import meeting, torch_private
from pyro_vae.common.exchange import agree, exchange, gather, gather_text, share_text
from pyro_vae.common.processes import Processes, asked_of, explain, joined, processes
from pyro_vae.data import Stored, write_shards
from pyro_vae.errors import DataError, ProcessesError, UsageError

from .launch import environments, free_port, start, wait

HERE = "tests.processes.test_processes"
WAYS = {
    "raises": "rank 1 ended with ValueError: rows are odd",
    "hangs": "rank 1 has not come: it was last seen at step 1",
    "damaged": "rank 1 ended with DataError: the shard ",
    "missing": "rank 1 ended with DataError: the shard ",
    "dies": "rank 1 has died (process ",
}


def everything():
    """Run in each rank: everything that ranks can tell each other."""
    assert processes() == Processes(0, 1)
    with joined("cpu", timeout=20) as here:
        assert here == processes() and here.leads == (here.rank == 0)
        with joined("cpu") as again:  # inside another: nothing is opened twice
            assert again == here
        parts = gather(torch.arange(3.0).double() + here.rank, "step 1")
        assert parts.tolist() == [[r, r + 1, r + 2] for r in range(here.world)]
        assert gather(torch.tensor(here.leads), "flags").tolist() == [True, False]
        assert gather(torch.zeros(0), "nothing").shape == (2, 0)
        sent = torch.arange(2 * 3, dtype=torch.bfloat16).view(3, 2).T + 10 * here.rank  # not contiguous
        received = exchange(sent, "step 1")
        assert received.tolist() == [(torch.arange(3) * 2 + here.rank + 10 * r).tolist() for r in range(here.world)]
        assert gather_text("é\n" * here.rank, "texts") == ["", "é\n"]
        assert gather_text("", "nothing") == ["", ""]
        assert share_text("from rank 0" if here.leads else None, "one") == "from rank 0"
        assert share_text("", "none") == ""
        agree("seed", {"a": 1, "b": [2.5, None]})
        with pytest.raises(UsageError, match="config must be the same on each rank: rank 1 has 1, and rank 0 has 0"):
            agree("config", here.rank)
        agree("seed", 3)  # all ranks raised, so the group is as it was
    assert processes() == Processes(0, 1)
    print("well", flush=True)


def leave(how, port, folder):
    """Run in each rank: rank 1 does not come to the second step; return what rank 0 is told."""
    with joined("cpu", timeout=3 if how == "hangs" else 40, environment=os.environ | {"MASTER_PORT": port}) as here:
        gather(torch.zeros(1), "step 1")
        if here.rank == 1:
            if how == "raises":
                raise ValueError("rows are odd\nand more")
            if how in ("damaged", "missing"):  # as this host sees its copy of the data
                Stored(f"{folder}/{how}")
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(8.0)  # far longer than the others wait
            return
        gather(torch.zeros(1), "step 2 of epoch 1")


def all_ways(folder, *ports):
    """Run in each rank: all exchanges, and then a group for each way to leave one, with a port of its own."""
    everything()
    for how, port in zip(WAYS, ports, strict=True):
        start_of_wait = time.monotonic()
        try:
            leave(how, port, folder)
        except (ProcessesError, DataError, ValueError) as error:
            print(f"{how}, {time.monotonic() - start_of_wait:.0f} s: {type(error).__name__}: {error}", flush=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What rank 0 printed, line by line, and how rank 1 ended."""
    folder = tmp_path_factory.mktemp("data")
    for how in ("damaged", "missing"):
        write_shards(torch.arange(24.0).reshape(12, 2), folder / how, rows=4)
    (second,) = (folder / "damaged").glob("*1.npy")
    second.write_bytes(second.read_bytes()[:-1] + b"x")
    next((folder / "missing").glob("*1.npy")).unlink()
    first, second = wait(start(2, f"{HERE}:all_ways", folder, *(free_port() for _ in WAYS)), 100)
    assert first.code == 0, first.err
    return first.out.splitlines(), second


def test_two_ranks_exchange_tensors_and_texts(told):
    lines, second = told
    assert lines[0] == second.out.splitlines()[0] == "well"


@pytest.mark.parametrize("how", WAYS)
def test_a_missing_rank_is_named_with_the_step(how, told):
    lines, second = told
    (line,) = (line for line in lines if line.startswith(how))
    assert f"ProcessesError: rank 0 waited at step 2 of epoch 1: {WAYS[how]}" in line
    if how in ("damaged", "missing"):
        assert f"/{how}/" in line and f"1.npy is {how}" in line
    assert int(line.split(", ")[1].split(" s")[0]) < 30
    assert second.code == -signal.SIGKILL


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        env = environments(2, taken.getsockname()[1])[0]
        said = pytest.raises(ProcessesError, match=r"rank 0 of 2 did not meet the others at .*: the port is in use")
        with said, joined("cpu", timeout=2, environment=env):
            pass


@contextmanager
def answering(reply):
    """The port of a program that is no store, and what it does with a connection: None, nothing at all."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.sendall(reply)

    if reply is not None:
        threading.Thread(target=serve, daemon=True).start()
    with listening:
        yield listening.getsockname()[1]
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("reply", [None, b"", b"HTTP/1.0 400 Bad\r\n" * 9], ids=["silent", "closes", "http"])
def test_a_port_of_another_program_is_named_within_the_time(reply, monkeypatch):
    """torch's own connect waits for one that says nothing without end."""
    monkeypatch.setattr(meeting, "SILENT", 0.7)
    said = "what listens there has not answered as a store of rank 0 does for . s: another program has the port. Choose"
    start = time.monotonic()
    with answering(reply) as port:
        told = pytest.raises(ProcessesError, match=rf"rank 1 of 2 did not meet the others at 127.0.0.1:{port}: {said}")
        with told, joined("cpu", timeout=4, environment=environments(2, port)[1]):
            pass
    assert time.monotonic() - start < 60  # under load


def test_a_port_that_nobody_listens_at_is_waited_for_and_then_named():
    told = pytest.raises(ProcessesError, match=r"rank 1 of 2 did not meet the others at .*: The client socket has")
    with told, joined("cpu", timeout=1, environment=environments(2)[1]):
        pass


def test_no_clock_of_a_host_decides_anything():
    """Hosts' clocks differ: what waits, waits by a clock of its own process, and dates are for people alone."""
    shown = {"runs/lock.py", "runs/evaluations.py", "runs/list_runs.py", "runs/report/page.py"}
    package = Path(pyro_vae.__file__).parent
    texts = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    assert {name for name, text in texts.items() if re.search(r"datetime\.(now|fromtimestamp|utcnow)", text)} == shown
    assert [name for name, text in texts.items() if re.search(r"\btime\.(time|time_ns|localtime|gmtime)\(", text)] == []


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
