"""A run of a mixed table, and new rows for it: the number is that of the codes, and what does not fit is refused by name."""

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from pyro_vae import log_likelihood
from pyro_vae.cli.main import main
from pyro_vae.common.random import seeded
from pyro_vae.data import load
from pyro_vae.errors import ShapeError
from pyro_vae.runs import evaluate_run as evaluate_module
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.data_choices import decided
from pyro_vae.runs.evaluate_run import evaluate_run
from pyro_vae.runs.load import Run, load_data, load_run, open_data
from pyro_vae.runs.new_rows import open_rows
from pyro_vae.runs.registry import build, resolved
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from tests.helpers.tables import HEAD, penguins, write_table

SMALL = {"hidden": (6,), "latent_dim": 2, "epochs": 1, "batch_size": 64}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a table of gaps, texts and an index, and a run on it."""
    here = tmp_path_factory.mktemp("mixed")
    path = write_table(here / "p.csv", penguins(), index=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "draw_figures", lambda *_: None)
        patch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
        train_run(Config(data=str(path), columns="auto", **SMALL), here / "run", num_samples=5, device="cpu")
    return here


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it."""
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def test_the_run_remembers_names_and_labels(trained):
    run = load_run(trained / "run")
    assert [c.name for c in run.columns] == HEAD and run.config.missing and run.config.standardize
    assert run.columns[1].labels == ("Biscoe", "Dream", "Torgersen")
    assert open_data(run).columns == run.columns


def test_the_number_is_that_of_a_bare_array_of_codes(tmp_path):
    """The same model, data as a table of texts and as codes under --likelihood columns: equal to the bit."""
    path = write_table(tmp_path / "p.csv", penguins(60))
    config = resolved(Config(data=str(path), columns="auto", **SMALL))
    table = load_data(config, None)
    config = decided(config, table)
    np.savez(tmp_path / "x.npz", **{f"x_{s}": getattr(table, s).x.numpy() for s in ("train", "validation", "test")})
    options = {"likelihood": "columns", "likelihood_options": config.likelihood_options, "missing": True}
    bare = load(tmp_path / "x.npz", missing=True, verbose=False)
    plain = decided(resolved(Config(data=str(tmp_path / "x.npz"), **options, **SMALL)), bare)
    scores = []
    for c, data in ((config, table), (plain, bare)):
        with seeded(0):
            vae = build(c, data.shape, data.train.x)
        scores.append(log_likelihood(vae.model, vae.guide, data.test.x, num_samples=20, verbose=False).log_px)
    assert torch.equal(*scores)


def test_the_number_of_a_decoder_without_latents_is_a_closed_form(tmp_path):
    """Weights 0: log p(x) = log N(mass; loc, scale) + log softmax(bias)_kind, in the units of the table, gaps left out."""
    draw = np.random.default_rng(0)
    rows = [[f"{m:.2f}" if i % 7 else "", "abc"[k]] for i, (m, k) in
            enumerate(zip(draw.normal(4000, 500, 60), draw.integers(0, 3, 60), strict=True))]  # fmt: skip
    path = write_table(tmp_path / "x.csv", rows, ["mass", "kind"])
    config = resolved(Config(data=str(path), columns="auto", **SMALL))
    data = load_data(config, None)
    config = decided(config, data)
    vae = build(config, data.shape, data.train.x)
    *_, weight, bias = (p.data for p in vae.likelihood.parameters())
    weight.zero_()
    bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.5, -1.0]))
    x, mass = data.test.x, data.train.x[:, 0]
    loc, std = mass.nanmean(), (mass[~mass.isnan()]).std(correction=0)
    scale = torch.nn.functional.softplus(bias[1]) + 1e-4
    of_mass = Normal(loc + std * bias[0], std * scale).log_prob(x[:, 0].nan_to_num()).where(~x[:, 0].isnan(), 0.0)
    wanted = of_mass + Categorical(logits=bias[2:]).log_prob(x[:, 1])
    found = log_likelihood(vae.model, vae.guide, x, num_samples=2000, seed=0, verbose=False)
    assert x[:, 0].isnan().any() and ((found.log_px - wanted).abs() < 4 * found.mc_se + 1e-4).all()


