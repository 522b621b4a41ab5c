"""A small run, and a pair by hand."""

import os
from contextlib import suppress

import pyro
import pyro.distributions as dist


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def in_child(work):
    """The work in a forked child; its exit code."""
    child = os.fork()
    if not child:
        code = 1
        with suppress(BaseException):
            code = work()
        os._exit(code or 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
