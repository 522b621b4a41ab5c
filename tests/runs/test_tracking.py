"""Trackers are told of a training by three calls; one that fails costs no weights; TensorBoard's files hold what runs do."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_vae import StopTraining, TensorBoardTracker, Tracker, load_run, resume_run, train_run
from pyro_vae.cli.main import main
from pyro_vae.errors import MissingExtraError, UsageError
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import folder
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_ensemble import load_ensemble
from pyro_vae.runs.train_ensemble import train_ensemble
from pyro_vae.training.tracker import check_trackers
from tests.helpers.run_folders import train_small


class Heard:
    """Notes what it is told, and raises where it is asked to."""

    def __init__(self, fails=None, error=None):
        self.told, self.fails, self.error = [], fails, error or ValueError("the user's own")

    def hear(self, *call):
        self.told.append(call)
        if call[: len(self.fails or "x")] == self.fails:
            raise self.error

    def begin(self, config):
        self.hear("begin", config)
        config.clear()  # a copy: nothing of the run's

    def epoch(self, record):
        self.hear("epoch", record["epoch"], dict(record))
        record.clear()

    def end(self, evidence, figures):
        self.hear("end", evidence, figures)

    @property
    def calls(self):
        return [call[0] for call in self.told]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Three small epochs, whose runs draw no pictures."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    return Config(data=str(tmp_path / "x.npy"), hidden=(4,), latent_dim=2, epochs=3, batch_size=16)


@pytest.fixture
def train(tmp_path, config):
    """Trains into a folder, told to trackers."""
    return lambda name, *trackers: train_run(
        config, tmp_path / name, num_samples=5, device="cpu", trackers=list(trackers)
    )


def test_trackers_are_told_what_the_folder_holds(train, tmp_path):
    first, second = Heard(), Heard()
    evidence = train("run", first, second)
    assert isinstance(first, Tracker) and first.calls == ["begin", *["epoch"] * 3, "end"] == second.calls
    assert second.told[-1] == ("end", evidence, ())
    lines = folder.read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [call[2] for call in second.told if call[0] == "epoch"] == lines and "evidence" in lines[-1]
    assert load_run(tmp_path / "run").config.to_dict()["latent_dim"] == 2


@pytest.mark.parametrize("call", [("begin",), ("epoch", 2), ("end",)], ids=lambda call: call[0])
def test_an_error_is_the_users_own_and_costs_no_weights(train, tmp_path, call):
    train("whole")
    failing, beside = Heard(call), Heard()
    with pytest.raises(ValueError, match="the user's own") as raised:
        train("run", beside, failing)
    assert raised.value is failing.error and f"tracker Heard, in {call[0]}" in raised.value.__notes__[0]
    assert beside.calls.count("end") == 1  # it is closed, whatever becomes of others
    if call[0] == "end":
        assert folder.read_summary(tmp_path / "run" / "evidence.json")["rows"] and beside.told[-1][1]
    elif call[0] == "epoch":
        assert beside.told[-1] == ("end", {}, ()) and load_run(tmp_path / "run").vae is not None
    again = Heard()
    resume_run(tmp_path / "run", num_samples=5, device="cpu", trackers=[again])
    if call[0] == "epoch":
        assert again.calls[0] == "begin" and again.told[-2][1] == 3 and again.told[-1][1]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]  # to the bit, as if nothing had been
    epochs = [line["epoch"] for line in folder.read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert epochs == [1, 2, 3]


def test_an_error_on_the_way_is_not_hidden_by_one_of_ending(train, capsys):
    with pytest.raises(ZeroDivisionError):
        train("run", Heard(("end",)), Heard(("epoch", 1), ZeroDivisionError()))
    assert "note: Heard.end raised ValueError: the user's own" in capsys.readouterr().err


@pytest.fixture
def train_members(tmp_path, config):
    """Trains two seeds, the second's tracker failing in a call; both trackers are ended whatever happens."""

    def train(name, engine, *call):
        heard = {0: Heard(), 1: Heard(call or None)}
        made = {"trackers": lambda seed: [heard[seed]], "num_samples": 5, "device": "cpu"}
        try:
            train_ensemble(replace(config, engine=engine, epochs=2), [0, 1], tmp_path / name, **made)
        finally:
            assert [h.calls.count("end") for h in heard.values()] == [1, 1]
        return heard

    return train


