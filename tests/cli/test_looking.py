"""Nothing that was written is lost by looking at it: other rows, methods, proposals, samples and pictures."""

import json
import os
import re
import shutil
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyro_vae import ais, load_run
from pyro_vae.cli.main import main
from pyro_vae.common.digests import sha256
from pyro_vae.plots import figures
from pyro_vae.runs import folder
from pyro_vae.runs.evaluate_run import LEAPFROGS
from pyro_vae.runs.evaluations import EvaluationName, evaluations
from pyro_vae.runs.load import open_data
from pyro_vae.runs.report.facts import read_facts
from pyro_vae.runs.report.page import evaluations_of
from pyro_vae.runs.report.words import evaluation_command
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import Curve
from tests.helpers import pilots
from tests.helpers.children import Child
from tests.helpers.command_line import quiet_command, small
from tests.helpers.data import few_digits
from tests.helpers.environment import HEAVY

K = ["--num-samples", "20"]
OTHERS = {
    "fewer rows": (["--rows", "5", *K], "test-first-5"),
    "another split": (["--split", "validation", *K], "validation"),
    "another proposal": (["--proposal", "widened", *K], "test-widened"),
    "annealing": (["--rows", "4", "--method", "annealing", "--num-temperatures", "3"], "test-first-4-annealing"),
    "an oracle": (["--rows", "2", "--method", "auto", *K], "test-first-2-exact"),
    "fewer samples": (["--num-samples", "7"], "test-k7"),
    "several": (["--split", "train", "--rows", "3", "--proposal", "defensive", *K], "train-first-3-defensive"),
}


def contents(run):
    """Every file of a run that is no lock."""
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and ".lock" not in p.name}


@pytest.mark.parametrize("look", OTHERS)
def test_a_look_overwrites_no_file_and_has_its_own(run, look, device):
    options, name = OTHERS[look]
    before = contents(run)
    assert main(["evaluate", str(run), *options, "--device", str(device)]) == 0
    after = contents(run)
    history = run / folder.HISTORY
    assert {p: c for p, c in after.items() if p in before and p != history} == {
        p: c for p, c in before.items() if p != history
    }
    assert after[history].startswith(before[history])
    found = folder.read_sealed(run / f"evidence-{name}.json")
    assert (run / f"evidence-{name}.csv").is_file() and str(EvaluationName(**found["evaluation"])) == name
    lines = folder.read_lines(history)
    assert [line["file"] for line in lines] == ["evidence.json", f"evidence-{name}.json"]
    assert lines[1]["log_px"] == found["log_px"] and lines[1]["time"] == found["time"]
    assert load_run(run).evidence["num_samples"] == 20  # that of training


def test_one_thing_is_counted_as_one(run, capsys):
    assert main(["evaluate", str(run), "--rows", "1", "--num-samples", "3"]) == 0
    assert main(["show", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "first 1 row (1 row)" in printed and "of 1 row " in printed
    assert not re.search(r"\b1 [a-z]+s\b", printed)


def test_new_rows_are_told_by_their_file(run, tmp_path, capsys):
    for i, rows in enumerate((1, 3)):
        np.save(tmp_path / f"later{i}.npy", np.full((rows, 1, 8, 8), i, dtype=np.float32))
        assert main(["evaluate", str(run), "--data", str(tmp_path / f"later{i}.npy"), "--num-samples", "3"]) == 0
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(r"also new-\w{8} \(later0.npy, 1 row\): ", shown)
    assert re.search(r"also new-\w{8} \(later1.npy, 3 rows\): ", shown)
    assert "(later1.npy, 3 rows)" in str(evaluations_of(read_facts(run)))


def test_what_else_we_wrote_is_told_from_a_run(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "functions"), "--torch"]) == 0
    (tmp_path / "board").mkdir()
    (tmp_path / "board" / "events.out.tfevents.1.host.1.0").touch()
    for name, told in (
        ("functions", "functions of tensors, which export --torch"),
        ("board", "what TensorBoard shows"),
    ):
        assert main(["evaluate", str(tmp_path / name)]) == 4
        assert f"{name} holds {told}" in (said := capsys.readouterr().err) and "train --run made" in said


