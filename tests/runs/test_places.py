"""Runs in odd places: read-only, opened from another folder, their data moved or renamed, names that are no UTF-8."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyro_vae import compare_runs
from pyro_vae.cli import array_commands
from pyro_vae.cli.main import main
from pyro_vae.common.csv_columns import no_formula, with_formula, write_columns
from pyro_vae.common.optional import installed
from pyro_vae.data.row_ids import RowIds
from pyro_vae.errors import DataError, RunFolderError
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import resume_run as resume_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.load import load_run, open_data
from pyro_vae.runs.train_run import train_run

pytestmark = pytest.mark.usefixtures("one_thread")
X = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
ODD = os.fsdecode(b"x\xff\xe9[b]y")  # no UTF-8


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for module in (train_module, resume_module):
        monkeypatch.setattr(module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    monkeypatch.setattr(array_commands, "draw_all", lambda *_: [])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run whose config names its data from the folder that it was trained in."""
    here = tmp_path_factory.mktemp("here")
    np.save(here / "x.npy", X)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(train_module, "draw_figures", lambda *_: None)
        patch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
        config = Config(data="x.npy", hidden=(4,), latent_dim=2, epochs=1, batch_size=16)
        train_run(config, "run", num_samples=5, device="cpu")
    return here


def look(path):
    return {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_run_is_scored_and_drawn_from_without_a_byte_written_into_it(made, tmp_path, monkeypatch, capsys):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    monkeypatch.chdir(made)
    before = look(run)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(run)) and real(path, mode))
    out = tmp_path / "out"
    assert main(["evaluate", str(run), "--num-samples", "5", "--device", "cpu", "--out", str(out)]) == 0
    said = capsys.readouterr().out  # five samples are too few to judge by: what to run next is of the run, not of `out`
    assert f"next: pyro-vae evaluate {run} --out {out} --num-samples 5000\nwritten to: {out}\n" in said
    told = json.loads((out / "evidence.json").read_bytes())
    assert told["weights"] == load_run(run).evidence["weights"] and (out / "evidence.csv").is_file()
    places = []
    monkeypatch.setattr(array_commands, "draw_all", lambda path, _: places.append(path) or [])
    assert main(["sample", str(run), "--num-samples", "2", "--out", str(out / "s.npy")]) == 0
    assert main(["encode", str(run), "--rows", "2", "--out", str(out / "z.csv")]) == 0
    assert look(run) == before and places == [out, out]
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "ensemble.json").write_text("{}")
    for taken in (made / "run", tmp_path / "several"):
        with pytest.raises(RunFolderError, match="holds a run: give --out a folder of its own"):
            evaluate_run(run, num_samples=5, device="cpu", out=taken)


@pytest.mark.parametrize("how", ["moved", "renamed"])
def test_data_that_is_elsewhere_is_found_where_one_says(made, tmp_path, monkeypatch, how):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    moved = Path(shutil.copy(made / "x.npy", tmp_path / "new" / ("x.npy" if how == "moved" else "y.npy")))
    with pytest.raises(DataError, match="Of a run whose data file has moved: --data-dir"):
        open_data(load_run(run))
    place = moved if how == "renamed" else moved.parent
    assert main(["evaluate", str(run), "--num-samples", "5", "--device", "cpu", "--data-dir", str(place)]) == 0
    (tmp_path / "other").mkdir()
    shutil.copytree(made / "run", tmp_path / "other" / "whole")
    assert len(compare_runs([run, tmp_path / "other" / "whole"])) == 2  # of the same split of the same data
    np.save(moved, X + 1)
    with pytest.raises(RunFolderError, match="has changed"):
        open_data(load_run(run), place)


def test_names_that_are_no_utf8_are_trained_on_scored_forked_and_compared(tmp_path, capsys):
    x, run, fork = (tmp_path / f"{ODD}{end}" for end in (".npy", "", "2"))
    np.save(x, X)
    options = ["--data", str(x), "--hidden", "4", "--latent-dim", "2", "--device", "cpu", "--num-samples", "5"]
    assert main(["train", "--run", str(run), *options, "--epochs", "1"]) == 0
    assert main(["evaluate", str(run), "--num-samples", "5", "--device", "cpu"]) == 0
    assert main(["train", "--resume", str(run), "--fork", str(fork), "--epochs", "2", "--num-samples", "5"]) == 0
    table = tmp_path / os.fsdecode(b"\xfe.csv")
    assert main(["compare", str(run), str(fork), "--csv", str(table)]) == 0
    assert os.fsencode(ODD) in table.read_bytes() and "[b]y" in capsys.readouterr().out
    assert load_run(run).config.data == str(x)
    pages = [tmp_path / f"{ODD}{end}" for end in (".html", ".png", " hub", " board")]
    assert main(["report", str(run), str(fork), "--out", str(pages[0])]) == 0
    assert main(["compare", str(run), str(fork), "--figure", str(pages[1])]) == 0
    assert main(["export", str(run), str(pages[2]), "--hub"]) == 0 and main(["show", str(pages[2])]) == 0
    if installed("tensorboard"):
        assert main(["export", str(run), str(pages[3]), "--tensorboard"]) == 2
    assert [page.exists() for page in pages] == [True, True, True, False] and "no UTF-8" in capsys.readouterr().err


def test_no_cell_of_a_table_is_a_formula(tmp_path):
    """Names of rows, columns and models; numbers stay numbers, and what was written is read again."""
    names = ["=cmd|' /C calc'!A0", "+1+1", "-x", "@SUM(A1)", "\t=1", "'=quoted", "plain", "-1.5", "it's"]
    text = write_columns({"index": names, "=head": ["1"] * len(names)})
    rows = list(csv.reader(text.splitlines()))
    for row in rows:
        assert not any(cell[:1] in tuple("=@\t\r") for cell in row)
        assert not any(cell[:1] in ("+", "-") and cell != "-1.5" for cell in row)
    assert RowIds.from_csv(text).index == tuple(names)
    assert [with_formula(no_formula(name)) for name in names] == names and no_formula(-1.0) == -1.0


def test_two_runs_are_not_scored_into_one_folder(made, tmp_path, monkeypatch):
    """The second took the place of the first, whose numbers then were "of other weights"."""
    monkeypatch.chdir(made)
    config = Config(data="x.npy", hidden=(4,), latent_dim=2, epochs=1, batch_size=16, seed=1)
    train_run(config, tmp_path / "other", num_samples=5, device="cpu")
    options = {"num_samples": 5, "device": "cpu", "out": tmp_path / "out"}
    evaluate_run("run", **options)
    before = look(tmp_path / "out")
    for more in ({}, {"rows": 3}, {"split": "validation"}):
        with pytest.raises(RunFolderError, match=f"holds evaluations of {made / 'run'}, not of {tmp_path / 'other'}"):
            evaluate_run(tmp_path / "other", **options | more)
    assert look(tmp_path / "out") == before
    evaluate_run("run", **options | {"rows": 3})
    copied = Path(shutil.copytree("run", tmp_path / "copied"))
    evaluate_run(copied, **options)  # the same weights: numbers of one model
    (tmp_path / "out" / "run.json").unlink()  # as an older version left it
    with pytest.raises(RunFolderError, match="holds evaluations of other weights"):
        evaluate_run(tmp_path / "other", **options)
