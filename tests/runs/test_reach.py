"""A stranger's run reaches nothing outside its folder: no write follows a link, in whatever place, by whatever command."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from pyro_vae.cli.main import main
from pyro_vae.common import atomic_write as atomic
from pyro_vae.common.plain_text import is_plain, plain
from pyro_vae.common.safe_read import parse_json, seal
from pyro_vae.data import user_files
from pyro_vae.errors import BusyError, DataError, RunFolderError, StorageError, UsageError
from pyro_vae.plots import figures
from pyro_vae.runs import build_limits, folder, run_figures
from pyro_vae.runs import lock as lock_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.build_limits import bounded_build, within_machine
from pyro_vae.runs.lock import locked
from tests.helpers import hostile
from tests.helpers.environment import HEAVY
from tests.helpers.run_folders import train_small

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.rendered]
OPENED, WATCHED = [], []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MAKING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree")
RUNNING = ("exec", "subprocess", "os.exec", "os.system", "os.posix_spawn", "socket.connect", "pickle.find_class")


def hook(event, arguments):
    """Note what is opened to write, made, moved, deleted, run or connected to, while somebody looks."""
    if not WATCHED:
        return
    if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & WRITING:
        if not below_a_descriptor(*arguments):
            OPENED.append(os.fsdecode(arguments[0]))
    elif event in MAKING and not within_a_descriptor(arguments):
        OPENED.extend(os.fsdecode(a) for a in arguments if isinstance(a, str | bytes | Path))
    elif event.startswith(RUNNING) and event != "exec":
        OPENED.append(event)


def within_a_descriptor(arguments):
    """Whether a name is of an entry of a folder that was opened, as all are that shutil.rmtree deletes."""
    return isinstance(arguments[-1], int) and arguments[-1] >= 0 and not os.path.isabs(os.fsdecode(arguments[0]))


def below_a_descriptor(name, _, flags):
    """Whether a bare name is opened, and no link, as all are in a folder that is held (tests/runs/test_races.py)."""
    bare = os.sep not in os.fsdecode(name)  # what shutil.rmtree opens it compares with its look before
    return bare and (bool((flags or 0) & os.O_NOFOLLOW) or not os.path.lexists(name))


@pytest.fixture(scope="module", autouse=True)
def watching():
    figures.figure(1, 1)  # matplotlib is imported with the first, and makes folders of its own
    sys.addaudithook(hook)  # for good: it looks only while something is WATCHED


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A whole run, with two generations, pictures and a step that diverged."""
    run = train_small(tmp_path_factory.mktemp("good"), "run")
    for name in run_figures.PICTURES:
        (run / "figures" / f"{name}.png").write_bytes(b"a picture")
    return run


@pytest.fixture
def outside(tmp_path):
    """What is the user's own, and how it looks."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("file", "training.png", "sampled.png", "khat.png", "evidence.json"):
        (mine / name).write_text("mine")
    return mine


def look(path):
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


def link(*places, to="file"):
    """The corpus entry that has links in these places, to a file or (`to=None`) the folder of the user's."""

    def make(run, outside):
        for place in places:
            entry = run / place
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            entry.unlink(missing_ok=True)
            entry.symlink_to(outside if to is None else outside / to)

    return make


FILES = [
    *(
        "metrics.jsonl",
        "evaluations.jsonl",
        "evidence.json",
        "evidence.csv",
        "model.safetensors",
        "config.json",
        ".lock",
    ),
    *(".lock.json", ".evaluation.lock", ".evaluation.lock.json", "particles-test.safetensors", "samples.npy"),
    *(
        "report.html",
        "figures/sampled.png",
        "figures/training.png",
        "figures/khat.png",
        "encoded.npy",
        "encoded_rows.csv",
    ),
]
FOLDERS = ["figures", "checkpoints", "divergence", "checkpoints/000009"]
CORPUS = {
    **{f"{name} to a file": link(name) for name in FILES},
    **{f"{name} to nothing": link(name, to="new") for name in FILES},
    **{f"{name} to a folder": link(name, to=None) for name in (*FOLDERS, "metrics.jsonl", ".lock", "evidence.json")},
}
ALWAYS = ("figures to a folder", "evaluations.jsonl to a file")
COMMANDS = {
    "evaluate": lambda run, data: ["evaluate", run, "--num-samples", "5", "--device", "cpu"],
    "sample": lambda run, data: ["sample", run, "--num-samples", "2"],
    "encode": lambda run, data: ["encode", run, "--rows", "2"],
    "resume": lambda run, data: ["train", "--resume", run, "--num-samples", "5", "--device", "cpu"],
    "overwrite": lambda run, data: [
        *("train", "--run", run, "--overwrite", "--data", data, "--epochs", "1", "--hidden", "4", "--latent-dim", "2"),
        *("--num-samples", "5", "--device", "cpu"),
    ],
    "compare": lambda run, data: ["compare", run, run.replace("run", "other")],
    "report": lambda run, data: ["report", run],
    "replay": lambda run, data: ["replay", run],
    "gaps": lambda run, data: ["gaps", run, "--rows", "1", "--steps", "2"],
    "export": lambda run, data: ["export", run, f"{Path(run).parent / 'hub'}", "--hub"],
}


