"""Files of a run: whole or not there, checked before they are trusted, read within limits, one writer at a time."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch

from pyro_vae.common import atomic_write as atomic
from pyro_vae.common import safe_read as safe
from pyro_vae.common.digests import sha256
from pyro_vae.errors import BusyError, CheckpointError, RunFolderError, StorageError
from pyro_vae.runs import folder
from pyro_vae.runs.checkpoint import GROUPS, Checkpoints
from pyro_vae.runs.lock import locked
from pyro_vae.runs.weights import save_model
from tests.helpers.children import printed_by
from tests.helpers.environment import HEAVY
from tests.helpers.namespaces import linux, mount_small_disk, skip_without

pytestmark = pytest.mark.usefixtures("one_thread")


def groups(seed):
    draws = torch.Generator().manual_seed(seed)
    return {group: {"w": torch.randn(3, 2, generator=draws), "n": torch.tensor(seed)} for group in GROUPS}


@pytest.fixture
def saved(tmp_path):
    """Two generations: of step 1 and of step 2."""
    checkpoints = Checkpoints(tmp_path, {"versions": {"torch": "0"}})
    for step in (1, 2):
        checkpoints.save({"step": step}, groups(step), step=step)
    return checkpoints


def steps(checkpoints):
    found = checkpoints.newest()
    assert all(torch.equal(found.groups[g][n], t) for g, d in groups(found.head["step"]).items() for n, t in d.items())
    return found.head["step"], len(found.notes)


def test_two_generations_are_kept_and_the_newest_comes_back(saved):
    assert steps(saved) == (2, 0)
    saved.save({"step": 3}, groups(3), step=3)
    assert saved.numbers() == [3, 2] and steps(saved) == (3, 0)
    manifest = saved.newest().manifest
    assert manifest["step"] == 3 and manifest["versions"] == {"torch": "0"}
    for name, said in manifest["files"].items():
        content = (saved.folder / "000003" / name).read_bytes()
        assert said == {"sha256": sha256(content), "bytes": len(content)}


def test_where_there_is_none_there_is_none(tmp_path):
    assert Checkpoints(tmp_path).newest() is None


FILES = ["manifest.json", "state.json", *(f"{group}.safetensors" for group in GROUPS)]


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_length_is_detected_and_the_generation_before_is_taken(saved, name):
    file = saved.folder / "000002" / name
    whole = file.read_bytes()
    stride = 1 if HEAVY or name == "manifest.json" else 5
    for length in {*range(0, len(whole), stride), *range(len(whole) - min(16, len(whole)), len(whole))}:
        file.write_bytes(whole[:length])
        if name == "manifest.json" and whole[length:] == b"\n":
            assert steps(saved) == (2, 0)  # all but the newline at the end: the same manifest
        else:
            assert steps(saved) == (1, 1), length
    file.write_bytes(whole + b"\0")
    assert steps(saved) == (1, 1)
    file.unlink()
    assert steps(saved) == (1, 1)


def test_bits_flipped_anywhere_in_a_generation_are_detected_or_change_nothing(saved):
    draw = random.Random(0)
    truth = saved.newest()
    harmless = 0
    for _ in range(500 if HEAVY else 150):
        file = saved.folder / "000002" / draw.choice(FILES)
        whole = file.read_bytes()
        spoiled = bytearray(whole)
        spoiled[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(spoiled)
        step, _ = steps(saved)
        if step == 2:  # white space of the manifest, or a letter's other escape: what it says must be the same
            assert saved.newest().manifest == truth.manifest
            harmless += 1
        file.write_bytes(whole)
    assert harmless < 50


def test_where_no_generation_can_be_trusted_it_says_which_and_why(saved):
    for number in ("000001", "000002"):
        (saved.folder / number / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"generation 2 is passed over.*generation 1 is passed over") as caught:
        saved.newest()
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m | {"files": m["files"] | {"../../../etc/passwd": {"sha256": "0", "bytes": 1}}},
        lambda m: m | {"files": m["files"] | {"/etc/passwd": {"sha256": "0", "bytes": 1}}},
        lambda m: m | {"files": {k: v for k, v in m["files"].items() if k != "rng.safetensors"}},
        lambda m: m | {"files": m["files"] | {"rng.safetensors": {"sha256": "0", "bytes": -1}}},
        lambda m: m | {"files": m["files"] | {"rng.safetensors": {"sha256": "0", "bytes": 10**18}}},
        lambda m: m | {"files": m["files"] | {"rng.safetensors": None}},
        lambda m: m | {"files": []},
        lambda m: m | {"schema": 2},
        lambda m: [m],
    ],
    ids=["up", "absolute", "missing", "negative", "huge", "nothing", "list", "newer schema", "no object"],
)
def test_a_manifest_that_names_anything_else_is_refused_though_sealed(saved, spoil):
    """Path traversal and absolute paths; sizes that lie; another schema."""
    path = saved.folder / "000002" / "manifest.json"
    made = spoil({k: v for k, v in json.loads(path.read_bytes()).items() if k != "sha256"})
    path.write_text(json.dumps(safe.seal(made) if isinstance(made, dict) else made))
    assert steps(saved) == (1, 1)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "loop", "link to the whole generation"])
def test_what_is_no_regular_file_is_refused_at_once(saved, tmp_path, kind):
    here = saved.folder / "000002"
    file = here / "model.safetensors"
    content = file.read_bytes()
    start = time.process_time()  # a pipe that is waited for would end in pytest's own time limit
    if kind == "link to the whole generation":
        here.rename(tmp_path / "elsewhere")
        here.symlink_to(tmp_path / "elsewhere")
    else:
        file.unlink()
        (tmp_path / "elsewhere").write_bytes(content)
        {
            "folder": file.mkdir,
            "pipe": lambda: os.mkfifo(file),
            "link": lambda: file.symlink_to(tmp_path / "elsewhere"),
            "loop": lambda: file.symlink_to(file),
        }[kind]()
    assert steps(saved) == (1, 1)
    assert time.process_time() - start < 1


# safetensors and JSON, made by a stranger


def tensors(header, data=b""):
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BAD_TENSORS = {
    "empty": b"",
    "text": b"hello, world: no tensors here",
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "zip": b"PK\x03\x04" + bytes(60),
    "header longer than the file": (10**12).to_bytes(8, "little") + b"{}",
    "header of 100 MB": (10**8).to_bytes(8, "little") + bytes(100),
    "tensor of 10^12 elements": tensors({"w": F32 | {"shape": [10**12], "data_offsets": [0, 4 * 10**12]}}, bytes(4)),
    "tensor of 10^12 elements on four bytes": tensors({"w": F32 | {"shape": [10**12]}}, bytes(4)),
    "negative shape": tensors({"w": F32 | {"shape": [-1]}}, bytes(4)),
    "shape of 2^64": tensors({"w": F32 | {"shape": [2**32, 2**32, 0]}}),
    "unknown dtype": tensors({"w": F32 | {"dtype": "os.system"}}, bytes(4)),
    "shape of strings": tensors({"w": F32 | {"shape": ["1"]}}, bytes(4)),
    "overlapping tensors": tensors({"w": F32, "v": F32}, bytes(8)),
    "holes": tensors({"w": F32 | {"data_offsets": [4, 8]}}, bytes(8)),
    "long name": tensors({"w" * 10_000: F32}, bytes(4)),
    "list": tensors([1, 2]),
    "metadata that is none": tensors({"__metadata__": 3, "w": F32}, bytes(4)),
    "deep": tensors(b"[" * 100_000 + b"]" * 100_000),
    "not utf-8": tensors(b'{"\xff": 1}'),
    "name twice": tensors(b'{"w": 1, "w": 2}'),
    "wrong seal": tensors({"__metadata__": {"sha256": "0" * 64}, "w": F32}, bytes(4)),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_tensors_of_a_stranger_are_refused(tmp_path, kind):
    file = tmp_path / "model.safetensors"
    file.write_bytes(BAD_TENSORS[kind])
    with pytest.raises(RunFolderError, match=r"model\.safetensors is damaged"):
        safe.parse(safe.read_bytes(file), file)


def test_many_tensors_and_files_of_holes_are_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(tensors({f"{i}": F32 | {"shape": [0], "data_offsets": [0, 0]} for i in range(24_000)}))
    with pytest.raises(RunFolderError, match="24,000 tensors"):
        safe.read_header(file)
    head = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    with file.open("wb") as hollow:
        hollow.write(len(head).to_bytes(8, "little") + head)
        hollow.truncate(8 + len(head) + 4 * 10**12)
    with pytest.raises(RunFolderError, match="holes"):
        safe.read_header(file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b"[" * 70 + b"]" * 70,
        b"[" * 10**6,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=["nothing", "half", "bytes", "nan", "overflow", "infinity", "twice", "70 deep", "10^6 deep", "10^4 digits"],
)
def test_json_of_a_stranger_is_refused(content):
    with pytest.raises(RunFolderError, match=r"config\.json is damaged"):
        safe.parse_json(content, Path("config.json"))


def test_a_seal_under_a_damaged_name_is_none(tmp_path):
    """A flipped bit in the name leaves a record without a seal, as older versions wrote them, but for one entry."""
    record = safe.seal({"epoch": 1, "elbo": -1.5})
    safe.check_seal(record, tmp_path)
    record["wha256"] = record.pop("sha256")
    with pytest.raises(RunFolderError, match="SHA-256"):
        safe.check_seal(record, tmp_path)
    safe.check_seal({"epoch": 1, "weights": "0" * 64}, tmp_path)


def test_a_seal_is_of_all_else_in_the_record():
    record = safe.seal({"a": 1.5, "b": ["é", None]})
    safe.check_seal(record, Path("x"))
    safe.check_seal({"a": 1}, Path("x"))  # from before there were seals
    with pytest.raises(RunFolderError, match="changed since it was written"):
        safe.check_seal(record | {"a": 1.25}, Path("x"))


def test_sealed_tensors_come_back_and_a_flipped_byte_does_not(tmp_path):
    held = {"a": torch.randn(3), "b": torch.tensor(True), "c": torch.randn(2, 0), "d": torch.randn(4).bfloat16()}
    content = safe.dump(held | {"e": held["a"]})  # shares memory
    back = safe.parse(content, tmp_path)
    assert back.keys() == held.keys() | {"e"} and all(torch.equal(back[k], held[k]) for k in held)
    with pytest.raises(RunFolderError, match="SHA-256"):
        safe.parse(content[:-1] + bytes([content[-1] ^ 1]), tmp_path)


# writing


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a"
    atomic.write_atomic(file, "first")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(StorageError, match="Free some space and go on") as caught:
                atomic.write_atomic(file, "second")
        assert caught.value.exit_code == 6
        assert [p.name for p in tmp_path.iterdir()] == ["a"] and file.read_text() == "first"


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path, monkeypatch):
    """Whose name nobody can foretell; and the leftover of a dead process with the same number is in nobody's way."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".a.{os.getpid()}.part").symlink_to(tmp_path / "victim")
    atomic.write_atomic(tmp_path / "a", "ours")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda count: "0" * 2 * count)
    (tmp_path / f".a.{os.getpid()}.00000000.part").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError):
        atomic.write_atomic(tmp_path / "a", "theirs")
    assert (tmp_path / "victim").read_text() == "mine"


