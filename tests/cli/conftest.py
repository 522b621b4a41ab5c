"""What tests of this folder start from."""

import shutil
from pathlib import Path

import pytest

from pyro_vae.cli.main import main
from tests.helpers.command_line import small
from tests.helpers.pictures import without_rendering
from tests.helpers.pilots import short_pilots


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Annealing has short pilots, and no picture is rendered, but in tests marked `rendered`."""
    short_pilots(monkeypatch)
    if request.node.get_closest_marker("rendered") is None:
        without_rendering(monkeypatch)


@pytest.fixture
def train(tmp_path, device):
    """Trains a small run with more options; returns its exit code."""
    return lambda name, *more: main(["train", "--run", str(tmp_path / name), "--device", str(device), *small(*more)])


@pytest.fixture(scope="session")
def trained(tmp_path_factory, request):
    """A small run on digits, trained once for all files of this folder, which use copies of it."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--run", str(path), "--device", request.config.getoption("--device"), *small()]) == 0
    return path


@pytest.fixture
def run(tmp_path, trained):
    """A copy of it, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
