"""Training from the command line: options, files of one's own, and data that does not fit."""

import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyro_vae import impute
from pyro_vae.cli.main import main
from pyro_vae.data import load
from pyro_vae.likelihoods import fitting
from pyro_vae.runs import folder
from pyro_vae.runs.load import load_run
from tests.helpers.children import Child
from tests.helpers.command_line import quiet_command, small
from tests.helpers.data import few_digits
from tests.helpers.environment import HEAVY

SMALL = {"--hidden": "8", "--latent-dim": "2", "--epochs": "2", "--batch-size": "256", "--num-samples": "20"}


def test_engine_and_precision_are_options_of_a_run(train, tmp_path, capsys, monkeypatch):
    few_digits(monkeypatch)
    assert train("run", "--engine", "trace", "--precision", "bf16") == 0
    said = folder.read_json(tmp_path / "run" / "evidence.json")["training"]["engine"]
    assert said[0] == "engine trace (asked for)" and "checked against eager" in said[-1]
    assert folder.read_config(tmp_path / "run")["config"]["precision"] == "bf16"
    assert train("tf32", "--precision", "tf32") == 0 and "changes nothing on cpu" in capsys.readouterr().err
    assert folder.read_config(tmp_path / "tf32")["config"]["precision"] == "tf32"
    assert train("fast", "--engine", "fast") == 2 and train("half", "--precision", "fp8") == 2


def test_an_engine_that_the_device_cannot_run_is_refused_before_a_folder_is_made(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--run", str(path), "--device", "cpu", "--engine", "graph", *small()]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--binarization", "dynamic"],
        ["--binarization", "static", "--network", "conv"],
        ["--objective", "iwae", "--objective.particles", "3", "--gradient", "dreg"],
        ["--objective", "mean_field_elbo", "--likelihood", "normal", "--activation", "tanh"],
        ["--schedule", "constant", "--patience", "1", "--epochs", "2"],
        [
            "--objective",
            "piwae",
            "--objective.groups",
            "2",
            "--kl",
            "beta",
            "--kl.beta",
            "2",
            "--kl.schedule",
            "cyclical",
            "--epochs",
            "2",
        ],
        ["--kl", "tc", "--kl.beta", "3"],
    ],
)
def test_options_train(train, tmp_path, options, monkeypatch):
    few_digits(monkeypatch)
    assert train("run", *options) == 0
    assert np.isfinite(folder.read_json(tmp_path / "run" / "evidence.json")["log_px"])


def test_own_files_train_and_say_what_was_converted(train, tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(60, 5))
    np.save(tmp_path / "x.npy", x)
    assert train("run", "--data", str(tmp_path / "x.npy"), "--batch-size", "10") == 0
    assert "converted from numpy float64 to torch.float32" in capsys.readouterr().err
    assert folder.read_config(tmp_path / "run")["config"]["likelihood"] == "normal"


