"""What every test starts from: a seed, an empty parameter store of its own, and settings that must outlive it unchanged."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from threadpoolctl import threadpool_limits

from tests.helpers.ids import word


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where models are trained and scored: cpu, cuda, cuda:1")


def pytest_configure() -> None:
    """Shares the cores out among the workers of `pytest -n`: each has all of them by default, and waits for the others."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(threads)
        threadpool_limits(threads)  # numpy's own library, whose threads wait by turning round
        for name in (
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
        ):  # for what is loaded later, and processes that tests start
            os.environ.setdefault(name, str(threads))
    gc.collect()
    gc.freeze()  # what torch and Pyro are made of is not looked at again in each collection


def pytest_make_parametrize_id(val: object) -> str | None:
    return word(val)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that was asked for. One that is not there ends the run: a skip would pass for a success."""
    asked = request.config.getoption("--device")
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        pytest.exit(
            f"--device {asked} is not here: {str(error).splitlines()[0]}", returncode=pytest.ExitCode.USAGE_ERROR
        )
    return torch.device(asked)


@pytest.fixture(autouse=True)
def isolated() -> Iterator[None]:
    """Seeds torch, gives the test a parameter store of its own, and checks what no code here may change."""
    before = settings()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with pyro.get_param_store().scope():
        yield
    torch.set_num_threads(threads)  # an example is a script: it may set them
    after = settings()
    assert after == before, f"the test changed {[name for name in before if after[name] != before[name]]}"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For modules that fork: a child has its parent's memory, but not the threads that OpenMP waits for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def settings() -> dict[str, Any]:
    """Switches of the whole process: Pyro's (torch's distribution validation is one of them), and torch's defaults."""
    return pyro.settings.get() | {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def torch_in_doctests(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace["torch"] = torch
