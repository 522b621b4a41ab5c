"""Processes as torchrun starts them, cheaper: a function of a test's module in each of W fresh interpreters.

Importing torch and Pyro takes seconds in each: let one launch check many cases.
"""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALL = "import sys, importlib; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])"


@dataclass(frozen=True)
class Ended:
    """What a rank printed, and how it ended."""

    code: int
    out: str
    err: str


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def environments(world, port=None):
    """The environment of each rank."""
    port = port or free_port()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    common |= {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return [{**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def start(world, command, **more):
    """Start a command in each rank, and return the processes."""
    return [
        subprocess.Popen(command, env=env | more, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for env in environments(world)
    ]


def start_function(world, function, *args, **more):
    """Start a function of a module, such as ``tests.processes.test_shards:train``, with texts as arguments."""
    module, _, name = function.partition(":")
    return start(world, [sys.executable, "-c", CALL, module, name, *map(str, args)], **more)


def wait(processes, seconds=400):
    """Wait for each rank; whatever does not end is killed."""
    ended = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=seconds)
            ended.append(Ended(process.returncode, out, err))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return ended


def launch(world, function, *args, seconds=400, **more):
    """Run a function in `world` processes that all end well; return what each printed."""
    ended = wait(start_function(world, function, *args, **more), seconds)
    for rank, process in enumerate(ended):
        assert process.code == 0, f"rank {rank} ended with {process.code}:\n{process.out}\n{process.err}"
    return [process.out for process in ended]