def test_an_error_leaves_the_weights_of_members_that_are_trained_together(train_members, tmp_path):
    with pytest.raises(ValueError, match="the user's own") as raised:
        train_members("run", "trace", "epoch", 2)
    assert "weights so far are saved in" in raised.value.__notes__[-1]
    assert all(load_run(tmp_path / "run" / f"seed{seed}").vae is not None for seed in (0, 1))


def test_an_error_leaves_the_weights_and_the_scores_of_members_one_by_one(train_members, tmp_path):
    heard = train_members("whole", "eager")
    told, written = heard[1].told[-1][1], folder.read_summary(tmp_path / "whole" / "seed1" / "evidence.json")
    assert told["log_px"] == written["log_px"] and told.items() <= written.items()
    with pytest.raises(ValueError, match="the user's own"):
        train_members("epoch", "eager", "epoch", 2)
    for seed, other in enumerate(load_ensemble(tmp_path / "whole")):
        member = load_run(tmp_path / "epoch" / f"seed{seed}").vae
        same = [torch.equal(a, b) for a, b in zip(member.parameters(), other.parameters(), strict=True)]
        assert all(same) == (seed == 0)  # that was trained already, and is there whole
    with pytest.raises(ValueError, match="the user's own"):
        train_members("end", "eager", "end")
    assert folder.read_json(tmp_path / "end" / "seeds.json")["rows"]  # all is scored and put together before


def test_a_tracker_stops_a_training(train, tmp_path):
    evidence = train("run", Heard(("epoch", 2), StopTraining("pruned")))
    assert evidence["training"]["stopped"] == "pruned" and evidence["training"]["epochs"] == 2
    assert main(["show", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Heard(), "must be a list"),
        ([Heard], "is the class Heard"),
        ([Heard(), print], r"trackers\[1\] .* no begin and epoch and end"),
    ],
    ids=["alone", "class", "function"],
)
def test_what_is_no_tracker_is_refused(given, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        check_trackers(given)
    with pytest.raises(UsageError, match=said):
        train_run(Config(), tmp_path / "run", trackers=given)
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_missed_by_the_name_of_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pyro-vae\[tensorboard\]"):
        TensorBoardTracker("boards")


@pytest.mark.parametrize("folder", [None, 3, b"x", "", "boards/\udcff"], ids=ascii)
def test_a_board_goes_into_a_folder_that_is_named_in_utf8(folder, tensorboard):
    with pytest.raises(UsageError, match=r"folder is where the event file goes|no UTF-8"):
        TensorBoardTracker(folder)


def test_a_board_that_has_not_begun_says_so(tmp_path, tensorboard):
    tracker = TensorBoardTracker(tmp_path / "board")
    for call in (lambda: tracker.epoch({"epoch": 1}), lambda: tracker.end({}, [])):
        with pytest.raises(UsageError, match="call its begin"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return train_small(tmp_path_factory.mktemp("small"), "run", num_samples=5)


@pytest.fixture
def tensorboard():
    return pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here")


def read_board(tensorboard, path):
    board = tensorboard.EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    board.Reload()
    return board


def test_the_command_line_follows_into_the_run_and_an_overwrite_begins_anew(tmp_path, tensorboard, monkeypatch):
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32))
    options = ["--data", str(tmp_path / "x.npy"), "--hidden", "4", "--latent-dim", "2", "--num-samples", "5", "--quiet"]
    run = ["train", "--run", str(tmp_path / "run"), *options, "--tracker", "tensorboard", "--device", "cpu"]
    for epochs in (3, 2):
        assert main([*run, "--epochs", str(epochs), *(["--overwrite"] if epochs == 2 else [])]) == 0
        board = read_board(tensorboard, tmp_path / "run" / "tensorboard")
        assert [e.step for e in board.Scalars("elbo")] == list(range(1, epochs + 1))
    assert main(["train", "--resume", str(tmp_path / "run"), "--tracker", "wandb"]) == 2


def texts(board):
    return {
        tag.removesuffix("/text_summary"): event.tensor_proto.string_val[0].decode()
        for tag in board.Tags()["tensors"]
        for event in board.Tensors(tag)
    }