STEPS = [*GROUPS, "config.json", "metrics.jsonl", "model.safetensors"]


def write_what_is_too_large(here, step):
    small, large = {"w": torch.ones(8)}, {"w": torch.ones(2**18)}
    if step in GROUPS:
        Checkpoints(here).save({"step": 2}, {group: large if group == step else small for group in GROUPS})
    elif step == "model.safetensors":
        save_model(here, torch.nn.Linear(512, 512))
    elif step == "config.json":
        folder.write_json(here / step, {"a": "b" * 2**20})
    else:
        folder.append_line(here / step, {"a": "b" * 2**20})


def fill(here):
    """Run in a child: each writing step on a disk that is too small for it."""
    mount_small_disk(here, "256k")
    saved = Checkpoints(here)
    for step in STEPS:
        saved.save({"step": 1}, {group: {"w": torch.ones(8)} for group in GROUPS})
        (here / "config.json").write_text("{}")
        said = "nothing"
        try:
            write_what_is_too_large(here, step)
        except StorageError as error:
            said = f"StorageError {error}"
        left = [p.name for p in here.rglob("*") if ".part" in p.name]
        print(f"== {said} left {left} step {saved.newest().head['step']} config {(here / 'config.json').read_text()}")
        for entry in here.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """What each writing step does on a tmpfs of 256 KiB, in a user namespace of its own."""
    skip_without("-rm")
    said = printed_by(fill, tmp_path_factory.mktemp("disk"))
    return dict(zip(STEPS, said.split("== ")[1:], strict=True))


