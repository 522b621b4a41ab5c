"""The command line and run folders: what a newcomer types, what stays on disk, and every bad input's exit code."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pyro_vae import impute
from pyro_vae.cli.main import main
from pyro_vae.data import load
from pyro_vae.errors import RunFolderError, UsageError
from pyro_vae.evidence.exact.quadrature import quadrature
from pyro_vae.evidence.importance.sampler import Sampler
from pyro_vae.evidence.importance.storage import load_evidence
from pyro_vae.likelihoods import fitting
from pyro_vae.runs import folder
from pyro_vae.runs.config import Config
from pyro_vae.runs.load import load_run

SMALL = {"--hidden": "8", "--latent-dim": "2", "--epochs": "2", "--batch-size": "256", "--num-samples": "20"}


ONE_HOT = ["--prior", "one_hot", "--posterior", "one_hot_categorical"]


def small(*more):
    """The options of a small run, with some changed or added."""
    kept = {k: v for k, v in SMALL.items() if k not in more}
    return [word for option in kept.items() for word in option] + list(more)


@pytest.fixture
def train(tmp_path, device):
    """Trains a small run with more options; returns its exit code."""
    return lambda name, *more: main(["train", "--run", str(tmp_path / name), "--device", str(device), *small(*more)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A small run on digits, trained once."""
    path = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "--run", str(path), "--device", request.config.getoption("--device"), *small()]) == 0
    return path