def harmless(said, *allowed):
    """What was opened that is neither in the folders allowed nor the null device."""
    return [p for p in said if p != os.devnull and not any(Path(os.path.abspath(p)).is_relative_to(a) for a in allowed)]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_writes_through_a_link_in_a_run(command, good, outside, tmp_path, monkeypatch, capsys):
    """What is outside is as it was, and nothing outside was opened to write, made or run. Every place meets some command."""
    monkeypatch.setattr(run_figures, "draw_figures", lambda *_: None)
    for module in (train_module, sys.modules["pyro_vae.runs.resume_run"]):
        monkeypatch.setattr(module, "draw_figures", draw_one)
    monkeypatch.setattr(run_figures.figures, "png", lambda drawn: b"new")
    monkeypatch.setattr(run_figures.figures, "save", lambda drawn, path: atomic.write_atomic(path, b"new") or path)
    for name in ("samples", "sample_grid"):
        monkeypatch.setattr(run_figures.images, name, lambda *_, **__: None, raising=False)
    monkeypatch.setattr(run_figures, "khat_histogram", lambda *_: None)
    before = look(outside)
    turn = list(COMMANDS).index(command)
    for number, (kind, spoil) in enumerate(CORPUS.items()):
        if not (HEAVY or kind in ALWAYS or number % len(COMMANDS) == turn):
            continue
        here = tmp_path / f"run{number}"
        run = Path(shutil.copytree(good, here / "run"))
        shutil.copytree(good, here / "other")
        spoil(run, outside)
        OPENED.clear()
        WATCHED.append(run)
        try:
            code = main(COMMANDS[command](str(run), str(good.parent / "x.npy")))
        finally:
            WATCHED.clear()
        assert code in (0, 2, 3, 4, 5, 6), (kind, capsys.readouterr().err)
        assert look(outside) == before, kind
        assert harmless(OPENED, here) == [], kind
        shutil.rmtree(here)


def draw_one(run, *_):
    """One picture, through the door that all take."""
    run_figures.draw_all(run.path, {"training": lambda: None})


def test_the_corpus_has_sixty_folders_with_those_of_the_other_hook():
    assert len(CORPUS) + len(hostile.CORPUS) >= 60