@linux
@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_loses_nothing_in_any_writing_step(full_disk, step):
    said = full_disk[step]
    assert "StorageError" in said and "Free some space and go on" in said
    assert "left [] step 1 config {}" in said


def test_a_read_only_or_vanished_folder_is_a_storage_error(tmp_path):
    saved = Checkpoints(tmp_path / "gone")
    with pytest.raises(StorageError, match="was it moved or deleted"):
        saved.save({}, groups(1))
    with pytest.raises(StorageError):
        folder.append_line(tmp_path / "gone" / "metrics.jsonl", {})
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(StorageError):
            folder.make(tmp_path / "locked")


def test_leftovers_of_killed_writers_are_swept(saved):
    left = saved.folder / ".000009.1234.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    saved.save({"step": 3}, groups(3))
    assert sorted(p.name for p in saved.folder.iterdir()) == ["000002", "000003"]


# one writer, any readers


def race(path, start, out, refused):
    start.wait()
    try:
        with locked(path):
            saved = Checkpoints(path)
            step = saved.newest().head["step"] + 1
            saved.save({"step": step}, groups(step))
            refused.wait(60)  # however slow the machine is, all have tried before the lock is free
            out.put((os.getpid(), "wrote", step))
    except BusyError as error:
        out.put((os.getpid(), str(error), error.exit_code))