def test_the_same_evaluation_again_and_more_of_it_take_its_place(run):
    for count in (20, 30, 10, 30):
        assert main(["evaluate", str(run), "--num-samples", str(count)]) == 0
    found = {e.stem: e.summary["num_samples"] for e in evaluations(run)}
    assert found == {"evidence": 30, "evidence-test-k10": 10}
    assert [line["num_samples"] for line in folder.read_lines(run / folder.HISTORY)] == [20, 20, 30, 10, 30]
    folder.clear(run)
    assert not list(run.glob("*evidence*")) and not (run / folder.HISTORY).exists()


@pytest.mark.parametrize(
    ("split", "rows", "stem"),
    [("digits, validation", 180, "evidence-validation"), ("digits, test, first 9 rows", 9, "evidence-test-first-9")],
    ids=["split", "rows"],
)
def test_evidence_of_an_older_version_is_found_and_moves_to_its_own_name(run, split, rows, stem):
    """There, evidence.json was of whatever was scored last, and did not say of what but for `split`."""
    old = {
        k: v for k, v in folder.read_json(run / "evidence.json").items() if k not in ("evaluation", "time", "weights")
    }
    folder.write_json(run / "evidence.json", old | {"split": split, "rows": rows})
    (run / folder.HISTORY).unlink()
    (only,) = evaluations(run)
    assert (only.stem, only.name.named("evidence"), only.rows_of[1]) == ("evidence", stem, rows)
    table = (run / "evidence.csv").read_bytes()
    assert main(["evaluate", str(run), *K]) == 0
    assert folder.read_json(run / f"{stem}.json")["split"] == split and (run / f"{stem}.csv").read_bytes() == table
    assert [e.stem for e in evaluations(run)] == ["evidence", stem]


def test_a_newer_evaluation_of_the_same_rows_is_not_lost_when_the_old_one_moves(run):
    assert main(["evaluate", str(run), "--split", "validation", "--num-samples", "30"]) == 0
    newer = (run / "evidence-validation.json").read_bytes()
    old = {
        k: v for k, v in folder.read_json(run / "evidence.json").items() if k not in ("evaluation", "time", "weights")
    }
    folder.write_json(run / "evidence.json", old | {"split": "digits, validation"})
    (run / "evidence.csv").unlink()  # as in results/, where a table is left out
    assert main(["evaluate", str(run), *K]) == 0
    assert (run / "evidence-validation.json").read_bytes() == newer
    assert folder.read_json(run / "evidence-validation-k20.json")["split"] == "digits, validation"


def test_evidence_of_weights_from_before_is_not_mixed_with_that_of_now(run):
    """Training went on since: what was scored before is left alone, and not read beside the new."""
    assert main(["evaluate", str(run), "--rows", "5", *K]) == 0
    old = folder.read_json(run / "evidence-test-first-5.json")
    folder.write_json(run / "evidence-test-first-5.json", old | {"weights": "0" * 64})
    assert [e.stem for e in evaluations(run)] == ["evidence"]


def test_a_torn_history_costs_no_evidence(run):
    assert main(["evaluate", str(run), "--rows", "5", *K]) == 0
    history = run / folder.HISTORY
    history.write_text(history.read_text()[:-9])
    assert len(evaluations(run)) == 2
    assert main(["evaluate", str(run), "--rows", "6", *K]) == 0  # its line follows the torn one
    assert len(evaluations(run)) == 3


def test_annealed_evidence_is_compared(run, tmp_path, capsys):
    options = ["--method", "annealing", "--num-temperatures", "5", "--num-chains", "4", "--rows", "8"]
    assert main(["evaluate", str(run), *options]) == 0
    other = shutil.copytree(run, tmp_path / "other")
    said = capsys.readouterr().out
    assert "annealed importance sampling from the guide, 4 chains, 5 temperatures" in said
    assert "100 % of rows flagged" in said  # by so few chains
    assert main(["compare", str(run), str(other), "--rows", "8"]) == 0
    assert main(["compare", str(run), str(other), "--method", "annealing"]) == 0
    said = capsys.readouterr().out
    assert said.count("not to be believed") >= 2 and "8 rows" in said
    assert main(["compare", str(run), str(other), "--split", "train"]) == 4
    assert "only test, test-first-8-annealing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--proposal", "widened"], ["--target-se", "0.1"], ["--resume"]], ids=lambda o: o[0]
)
def test_annealing_refuses_what_it_does_not_take(run, option, capsys):
    assert main(["evaluate", str(run), "--rows", "2", "--method", "annealing", *option]) == 2
    assert f"leave {option[0]} out" in capsys.readouterr().err