def test_new_rows_are_scored_by_name_whatever_their_order(run, tmp_path):
    """The rows of the test split, columns reversed, as new rows: the same log p(x), row by row."""
    opened = load_run(run)
    test, rows = open_data(opened).test, penguins()
    chosen = [rows[i][::-1] for i in test.numbers]
    new = write_table(tmp_path / "new.csv", chosen, HEAD[::-1])
    assert torch.equal(open_rows(opened, new).test.x.nan_to_num(), test.x.nan_to_num())
    a = evaluate_run(run, num_samples=40, device="cpu", out=tmp_path / "a")
    b = evaluate_run(run, num_samples=40, device="cpu", data=new)
    assert a["log_px"] == b["log_px"] and a["floor"] == b["floor"] and b["split"] == "new.csv, new rows"
    assert len(list(run.glob("evidence-new-*.json"))) == 1 and (run / "evidence.json").is_file()


def test_with_noise_of_its_own_a_row_has_the_same_number_alone(run, tmp_path, capsys):
    for name, rows in (("many", penguins(9)), ("one", penguins(9)[:1])):
        path = write_table(tmp_path / f"{name}.csv", rows, index=True)
        options = ["--noise", "row", "--num-samples", "30", "--device", "cpu", "--out", str(tmp_path / name)]
        assert main(["evaluate", str(run), "--data", str(path), *options]) == 0
        said = capsys.readouterr().err
        assert (
            said.count(" × 8 columns") == 1 and f"{name}.csv" in said
        )  # of the new rows, not of the training table, too
    many, one = (next((tmp_path / name).glob("evidence-*.csv")).read_text().splitlines()[1] for name in ("many", "one"))
    assert many == one
    assert main(["evaluate", str(run), "--noise", "row", "--method", "annealing", "--device", "cpu"]) == 2
    assert "leave --noise out" in capsys.readouterr().err


def test_one_row_is_scored_without_the_training_data(run, tmp_path, capsys):
    (run.parent / "p.csv").unlink()
    opened = load_run(run)
    moved = opened.config.data
    new = write_table(tmp_path / "new.csv", penguins(1, seed=5))
    shutil.move(moved, tmp_path / "elsewhere")
    try:
        found = evaluate_run(run, num_samples=5, device="cpu", data=new)
    finally:
        shutil.move(tmp_path / "elsewhere", moved)
    assert found["rows"] == 1 and found["floor"]["log_px"] is None and "not there" in found["floor"]["model"]
    told = (
        "note: new.csv: the rows that the run was trained on are not there: nobody can tell which of these it has seen"
    )
    assert told in capsys.readouterr().err


def test_the_file_of_a_run_that_has_changed_is_told_from_new_rows(run, tmp_path, capsys):
    own = Path(load_run(run).config.data)
    before = own.read_text()
    own.write_text(before.rpartition("\n")[0].rpartition("\n")[0] + "\n")
    try:
        evaluate_run(run, num_samples=5, device="cpu", data=own)
    finally:
        own.write_text(before)
    assert (
        "the file of that name has changed since, and nobody can tell which of these it has seen"
        in capsys.readouterr().err
    )


def test_a_run_and_its_data_may_move_together_or_apart(run, tmp_path):
    original = load_run(run).config.data
    shutil.move(original, tmp_path / "away")
    try:
        assert len(open_data(load_run(run)).test) == 34, "beside the run, as before"
        shutil.move(run.parent / "p.csv", tmp_path / "renamed.csv")
        assert len(open_rows(load_run(run), tmp_path / "renamed.csv").train) == 276, "the run's own: with its splits"
    finally:
        shutil.move(tmp_path / "away", original)


