"""Processes of their own, cheaper than a fresh interpreter each: forked from one that has imported the package and run nothing.

Torch, Pyro and the package take three seconds to import, and what torch's optimizers import at their first step one and a
half. A child starts from the imports alone: no test has run in it, no thread of a backward pass, no generator that has drawn.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

FRESH = multiprocessing.get_context("forkserver")  # one for all tests of a process, started with its first child
FRESH.set_forkserver_preload(["pyro_vae.cli.main", "torch._dynamo"])


class Child:
    """A process that runs ``function(*args)`` on one thread, asked as a ``subprocess.Popen`` is.

    Args:
        function: of a module's top level; what it returns is the exit code, None for 0, and an error that it raises is 1.
        environment: its whole environment; None: this process's own.
    """

    def __init__(self, function, *args, environment=None):
        handle, self.printed = tempfile.mkstemp()
        os.close(handle)
        self.complained = f"{self.printed}-errors"
        Path(self.complained).touch()
        given = (self.printed, self.complained, dict(os.environ if environment is None else environment))
        self.process = FRESH.Process(target=carry_out, args=(*given, function, args), daemon=True)
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.process.kill()

    def out(self):
        """Return what it has printed so far."""
        return Path(self.printed).read_text()

    def until(self, text, seconds=90):
        """Wait until it has printed this, or has ended."""
        deadline = time.monotonic() + seconds
        while text not in self.out() and self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert text in self.out(), Path(self.complained).read_text()

    def communicate(self, timeout=None):
        """Wait for its end; return all that it printed, and what it printed as errors."""
        self.process.join(timeout)
        if self.process.is_alive():
            raise subprocess.TimeoutExpired("a child", timeout)
        said = self.out(), Path(self.complained).read_text()
        for file in (self.printed, self.complained):
            os.unlink(file)
        return said


def printed_by(function, *args, seconds=300):
    """Run a function in a child that ends well; return what it printed."""
    child = Child(function, *args)
    try:
        out, err = child.communicate(seconds)
    finally:
        child.kill()
    assert child.returncode == 0, f"it ended with {child.returncode}:\n{out}\n{err}"
    return out


def carry_out(printed, complained, environment, function, args):
    """Run in a child: its output goes to files, and a signal finds it as it finds a process of a shell."""
    for number, name in ((1, printed), (2, complained)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(function(*args))