def test_counts_that_are_none(train, tmp_path, capsys):
    count = ["--likelihood", "binomial", "--likelihood.total-count", "16"]
    for bad in (-1.0, 2.5, 17.0):
        x = np.full((40, 6), 3.0, np.float32)
        x[7, 2] = bad
        np.save(tmp_path / "x.npy", x)
        assert train("run", "--data", str(tmp_path / "x.npy"), *count, "--data-seed", "1") == 3
        said = capsys.readouterr().err
        assert "whole numbers 0 to 16" in said and f"row 7 holds {bad:g} in column 2" in said
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("likelihood", "bad", "said"),
    [
        ("beta", 0.0, "Beta (0 < y < 1): row 7 holds 0 in column 2 (rows 7; values go from 0 to 0.5)"),
        (
            "beta",
            1.0,
            "row 7 holds 1 in column 2 (rows 7; values go from 0.5 to 1). The density there is zero or infinite",
        ),
        (
            "categorical",
            256.0,
            "(whole numbers 0 to 255): row 7 holds 256 in column 2 (rows 7; values go from 3 to 256)",
        ),
        ("poisson", 0.25, "row 7 holds 0.25 in column 2 (rows 7; values go from 0.25 to 3)"),
        ("multinomial", 4.0, "(whole numbers that sum to 18): row 7 sums to 19 (rows 7; values go from 3 to 4)"),
    ],
)
@pytest.mark.parametrize("seed", ["0", "1"], ids=["validation row", "training row"])
def test_data_outside_a_support_comes_with_its_range_and_the_families_that_fit(
    train, tmp_path, capsys, monkeypatch, likelihood, bad, said, seed
):
    x = np.full((40, 6), 0.5 if likelihood == "beta" else 3.0, np.float32)
    x[7, 2] = bad
    held = np.random.default_rng(int(seed)).permutation(40)[32:]
    assert (7 in held) == (seed == "0")  # as the ids say
    np.save(tmp_path / "x.npy", x)
    needs = {"categorical": ("num-classes", "256"), "multinomial": ("total-count", "18")}.get(likelihood)
    options = [f"--likelihood.{needs[0]}", needs[1]] if needs else []
    options += ["--data", str(tmp_path / "x.npy"), "--data-seed", seed]
    assert train("run", "--likelihood", likelihood, *options) == 3
    error, _, fit = capsys.readouterr().err.partition(" Families that fit this data: ")
    assert said in error
    families = fit.strip().rstrip(".").split(", ")
    assert families == fitting(torch.from_numpy(x)) and likelihood not in set(families) - {"categorical"}
    if seed == "0" and (HEAVY or likelihood in ("poisson", "multinomial")):
        options = ["--data", str(tmp_path / "x.npy"), "--batch-size", "8"]
        assert train("run", "--likelihood", families[-1], *options) == 0


def test_pixels_under_poisson_are_asked_about_and_trained(train, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (100, 6)).astype(np.float32))
    assert train("run", "--data", str(tmp_path / "x.npy"), "--likelihood", "poisson", "--batch-size", "64") == 0
    said = capsys.readouterr().err
    assert said.count("note: site 'x': whole numbers up to 255 under Poisson: are these pixels? Fix: scale pixels") == 1


@pytest.mark.parametrize("ending", ["npy", "csv"])
def test_missing_values_in_a_file_are_refused_with_the_way_to_model_them(train, tmp_path, capsys, ending):
    x = np.ones((40, 3), np.float32)
    x[7, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    assert train("run", "--data", str(tmp_path / f"x.{ending}")) == 3
    said = capsys.readouterr().err
    assert "1 of 40 rows: 7 " in said
    assert all(word in said for word in ("--missing", "SkipMissing", "WithMask", "fit(..., missing=True)"))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def gaps(tmp_path):
    """A table with empty cells and rows, and what it holds."""
    x = np.random.default_rng(0).random((60, 4)).astype(np.float32)
    x[::3, 1], x[6], x[:, 3] = np.nan, np.nan, np.where(x[:, 3] < 0.5, np.nan, x[:, 3])
    lines = (",".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in x)
    (tmp_path / "gaps.csv").write_text("a,b,c,d\n" + "\n".join(lines) + "\n")
    return x


@pytest.mark.parametrize(
    "parts",
    [
        [],
        ["--prior", "vamp", "--prior.components", "5", "--likelihood", "continuous_bernoulli"],
        ["--posterior", "semi_amortized", "--likelihood", "SharedNormal"],
        ["--objective", "iwae", "--gradient", "dreg", "--kl", "beta"],
    ],
    ids=["plain", "vamp", "semi_amortized", "objective"],
)
def test_a_table_with_empty_cells_trains_scores_and_is_imputed(train, gaps, tmp_path, parts):
    run = tmp_path / "run"
    assert train("run", "--data", str(tmp_path / "gaps.csv"), "--missing", "--batch-size", "16", *parts) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(run / "model.safetensors").values())
    evidence = folder.read_json(run / "evidence.json")
    assert f"{100 * np.isnan(gaps).mean():.1f} % of them missing" in evidence["policy"]
    assert np.isfinite(evidence["log_px"]) and np.isfinite(evidence["floor"]["log_px"])
    again = ["evaluate", str(run), "--split", "train", "--num-samples", "20"]
    assert main(again) == 0 and main(["encode", str(run), "--split", "train"]) == 0
    assert np.isfinite(np.load(run / "encoded.npy")).all()
    opened = load_run(run)
    filled = impute(opened.vae, torch.from_numpy(gaps), num_samples=20)
    assert filled.isfinite().all() and (filled == torch.from_numpy(gaps)).any(0)[..., 0].any()


