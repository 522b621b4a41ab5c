"""One writer a folder, in Python, too; and what dead, stopped or other processes left is in nobody's way."""

import json
import multiprocessing
import os
import signal
import threading

import pytest
import torch

from pyro_vae import fit
from pyro_vae.errors import BusyError, DivergedError, Interrupted
from pyro_vae.runs import lock as lock_module
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.runs.lock import locked
from tests.helpers.small import binary, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")


class During(Checkpointer):
    """Does something after the first step."""

    interval = 0.0

    def __init__(self, path, act):
        super().__init__(path, minutes=0)
        self.act = act

    def after_step(self, trainer):
        super().after_step(trainer)
        act, self.act = self.act, None
        if act is not None:
            act()


def train(checkpointer, **options):
    return fit(
        small_vae(seed=0),
        binary(20, seed=1),
        epochs=2,
        batch_size=10,
        callbacks=[checkpointer],
        verbose=False,
        **options,
    )


def refused(path, out):
    try:
        train(Checkpointer(path))
        out.put("trained")
    except BusyError as error:
        out.put(str(error))


def in_another_process(path):
    fork = multiprocessing.get_context("fork")
    out = fork.Queue()
    process = fork.Process(target=refused, args=(path, out))
    process.start()
    said = out.get(timeout=60)
    process.join()
    return said


def in_another_thread(path):
    said = []
    thread = threading.Thread(target=lambda: refused(path, type("Out", (), {"put": said.append})))
    thread.start()
    thread.join()
    return said[0]


@pytest.mark.parametrize("elsewhere", [in_another_process, in_another_thread], ids=["process", "thread"])
def test_a_second_checkpointer_on_the_folder_is_refused_and_changes_nothing(tmp_path, elsewhere):
    said = []
    first = During(tmp_path, lambda: said.append(elsewhere(tmp_path)))
    run = train(first)
    assert f"is being written to by process {os.getpid()} on" in said[0] and len(run.history) == 2
    alone = Checkpointer(tmp_path / "alone", minutes=0)
    train(alone)
    a, b = first.newest(), alone.newest()
    assert all(torch.equal(a.groups["model"][name], t) for name, t in b.groups["model"].items())
    assert elsewhere(tmp_path) == "trained"  # the lock is free again


class Own(Exception):
    pass


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "raised"),
    [(Own(), Own), (KeyboardInterrupt(), Interrupted), (SystemExit(3), SystemExit), (GeneratorExit(), GeneratorExit)],
    ids=["error", "ctrl c", "exit", "generator"],
)
def test_however_training_ends_the_next_one_goes_on(tmp_path, error, raised):
    with pytest.raises(raised):
        train(During(tmp_path, raising(error)))
    checkpointer = Checkpointer(tmp_path)
    assert len(train(checkpointer, resume=checkpointer.newest()).history) == 2


def test_after_a_divergence_the_lock_is_free(tmp_path):
    x = binary(20, seed=1)
    optimizer = torch.optim.SGD
    with pytest.raises(DivergedError):
        fit(
            small_vae(seed=0), x, epochs=9, batch_size=10, bad_steps=2, verbose=False,
            optimizer=lambda p: optimizer(p, lr=1e30), callbacks=[Checkpointer(tmp_path)],
        )  # fmt: skip
    with locked(tmp_path / "checkpoints"):
        pass


def test_what_a_dead_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    """Half-written files, and a file that says another host holds the lock: locks are the kernel's."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in (".lock.json", "000001", "000002"):
        (tmp_path / f".{name}.{os.getpid()}.part").write_text("half")
        (folder / f".{name}.{os.getpid()}.part").mkdir()
    for place in (tmp_path, folder):
        (place / ".lock").write_text("")
        (place / ".lock.json").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere", "since": "long ago"}))
    checkpointer = Checkpointer(tmp_path)
    with locked(tmp_path):
        train(checkpointer)
    assert checkpointer.newest().manifest["finished"] and not list(folder.glob(".*.part"))


def stopped(path, ready):
    with locked(path, ".evaluation.lock"):
        ready.set()
        os.kill(os.getpid(), signal.SIGSTOP)


def test_whoever_waits_for_a_stopped_process_says_for_whom(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock_module, "TOLD", 0.1)
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    owner = fork.Process(target=stopped, args=(tmp_path, ready))
    owner.start()
    assert ready.wait(30)
    timer = threading.Timer(0.6, lambda: os.kill(owner.pid, signal.SIGCONT))
    timer.start()
    with locked(tmp_path, ".evaluation.lock", wait=True):
        pass
    owner.join()
    assert f"note: waiting for process {owner.pid} on" in capsys.readouterr().err
