"""Processes as torchrun starts them, cheaper: a function of a test's module in each of W children.

A launch takes as long as what it imports beside the package, and as its processes take to meet: let one check many cases.
"""

import importlib
import os
import socket
from dataclasses import dataclass

from tests.helpers.children import Child
from tests.helpers.environment import ROOT


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


def start(world, function, *args, **more):
    """Start a function of a module, such as ``tests.processes.test_shards:train``, in each rank; return the processes.

    Args:
        args: texts, or what is made one.
        more: what each has in its environment beside.
    """
    return [Child(call, function, *map(str, args), environment=env | more) for env in environments(world)]


def call(function, *args):
    """Run in a rank: the function, in a module that is imported there."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*args)


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
    ended = wait(start(world, function, *args, **more), seconds)
    for rank, process in enumerate(ended):
        assert process.code == 0, f"rank {rank} ended with {process.code}:\n{process.out}\n{process.err}"
    return [process.out for process in ended]