def test_a_board_holds_the_numbers_of_a_run(train, tmp_path, tensorboard):
    train("run", TensorBoardTracker(tmp_path / "live"))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "later"), "--tensorboard"]) == 0
    lines = folder.read_lines(tmp_path / "run" / "metrics.jsonl")
    evidence = folder.read_summary(tmp_path / "run" / "evidence.json")
    assert evidence["rows_flagged"] > 0.1 * evidence["rows"]  # five samples: loose
    for place in ("live", "later"):
        board = read_board(tensorboard, tmp_path / place)
        assert [(e.step, e.value) for e in board.Scalars("elbo")] == [
            (r["epoch"], pytest.approx(r["elbo"])) for r in lines
        ]
        assert [e.value for e in board.Scalars("test/log_px_bound")] == [pytest.approx(evidence["log_px"])]
        tags = board.Tags()
        assert not {"test/log_px", "test/log_px_mc_se", "test/log_px_data_se"} & set(tags["scalars"])
        assert tags["histograms"] == ["kl_per_unit"] and "flagged" in texts(board)["log p(x)"]
        assert '"latent_dim": 2' in texts(board)["config"]


def test_a_board_has_both_errors_of_a_number_and_the_pictures(tmp_path, tensorboard):
    picture = tmp_path / "a.png"
    __import__("PIL.Image").Image.new("RGB", (3, 2)).save(picture)
    tracker = TensorBoardTracker(tmp_path / "board")
    tracker.begin({"name": "\x1b[31m"})
    tracker.epoch({"epoch": 7, "elbo": None, "loss": float("nan"), "on": True, "odd": ["a"], "kl": 1.5})
    about = {"log_px": -2.0, "log_px_mc_se": 0.5, "log_px_data_se": 0.25, "rows": 10, "rows_flagged": 1}
    tracker.end(about, [picture])
    board = read_board(tensorboard, tmp_path / "board")
    assert {tag: board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]} == {
        "kl": 1.5, "test/log_px": -2.0, "test/log_px_mc_se": 0.5, "test/log_px_data_se": 0.25, "test/rows": 10,
        "test/rows_flagged": 1,
    }  # fmt: skip
    (image,) = board.Images("figures/a")
    assert (image.width, image.height, image.encoded_image_string) == (3, 2, picture.read_bytes())
    assert (
        texts(board)["log p(x)"].startswith("-2.000 ± 0.500 ± 0.250 nats a row")
        and "\x1b" not in texts(board)["config"]
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "holds no epoch"),
        ([{"epoch": "x"}], "no record"),
        ([{"epoch": 1, "evidence": {"rows": 0, "log_px": -1.0, "rows_flagged": 0}}], "cannot be shown"),
        ([{"epoch": 1, "evidence": {"log_px": "a"}}], "log_px"),
        ([{"epoch": -(2**40)}], "no record"),
    ],
    ids=["none", "text", "no rows", "text for a number", "negative"],
)
def test_records_that_are_none_are_refused(small, tmp_path, lines, said, capsys, tensorboard):
    import shutil

    run = shutil.copytree(small, tmp_path / "run")
    folder.write_lines(run / "metrics.jsonl", lines)
    evidence = folder.read_json(run / "evidence.json")
    evidence["training"]["metrics"] = folder.metrics_digest(run)
    folder.write_json(run / "evidence.json", evidence)
    assert main(["export", str(run), str(tmp_path / "board"), "--tensorboard"]) == 4
    assert said in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["run"]


def test_metrics_of_another_training_are_refused(small, tmp_path, capsys, tensorboard):
    import shutil

    run = shutil.copytree(small, tmp_path / "run")
    folder.append_line(run / "metrics.jsonl", {"epoch": 9, "elbo": 0.0})
    assert main(["export", str(run), str(tmp_path / "board"), "--tensorboard"]) == 4
    assert "another training" in capsys.readouterr().err


def test_an_export_takes_the_place_of_nothing(small, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "empty").mkdir()
    for name in ("full", "full/mine", "link"):
        assert main(["export", str(small), str(tmp_path / name), "--tensorboard"]) == 4, name
    assert (tmp_path / "full" / "mine").read_text() == "mine" and not any((tmp_path / "empty").iterdir())
    assert main(["export", str(small), str(tmp_path / "new")]) == 2
    assert "--tensorboard" in capsys.readouterr().err
    assert json.loads((small / "config.json").read_text())["schema"] == 1