def test_of_eight_processes_one_writes_and_seven_are_told_who(tmp_path):
    fork = multiprocessing.get_context("fork")
    Checkpoints(tmp_path).save({"step": 1}, groups(1))
    for turn in range(50 if HEAVY else 4):
        start, out, refused = fork.Event(), fork.Queue(), fork.Event()
        racers = [fork.Process(target=race, args=(tmp_path, start, out, refused)) for _ in range(8)]
        for racer in racers:
            racer.start()
        start.set()
        said = [out.get(timeout=60) for _ in racers[1:]]
        refused.set()
        said.append(out.get(timeout=60))
        for racer in racers:
            racer.join()
        (winner,) = [pid for pid, what, _ in said if what == "wrote"]
        assert [code for _, what, code in said if what != "wrote"] == [75] * 7
        assert all(f"process {winner} on " in what and " since 20" in what for _, what, _ in said if what != "wrote")
        assert steps(Checkpoints(tmp_path)) == (turn + 2, 0)


def hold(path, ready):
    with locked(path):
        ready.set()
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    owner = fork.Process(target=hold, args=(tmp_path, ready))
    owner.start()
    assert ready.wait(30)
    with pytest.raises(BusyError, match=f"process {owner.pid}"), locked(tmp_path):
        pass
    owner.kill()
    owner.join()
    with locked(tmp_path):
        pass


def refuse(path):
    """Run in a child: the lock of a folder is another's."""
    with pytest.raises(BusyError) as refused, locked(path):
        pass
    print(refused.value)


def test_a_pipe_in_the_place_of_the_lock_s_owner_is_not_waited_for(tmp_path):
    """Whoever is refused reads who holds the lock; what a stranger put there must not hold it up."""
    with locked(tmp_path):
        (tmp_path / ".lock.json").unlink()
        os.mkfifo(tmp_path / ".lock.json")
        assert "written to by another process" in printed_by(refuse, tmp_path, seconds=60)


def write_until(path, end):
    saved, step = Checkpoints(path), 1
    while time.monotonic() < end or step < 6:
        step += 1
        saved.save({"step": step}, groups(step))


def test_a_reader_beside_a_writer_never_sees_a_torn_state(tmp_path):
    seconds = 60 if HEAVY else 3
    saved = Checkpoints(tmp_path)
    saved.save({"step": 1}, groups(1))
    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=write_until, args=(tmp_path, time.monotonic() + seconds))
    writer.start()
    seen = []
    while writer.is_alive():
        step, passed_over = steps(saved)
        seen.append((step, passed_over))
    writer.join()
    assert len({step for step, _ in seen}) > 3 and [step for step, _ in seen] == sorted(step for step, _ in seen)


def test_reading_a_bomb_takes_no_memory(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(BAD_TENSORS["tensor of 10^12 elements on four bytes"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunFolderError):
        safe.read_header(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB
