"""Tables of one's own on the command line: what is said of them, how they train, and which rows a number is of."""

import contextlib
import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_wine

from pyro_vae.cli.array_files import array_bytes
from pyro_vae.cli.main import main
from pyro_vae.data import Column
from pyro_vae.runs import folder
from pyro_vae.runs.marginal_baseline import below_floor
from tests.helpers.command_line import small
from tests.helpers.floors import short_floors
from tests.helpers.pictures import without_figures, without_rendering

WINE = load_wine()


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    """As ``DataFrame.to_csv`` writes it, with its index, and y."""
    file = tmp_path_factory.mktemp("table") / "wine.csv"
    names = [",".join(["", *WINE.feature_names, "y"])]
    rows = [
        ",".join(map(str, [f"w{i}", *row.tolist(), y]))
        for i, (row, y) in enumerate(zip(WINE.data, WINE.target, strict=True))
    ]
    file.write_text("\n".join([*names, *rows, ""]))
    return str(file)


@pytest.fixture(scope="module")
def of_wine(wine, tmp_path_factory):
    """A run on it, trained once, and what was said of it."""
    folder, said = tmp_path_factory.mktemp("of_wine") / "run", io.StringIO()
    options = small("--data", wine, "--batch-size", "32", "--label", "y", "--epochs", "1")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        without_figures(patch)
        without_rendering(patch)
        assert main(["train", "--run", str(folder), *options]) == 0
    return folder, said.getvalue()


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_cells_are_written_as_their_table_has_them(tmp_path):
    """Counts without a point, true and false as they are spelled; means have their fractions."""
    columns = Column("visits"), Column("mass"), Column("ill", "boolean", ("False", "True"))
    rows = np.array([[5.0, 2.0, 1.0], [np.nan, 0.5, 0.0]], dtype=np.float32)
    written = array_bytes(rows, tmp_path / "a.csv", "x", columns=columns, drawn=True).decode()
    assert written == "row,visits,mass,ill\n0,5,2.0,True\n1,,0.5,False\n"
    means = array_bytes(rows, tmp_path / "a.csv", "x", columns=columns).decode()
    assert means == "row,visits,mass,ill (mean of codes)\n0,5.0,2.0,1.0\n1,,0.5,0.0\n"


def test_a_load_says_what_it_read(of_wine):
    run, said = of_wine
    assert "note: 178 rows × 13 columns; header: alcohol, malic_acid" in said and "labels: column 14 ('y')" in said
    assert "column 0 ('') names each row: it names the rows, and is no part of x (--index none keeps it)" in said
    assert "likelihood auto: normal" in said and "networks see x in standard units" in said
    config = folder.read_config(run)["config"]
    assert (config["label"], config["standardize"], config["normalize"]) == ("y", True, False)


def test_exports_say_which_rows_of_the_file_they_are(of_wine, tmp_path):
    run = Path(shutil.copytree(of_wine[0], tmp_path / "run"))
    assert main(["encode", str(run)]) == 0 and main(["reconstruct", str(run), "--rows", "5"]) == 0
    rows = table(run / "evidence.csv")
    order = np.random.default_rng(0).permutation(178)
    assert [int(row["source_row"]) for row in rows] == order[-18:].tolist()
    assert [row["index"] for row in rows] == [f"w{n}" for n in order[-18:]]
    assert [int(row["label"]) for row in rows] == WINE.target[order[-18:]].tolist()
    encoded = table(run / "encoded_rows.csv")
    assert [row["source_row"] for row in encoded] == [row["source_row"] for row in rows]
    assert [row["label"] for row in table(run / "reconstructed_rows.csv")] == [row["label"] for row in rows[:5]]
    assert main(["evaluate", str(run), "--rows", "5", "--split", "train", "--num-samples", "20"]) == 0
    assert [int(row["source_row"]) for row in table(run / "evidence-train-first-5.csv")] == order[:5].tolist()


def test_a_model_below_the_floor_says_so_and_one_above_does_not(train, wine, tmp_path, capsys):
    """Wine as it stands, in no units: networks that start at scale 1 end far below independent normals."""
    raw = ["--no-standardize", "--no-normalize", "--likelihood", "normal"]
    assert train("raw", "--data", wine, "--batch-size", "32", "--label", "y", *raw) == 0
    assert "warning: log p(x) lies" in capsys.readouterr().err
    evidence = folder.read_json(tmp_path / "raw" / "evidence.json")
    told = evidence["floor"]
    believed, loose = (below_floor(told, evidence | {"rows_flagged": n}) for n in (0, evidence["rows"]))
    assert told["cleared_by"] < 0 and "nats a row below the floor (independent normal elements" in believed
    assert "±" in believed and "±" not in loose
    assert "lies at most" in loose and "a row (loose: 100 % of rows flagged) below the floor" in loose
    fitting = ["--epochs", "60", "--hidden", "32", "--learning-rate", "0.003", "--num-samples", "200"]
    assert train("units", "--data", wine, "--batch-size", "32", "--label", "y", *fitting) == 0
    assert "warning" not in capsys.readouterr().err
    assert folder.read_json(tmp_path / "units" / "evidence.json")["floor"]["cleared_by"] > 0


@pytest.mark.parametrize("kind", ["bytes", "colours", "a csv"])
def test_bytes_are_counts_under_auto(train, tmp_path, capsys, kind, whole_floors, monkeypatch):
    draw = np.random.default_rng(0)
    level = draw.integers(0, 256, (200, 1))
    x = np.clip(level + draw.normal(0, 9, (200, 12)), 0, 255).astype(np.uint8)
    path = tmp_path / ("x.csv" if kind == "a csv" else "x.npy")
    if kind == "a csv":
        np.savetxt(path, x, delimiter=",", fmt="%d")
    else:
        np.save(path, x.reshape(200, 3, 2, 2) if kind == "colours" else x)
    enough = kind == "bytes"  # training to be better than the floor: the others are the same rows
    if not enough:
        short_floors(monkeypatch)
    more = ["--epochs", "20" if enough else "1", "--hidden", "32", "--batch-size", "20", "--learning-rate", "0.01"]
    assert train("run", "--data", str(path), *more) == 0
    said, evidence = capsys.readouterr(), folder.read_json(tmp_path / "run" / "evidence.json")
    assert "likelihood auto: discretized_logistic, as x holds whole numbers 0 to 255" in said.err
    assert evidence["measure"] == "counts"
    assert not enough or (evidence["bits_per_dim"] < 8 and evidence["floor"]["cleared_by"] > 0)


def test_evidence_by_another_proposal_tells_the_guides_gap(run, capsys):
    gaps = {}
    for proposal in ("guide", "defensive", "widened"):
        assert main(["evaluate", str(run), "--proposal", proposal, "--num-samples", "300", "--rows", "60"]) == 0
        gaps[proposal] = folder.read_json(run / "evidence.json")
    elbos = [e["elbo"] for e in gaps.values()]
    errors = sum(e["elbo_mc_se"] ** 2 for e in gaps.values()) ** 0.5
    assert max(elbos) - min(elbos) < 4 * errors and elbos[1] == elbos[2]


def test_a_column_called_y_is_data_until_it_is_named(train, wine, tmp_path, capsys):
    assert train("run", "--data", wine, "--batch-size", "32") == 0
    assert "column 'y' is part of x; --label y takes it for the label" in capsys.readouterr().err
    assert folder.read_config(tmp_path / "run")["data"]["shape"] == [14]
    assert train("bad", "--data", wine, "--label", "why") == 3
    assert "has no column 'why', which --label names" in capsys.readouterr().err