LIKE = dict(zip(HEAD, ["Adelie", "Dream", "40.0", "18.0", "190", "3700", "male", "2008"], strict=True))
UNLIKE = {
    "unseen": ({"island": "Java"}, "column 'island', row 0 (counted from 0): 'Java' is a category that was never seen"),
    "unseen grade": ({"year": "2011"}, "column 'year', row 0 (counted from 0): '2011' is a category that was never seen"),
    "text": ({"body_mass_g": "heavy"}, "column 'body_mass_g', row 0 (counted from 0): 'heavy' is no number"),
    "infinite": ({"body_mass_g": "inf"}, "column 'body_mass_g' has infinite values"),
    "absent": ({"sex": None}, "lacks 1 of 8 columns that the model was trained on: 'sex'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_new_rows_unlike_those_of_training_are_refused(name, trained, tmp_path, capsys):
    change, words = UNLIKE[name]
    row = {k: v for k, v in (LIKE | change).items() if v is not None}
    new = write_table(tmp_path / "new.csv", [list(row.values())], list(row))
    assert main(["evaluate", str(trained / "run"), "--data", str(new)]) == 3
    assert words in capsys.readouterr().err


def test_what_is_imputed_has_names_and_labels_and_runs_in_no_spreadsheet(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    draw = np.random.default_rng(0)
    rows = [[f"{v:.2f}", k] for v, k in zip(draw.normal(size=60), draw.choice(["=1+1", "b", "-c"], 60), strict=True)]
    rows[3][1] = rows[4][0] = ""
    path = write_table(tmp_path / "x.csv", rows, ["row", "=kind"])
    train_run(Config(data=str(path), columns="auto", **SMALL), tmp_path / "run", num_samples=5, device="cpu")
    new = write_table(tmp_path / "new.csv", [["1.25", ""], ["", "=1+1"]], ["row", "=kind"])
    command = [
        "impute",
        str(tmp_path / "run"),
        "--data",
        str(new),
        "--num-samples",
        "5",
        "--out",
        str(tmp_path / "o.csv"),
    ]
    assert main(command) == 0
    first, second = csv.DictReader((tmp_path / "o.csv").read_text().splitlines())
    assert first["x.row"] == "1.25" and first["'=kind"] in ("'=1+1", "b", "'-c") and second["'=kind"] == "'=1+1"
    assert np.isfinite(float(second["x.row"]))


def test_a_value_outside_the_support_of_its_column_is_named(tmp_path, capsys):
    rows = [[f"{i}.5", "xy"[i % 2], str(i % 7), f"{i - 4}.25"] for i in range(30)]
    path = write_table(tmp_path / "x.csv", rows, ["a", "b", "c", "d"])
    command = ["train", "--data", str(path), "--run", str(tmp_path / "run"), "--columns", "auto,a=normal,d=gamma"]
    assert main(command) == 3
    told = capsys.readouterr().err
    assert (
        "column 'd' has" in told and "values outside the support of its likelihood gamma" in told and "'a'" not in told
    )
    assert main([*command[:-1], "auto,a=gama"]) == 2 and "column 'a': block" in capsys.readouterr().err
    assert main([*command[:-1], "auto", "--likelihood", "poisson"]) == 2
    assert "--columns auto,NAME=poisson" in capsys.readouterr().err


def test_a_run_on_counts_goes_on(tmp_path, monkeypatch):
    """Its marginals are fitted by gradient, which is no part of what a config of a folder may ask for."""
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    counts = np.random.default_rng(0).poisson(3, 40)
    path = write_table(tmp_path / "x.csv", [[str(n), "ab"[n % 2]] for n in counts], ["n", "kind"])
    train_run(Config(data=str(path), columns="auto", **SMALL), tmp_path / "run", num_samples=5, device="cpu")
    before = (tmp_path / "run" / "evidence.json").read_bytes()
    resume_run(tmp_path / "run", num_samples=5, device="cpu")
    assert (tmp_path / "run" / "evidence.json").read_bytes() == before


def test_the_file_of_a_run_split_by_groups_is_known_again_and_rows_seen_in_training_are_told(
    tmp_path, capsys, monkeypatch
):
    """Else its training rows would be scored with the others, as new ones."""
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    rows = [[str(i % 6), *row] for i, row in enumerate(penguins(60))]
    path = write_table(tmp_path / "p.csv", rows, ["site", *HEAD])
    config = Config(data=str(path), columns="auto", split_by="site", **SMALL)
    train_run(config, tmp_path / "run", num_samples=5, device="cpu")
    run = load_run(tmp_path / "run")
    moved = shutil.copy(path, tmp_path / "moved.csv")
    wanted = open_data(run)
    assert open_rows(run, moved).digest == wanted.digest and torch.equal(
        open_rows(run, moved).test.x.nan_to_num(), wanted.test.x.nan_to_num()
    )
    capsys.readouterr()
    some = [rows[i] for i in (wanted.train.numbers[0], wanted.train.numbers[1], wanted.test.numbers[0])]
    some[0] = ["", *some[0][1:]]  # nothing is split here, so that it need not say
    assert len(open_rows(run, write_table(tmp_path / "n.csv", some, ["site", *HEAD])).test) == 3
    assert "2 of 3 rows equal rows that the run was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int32])
def test_a_code_for_missing_is_one_in_new_rows_that_are_no_table(dtype, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_vae.runs.new_rows.training_rows", lambda run, data_dir: None)
    run = load_run(trained / "run")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, missing_value="-999"))
    x = np.arange(4 * len(HEAD)).reshape(4, -1).astype(dtype)
    x[2, 3] = -999
    np.save(tmp_path / "x.npy", x)
    rows = open_rows(run, tmp_path / "x.npy").test.x.numpy()
    assert np.isnan(rows[2, 3]) and np.isnan(rows).sum() == 1 and (np.delete(rows, 2, 0) == np.delete(x, 2, 0)).all()


def test_columns_without_names_go_by_place_and_that_is_told(run, tmp_path, capsys):
    opened = load_run(run)
    np.save(tmp_path / "new.npy", open_data(opened).test.x[:3].numpy())
    capsys.readouterr()
    assert len(open_rows(opened, tmp_path / "new.npy").test) == 3
    told = capsys.readouterr().err
    assert f"new.npy: its columns have no names, and are taken for the run's in their order: '{HEAD[0]}', " in told
    open_rows(opened, write_table(tmp_path / "new.csv", penguins(3), HEAD))
    assert "in their order" not in capsys.readouterr().err


def test_a_column_that_the_run_left_out_is_named_where_new_rows_have_it_still(tmp_path):
    def opened(**options):
        config = Config(data="own.csv", label="2", **options)
        return Run(tmp_path / "run", config, {"data": {"shape": [2], "digest": ""}}, None)

    path, few = tmp_path / "new.csv", tmp_path / "few.csv"
    path.write_text("1.5,2.5,0\n0.5,1,1\n")
    few.write_text("1.5\n0.5\n")
    said = r"shape \(3,\), and .* \(2,\): columns without names .* left column 2 \(--label\) of its own out"
    with pytest.raises(ShapeError, match=said):
        open_rows(opened(), path)
    with pytest.raises(
        ShapeError, match=r"left column 2 \(--label\) and column 0 \(--index\) of its own out .* without them"
    ):
        open_rows(opened(index="0"), path)
    with pytest.raises(ShapeError, match=r"\(2,\): give it such"):
        open_rows(opened(), few)


def test_new_rows_outside_the_support_are_named_by_column(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    lines = [f"{i * i % 7},{i}.5" for i in range(30)]
    (tmp_path / "x.csv").write_text("\n".join(["count,size", *lines, ",7.25"]))
    train_run(
        Config(data=str(tmp_path / "x.csv"), columns="auto", **SMALL), tmp_path / "run", num_samples=5, device="cpu"
    )
    (tmp_path / "new.csv").write_text("count,size\n3,1.5\n,2.5\n-1,2.5\n,\n")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "new.csv"), "--num-samples", "5"]) == 3
    said = capsys.readouterr().err
    assert "new.csv: column 'count' has 1 values outside the support of its likelihood negative_binomial" in said
    assert "-1 in row 2" in said and "note: new.csv: 1 of 4 rows has no value at all (first row 3" in said
    assert main(["encode", str(tmp_path / "run"), "--data", str(tmp_path / "new.csv"), "--rows", "5"]) == 2
    assert "there are 4 new rows: take 1 to 4" in capsys.readouterr().err


