"""Under an audit hook no command opens, imports, runs or connects to anything outside a stranger's run and the data named."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from pyro_vae.cli import array_commands
from pyro_vae.cli.main import main
from pyro_vae.plots import figures
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import train_run as train_module
from tests.helpers import hostile
from tests.helpers.environment import HEAVY, ROOT
from tests.helpers.run_folders import train_small
from tests.runs import test_reach as reach

pytestmark = pytest.mark.usefixtures("one_thread")
SEEN, WATCHED = [], []
STARTED = (
    "subprocess",
    "os.exec",
    "os.system",
    "os.posix_spawn",
    "os.fork",
    "socket",
    "pickle",
    "marshal.load",
    "urllib",
)
OURS = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, ROOT / "pyro_vae", "/proc", "/dev/null", "/sys")]
CORPUS = {
    **{kind: lambda run, mine, spoil=spoil: spoil(run, str(mine / "canary")) for kind, spoil in hostile.CORPUS.items()},
    **reach.CORPUS,
}
TEMPLATES = [ROOT / "pyro_vae" / "runs" / part / "templates" for part in ("report", "export")]
FEW = ["--device", "cpu", "--num-samples", "5"]
COMMANDS = {
    "evaluate": lambda run: ["evaluate", run, *FEW],
    "sample": lambda run: ["sample", run, "--num-samples", "2"],
    "encode": lambda run: ["encode", run, "--rows", "2"],
    "reconstruct": lambda run: ["reconstruct", run, "--rows", "2"],
    "interpolate": lambda run: ["interpolate", run, "--steps", "3"],
    "impute": lambda run: ["impute", run],
    "resume": lambda run: ["train", "--resume", run, *FEW],
    "compare": lambda run: ["compare", run, f"{Path(run).parent / 'other'}"],
    "replay": lambda run: ["replay", run],
    "gaps": lambda run: ["gaps", run, "--rows", "1", "--steps", "2"],
    "bracket": lambda run: ["bracket", run, "--rows", "1", "--num-temperatures", "2", "--num-chains", "2"],
    "export": lambda run: ["export", run, f"{Path(run).parent / 'hub'}", "--hub"],
    "show": lambda run: ["show", run],
    "runs": lambda run: ["runs", f"{Path(run).parent}", "--json"],
    "report": lambda run: ["report", run],
    "config": lambda run: ["train", "--config", f"{run}/config.json", "--run", f"{Path(run).parent / 'new'}", *FEW],
}


def hook(event, arguments):
    """Note each file that is opened, by where it really is, and all that is imported, run or connected to."""
    if not WATCHED:
        return
    if event == "open" and isinstance(arguments[0], str | bytes) and not reach.below_a_descriptor(*arguments):
        WATCHED.clear()  # what the look itself opens
        path, flags = Path(os.fsdecode(arguments[0])).absolute(), arguments[2] or 0
        SEEN.append((event, path.parent.resolve() / path.name if flags & os.O_NOFOLLOW else path.resolve()))
        WATCHED.append(1)
    elif event == "import" and arguments[0] not in sys.modules:
        SEEN.append((event, arguments[0]))
    elif event == "exec" and os.path.isabs(name := getattr(arguments[0], "co_filename", "")):
        if Path(name).parent not in TEMPLATES:  # what jinja makes of templates of ours
            SEEN.append((event, name))  # code of a file; what dataclasses and traces make of text of ours has none
    elif event.startswith(STARTED):
        SEEN.append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def watching():
    importlib.import_module("zuko")  # of flows, which some configs ask for
    sys.addaudithook(hook)  # for good: it looks only while something is WATCHED


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for module in (train_module, sys.modules["pyro_vae.runs.resume_run"]):
        monkeypatch.setattr(module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    monkeypatch.setattr(array_commands, "draw_all", lambda *_: [])
    monkeypatch.setattr(figures, "png", lambda drawn: b"a picture")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return train_small(tmp_path_factory.mktemp("good"), "run")


def outside(*allowed):
    """What was seen that is neither in a folder allowed nor the interpreter's own."""
    allowed = [Path(a).resolve() for a in allowed] + OURS
    return [(e, a) for e, a in SEEN if e != "open" or not any(a.is_relative_to(place) for place in allowed)]


def watched(arguments):
    SEEN.clear()
    WATCHED.append(1)
    try:
        return main(arguments)
    finally:
        WATCHED.clear()


def test_no_command_reaches_outside_a_strangers_run_and_the_data_named(good, tmp_path, capsys):
    data = good.parent / "x.npy"
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("file", "training.png"):
        (mine / name).write_text("mine")
    assert len(CORPUS) >= 60
    cases = [
        (kind, name)
        for number, kind in enumerate(CORPUS)
        for turn, name in enumerate(COMMANDS)
        if HEAVY or (number % 6 == 0 and (number // 6) % len(COMMANDS) == turn)
    ]
    for name in {name: None for _, name in cases}:  # what our own code imports late is imported now
        here = tmp_path / name
        for copy in ("run", "other"):
            shutil.copytree(good, here / copy)
        main(COMMANDS[name](str(here / "run")))
    for kind, name in cases:
        here = tmp_path / "here"
        for copy in ("run", "other"):
            shutil.copytree(good, here / copy)
        CORPUS[kind](here / "run", mine)
        code = watched(COMMANDS[name](str(here / "run")))
        assert code in (0, 2, 3, 4, 5, 6, 7), (kind, name, capsys.readouterr().err)
        assert outside(here, data) == [], (kind, name)
        shutil.rmtree(here)
    assert sorted(p.name for p in mine.iterdir()) == ["file", "training.png"]


def test_the_hook_sees_a_read_through_a_link_an_import_and_a_process(tmp_path, capsys):
    """The broken variants."""
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / "config.json").symlink_to(tmp_path / "mine")
    SEEN.clear()
    WATCHED.append(1)
    (tmp_path / "run" / "config.json").read_text()
    handle = os.open(tmp_path / "run", os.O_RDONLY | os.O_NOFOLLOW)
    sys.modules.pop("this", None)
    importlib.import_module("this")
    os.system("true")
    WATCHED.clear()
    os.close(handle)
    events = outside(tmp_path / "run")
    assert ("open", (tmp_path / "mine").resolve()) in events and any(str(a).endswith("this.py") for _, a in events)
    assert any(event == "os.system" for event, _ in events)