@pytest.fixture
def run(tmp_path, trained):
    """A copy of it, to do with as one likes."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_run_folder_holds_what_it_says(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    pictures = ("training", "evidence", "reconstructions", "samples", "sample_means", "latent")
    generation = [f"{name}.safetensors" for name in ("model", "best", "optimizer", "rng")] + [
        "state.json",
        "manifest.json",
    ]
    kept = {f"checkpoints/{number:06d}/{name}" for number in (1, 2) for name in generation}
    locks = {".lock", ".evaluation.lock"}
    assert names == {*folder.OURS, *(f"figures/{name}.png" for name in pictures), *kept, *locks}
    record = folder.read_config(run)
    assert record["config"]["likelihood"] == "binomial" and record["data"]["policy"] == "counts 0..16"
    metrics = folder.read_lines(run / "metrics.jsonl")
    assert [m["epoch"] for m in metrics] == [1, 2]
    assert all(abs(m["elbo"] - (m["reconstruction"] - m["kl"])) < 1e-6 for m in metrics)
    assert metrics[-1]["evidence"]["log_px"] > metrics[-1]["evidence"]["elbo"]
    evidence = folder.read_json(run / "evidence.json")
    assert evidence["rows"] == 180 and evidence["num_samples"] == 20
    assert {"floor", "policy", "machine", "seed", "versions", "training"} <= evidence.keys()


def test_engine_and_precision_are_options_of_a_run(train, tmp_path, capsys):
    assert train("run", "--engine", "trace", "--precision", "bf16") == 0
    said = folder.read_json(tmp_path / "run" / "evidence.json")["training"]["engine"]
    assert said[0] == "engine trace (asked for)" and "checked against eager" in said[-1]
    assert folder.read_config(tmp_path / "run")["config"]["precision"] == "bf16"
    assert train("fast", "--engine", "fast") == 2 and train("half", "--precision", "fp8") == 2


def test_an_engine_that_the_device_cannot_run_is_refused_before_a_folder_is_made(tmp_path, capsys):
    path = tmp_path / "run"
    assert main(["train", "--run", str(path), "--device", "cpu", "--engine", "graph", *small()]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err and not path.exists()


def test_evaluate_draws_khat_where_it_is_known(run, device):
    """K = 20 has no k̂, so training drew none; a later evaluation without k̂ leaves no picture of an earlier one."""
    picture, evaluate = run / "figures" / "khat.png", ["evaluate", str(run), "--device", str(device), "--num-samples"]
    assert not picture.exists()
    assert main([*evaluate, "30"]) == 0
    assert len(picture.read_bytes()) > 3000
    assert main([*evaluate, "20"]) == 0
    assert not picture.exists()


def test_floor_is_the_exact_log_likelihood_of_independent_binomials(run):
    from scipy.stats import binom

    from pyro_vae.data import load

    digits = load("digits")
    x, test = digits.train.x.double().numpy(), digits.test.x.numpy()
    rate = (x.sum(0) + 0.5) / (16 * len(x) + 1)
    exact = binom.logpmf(test, 16, rate).sum(1)
    assert folder.read_json(run / "evidence.json")["floor"]["log_px"] == pytest.approx(exact.mean(), abs=1e-4)


def test_a_reloaded_run_gives_the_same_log_px_to_the_last_bit_in_a_fresh_process(run, device):
    if device.type == "cpu":
        before = (run / "evidence.csv").read_bytes()
        (run / "evidence.csv").unlink()
    else:
        main(["evaluate", str(run), "--num-samples", "20", "--device", str(device)])
        before = (run / "evidence.csv").read_bytes()
    command = [
        sys.executable,
        "-m",
        "pyro_vae.cli.main",
        "evaluate",
        str(run),
        "--num-samples",
        "20",
        "--device",
        str(device),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert (run / "evidence.csv").read_bytes() == before


def test_a_runs_own_config_trains_the_same_weights_again(run, tmp_path, device):
    again = ["train", "--config", str(run / "config.json"), "--run", str(tmp_path / "b"), "--num-samples", "2"]
    assert main([*again, "--device", str(device)]) == 0
    a, b = (load_file(path / "model.safetensors") for path in (run, tmp_path / "b"))
    assert all(torch.equal(a[k], b[k]) for k in a) if device.type == "cpu" else a.keys() == b.keys()


def test_another_seed_trains_other_weights(run, tmp_path, train):
    assert train("b", "--seed", "1") == 0
    a, b = (load_file(path / "model.safetensors") for path in (run, tmp_path / "b"))
    assert not any(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "options",
    [
        ["--binarization", "dynamic"],
        ["--binarization", "static", "--network", "conv"],
        ["--objective", "iwae", "--objective.particles", "3", "--gradient", "dreg"],
        ["--objective", "mean_field_elbo", "--likelihood", "normal", "--activation", "tanh"],
        ["--schedule", "constant", "--patience", "1"],
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
        ],
        ["--kl", "tc", "--kl.beta", "3"],
    ],
)
def test_options_train(train, tmp_path, options):
    assert train("run", *options) == 0
    assert np.isfinite(folder.read_json(tmp_path / "run" / "evidence.json")["log_px"])


def test_own_files_train_and_say_what_was_converted(train, tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(60, 5))
    np.save(tmp_path / "x.npy", x)
    assert train("run", "--data", str(tmp_path / "x.npy"), "--batch-size", "10") == 0
    assert "converted from numpy float64 to torch.float32" in capsys.readouterr().err
    assert folder.read_config(tmp_path / "run")["config"]["likelihood"] == "normal"


def test_using_a_run(run, tmp_path, capsys):
    for command, shape in {
        ("sample", "--num-samples", "7"): (7, 64),
        ("encode", "--rows", "9"): (9, 2),
        ("reconstruct", "--rows", "4"): (4, 64),
        ("interpolate", "--start", "2", "--end", "5", "--steps", "6"): (6, 64),
    }.items():
        out = tmp_path / f"{command[0]}.npy"
        arguments = [command[0], str(run), *command[1:], "--out", str(out)]
        assert main(arguments) == 0
        first = np.load(out, allow_pickle=False)
        assert first.shape == shape
        assert main(arguments) == 0
        assert np.array_equal(first, np.load(out))
        assert "figures" in capsys.readouterr().out
    assert set(np.unique(np.load(tmp_path / "sample.npy"))) <= set(range(17))


def test_an_existing_run_is_refused_unless_overwritten(run, train, capsys):
    before = (run / "model.safetensors").read_bytes()
    assert train("run", "--seed", "1") == 4
    assert "--overwrite" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before
    assert train("run", "--seed", "1", "--overwrite") == 0
    assert (run / "model.safetensors").read_bytes() != before


def test_a_folder_of_somebody_elses_is_never_touched(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert train("run", "--overwrite") == 4
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "run" / "config.json").write_text('{"somebody": "else"}')
    assert train("run", "--overwrite") == 4
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_bad_data_is_refused_before_a_run_is_overwritten(run, train, tmp_path, capsys):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).random((40, 6), dtype=np.float32))
    options = ["--likelihood", "bernoulli", "--binarization", "none", "--batch-size", "8"]
    assert train("run", "--overwrite", "--data", str(tmp_path / "grey.npy"), *options) == 3
    said = capsys.readouterr().err
    assert "site 'x': 32 of 32 rows" in said and "Bernoulli" in said and "binarize" in said
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


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
    train, tmp_path, capsys, likelihood, bad, said, seed
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
    count = ["--batch-size", "8", "--epochs", "1"]
    assert train("run", "--data", str(tmp_path / "x.npy"), "--likelihood", families[-1], *count) == 0


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


def test_the_floor_of_a_table_with_gaps_is_that_of_what_is_observed(train, gaps, tmp_path):
    """Columns of normals, each fitted to its own observed training values; a row of nothing scores 0."""
    from scipy.stats import norm

    from pyro_vae.data import load

    assert train("run", "--data", str(tmp_path / "gaps.csv"), "--missing", "--batch-size", "16") == 0
    data = load(tmp_path / "gaps.csv", missing=True)
    fitted, rows = data.train.x.double().numpy(), data.test.x.double().numpy()
    exact = np.nansum(norm.logpdf(rows, np.nanmean(fitted, 0), np.nanstd(fitted, 0)), 1)
    assert folder.read_json(tmp_path / "run" / "evidence.json")["floor"]["log_px"] == pytest.approx(
        exact.mean(), abs=5e-3
    )


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
    assert opened.vae.likelihood.family.__name__ == "columns(normal x 2, poisson x 1, categorical(3) x 1)"
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
def test_enumerated_latents_train_and_are_scored_by_drawing(train, tmp_path, device, prior):
    options = [
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


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--run", "r", "--latnt-dim", "4"], "--latent-dim"),
        (["train", "--run", "r", "--latent-dim", "x"], "int"),
        (["train", "--run", "r", "--latent-dim", "0"], "latent_dim must be"),
        (["train", "--run", "r", "--likelihood", "bernouli"], "did you mean 'bernoulli'"),
        (["train", "--run", "r", "--prior", "os.system"], "known: standard_normal"),
        (["train", "--run", "r", "--prior", "vamp", "--prior.componets", "3"], "did you mean 'components'"),
        (["train", "--run", "r", "--prior", "vamp", "--prior.components", "3.5"], "not a whole number"),
        (["train", "--run", "r", "--prior", "dirichlet"], "'logistic_normal'"),
        (["train", "--run", "r", "--prior", "vamp", "--posterior", "semi_amortized"], "take another"),
        (["train", "--run", "r", "--objective", "trace_enum"], "'one_hot_categorical'"),
        (["train", "--run", "r", *ONE_HOT, "--objective", "iwae"], "--gradient vimco or rws"),
        (["train", "--run", "r", *ONE_HOT], "trace_enum, which sums z out"),
        (["train", "--run", "r", "--objective", "iwea"], "did you mean 'iwae'"),
        (["train", "--run", "r", "--objective", "renyi", "--objective.alpha", "-1"], "alpha"),
        (["train", "--run", "r", "--objective", "iwae", "--objective.alpha", "1"], "has no option 'alpha'"),
        (["train", "--run", "r", "--gradient", "drge"], "did you mean 'dreg'"),
        (["train", "--run", "r", "--gradient", "vimco"], "--objective.particles 2 or more"),
        (["train", "--run", "r", "--objective", "mean_field_elbo", "--gradient", "stl"], "one gradient, pathwise"),
        (["train", "--run", "r", "--objective", "iwae", "--kl", "free_bits"], "adds a term to the ELBO"),
        (["train", "--run", "r", "--kl", "beta", "--kl.schedule", "up"], "constant, linear, cyclical"),
        (["train", "--run", "r", "--data", "x.csv", "--likelihood", "binomial"], "--likelihood.total-count"),
        (["train", "--run", "r", "--data", "mnits"], "mnist"),
        (["train", "--run", "r", "--device", "nonsense"], "no device"),
        (["train"], "--run"),
        (["trian"], "train"),
    ],
)
def test_usage_errors_exit_2_with_a_suggestion(arguments, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert hint in said.err + said.out
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here, so asking for it is no error")
def test_cuda_without_cuda_is_an_error(capsys, tmp_path):
    assert main(["train", "--run", str(tmp_path / "r"), "--device", "cuda"]) == 2
    assert "no CUDA" in capsys.readouterr().err


def test_config_files(train, tmp_path, capsys):
    file = tmp_path / "c.json"
    file.write_text('{"latent_dm": 3}')
    assert train("run", "--config", str(file)) == 2
    assert "did you mean 'latent_dim'" in capsys.readouterr().err
    file.write_text('{"latent_dim": "3"}')
    assert train("run", "--config", str(file)) == 2
    assert "whole number" in capsys.readouterr().err
    file.write_text('{"latent_dim": 3, "epochs": 1, "objective": "iwae", "objective_options": {"particles": 2}}')
    assert main(["train", "--config", str(file), "--run", str(tmp_path / "run"), "--hidden", "8"]) == 0
    config = folder.read_config(tmp_path / "run")["config"]
    assert (config["latent_dim"], config["objective"], config["hidden"]) == (3, "iwae", [8])


def test_config_round_trip_and_refusals():
    config = Config(hidden=(3, 4), patience=None)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for bad in (
        {"hidden": [1.5]},
        {"epochs": True},
        {"prior": 3},
        {"prior_options": 3},
        {"learning_rate": "1"},
        ["epochs"],
    ):
        with pytest.raises(UsageError):
            Config.from_dict(bad)


def test_damaged_run_folders_exit_4(run, capsys):
    def evaluated(message):
        assert main(["evaluate", str(run), "--num-samples", "5"]) == 4
        assert message in capsys.readouterr().err

    whole = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}

    def restore():
        for path, content in whole.items():
            path.write_bytes(content)

    weights, config = run / "model.safetensors", run / "config.json"
    weights.write_bytes(whole[weights][:-100])
    evaluated("damaged")
    weights.write_bytes(b"PK\x03\x04 a pickle, perhaps")
    evaluated("damaged")
    weights.unlink()
    assert main(["evaluate", str(run), "--num-samples", "5"]) == 0  # from the checkpoint, which has the same weights
    shutil.rmtree(run / "checkpoints")
    evaluated("model.safetensors is missing")
    save_file({"other": torch.zeros(3)}, weights)
    evaluated("not of the model")
    state = {k: v * torch.nan for k, v in load_bytes(whole[weights]).items()}
    save_file(state, weights)
    evaluated("non-finite")
    restore()
    config.write_bytes(whole[config][:-40])
    evaluated("damaged")
    config.write_text('{"name": "another program"}')
    evaluated("not a run of pyro_vae")
    record = json.loads(whole[config])
    config.write_text(json.dumps(record | {"schema": 99}))
    evaluated("schema 99")
    config.write_text(json.dumps(record | {"config": record["config"] | {"prior": "os.system"}}))
    evaluated("prior")
    config.write_text(json.dumps(record | {"config": record["config"] | {"priior": "x"}}))
    evaluated("did you mean 'prior'")
    changed = record | {"data": record["data"] | {"digest": "0" * 64}}
    config.write_text(json.dumps(changed))
    evaluated("has changed")
    config.unlink()
    evaluated("config.json is missing")
    with pytest.raises(RunFolderError, match="no run folder"):
        load_run(run / "nowhere")


def load_bytes(content):
    from safetensors.torch import load

    return load(content)


def test_a_torn_last_metrics_line_is_left_out(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    assert [m["epoch"] for m in folder.read_lines(path)] == [1]
    path.write_text("{\n" + path.read_text())
    with pytest.raises(RunFolderError, match="line 1"):
        folder.read_lines(path)


def test_divergence_exits_5_and_keeps_finite_weights(train, tmp_path, capsys):
    assert train("run", "--learning-rate", "1e20", "--warmup", "0", "--schedule", "constant") == 5
    assert "step" in capsys.readouterr().err
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / "model.safetensors").values())
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "5"]) == 0


def test_ctrl_c_saves_the_best_weights_and_exits_130(tmp_path, device):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pyro_vae.cli.main", "train", "--run", str(run), *small("--epochs", "100000")]
    process = subprocess.Popen([*command, "--device", str(device)], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(folder.read_lines(run / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted at step" in said
    best = max(folder.read_lines(run / "metrics.jsonl"), key=lambda m: m["elbo"])["epoch"]
    assert f"the weights of epoch {best}" in said
    assert main(["evaluate", str(run), "--num-samples", "5"]) == 0


# evaluate: methods, and going on


def test_evaluate_by_an_oracle_where_one_applies(run, capsys):
    """Two latents: quadrature, and the report says so, with the measure of the number."""
    assert main(["evaluate", str(run), "--method", "auto", "--rows", "6"]) == 0
    said, found = capsys.readouterr().out, folder.read_json(run / "evidence.json")
    assert "method: quadrature in 2 dimensions" in said and "± numerical" in said and "ELBO" not in said
    assert "measure: counts, a log probability" in said and f"{found['bits_per_dim']:.4f} bits for each of 64" in said
    opened, rows = load_run(run), load("digits").test.x[:6]
    exact = quadrature(opened.vae.model, opened.vae.guide, rows)
    kept = [float(line.split(",")[1]) for line in (run / "evidence.csv").read_text().splitlines()[1:]]
    assert kept == exact.log_px.tolist() and found["log_px"] == exact.log_px.mean().item()
    assert found["bits_per_dim"] == pytest.approx(-found["log_px"] / (64 * math.log(2)))
    assert main(["evaluate", str(run), "--num-samples", "30"]) == 0
    said = capsys.readouterr().out
    assert "method: importance sampling, from the guide" in said and "flagged, not to be believed: k̂ is above" in said


def test_an_interrupted_evaluation_goes_on_from_the_folder(run, monkeypatch, capsys):
    options = ["evaluate", str(run), "--num-samples", "300", "--device", "cpu"]
    assert main(options) == 0
    whole, kept = (run / "evidence.csv").read_bytes(), run / "particles-test.safetensors"
    assert not kept.exists()
    weigh, left = Sampler.weigh, [7]

    def interrupted(self, draws, problem):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return weigh(self, draws, problem)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "weigh", interrupted)
        assert main(options) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err and kept.is_file()
    held, seen = load_evidence(kept), []
    monkeypatch.setattr(Sampler, "weigh", lambda *a: seen.append(len(a[1])) or weigh(*a))
    assert 0 < held.samples.sum() < 300 * 180 and main([*options, "--resume"]) == 0
    assert (run / "evidence.csv").read_bytes() == whole and 0 < len(seen) < 3 * 5
    seen.clear()
    assert main([*options, "--resume"]) == 0 and not seen  # all of it is kept, for more
    assert (run / "evidence.csv").read_bytes() == whole
    assert main([*options, "--resume", "--proposal", "defensive"]) == 2
    assert "run all of it with the same" in capsys.readouterr().err
    folder.clear(run)
    assert not kept.exists()


def test_evaluate_until_the_error_is_small_enough_from_another_proposal(run, capsys):
    options = ["--rows", "64", "--num-samples", "50", "--target-se", "0.001", "--max-samples", "200"]
    assert main(["evaluate", str(run), *options, "--proposal", "defensive"]) == 0
    found = folder.read_json(run / "evidence.json")
    assert (found["num_samples"], found["proposal"], found["target_se"]) == (200, "0.9 guide + 0.1 prior", 0.001)
    assert "or the Monte Carlo error above 0.001" in capsys.readouterr().out


def test_demo_replaces_only_a_demo(run, capsys, monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.commands.DEMO", Config(epochs=1, hidden=(8,), latent_dim=2, batch_size=512))
    assert main(["demo", "--run", str(run), "--num-samples", "5"]) == 4
    other = run.parent / "demo"
    for _ in range(2):
        assert main(["demo", "--run", str(other), "--num-samples", "5"]) == 0
    assert "independent binomial elements" in capsys.readouterr().out


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("demo", "train", "evaluate", "sample", "encode", "reconstruct", "interpolate"))


@pytest.mark.parametrize(
    "options",
    [
        ["--prior", "vamp", "--prior.components", "7", "--binarization", "dynamic"],
        ["--prior", "flow", "--prior.kind", "maf", "--prior.hidden", "8,8", "--likelihood", "categorical"],
        ["--posterior", "flow", "--posterior.transforms", "2", "--likelihood", "discretized_logistic"],
        ["--prior", "mixture", "--posterior", "full_normal", "--likelihood", "poisson", "--network", "conv"],
        ["--prior", "dirichlet", "--posterior", "logistic_normal", "--likelihood", "negative_binomial"],
    ],
    ids=lambda options: " ".join(options[:4]),
)
def test_named_parts_train_and_come_back_from_the_folder(train, tmp_path, device, options):
    assert train("run", "--latent-dim", "3", *options) == 0
    first = folder.read_json(tmp_path / "run" / "evidence.json")
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "20", "--device", str(device)]) == 0
    assert folder.read_json(tmp_path / "run" / "evidence.json")["log_px"] == pytest.approx(first["log_px"], abs=1e-9)
    config = folder.read_config(tmp_path / "run")["config"]
    assert config["prior"] == options[1] or config["posterior"] == options[1]
    again = ["train", "--config", str(tmp_path / "run" / "config.json"), "--run", str(tmp_path / "b"), "--epochs", "1"]
    assert main([*again, "--num-samples", "2", "--device", str(device)]) == 0
    assert folder.read_config(tmp_path / "b")["config"] == config | {"epochs": 1}


def test_flags_override_single_options_of_a_config_file(run, tmp_path, device):
    file = tmp_path / "c.json"
    file.write_text('{"prior": "flow", "prior_options": {"kind": "maf", "transforms": 1, "hidden": [4]}, "epochs": 1}')
    given = ["train", "--config", str(file), "--run", str(tmp_path / "f"), "--prior.transforms", "2", "--hidden", "8"]
    assert main([*given, "--latent-dim", "2", "--num-samples", "2", "--device", str(device)]) == 0
    made = folder.read_config(tmp_path / "f")["config"]["prior_options"]
    assert made == {"kind": "maf", "transforms": 2, "hidden": [4]}


def test_parts_lists_every_part(capsys):
    from pyro_vae.runs.registry import ROLES, names

    assert main(["parts"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for role in ROLES for name in names(role))
