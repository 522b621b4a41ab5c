"""Which rows of the file an exported row is: in each .csv that goes out, and beside each .npy."""

import csv

import numpy as np
import pytest

from pyro_vae.cli.main import main
from tests.helpers.command_line import small
from tests.helpers.data import few_digits
from tests.helpers.floors import short_floors
from tests.helpers.pictures import without_figures, without_rendering

ROWS = 40
ORDER = np.random.default_rng(0).permutation(ROWS)[-4:]  # the test rows
X = np.random.default_rng(1).normal(size=(ROWS, 3))
GAPS = np.random.default_rng(2).random((ROWS, 3)) < 0.4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trained once on a table with an index, a label and gaps; `run` is a copy."""
    folder = tmp_path_factory.mktemp("table")
    lines = [
        ",".join([f"r{i}", *("" if gap else repr(float(v)) for v, gap in zip(X[i], GAPS[i], strict=True)), f"c{i % 2}"])
        for i in range(ROWS)
    ]
    (folder / "t.csv").write_text("\n".join(["id,a,b,c,kind", *lines, ""]))
    options = ["--missing", "--index", "id", "--label", "kind", "--batch-size", "8", "--likelihood", "normal"]
    options = [
        "train",
        "--run",
        str(folder / "run"),
        *small("--data", str(folder / "t.csv"), "--epochs", "1", *options),
    ]
    with pytest.MonkeyPatch.context() as patch:
        short_floors(patch)
        without_figures(patch)
        without_rendering(patch)
        assert main(options) == 0
    return folder / "run"


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def check_places(rows, order, times=1):
    assert [int(row["source_row"]) for row in rows] == [*order] * times
    assert [row["index"] for row in rows] == [f"r{n}" for n in order] * times
    assert [row["label"] for row in rows] == [f"c{n % 2}" for n in order] * times


@pytest.mark.parametrize("command", ["encode", "reconstruct", "impute"])
def test_a_csv_says_it_in_each_row(run, command, tmp_path):
    assert main([command, str(run), "--out", str(tmp_path / "out.csv")]) == 0
    check_places(table(tmp_path / "out.csv"), ORDER)
    assert not (tmp_path / "out_rows.csv").exists()
    assert main([command, str(run), "--rows", "2", "--out", str(tmp_path / "out.npy")]) == 0
    check_places(table(tmp_path / "out_rows.csv"), ORDER[:2])
    assert len(np.load(tmp_path / "out.npy")) == 2


def test_imputations_are_of_their_rows_and_leave_what_was_observed(run, tmp_path):
    """Draw after draw; the same seed draws the same; observed values as in the file, to single precision."""
    out = [str(tmp_path / f"{name}.csv") for name in "ab"]
    for path in out:
        assert main(["impute", str(run), "--draws", "3", "--num-samples", "20", "--out", path]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    rows = table(tmp_path / "a.csv")
    check_places(rows, ORDER, times=3)
    assert [row["draw"] for row in rows] == ["0"] * 4 + ["1"] * 4 + ["2"] * 4
    drawn = np.array([[float(row[name]) for name in "abc"] for row in rows]).reshape(3, 4, 3)
    assert np.isfinite(drawn).all()
    observed = ~GAPS[ORDER]
    assert np.allclose(drawn[:, observed], X[ORDER][observed], atol=1e-6)
    assert (drawn.std(0)[~observed] > 0).all()
    assert (run / "figures" / "imputed.png").is_file()


def test_other_splits_are_other_rows(run, tmp_path):
    assert main(["impute", str(run), "--split", "train", "--rows", "5", "--out", str(tmp_path / "t.csv")]) == 0
    check_places(table(tmp_path / "t.csv"), np.random.default_rng(0).permutation(ROWS)[:5])


def test_nothing_missing_is_nothing_to_impute(train, tmp_path, capsys, monkeypatch):
    few_digits(monkeypatch)
    assert train("whole", "--data", "digits") == 0
    assert main(["impute", str(tmp_path / "whole"), "--rows", "3"]) == 2
    assert "no value of the 3 rows is missing" in capsys.readouterr().err