def test_the_hook_sees_a_write_through_a_link(outside, tmp_path):
    """The broken variant: a file opened as Python opens it."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(outside / "file")
    OPENED.clear()
    WATCHED.append(1)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write("theirs")
    (outside / "other").mkdir()
    WATCHED.clear()
    assert (outside / "file").read_text() == "minetheirs"
    assert harmless(OPENED, tmp_path / "run") == [str(outside / "other")]  # the other is seen by what it changed


def test_each_writer_looks_at_what_it_opens(outside, tmp_path):
    (tmp_path / "run").mkdir()
    for name, write in {
        "line": lambda p: atomic.append(p, "x"),
        "inner": lambda p: atomic.folder_in(p.parent, p.name),
        "lock": lambda p: locked(p.parent, p.name).__enter__(),
    }.items():
        (tmp_path / "run" / name).symlink_to(outside / ("file" if name != "inner" else ""))
        with pytest.raises((StorageError, RunFolderError), match="link"):
            write(tmp_path / "run" / name)
    os.mkfifo(tmp_path / "run" / "pipe")
    with pytest.raises(StorageError):
        atomic.append(tmp_path / "run" / "pipe", "x")
    (tmp_path / "run" / "whole").symlink_to(outside / "file")
    atomic.write_atomic(tmp_path / "run" / "whole", "theirs")  # takes the place of the link
    assert (outside / "file").read_text() == "mine" and not (tmp_path / "run" / "whole").is_symlink()


def test_a_link_to_the_run_itself_is_the_users_and_is_followed(good, tmp_path, monkeypatch):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    (tmp_path / "latest").symlink_to(run)
    monkeypatch.setattr("pyro_vae.runs.evaluate_run.draw_khat", lambda *_: None)
    assert main(["evaluate", str(tmp_path / "latest"), "--num-samples", "5", "--device", "cpu"]) == 0


# what --resume builds


@pytest.mark.parametrize(
    "values",
    [
        {"hidden": [60_000, 60_000]},
        {"latent_dim": 10**9},
        {"posterior": "flow", "posterior_options": {"transforms": 10**6}},
        {"prior": "vamp", "prior_options": {"components": 10**9}},
        {"likelihood": "categorical", "likelihood_options": {"num_classes": 10**9}},
    ],
    ids=["14 GB", "10^9 latents", "10^6 transforms", "10^9 components", "10^9 classes"],
)
@pytest.mark.parametrize("begun", [True, False], ids=["of a run with weights", "of one that had not begun"])
def test_a_config_that_asks_for_far_more_than_its_weights_is_not_resumed(good, tmp_path, capsys, values, begun):
    run = Path(shutil.copytree(good, tmp_path / "run"))
    record = folder.read_config(run)
    record["config"].update(values)
    (run / "config.json").write_text(json.dumps(seal(record)))
    if not begun:
        shutil.rmtree(run / "checkpoints")
        (run / "model.safetensors").unlink()
    assert main(["train", "--resume", str(run), "--device", "cpu"]) in (2, 3, 4)
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_with_no_weights_yet_has_a_limit_of_its_own():
    with pytest.raises(RunFolderError, match="larger than a run without weights may"), bounded_build(None):
        nn.Linear(60_000, 60_000)


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"hidden": [1] * 10**6}, 2, "hidden names 1,000,000 layers, wanted at most 1,000"),
        ({"hidden": [10**7, 10**7]}, 7, "takes more than .* MiB for its weights, and cpu has .* MiB free"),
        ({"latent_dim": 10**12}, 7, "takes more than .* MiB for its weights"),
        ({"hidden": ["wide"] * 10**5}, 2, r"config key 'hidden': \['wide', .*… is not a list"),
    ],
    ids=["10^6 layers", "400 TB", "10^12 latents", "10^5 words"],
)
def test_a_config_of_ones_own_that_no_machine_holds_is_refused_and_not_built(tmp_path, capsys, values, code, said):
    (tmp_path / "c.json").write_text(json.dumps(values))
    command = ["train", "--run", str(tmp_path / "run"), "--config", str(tmp_path / "c.json"), "--device", "cpu"]
    assert main(command) == code
    told = capsys.readouterr().err
    assert re.search(said, told) and "Traceback" not in told and len(told) < 3_000
    assert not (tmp_path / "run").exists()


def test_what_is_built_has_a_limit_of_operations_too(monkeypatch):
    with within_machine(torch.device("cpu")):
        nn.Sequential(*[nn.Linear(1, 1) for _ in range(20)])
    monkeypatch.setattr(build_limits, "OWN_CALLS", 100)
    with pytest.raises(UsageError, match="more than 100 operations"), within_machine(torch.device("cpu")):
        nn.Sequential(*[nn.Linear(1, 1) for _ in range(200)])


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((3_300, 1_000), dtype=np.uint8))
    assert user_files.read_file(tmp_path / "x.npz", 0).parts[0].x.shape == (3_300, 1_000)  # so little is let pass
    monkeypatch.setattr(user_files, "UNPACKED", 2**20)
    with pytest.raises(DataError, match=r"unpacks to 3,300,.*more than a file may ask for"):
        user_files.read_file(tmp_path / "x.npz", 0)


# what is printed


def test_text_is_shown_and_not_obeyed():
    assert plain("a\x1b]0;owned\x07\n\tb") == r"a\x1b]0;owned\x07" + "\n\tb"
    assert plain("\x9b31m\u202eevil\x7f") == r"\x9b31m\u202eevil\x7f" and plain("é ‘x’ \udcff") == "é ‘x’ \udcff"
    assert not is_plain("a\rb") and is_plain("zürich 数据\n") and not is_plain("\ud800")
    for bad in ("\x1b[2J", "\u2028", "\x00"):
        with pytest.raises(RunFolderError, match="control characters"):
            parse_json(json.dumps({"a": [{"b": bad}]}).encode(), Path("x.json"))
        with pytest.raises(RunFolderError, match="control characters"):
            parse_json(json.dumps({bad: 1}).encode(), Path("x.json"))


def test_who_holds_a_lock_is_told_without_escapes_whatever_the_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.0)
    for said in (
        {"pid": 1, "host": "\x1b[31m", "since": "x"},
        {"pid": 10**400, "host": "x", "since": "x"},
        {"pid": 1e308, "host": [[1]], "since": {}},
        [],
        {"pid": "x" * 2**17},
    ):
        with locked(tmp_path):
            (tmp_path / ".lock.json").write_text(json.dumps(said))
            with pytest.raises(BusyError) as busy, locked(tmp_path):
                pass
        assert "\x1b" not in str(busy.value) and len(str(busy.value)) < 800


def test_a_name_with_brackets_is_printed_as_it_is(good, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pyro_vae.runs.evaluate_run.draw_khat", lambda *_: None)
    for name in ("x[b]y", "[bold]z[/nothing]".replace("/", "∕")):
        run = Path(shutil.copytree(good, tmp_path / name))
        assert main(["evaluate", str(run), "--num-samples", "5", "--device", "cpu"]) == 0
        assert name in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "x[b]y"), str(good)]) == 0
    assert "x[b]y" in capsys.readouterr().out


def test_a_matplotlibrc_in_the_current_folder_does_not_call_tex(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("subprocess.check_output", lambda *given, **_: started.append(given))
    with matplotlib.rc_context({"text.usetex": True}):
        fig = figures.figure(2, 2)
        figures.axes(fig, "x", "y", "title").legend(handles=[], title="t")
        figures.save(fig, tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file() and started == []
