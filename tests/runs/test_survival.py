"""Whole runs that are killed, cut off, forked, damaged: nothing that was saved is lost, and nothing wrong is told."""

import json
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_vae.cli.main import main
from pyro_vae.errors import (
    BusyError,
    CheckpointError,
    DataError,
    Interrupted,
    PyroVAEError,
    RunFolderError,
    StorageError,
)
from pyro_vae.evidence.importance.storage import load_evidence
from pyro_vae.runs import evaluate_run as evaluate_run_module
from pyro_vae.runs import folder
from pyro_vae.runs import train_run as train_run_module
from pyro_vae.runs.checkpoint import Checkpoints
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.load import load_run
from pyro_vae.runs.lock import locked
from pyro_vae.runs.particle_cache import ParticleCache
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from pyro_vae.runs.weights import save_model
from tests.helpers import kills
from tests.helpers.bits import same
from tests.helpers.children import printed_by
from tests.helpers.environment import HEAVY
from tests.helpers.namespaces import linux, mount_small_disk, skip_without

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train_run_module, "draw_figures", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    x = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(x, np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    return x


@pytest.fixture(scope="module")
def config(data):
    return Config(data=str(data), hidden=(4,), latent_dim=2, epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run_module, "draw_figures", lambda *_: None)
        train_run(config, path, num_samples=20, device="cpu")
    return path


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_killed_at_any_moment_a_run_ends_as_it_would_have(tmp_path):
    """kill −9, inside every window of a save and at random times, in processes of their own."""
    times = 20 if HEAVY else 4
    said = printed_by(kills.main, tmp_path, times, [])
    whole, *cut = [json.loads(line) for line in said.splitlines()]
    assert len(cut) == times and any(made["codes"][0] == -9 for made in cut)
    for made in cut:
        assert made["codes"][-1] == 0 and whole["half-written"] == []
        assert set(made["seen"]) <= {"no whole run", "one generation"} and made["seen"][-1] == "one generation"
        assert {k: v for k, v in made.items() if k not in ("how", "codes", "seen")} == {
            k: whole[k] for k in whole if k != "how"
        }


@pytest.mark.skipif(not HEAVY, reason="20 lives under each of three engines, of minutes")
def test_killed_in_training_resumption_evaluation_and_export_a_reader_sees_one_generation(tmp_path):
    said = printed_by(kills.main, tmp_path, 20, ["eager", "trace", "compile"], seconds=3600)
    lives = [made for made in (json.loads(line) for line in said.splitlines() if line[:1] == "{") if "same" in made]
    assert len(lives) == 60 and sum(code == -9 for made in lives for code in made["codes"]) > 100
    for made in lives:
        assert set(made["seen"]) <= {"no whole run", "one generation"} and made["same"], made
        assert set(made["exported"]) <= {"nothing", "whole"} and made["exported"][-1] == "whole", made


# going on


def test_changed_options_are_refused_with_a_table_unless_forked(run, config, tmp_path, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    changed = ["--latent-dim", "3", "--learning-rate", "0.01"]
    assert main(["train", "--resume", str(run), *changed, "--device", "cpu"]) == 4
    said = capsys.readouterr().err
    assert "latent_dim     2           3" in said and "learning_rate  0.001       0.01" in said and "--fork" in said
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    fork = ["--fork", str(tmp_path / "b"), "--learning-rate", "0.01", "--epochs", "3", "--num-samples", "5"]
    assert main(["train", "--resume", str(run), *fork, "--device", "cpu"]) == 0
    record = folder.read_config(tmp_path / "b")
    assert record["config"]["learning_rate"] == 0.01 and record["forked_from"] == str(run.resolve())
    assert [m["epoch"] for m in folder.read_lines(tmp_path / "b" / "metrics.jsonl")] == [1, 2, 3]
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "a", "--resume", "b"], "say --run FOLDER for a new run, or --resume"),
        (["--run", "a", "--fork", "b"], "--fork NEW goes with --resume"),
    ],
)
def test_a_run_is_new_or_gone_on_with(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text('{"schema": 1, "config": {}, "data": {"digest": "x"}}')
    assert main(["train", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_changed_data_is_refused(run, config, data, tmp_path):
    x = np.load(data)
    moved = tmp_path / "x.npy"
    np.save(moved, x)
    record = folder.read_config(run)
    record["config"]["data"] = str(moved)
    folder.write_json(run / "config.json", record)
    assert resume_run(run, device="cpu")["num_samples"] == 20  # the same bytes, elsewhere
    x[3, 2] += 1e-3
    np.save(moved, x)
    with pytest.raises(CheckpointError, match=r"data \(SHA-256\)"):
        resume_run(run, device="cpu")
    with pytest.raises(RunFolderError, match="has changed"):
        evaluate_run(run, device="cpu")


def test_other_versions_go_on_and_say_so(config, tmp_path, monkeypatch, capsys):
    cut(config, tmp_path / "run", monkeypatch)
    monkeypatch.setattr("pyro_vae.runs.resume_run.versions", lambda: {"pyro-ppl": "9.9"})
    evidence = resume_run(tmp_path / "run", device="cpu", num_samples=5)
    assert "not bit-exact" in (said := capsys.readouterr().err) and "pyro-ppl" in said
    assert evidence["training"]["resumed"] == {"times": 1, "exact": False}


def cut(config, path, monkeypatch, epoch=1):
    """A run whose user's terminal is closed after an epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(train_run_module.Curve, "__call__", interrupting(train_run_module.Curve.__call__, epoch))
        with pytest.raises(Interrupted, match="go on with: pyro-vae train --resume"):
            train_run(config, path, device="cpu", num_samples=5)


def interrupting(call, epoch):
    def interrupted(self, record):
        made = call(self, record)
        if record["epoch"] > epoch:
            raise KeyboardInterrupt
        return made

    return interrupted


def test_a_run_in_training_can_be_read(config, tmp_path, monkeypatch):
    """From its newest checkpoint, before there is a model.safetensors; of a damaged one, from the one before."""
    cut(config, tmp_path / "run", monkeypatch)
    (tmp_path / "run" / "model.safetensors").unlink()
    held = load_run(tmp_path / "run").vae.state_dict()
    newest = Checkpoints(tmp_path / "run").newest()
    assert all(torch.equal(held[name], newest.groups["best"][name]) for name in held)
    spoiled = tmp_path / "run" / "checkpoints" / f"{newest.number:06d}" / "best.safetensors"
    spoiled.write_bytes(spoiled.read_bytes()[:-1])
    assert load_run(tmp_path / "run").vae is not None


def test_a_damaged_checkpoint_is_gone_back_from_and_said(config, trained, tmp_path, monkeypatch, capsys):
    cut(config, tmp_path / "run", monkeypatch)
    saved = Checkpoints(tmp_path / "run")
    newest = saved.folder / f"{saved.numbers()[0]:06d}" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    resume_run(tmp_path / "run", device="cpu", num_samples=20)
    assert "is passed over" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_a_second_writer_exits_75_and_changes_no_byte(run, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with locked(run):
        assert main(["train", "--resume", str(run), "--device", "cpu"]) == 75
    with locked(run, folder.EVALUATION_LOCK):
        assert main(["evaluate", str(run), "--num-samples", "5", "--device", "cpu"]) == 75
    assert f"process {os.getpid()} on " in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with locked(run), pytest.raises(BusyError):
        train_run(Config(data="digits"), run, overwrite=True, device="cpu")


def train_on_a_small_disk(disk, config):
    """Run in a child: a training whose disk is full at its fourth step, and that goes on once there is room."""
    mount_small_disk(disk, "2m")
    train_run_module.draw_figures = evaluate_run_module.draw_khat = lambda *_: None
    run, filler, filled, real = disk / "run", disk / "filler", [], Checkpoints.save

    def save(self, head, groups, **where):
        if where["step"] == 4 and not filled:
            filled.append(True)
            with suppress(OSError):
                filler.write_bytes(bytes(2**24))  # as much as there is room for
        return real(self, head, groups, **where)

    Checkpoints.save = save
    try:
        train_run(config, run, num_samples=20, minutes=0, device="cpu")
    except StorageError as error:
        print(error.exit_code, [str(p) for p in run.rglob("*.part")], Checkpoints(run).newest().manifest["step"])
    filler.unlink()
    resume_run(run, num_samples=20, minutes=0, device="cpu")
    print((run / "model.safetensors").read_bytes().hex())


@linux
def test_a_run_on_a_disk_that_fills_up_stops_and_goes_on_exactly_once_there_is_room(trained, config, tmp_path):
    skip_without("-rm")
    disk = tmp_path / "disk"
    disk.mkdir()
    said = printed_by(train_on_a_small_disk, disk, config).splitlines()
    assert said[0] == "6 [] 3" and bytes.fromhex(said[1]) == (trained / "model.safetensors").read_bytes()


def test_a_folder_that_vanishes_is_a_storage_error(config, tmp_path, monkeypatch):
    real = train_run_module.Curve.__call__

    def vanish(self, record):
        shutil.rmtree(self.path)
        return real(self, record)

    monkeypatch.setattr(train_run_module.Curve, "__call__", vanish)
    with pytest.raises(StorageError, match="was it moved or deleted"):
        train_run(config, tmp_path / "run", device="cpu")


# divergence


def test_a_run_that_diverges_is_replayed_by_one_command(config, tmp_path, capsys):
    options = ["--data", config.data, "--hidden", "4", "--latent-dim", "2", "--batch-size", "16", "--device", "cpu"]
    wild = ["--learning-rate", "1e20", "--warmup", "0", "--schedule", "constant"]
    assert main(["train", "--run", str(tmp_path / "a run"), *options, *wild]) == 5
    said = capsys.readouterr().err
    assert "First bad site: " in said and f"replay it with: pyro-vae replay '{tmp_path}/a run'" in said
    assert main(["replay", str(tmp_path / "a run")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "reproduced" and lines[0].startswith("then: step")
    capsule = tmp_path / "a run" / "divergence" / "capsule.safetensors"
    capsule.write_bytes(capsule.read_bytes()[:-1])
    assert main(["replay", str(tmp_path / "a run")]) == 4
    shutil.rmtree(capsule.parent)
    assert main(["replay", str(tmp_path / "a run")]) == 4


# evaluation


@pytest.fixture(scope="module")
def many(config, tmp_path_factory):
    """A run with some blocks of test rows, and what an evaluation of it comes to."""
    here = tmp_path_factory.mktemp("many")
    np.save(here / "x.npy", np.random.default_rng(1).normal(size=(1500, 6)).astype(np.float32))
    made = Config(**(config.__dict__ | {"data": str(here / "x.npy"), "epochs": 1, "batch_size": 500}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_run_module, "draw_figures", lambda *_: None)
        train_run(made, here / "run", device="cpu", num_samples=10)
    whole = evaluate_run(here / "run", num_samples=70, device="cpu")
    return here / "run", whole["log_px"], (here / "run" / "evidence.csv").read_bytes()


def killed_evaluation(run, blocks=2):
    """An evaluation in a child that is killed, kill -9, after some blocks; each is written at once."""
    child = os.fork()
    if not child:
        real, taken = ParticleCache.update, []

        def take(self, ledgers, said):
            self.wait = 0
            real(self, ledgers, said)
            taken.append(1)
            if len(taken) == blocks:
                os.kill(os.getpid(), 9)

        ParticleCache.update = take
        with suppress(BaseException):
            evaluate_run(run, num_samples=70, device="cpu")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    return run / "particles-test.safetensors"


def test_a_killed_evaluation_goes_on_block_by_block_to_the_same_bits(many, capsys):
    run, log_px, table = many
    kept = killed_evaluation(run)
    assert load_evidence(kept).samples.tolist() == [70] * 128
    again = evaluate_run(run, num_samples=70, device="cpu", resume=True)
    assert "128 rows have up to 70 particles from before" in capsys.readouterr().err
    assert again["log_px"] == log_px and (run / "evidence.csv").read_bytes() == table
    assert len(load_evidence(kept)) == 150  # of all rows, for more
    kept.unlink()
    evaluate_run(run, num_samples=70, device="cpu")
    assert not kept.exists()  # nothing was asked to be kept


def test_particles_that_nobody_asked_for_go_and_those_of_another_evaluation_stay(many, monkeypatch):
    run, _, _ = many
    kept = killed_evaluation(run)
    left = kept.read_bytes()
    evaluate_run(run, num_samples=10, device="cpu")  # over before it has written any of its own
    assert kept.read_bytes() == left
    monkeypatch.setattr("pyro_vae.runs.particle_cache.SECONDS", 0.0)
    evaluate_run(run, num_samples=70, device="cpu")  # written on the way
    assert not kept.exists()


def test_damaged_particles_are_refused_at_any_byte(many):
    run, _, table = many
    kept = killed_evaluation(run, 1)
    whole, draw = kept.read_bytes(), random.Random(0)
    counted = whole.replace(b"[0, 64, 70,", b"[0, 64, 71,")  # a digit of how many particles there are
    kept.write_bytes(counted)
    assert counted != whole
    with pytest.raises(DataError, match="SHA-256"):
        load_evidence(kept)
    head = 8 + int.from_bytes(whole[:8], "little")
    for turn in range(100):
        spoiled = bytearray(whole)
        spoiled[draw.randrange(head if turn % 2 else len(whole))] ^= 1 << draw.randrange(8)
        kept.write_bytes(spoiled)
        with suppress(RunFolderError, DataError):
            evaluate_run(run, num_samples=70, device="cpu", resume=True)
            assert (run / "evidence.csv").read_bytes() == table  # the name of a seal was hit: nothing else is
    kept.unlink()


def test_particles_of_other_weights_or_data_are_not_gone_on_from(many, tmp_path):
    run, _, _ = many
    killed_evaluation(run)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    opened = load_run(copy)
    next(opened.vae.parameters()).data[0] += 1
    save_model(copy, opened.vae)
    with pytest.raises(CheckpointError, match="particles of other weights than the run's"):
        evaluate_run(copy, num_samples=70, device="cpu", resume=True)
    shutil.copy(copy / "particles-test.safetensors", copy / "particles-validation.safetensors")
    save_model(copy, load_run(run).vae)
    with pytest.raises(CheckpointError, match="particles of other split"):
        evaluate_run(copy, num_samples=70, device="cpu", resume=True, split="validation")
    (run / "particles-test.safetensors").unlink()


# every bit of a run


def every(path):
    """What the package tells of a run: its weights, its numbers, how it compares."""
    opened = load_run(path)
    weights = {name: tensor.clone() for name, tensor in opened.vae.state_dict().items()}
    summary, table = folder.read_evidence(path)
    return (
        weights,
        opened.config,
        {k: v for k, v in opened.record.items() if k != "sha256"},
        opened.evidence,
        summary,
        table,
        folder.read_lines(path / "metrics.jsonl"),
    )


def test_bits_flipped_over_every_file_of_a_run_are_detected_or_change_nothing_that_is_told(run):
    draw, truth = random.Random(0), every(run)
    files = [
        run / name for name in ("config.json", "model.safetensors", "evidence.json", "evidence.csv", "metrics.jsonl")
    ]
    harmless = []
    for turn in range(500 if HEAVY else 60):
        file = files[turn % len(files)]
        whole = file.read_bytes()
        spoiled = bytearray(whole)
        spoiled[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        file.write_bytes(spoiled)
        try:
            told = every(run)
            if len(told[-1]) < len(truth[-1]):  # the end of the last line was hit: that record counts as torn by a kill
                told = (*told[:-1], [*told[-1], truth[-1][-1]])
            assert strip(told) == strip(truth) or (same(told[0], truth[0]) and told[1:] == truth[1:]), (file, turn)
            harmless.append(file.name)
        except RunFolderError:
            pass
        file.write_bytes(whole)
    assert harmless.count("evidence.csv") == 0 and len(harmless) < (60 if HEAVY else 10)


def test_a_bit_flipped_in_the_metrics_is_detected_or_costs_the_last_epoch(run):
    """Each bit of the end of every line, where a line may become two or none, and 300 others."""
    file, draw = run / "metrics.jsonl", random.Random(0)
    whole, truth = file.read_bytes(), folder.read_lines(file)
    ends = [i for i, byte in enumerate(whole) if byte == 10]
    places = [(i, bit) for i in ends for bit in range(8)]
    places += [(draw.randrange(len(whole)), draw.randrange(8)) for _ in range(300)]
    detected = 0
    for place, bit in places:
        spoiled = bytearray(whole)
        spoiled[place] ^= 1 << bit
        file.write_bytes(spoiled)
        try:
            told = [{k: v for k, v in record.items() if len(str(v)) != 64} for record in folder.read_lines(file)]
            assert told == truth or (place == ends[-1] and told == truth[:-1]), (place, bit)
        except RunFolderError:
            detected += 1
    assert detected > 280


def strip(told):
    """Without seals and versions of keys: a flip in a seal's own name leaves all else as it was."""
    return str(
        [{k: v for k, v in part.items() if len(str(v)) != 64} if isinstance(part, dict) else part for part in told]
    )


@pytest.mark.parametrize("name", ["config.json", "evidence.json", "model.safetensors", "evidence.csv"])
def test_a_file_of_a_run_cut_anywhere_is_detected(run, name):
    truth, file = every(run), run / name
    whole = file.read_bytes()
    for length in sorted({*range(0, len(whole), 1 if HEAVY else 97), *range(len(whole) - 4, len(whole))}):
        file.write_bytes(whole[:length])
        with suppress(PyroVAEError):
            told = every(run)
            assert same(told[0], truth[0]) and told[1:] == truth[1:] and whole[length:] == b"\n"


def test_nan_weights_are_handed_out_only_where_asked_for(run):
    from safetensors.torch import load_file, save_file

    state = {
        name: t * torch.nan if t.is_floating_point() else t for name, t in load_file(run / "model.safetensors").items()
    }
    save_file(state, run / "model.safetensors")
    with pytest.raises(RunFolderError, match="allow_nonfinite=True"):
        load_run(run)
    assert load_run(run, allow_nonfinite=True).vae is not None