def test_the_floor_of_a_table_with_gaps_is_that_of_what_is_observed(train, gaps, tmp_path, whole_floors):
    """Columns of normals, each fitted to its own observed training values; a row of nothing scores 0."""
    from scipy.stats import norm

    assert train("run", "--data", str(tmp_path / "gaps.csv"), "--missing", "--batch-size", "16") == 0
    data = load(tmp_path / "gaps.csv", missing=True)
    fitted, rows = data.train.x.double().numpy(), data.test.x.double().numpy()
    exact = np.nansum(norm.logpdf(rows, np.nanmean(fitted, 0), np.nanstd(fitted, 0)), 1)
    evidence = folder.read_json(tmp_path / "run" / "evidence.json")
    assert evidence["floor"]["log_px"] == pytest.approx(exact.mean(), abs=5e-3)
    assert evidence["elements"] * len(rows) == pytest.approx((~np.isnan(rows)).sum())
    bits = -evidence["log_px"] * len(rows) / (~np.isnan(rows)).sum() / np.log(2)
    assert evidence["bits_per_dim"] == pytest.approx(bits)


def test_missing_goes_with_no_binarization(train, gaps, tmp_path, capsys):
    assert train("run", "--data", str(tmp_path / "gaps.csv"), "--missing", "--binarization", "static") == 2
    assert "what is missing has none: take binarization none" in capsys.readouterr().err


TABLE = ["--likelihood", "columns", "--likelihood.blocks", "normal:2,poisson:1,categorical:1:num-classes=3"]


def test_a_table_of_families_trains_by_name_and_comes_back(train, tmp_path):
    draw = np.random.default_rng(0)
    x = np.column_stack([draw.normal(size=(60, 2)), draw.poisson(2.0, 60), draw.integers(0, 3, 60)])
    np.save(tmp_path / "x.npy", x)
    assert train("run", "--data", str(tmp_path / "x.npy"), "--batch-size", "16", *TABLE) == 0
    opened = load_run(tmp_path / "run")
    assert opened.config.likelihood_options == {"blocks": TABLE[-1]}
    assert opened.vae.likelihood.base.family.__name__ == "columns(normal x 2, poisson x 1, categorical(3) x 1)"
    evidence = folder.read_json(tmp_path / "run" / "evidence.json")
    assert np.isfinite(evidence["log_px"]) and np.isfinite(evidence["floor"]["log_px"])
    again = ["train", "--config", str(tmp_path / "run" / "config.json"), "--run", str(tmp_path / "b")]
    assert main([*again, "--num-samples", "2"]) == 0


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (None, "blocks are NAME:WIDTH or NAME:WIDTH:OPTION=VALUE"),
        ("normal", "block 'normal': blocks are NAME:WIDTH"),
        ("normal:x", "block 'normal:x': blocks are NAME:WIDTH"),
        ("nrmal:4", "block 'nrmal:4': no family 'nrmal' of single columns; did you mean 'normal'"),
        ("multinomial:4", "no family 'multinomial' of single columns"),
        ("columns:4", "no family 'columns' of single columns"),
        ("normal:4:scale=1", "block 'normal:4:scale=1': normal has no option 'scale'; it has none"),
        ("categorical:4", "block 'categorical:4': categorical needs 'num_classes': categorical:4:num-classes=VALUE"),
        ("categorical:4:num-classes=x", "cannot read 'x'"),
        ("normal:2,poisson:1", "blocks make 3 columns, the data has 4"),
    ],
)
def test_blocks_that_cannot_be_read(train, tmp_path, capsys, blocks, said):
    np.save(tmp_path / "x.npy", np.ones((60, 4), np.float32))
    options = ["--likelihood.blocks", blocks] if blocks else []
    assert train("run", "--data", str(tmp_path / "x.npy"), "--likelihood", "columns", *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("prior", [["one_hot"], ["vamp", "--prior.components", "3"]], ids=lambda p: p[0])
def test_enumerated_latents_train_and_are_scored_by_drawing(train, tmp_path, device, prior, monkeypatch):
    few_digits(monkeypatch, 900)  # enough steps for the ELBO to rise
    options = [
        "--epochs",
        "2",
        "--prior",
        *prior,
        "--posterior",
        "one_hot_categorical",
        "--objective",
        "trace_enum",
        "--latent-dim",
        "4",
    ]
    assert train("run", *options) == 0
    evidence = folder.read_json(tmp_path / "run" / "evidence.json")
    assert evidence["log_px"] >= evidence["elbo"] and evidence["num_samples"] == 20
    metrics = folder.read_lines(tmp_path / "run" / "metrics.jsonl")
    assert metrics[1]["elbo"] > metrics[0]["elbo"] and metrics[0]["kl"] is None
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "20", "--device", str(device)]) == 0
    assert folder.read_json(tmp_path / "run" / "evidence.json")["log_px"] == pytest.approx(evidence["log_px"], abs=1e-9)