def test_gaps_in_new_rows_of_a_run_without_any_are_refused_with_a_way_on(tmp_path, monkeypatch, capsys):
    """--missing is no option of evaluate."""
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)
    monkeypatch.setattr(evaluate_module, "draw_khat", lambda *_, **__: None)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 2)))
    np.save(tmp_path / "new.npy", np.array([[0.5, np.nan], [1.0, 2.0]]))
    train_run(Config(data=str(tmp_path / "x.npy"), **SMALL), tmp_path / "run", num_samples=5, device="cpu")
    capsys.readouterr()
    for name, rows, what in (
        ("no rows", np.zeros((0, 2)), "x is empty"),
        ("dates", np.full((3, 2), "2024-01-01", dtype="M8[D]"), "datetime64"),
        ("spans", np.ones((3, 2), "m8[s]"), "timedelta64"),
        ("texts", np.full((3, 2), "a"), "<U1"),
    ):
        np.save(tmp_path / f"{name}.npy", rows)
        assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / f"{name}.npy")]) == 3
        said = capsys.readouterr().err
        assert f"{name}.npy: " in said and what in said
    (tmp_path / "named.csv").write_text("b,a\n1.5,2\n")
    open_rows(load_run(tmp_path / "run"), tmp_path / "named.csv")
    assert "named.csv: its columns are taken in their order, 'b', 'a'" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "new.npy")]) == 3
    said = capsys.readouterr().err
    assert (
        "in 1 of 2 rows: 0" in said
        and "train with --missing, whose runs take them" in said
        and "SkipMissing" not in said
    )