def test_chains_are_annealed_in_chunks_of_the_size_that_is_asked_for(run, capsys, monkeypatch):
    """As many (row, chain) pairs as are said, each part with noise of its own, and the evidence and its report say so."""
    monkeypatch.setattr(pilots, "FIRST", 2)  # what is tuned is the same for both, and most of the time
    monkeypatch.setattr(pilots, "TOTAL", 6)
    opened = load_run(run)
    x = open_data(opened).test.x[:1]
    options = ["--rows", "1", "--method", "annealing", "--num-temperatures", "3", "--num-chains", "3", "--chunk-size"]
    numbers = {}
    for size in (16384, 3, 2):  # by default; as small, but one chunk; chains of a row in parts
        assert main(["evaluate", str(run), *options, str(size), "--device", "cpu"]) == 0
        found = folder.read_sealed(run / "evidence-test-first-1-annealing.json")
        assert found["chunk_size"] == size
        numbers[size] = found["log_px"]
        if size < 16384:
            own = ais(
                opened.vae.model, opened.vae.guide, x, start="guide", num_temperatures=3, num_chains=3,
                leapfrog_steps=LEAPFROGS, chunk_size=size, verbose=False,
            )  # fmt: skip
            assert found["log_px"] == own.log_px.mean().item()
    assert numbers[16384] == numbers[3] != numbers[2]
    main_one = SimpleNamespace(name=EvaluationName(**found["evaluation"]))
    facts = SimpleNamespace(path=run, summary=found, main=main_one)
    assert evaluation_command(facts).endswith("--num-chains 3 --num-temperatures 3 --seed 0 --chunk-size 2")


# pictures and arrays


@pytest.mark.parametrize(
    "command",
    [["sample"], ["sample", "--mean"], ["sample", "--seed", "3"], ["encode"], ["reconstruct"], ["interpolate"]],
    ids="-".join,
)
def test_using_a_run_leaves_the_pictures_of_its_training(run, command):
    before = contents(run)
    assert main([*command, str(run)]) == 0
    after = contents(run)
    new = 3 if command[0] in ("encode", "reconstruct") else 2  # the array, its picture, and which rows they are of
    assert {p: after[p] for p in before} == before and len(after) == len(before) + new


def test_a_mean_does_not_overwrite_samples(run):
    assert main(["sample", str(run)]) == 0
    drawn = np.load(run / "samples.npy")
    assert main(["sample", str(run), "--mean"]) == 0
    assert np.array_equal(np.load(run / "samples.npy"), drawn)
    assert not np.array_equal(np.load(run / "sample_means.npy"), drawn)


@pytest.mark.parametrize(
    "error", [ValueError("no such shape"), MemoryError(), *([IndexError("7"), RuntimeError("x")] if HEAVY else [])]
)
def test_a_picture_that_cannot_be_drawn_ends_nothing(train, tmp_path, monkeypatch, capsys, error, drawn):
    few_digits(monkeypatch)

    def broken(*_, **__):
        raise error

    monkeypatch.setattr(figures, "figure", broken)
    for module in ("images", "khat", "latents"):
        monkeypatch.setattr(f"pyro_vae.plots.{module}.figure", broken)
    assert train("run") == 0
    said = capsys.readouterr().err
    assert f"no picture training.png: {type(error).__name__}" in said
    run = tmp_path / "run"
    assert (run / "evidence.json").is_file() and not list((run / "figures").iterdir())
    for command in (["evaluate", str(run), "--num-samples", "30"], ["sample", str(run)]):
        assert main(command) == 0
    assert (run / "samples.npy").is_file()


