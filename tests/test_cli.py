"""The command line and run folders: what a newcomer types, what stays on disk, and every bad input's exit code."""

import json
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

from pyro_vae.cli import main
from pyro_vae.errors import RunFolderError, UsageError
from pyro_vae.parts.fitting import fitting
from pyro_vae.runs import folder
from pyro_vae.runs.config import Config
from pyro_vae.workflows import open_run

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
        "pyro_vae.cli",
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
        ("multinomial", 4.0, "row 7 is one (rows 7; values go from 3 to 4)"),
    ],
)
def test_data_outside_a_support_comes_with_its_range_and_the_families_that_fit(
    train, tmp_path, capsys, likelihood, bad, said
):
    x = np.full((40, 6), 0.5 if likelihood == "beta" else 3.0, np.float32)
    x[7, 2] = bad
    np.save(tmp_path / "x.npy", x)
    needs = {"categorical": ("num-classes", "256"), "multinomial": ("total-count", "18")}.get(likelihood)
    options = [f"--likelihood.{needs[0]}", needs[1]] if needs else []
    assert train("run", "--data", str(tmp_path / "x.npy"), "--likelihood", likelihood, *options) == 3
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
def test_missing_values_in_a_file_are_refused_with_the_way_in_python(train, tmp_path, capsys, ending):
    x = np.ones((40, 3), np.float32)
    x[7, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    assert train("run", "--data", str(tmp_path / f"x.{ending}")) == 3
    said = capsys.readouterr().err
    assert "1 of 40 rows: 7 " in said
    assert all(word in said for word in ("in Python only", "SkipMissing", "WithMask", "fit(..., missing=True)"))
    assert not (tmp_path / "run").exists()


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
        open_run(run / "nowhere")


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
    command = [sys.executable, "-m", "pyro_vae.cli", "train", "--run", str(run), *small("--epochs", "100000")]
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


def test_demo_replaces_only_a_demo(run, capsys, monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.DEMO", Config(epochs=1, hidden=(8,), latent_dim=2, batch_size=512))
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
