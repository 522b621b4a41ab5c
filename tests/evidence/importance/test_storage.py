"""Evidence that is saved: added to, written whole or not at all, read within limits."""

import errno
import json
import os
import resource
import signal
import time
from functools import partial

import pytest
import torch

from pyro_vae.errors import DataError, StorageError, UsageError
from pyro_vae.evidence.importance.result import Evidence
from pyro_vae.evidence.importance.storage import load_evidence, save_evidence
from tests.helpers.bits import same
from tests.helpers.faults import in_child
from tests.helpers.importance import log_likelihood


def test_saved_particles_are_added_to(neural, tmp_path):
    vae, x = neural
    run = partial(log_likelihood, vae.model, vae.guide, x, num_samples=500)
    parts = [run(particles=r) for r in (range(0, 70), range(130, 500))]
    for i, part in enumerate(parts):
        save_evidence(part, tmp_path / f"{i}.safetensors")
    again = [load_evidence(tmp_path / f"{i}.safetensors") for i in range(2)]
    assert all(same(a, b) and a.summary() == b.summary() for a, b in zip(again, parts, strict=True))
    assert same(run(resume=Evidence.merge(again)), run())
    assert same(run(num_samples=700, resume=Evidence.merge(again)), run(num_samples=700))


def test_what_is_no_saved_evidence_is_refused(tmp_path):
    (tmp_path / "x").write_text("nothing")
    for name in ("x", "y"):
        with pytest.raises(DataError, match=f"{name} holds no evidence"):
            load_evidence(tmp_path / name)
    with pytest.raises(UsageError, match="holds no particles"):
        save_evidence(Evidence(*torch.zeros(5, 3), num_samples=1, seed=0), tmp_path / "z")


@pytest.fixture
def saved(neural, tmp_path):
    """Evidence, and the file that it was saved to."""
    vae, x = neural
    evidence = log_likelihood(vae.model, vae.guide, x, num_samples=50)
    save_evidence(evidence, tmp_path / "e.safetensors")
    return evidence, tmp_path / "e.safetensors"


@pytest.mark.parametrize("limit", [0, 1, 512, 4096])
def test_a_full_disk_leaves_the_evidence_that_was_saved_before(neural, saved, limit):
    (vae, x), (evidence, file) = neural, saved
    more = log_likelihood(vae.model, vae.guide, x, num_samples=2000, resume=evidence)
    before = file.read_bytes()
    bounds, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, bounds[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*e\.safetensors.*What was saved before is as it was"):
            save_evidence(more, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bounds)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in file.parent.iterdir()] == [file.name] and file.read_bytes() == before
    assert same(load_evidence(file), evidence)
    save_evidence(more, file)  # there is room again
    assert same(load_evidence(file), more)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_the_system_refuses_while_evidence_is_saved(saved, monkeypatch, code, call):
    evidence, file = saved

    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StorageError, match=os.strerror(code)) as caught:
            save_evidence(evidence, file)
    assert caught.value.exit_code == 6 and list(file.parent.iterdir()) == [file]
    assert same(load_evidence(file), evidence)
    with pytest.raises(StorageError, match="The folder is gone"):
        save_evidence(evidence, file.parent / "nowhere" / file.name)


def hollow(place, saved):
    with place.open("wb") as file:
        file.truncate(3 * 2**30)


UNREADABLE = {
    "sparse file of 3 GiB": (hollow, "most of it is holes"),
    "pipe": (lambda place, saved: os.mkfifo(place), "not a regular file"),
    "folder": (lambda place, saved: place.mkdir(), "not a regular file"),
    "link": (lambda place, saved: place.symlink_to(saved), "a link, and links are not followed"),
    "link to nothing": (lambda place, saved: place.symlink_to("nowhere"), "a link, and links are not followed"),
    "nothing": (lambda place, saved: None, "No such file"),
}


def told_of(path):
    """The refusal, by how many KiB the peak of memory grew, and the seconds that it took."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    said = ""
    try:
        load_evidence(path)
    except DataError as error:
        said = str(error)
    return [said, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.monotonic() - start]


def test_what_is_no_plain_file_is_refused_at_once(saved, tmp_path):
    """A child meets them all: its peak starts at what the parent holds, whatever the parent once held."""
    for kind, (make, _) in UNREADABLE.items():
        make(tmp_path / kind, saved[1])
    paths, answers = [str(tmp_path / kind) for kind in UNREADABLE], tmp_path / "answers"
    assert in_child(lambda: answers.write_text(json.dumps(list(map(told_of, paths)))) and 0) == 0
    told = json.loads(answers.read_text())
    for path, (_, why), (said, grown, seconds) in zip(paths, UNREADABLE.values(), told, strict=True):
        assert said.startswith(f"{path} holds no evidence, as it cannot be read") and why in said
        assert grown < 2**16 and seconds < 10, path  # KiB