@pytest.mark.rendered
@pytest.mark.parametrize("shape", [(8, 6, 3), (7,), *([(5, 8, 6), (8, 6, 1), (3, 8, 6), (6, 8)] if HEAVY else [])])
def test_images_of_any_layout_train_and_are_drawn(tmp_path, shape, capsys):
    """Colours, and rows that are no images: each other layout is drawn by itself in tests/plots/test_images.py."""
    x = np.random.default_rng(0).normal(size=(60, *shape)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--likelihood", "normal", "--batch-size", "16", "--epochs", "1", "--num-samples", "30"]
    data = ["--data", str(tmp_path / "x.npy"), "--hidden", "4", "--latent-dim", "2", "--device", "cpu"]
    assert main(["train", "--run", str(tmp_path / "run"), *data, *options]) == 0
    assert "no picture" not in capsys.readouterr().err
    drawn = {p.stem for p in (tmp_path / "run" / "figures").iterdir()}
    assert {"training", "evidence", "samples", "sample_means", "reconstructions", "latent", "khat"} == drawn


# what has not ended


def train_aloud(run, hang_up):
    """Run in a child: a long training that prints each epoch; what it does of itself when its terminal closes."""
    signal.signal(signal.SIGHUP, hang_up)
    call = Curve.__call__

    def aloud(self, record):
        print("epoch", record["epoch"], flush=True)
        return call(self, record)

    Curve.__call__ = aloud
    return quiet_command("train", "--run", str(run), *small("--epochs", "100000", "--device", "cpu"))


def interrupted(run, number, ignored=False):
    """A training that hears a signal in its third epoch, perhaps as ``nohup`` starts it; its exit code."""
    child = Child(train_aloud, run, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        child.until("epoch 3\n")
        child.send_signal(number)
        if ignored:
            child.until("epoch 9\n")  # it goes on
            child.send_signal(signal.SIGTERM)
        child.communicate(60)
    finally:
        child.kill()
    return child.returncode


def test_a_terminal_that_closes_saves_like_sigterm(run, tmp_path, capsys):
    """And the evaluation of what is left says how far the training was, in print, in its file and in a comparison."""
    whole, left = run, tmp_path / "left"
    assert interrupted(left, signal.SIGHUP) == 129
    assert main(["evaluate", str(left), *K, "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    so_far = folder.read_json(left / "evidence.json")["training"]["unfinished"]
    assert so_far["epochs"] == 100000 and so_far["epoch"] >= 3 and so_far["step"] > 10
    assert f"best weights up to epoch {so_far['epoch']} of 100000 (step {so_far['step']})" in said
    assert main(["evaluate", str(whole), *K, "--device", "cpu"]) == 0
    assert "has not ended" not in capsys.readouterr().out
    assert main(["compare", str(left), str(whole)]) == 0
    assert "note: left: the training has not ended" in capsys.readouterr().out


def test_under_nohup_a_hang_up_is_not_heard(tmp_path):
    run = tmp_path / "run"
    assert interrupted(run, signal.SIGHUP, ignored=True) == 143  # of the SIGTERM that follows


def test_a_second_hang_up_does_not_keep_the_state_from_being_saved(tmp_path):
    """A shell that ends and the terminal that closes both send one."""
    from pyro_vae.runs.checkpointer import Checkpointer

    child = os.fork()
    if not child:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also in a suite under nohup
        checkpointer = Checkpointer(tmp_path)
        with checkpointer.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        os._exit(7 if checkpointer.signal == signal.SIGHUP else 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_evidence_of_a_run_that_had_not_ended_is_made_anew_when_it_has(run, capsys):
    """Training was killed between its last checkpoint and its evaluation, after an earlier look."""
    found = folder.read_json(run / "evidence.json")
    folder.write_json(run / "evidence.json", found | {"training": {"unfinished": {"epoch": 1, "epochs": 2, "step": 3}}})
    resume_run(run, num_samples=20, device="cpu")
    again = folder.read_json(run / "evidence.json")
    assert "unfinished" not in again["training"] and again["training"]["epochs"] == 2
    assert "whole run already" not in capsys.readouterr().err


def test_damaged_evidence_is_named(run):
    (run / "evidence-test-first-5.json").write_text("{}")
    with pytest.raises(folder.RunFolderError, match=r"evidence-test-first-5\.json"):
        evaluations(run)


@pytest.mark.parametrize(
    "noted",
    [
        {"split": "nowhere"},
        {"evil": 1},
        {"split": 3},
        {"rows": {}},
        {"method": "../../x"},
        {"proposal": "/x"},
        {"rows": -1},
    ],
    ids=["split", "key", "number", "rows", "method", "proposal", "negative"],
)
def test_an_evaluation_of_nothing_known_is_refused(run, noted):
    record = {"evaluation": noted, "rows": 5, "log_px": -1.0, "num_samples": 3}
    folder.write_json(run / "evidence-x.json", record)
    with pytest.raises(folder.RunFolderError, match="cannot be used"):
        evaluations(run)


def test_histories_are_sealed(run):
    (line,) = (run / folder.HISTORY).read_text().splitlines()
    record = json.loads(line)
    assert record.pop("sha256") and sha256(line.encode()) and record["method"] == "importance"
    assert torch.tensor(record["log_px"]).isfinite()
