"""What tests of this folder start from."""

import shutil
from pathlib import Path

import pytest

from pyro_vae.cli.main import main
from tests.helpers.command_line import small
from tests.helpers.floors import short_floors
from tests.helpers.pictures import without_figures, without_rendering
from tests.helpers.pilots import short_pilots


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Annealing has short pilots; floors are fitted in few steps, but in tests that ask for `whole_floors`; trainings draw no
    figures, but in tests that ask for `drawn`, and no picture is rendered, but in tests marked `rendered`."""
    short_pilots(monkeypatch)
    if "whole_floors" not in request.fixturenames:
        short_floors(monkeypatch)
    if request.node.get_closest_marker("rendered") is None:
        without_rendering(monkeypatch)
        if "drawn" not in request.fixturenames:
            without_figures(monkeypatch)


@pytest.fixture
def whole_floors():
    """Asked for by tests that look at a floor which has no closed form, or at a model that starts from it."""


@pytest.fixture
def drawn():
    """Asked for by tests that look at what a training draws."""


@pytest.fixture
def train(tmp_path, device):
    """Trains a small run, of one epoch unless more are asked for, with more options; returns its exit code."""

    def trained_as(name, *more):
        more = more if "--epochs" in more else (*more, "--epochs", "1")
        return main(["train", "--run", str(tmp_path / name), "--device", str(device), *small(*more)])

    return trained_as


@pytest.fixture(scope="session")
def trained(tmp_path_factory, request):
    """A small run on digits, trained once for all files of this folder, which use copies of it."""
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_rendering(patch)
        assert main(["train", "--run", str(path), "--device", request.config.getoption("--device"), *small()]) == 0
    return path


@pytest.fixture
def run(tmp_path, trained):
    """A copy of it, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "run"))
