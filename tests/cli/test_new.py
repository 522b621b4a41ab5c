"""Settings that are asked for, or given by flags, are what `train --config` trains with."""

import json

import pytest

from pyro_vae.cli.main import main
from pyro_vae.runs.config import Config
from tests.helpers.tables import penguins, write_table


@pytest.fixture
def birds(tmp_path):
    return write_table(tmp_path / "birds.csv", penguins(60), index=True)


@pytest.fixture
def person(monkeypatch):
    """Answers questions in order, at a terminal; an empty answer takes what is offered."""

    def answer(*words):
        left = iter(words)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda *_: next(left))
        return left

    return answer


def test_flags_are_written_and_the_data_is_told(birds, tmp_path, capsys):
    file = tmp_path / "s.json"
    assert main(["new", str(file), "--data", str(birds), "--columns", "auto", "--latent-dim", "2"]) == 0
    assert json.loads(file.read_text()) == {"data": str(birds), "columns": "auto", "latent_dim": 2}
    said = capsys.readouterr().out
    assert "birds.csv: 48 train, 6 validation, 6 test rows" in said and "bill_length_mm" in said
    assert f"pyro-vae train --config {file} --run runs/s" in said


def test_what_is_written_trains_as_it_was_said(birds, tmp_path, device):
    file, run = tmp_path / "s.json", tmp_path / "run"
    assert main(["new", str(file), "--data", str(birds), "--columns", "auto", "--hidden", "4", "--epochs", "1"]) == 0
    more = ["--run", str(run), "--device", str(device), "--num-samples", "5"]
    assert main(["train", "--config", str(file), *more]) == 0
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["likelihood"] == "columns" and config["hidden"] == [4] and config["epochs"] == 1


def test_a_person_is_asked_what_no_flag_says(birds, tmp_path, person):
    left = person(str(birds), "", "3")
    assert main(["new", str(tmp_path / "s.json"), "--epochs", "7"]) == 0
    given = json.loads((tmp_path / "s.json").read_text())
    assert given == {"data": str(birds), "columns": "auto", "latent_dim": 3, "epochs": 7} and list(left) == []


def test_of_arrays_the_likelihood_is_asked_and_what_is_offered_is_the_default(tmp_path, person):
    left = person("", "", "many", "", "")  # "many" is no number: asked again
    assert main(["new", str(tmp_path / "s.json")]) == 0 and list(left) == []
    assert json.loads((tmp_path / "s.json").read_text()) == {"data": "digits"}
    assert Config.from_dict(json.loads((tmp_path / "s.json").read_text())) == Config()


REFUSED = {
    "no-file": (["--data", "nowhere.csv"], "nowhere.csv"),
    "no-likelihood": (["--likelihood", "normall"], "did you mean 'normal'"),
    "there-already": ([], "is there already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_train_is_refused_and_nothing_is_written(case, tmp_path, capsys):
    flags, words = REFUSED[case]
    if case == "there-already":
        (tmp_path / "s.json").write_text("mine")
    assert main(["new", str(tmp_path / "s.json"), *flags]) in (2, 3)
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists() or (tmp_path / "s.json").read_text() == "mine"