def test_divergence_exits_5_and_keeps_finite_weights(train, tmp_path, capsys):
    assert train("run", "--learning-rate", "1e20", "--warmup", "0", "--schedule", "constant") == 5
    assert "step" in capsys.readouterr().err
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / "model.safetensors").values())
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "5"]) == 0


def test_ctrl_c_saves_the_best_weights_and_exits_130(tmp_path, device):
    run = tmp_path / "run"
    process = Child(quiet_command, "train", "--run", str(run), *small("--epochs", "100000"), "--device", str(device))
    deadline = time.monotonic() + 120
    while len(folder.read_lines(run / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "interrupted at step" in said
    best = max(folder.read_lines(run / "metrics.jsonl"), key=lambda m: m["elbo"])["epoch"]
    assert f"the weights of epoch {best}" in said
    assert main(["evaluate", str(run), "--num-samples", "5"]) == 0


def test_standard_units_travel_with_the_run(train, tmp_path):
    """log p(x) of a table a thousand times as large is less by log 1000 a column, and so is the floor."""
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    runs = {}
    for name, scale in (("plain", 1.0), ("large", 1000.0)):
        np.save(tmp_path / f"{name}.npy", x * scale + 10 * scale)
        options = ["--data", str(tmp_path / f"{name}.npy"), "--standardize", "--drop-last", "--batch-size", "30"]
        assert train(name, *options) == 0
        evidence = folder.read_json(tmp_path / name / "evidence.json")
        runs[name] = np.array([evidence["log_px"], evidence["floor"]["log_px"]])
    assert np.allclose(runs["plain"] - runs["large"], 4 * np.log(1000), atol=0.02)
    opened = load_run(tmp_path / "large")
    assert opened.config.standardize and opened.config.drop_last and opened.vae.standardized
    units = load_file(tmp_path / "large" / "model.safetensors")["likelihood.units.scale"]
    assert torch.equal(units, opened.vae.likelihood.units.scale) and 500 < units.min() < 2000
    assert main(["evaluate", str(tmp_path / "large"), "--num-samples", "10"]) == 0


def test_standard_units_need_a_likelihood_of_real_numbers(train, tmp_path, capsys):
    assert train("run", "--standardize") == 2
    assert "no density of real numbers" in capsys.readouterr().err and not (tmp_path / "run").exists()
