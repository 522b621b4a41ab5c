"""A link that is put into a run between a look and a write: all that is written, read or deleted stays in the run itself."""

import json
import os
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch

from pyro_vae.common import atomic_write as atomic
from pyro_vae.common import held_folder
from pyro_vae.common.held_folder import held, no_links_below
from pyro_vae.common.safe_read import read_bytes, seal
from pyro_vae.errors import PyroVAEError, RunFolderError, StorageError
from pyro_vae.plots import figures
from pyro_vae.runs import folder, replacement
from pyro_vae.runs.checkpoint import Checkpoints
from pyro_vae.runs.ensemble_folder import write_list
from pyro_vae.runs.evaluate_ensemble import evaluate_ensemble
from pyro_vae.runs.evaluation_options import EvaluationOptions
from pyro_vae.runs.progress import unfinished
from pyro_vae.runs.run_figures import draw_all, draw_khat
from tests.helpers.run_folders import train_small
from tests.runs.test_reach import look

pytestmark = pytest.mark.usefixtures("one_thread")
SECONDS = 0.25
STATE = {group: {"w": torch.ones(2)} for group in ("model", "best", "optimizer", "rng")}


class Silent:
    """Evidence whose k̂ is of no row, so that the picture before is deleted."""

    khat = torch.full((2,), torch.nan)


def clear(run):
    folder.clear(run)
    Checkpoints(run).save({"step": 1}, STATE)


def give_back(run):
    (run.parent / "aside" / "figures").mkdir(parents=True, exist_ok=True)
    (run.parent / "aside" / "figures" / "a.png").write_bytes(b"of the run before")
    with atomic.storage("cannot clear it"), no_links_below(run):  # as `settle` does
        replacement.leave(run.parent / "aside", run)


def read(run):
    with no_links_below(run):
        assert read_bytes(run / "figures" / "secret") != b"mine"


DOORS = {  # name to the folder that is swapped, and what writes into it
    "a picture": ("figures", lambda run: draw_all(run, {"training": lambda: None})),
    "a picture that is deleted": ("figures", lambda run: draw_khat(run, Silent(), torch.zeros(2), (1,))),
    "a checkpoint": ("checkpoints", lambda run: Checkpoints(run).save({"step": 1}, STATE)),
    "checkpoints that are discarded": ("checkpoints", lambda run: Checkpoints(run).discard(0)),
    "a run that is cleared": ("figures", clear),
    "entries given back": ("figures", give_back),
    "a read": ("figures", read),
}


@contextmanager
def swapping(run, name, outside):
    """Exchange a folder of the run with a link to outside, and back, as fast as a thread can."""
    (run / name).mkdir(exist_ok=True)
    (run / "theirs").symlink_to(outside)
    done, swaps = threading.Event(), []

    def swap():
        while not done.is_set():
            assert atomic.exchange(run / name, run / "theirs")
            swaps.append(1)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield swaps
    finally:
        done.set()
        thread.join()


@pytest.fixture
def outside(tmp_path):
    """What is the user's own, by the names that are written and deleted."""
    mine = tmp_path / "mine"
    (mine / "000001").mkdir(parents=True)
    for name in ("training.png", "khat.png", "secret", "000001/manifest.json", ".x.1.part"):
        (mine / name).write_text("mine")
    return mine


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "png", lambda drawn: b"new")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.skipif(not held_folder.SUPPORTED, reason="this system opens nothing below a descriptor")
@pytest.mark.parametrize("door", DOORS)
def test_nothing_outside_changes_while_a_folder_is_swapped_for_a_link(door, run, outside):
    name, write = DOORS[door]
    before, tries, end = look(outside), 0, time.monotonic() + SECONDS
    with swapping(run, name, outside) as swaps:
        while time.monotonic() < end or tries < 20:
            with suppress(StorageError, RunFolderError):
                write(run)
            tries += 1
    assert look(outside) == before and len(swaps) > 20


def test_the_race_is_lost_by_a_look_and_a_write_by_name(run, outside):
    """The broken variant: the door before."""
    end = time.monotonic() + 20
    with swapping(run, "figures", outside):
        while time.monotonic() < end and not (outside / "late.png").exists():
            with suppress(OSError):
                if not (run / "figures").is_symlink():
                    time.sleep(0.001)  # the other thread's turn
                    (run / "figures" / "late.png").write_bytes(b"theirs")
    assert (outside / "late.png").exists()


def test_where_nothing_is_opened_below_a_descriptor_each_folder_is_looked_at(run, outside, monkeypatch):
    monkeypatch.setattr(held_folder, "SUPPORTED", False)
    before = look(outside)
    (run / "figures").symlink_to(outside)
    for _, write in DOORS.values():
        with suppress(StorageError, RunFolderError):
            write(run)
    assert look(outside) == before
    (run / "figures").unlink()
    draw_all(run, {"training": lambda: None})
    assert (run / "figures" / "training.png").read_bytes() == b"new" and Checkpoints(run).newest() is not None
    assert sorted(p.name for p in run.iterdir()) == ["checkpoints", "figures"]


def test_links_of_the_users_are_followed_and_none_below_the_outermost_folder(run, outside, tmp_path):
    (tmp_path / "latest").symlink_to(run)
    (run / "seed0").symlink_to(outside)
    with held(tmp_path / "latest") as place, held(run / "seed0"):  # of no run
        assert place.names() == ["seed0"]
    for root in (tmp_path / "latest", run):
        with no_links_below(root), no_links_below(root / "seed0"), pytest.raises(OSError, match="a link, and links"):
            held(root / "seed0").__enter__()
    with no_links_below(run), pytest.raises(OSError, match="leads out of the folder"):
        held(run / ".." / "mine").__enter__()
    (run / "file").touch()
    with no_links_below(run), pytest.raises(OSError, match="no folder"):
        held(run / "file").__enter__()


def test_a_generation_that_is_a_link_is_not_read_for_how_far_a_training_is(run, outside):
    manifest = {"schema": 1, "files": {}, "step": 7, "epoch": 3}
    (outside / "000001" / "manifest.json").write_text(json.dumps(seal(manifest)))
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "000001").symlink_to(outside / "000001")
    assert unfinished(run, 9) is None
    (run / "checkpoints" / "000001").unlink()
    (outside / "000001").rename(run / "checkpoints" / "000001")
    assert unfinished(run, 9) == {"epoch": 3, "epochs": 9, "step": 7}


def test_descriptors_are_let_go_of(run):
    (run / "figures").mkdir()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        draw_all(run, {"training": lambda: None})
        with suppress(StorageError):
            atomic.write_atomic(run / "nowhere" / "a", "x")
        with no_links_below(run), suppress(OSError), held(run / "figures" / "training.png"):
            pass
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_a_member_that_is_a_link_is_neither_scored_nor_read(tmp_path, outside):
    """An ensemble of somebody else's, whose seed1 leads to a run of the user's."""
    mine = train_small(tmp_path, "run")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    write_list(theirs, [1], "train", {})
    (theirs / "seed1").symlink_to(mine)
    before = look(mine)
    with pytest.raises(PyroVAEError, match="a link, and links are not followed"):
        evaluate_ensemble(theirs, EvaluationOptions(num_samples=5), device="cpu")
    assert look(mine) == before
