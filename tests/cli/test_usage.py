"""What a newcomer types: suggestions, config files, names of parts."""

import json
from functools import partial

import pytest
import torch

from pyro_vae.cli.main import app, main, read_keys
from pyro_vae.errors import UsageError
from pyro_vae.runs import folder
from pyro_vae.runs.bracket_run import bracket_run
from pyro_vae.runs.config import Config
from tests.helpers.data import few_digits
from tests.helpers.environment import HEAVY

FEW = ["--num-samples", "2"]  # of runs whose log p(x) is not looked at
ONE_HOT = ["--prior", "one_hot", "--posterior", "one_hot_categorical"]


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
        (["train", "r", "x.csv"], "error: 'r', 'x.csv': nothing takes that"),
        (["train", "--run", "r", "--quite"], "error: there is no option --quite: did you mean --quiet?"),
        (["sample", "r", "--num", "3"], "error: there is no option --num: did you mean --num-samples?"),
        (["evaluate"], 'error: Command "evaluate" parameter RUN requires an argument. pyro-vae evaluate --help'),
        (["evaluate", "r", "--quiet", "--method", "anealing"], 'Did you mean "annealing"?'),
        (["train", "--run", "r", "--data", "-x y.csv"], "--data='-x y.csv', or './-x y.csv' of a file"),
        (["trian"], "train"),
    ],
)
def test_usage_errors_exit_2_with_a_suggestion(arguments, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    *notes, line = said.err.splitlines()
    assert hint in said.err and said.out == "" and line.startswith("error: ")
    assert all(note.startswith("note: ") for note in notes)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here, so asking for it is no error")
def test_cuda_without_cuda_is_an_error(capsys, tmp_path):
    assert main(["train", "--run", str(tmp_path / "r"), "--device", "cuda"]) == 2
    assert "no CUDA" in capsys.readouterr().err


def test_config_files(train, tmp_path, capsys, monkeypatch):
    few_digits(monkeypatch)
    file = tmp_path / "c.json"
    file.write_text('{"latent_dm": 3}')
    assert train("run", "--config", str(file)) == 2
    assert "did you mean 'latent_dim'" in capsys.readouterr().err
    file.write_text('{"latent_dim": "3"}')
    assert train("run", "--config", str(file)) == 2
    assert "whole number" in capsys.readouterr().err
    file.write_text('{"latent_dim": 3, "epochs": 1, "objective": "iwae", "objective_options": {"particles": 2}}')
    assert main(["train", "--config", str(file), "--run", str(tmp_path / "run"), "--hidden", "8", *FEW]) == 0
    config = folder.read_config(tmp_path / "run")["config"]
    assert (config["latent_dim"], config["objective"], config["hidden"]) == (3, "iwae", [8])
    assert app.config == ()  # other commands in this process have defaults of their own


def test_a_config_may_have_a_mark_of_windows_before_it(run, tmp_path, capsys):
    file = run / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert main(["show", str(run)]) == 0
    assert read_keys(file)["data"] == "digits"
    file.write_text("{}", encoding="utf-16")
    with pytest.raises(UsageError, match="save it as UTF-8"):
        read_keys(file)


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


# evaluate: methods, and going on


def test_demo_replaces_only_a_demo(run, capsys, monkeypatch):
    few_digits(monkeypatch)
    monkeypatch.setattr("pyro_vae.cli.commands.DEMO", Config(epochs=1, hidden=(8,), latent_dim=2, batch_size=512))
    few = partial(bracket_run, num_temperatures=5, num_chains=4)
    monkeypatch.setattr("pyro_vae.cli.commands.bracket_run", few)
    assert main(["demo", "--run", str(run), "--num-samples", "5"]) == 4
    other = run.parent / "demo"
    for _ in range(2 if HEAVY else 1):  # the README's command and the main job of CI replace one another
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
def test_named_parts_train_and_come_back_from_the_folder(train, tmp_path, device, options, monkeypatch):
    few_digits(monkeypatch)
    assert train("run", "--latent-dim", "3", *options) == 0
    first = folder.read_json(tmp_path / "run" / "evidence.json")
    assert main(["evaluate", str(tmp_path / "run"), "--num-samples", "20", "--device", str(device)]) == 0
    assert folder.read_json(tmp_path / "run" / "evidence.json")["log_px"] == pytest.approx(first["log_px"], abs=1e-9)
    config = folder.read_config(tmp_path / "run")["config"]
    assert config["prior"] == options[1] or config["posterior"] == options[1]
    if "maf" not in options:  # it has options of every kind
        return
    again = [
        "train",
        "--config",
        str(tmp_path / "run" / "config.json"),
        "--run",
        str(tmp_path / "b"),
        "--patience",
        "4",
    ]
    assert main([*again, *FEW, "--device", str(device)]) == 0
    assert folder.read_config(tmp_path / "b")["config"] == config | {"patience": 4}


def test_flags_override_single_options_of_a_config_file(tmp_path, device, monkeypatch):
    few_digits(monkeypatch)
    file = tmp_path / "c.json"
    file.write_text('{"prior": "flow", "prior_options": {"kind": "maf", "transforms": 1, "hidden": [4]}, "epochs": 1}')
    given = ["train", "--config", str(file), "--run", str(tmp_path / "f"), "--prior.transforms", "2", "--hidden", "8"]
    assert main([*given, "--latent-dim", "2", *FEW, "--device", str(device)]) == 0
    made = folder.read_config(tmp_path / "f")["config"]["prior_options"]
    assert made == {"kind": "maf", "transforms": 2, "hidden": [4]}


def test_parts_lists_every_part(capsys):
    from pyro_vae.runs.registry import ROLES, names

    assert main(["parts"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for role in ROLES for name in names(role))
