"""Labels of new rows have the numbers of training, by name: a file of one class is not compared with another."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pyro_vae.cli.main import main
from pyro_vae.data import Split
from pyro_vae.errors import DataError
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.new_labels import labelled_as
from pyro_vae.runs.train_run import train_run

FILE = Path("new.csv")
OF_LABELS, OF_ROWS = (SimpleNamespace(kind=SimpleNamespace(labels=matter)) for matter in (True, False))


def split(y, *classes):
    y = torch.tensor(y)
    return Split(torch.zeros(len(y), 2), y, classes=classes)


TRAIN = split([0, 1, 2], "cat", "dog", "owl")


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (split([0, 0], "dog"), [1, 1]),
        (split([0, 1, -1], "dog", "owl"), [1, 2, -1]),
        (split([1, 0], "cat", "owl"), [2, 0]),
        (split([0, 1, 2], "cat", "dog", "owl"), [0, 1, 2]),
    ],
    ids=["one class", "a gap", "two of three", "all"],
)
def test_labels_have_the_numbers_of_training(rows, wanted):
    for run in (OF_LABELS, OF_ROWS):
        found = labelled_as(run, rows, TRAIN, FILE)
        assert found.y.tolist() == wanted and found.classes == TRAIN.classes
        assert found.ids.label == rows.ids.label  # by name they stay what they were


def test_a_name_that_training_never_met_is_refused_where_it_would_count():
    rows = split([0, 1], "dog", "fish")
    with pytest.raises(
        DataError, match=r"new\.csv, row 1 .*'fish' is a label that was never seen; training had cat, dog, owl"
    ):
        labelled_as(OF_LABELS, rows, TRAIN, FILE)
    found = labelled_as(OF_ROWS, rows, TRAIN, FILE)
    assert found.y.tolist() == [1, 3] and found.ids.label == ("dog", "fish")


def test_names_beside_numbers_are_refused_where_they_would_count():
    with pytest.raises(DataError, match="labels are numbers, and were names in training"):
        labelled_as(OF_LABELS, split([0, 1]), TRAIN, FILE)
    with pytest.raises(DataError, match="labels are names, and were numbers in training"):
        labelled_as(OF_LABELS, split([0, 1], "cat", "dog"), split([0, 1]), FILE)
    with pytest.raises(DataError, match="the training rows would tell, which are not there"):
        labelled_as(OF_LABELS, split([0], "dog"), None, FILE)
    for train in (TRAIN, split([0, 1]), None):  # no label is known: nothing is compared
        assert labelled_as(OF_LABELS, split([-1, -1]), train, FILE).y.tolist() == [-1, -1]


def test_the_accuracy_of_a_file_of_one_class_is_that_of_its_class(tmp_path, monkeypatch):
    """Those of a file of each class make that of the file of both."""
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    lines = [f"{(-1) ** i + i / 40},{i % 7},{('dog', 'cat')[i % 2]}" for i in range(40)]
    for name, some in {"x": lines, "dog": lines[::2], "cat": lines[1::2], "both": lines[1:]}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(["a,b,kind", *some]))
    options = {"label": "kind", "model": "semi_supervised", "hidden": (4,), "latent_dim": 1}
    train_run(Config(data=str(tmp_path / "x.csv"), epochs=1, **options), tmp_path / "run", num_samples=5, device="cpu")
    scored = [evaluate_run(tmp_path / "run", data=tmp_path / f"{n}.csv", num_samples=5) for n in ("cat", "both")]
    cat, both = (round(one["classification"]["accuracy"] * one["classification"]["rows"]) for one in scored)
    dog = evaluate_run(tmp_path / "run", data=tmp_path / "dog.csv", num_samples=5)["classification"]
    right = round(dog["accuracy"] * 20)
    assert right != 10 and both - cat in (right - 1, right)  # all dogs but the first
    (tmp_path / "new.csv").write_text("a,b,kind\n5,1,fox\n")
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "new.csv")]) == 3
