"""A fork begins with another run's weights, and what came before is judged by its own rows and programs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_vae import adam, fit, load_run
from pyro_vae.cli import commands
from pyro_vae.cli.main import main, run_command
from pyro_vae.errors import CheckpointError, UsageError
from pyro_vae.runs import evaluate_run as evaluate_run_module
from pyro_vae.runs import train_run as train_run_module
from pyro_vae.runs.checkpointer import Checkpointer
from pyro_vae.runs.config import Config
from pyro_vae.runs.load import open_data
from pyro_vae.runs.resume_run import resume_run
from pyro_vae.runs.train_run import train_run
from pyro_vae.training import checkpoint_state
from tests.helpers.small import binary, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")
ONES = torch.ones(20, 6)  # of which log p(x) is near 0; of coins it is no more than 6 log 1/2


def forked(path, x, held, **options):
    """A training on ones, and one that begins with its state, on other rows; the best epoch, and the weights it ends with."""
    parent = fit(
        small_vae(seed=0), ONES, validation=ONES, epochs=2, callbacks=[Checkpointer(path)], verbose=False, **options
    )
    vae, saved = small_vae(seed=0), Checkpointer(path).newest()
    run = fit(vae, x, validation=held, epochs=4, resume=saved, fork=True, verbose=False, **options)
    return (
        parent,
        run,
        all(torch.equal(tensor, saved.groups["best"][name]) for name, tensor in vae.state_dict().items()),
    )


def test_weights_from_before_a_fork_are_judged_by_the_rows_of_the_fork(tmp_path):
    """Coins have a lower ELBO than ones under any weights: it is no reason to throw the training on them away."""
    coins = binary(20, seed=1)
    parent, run, as_it_began = forked(tmp_path, coins, coins)
    assert parent.history[-1]["elbo"] > max(r["elbo"] for r in run.history[2:])
    assert run.best_epoch == 4 and not as_it_began


def test_a_fork_that_trains_worse_weights_keeps_those_that_it_began_with(tmp_path):
    """Whatever is trained on zeros is worse on ones than what began there."""
    _, run, as_it_began = forked(tmp_path, 1 - ONES, ONES, optimizer=adam(0.1))
    assert run.best_epoch == 2 and as_it_began


def test_of_the_same_rows_and_programs_the_best_elbo_is_the_same_number(tmp_path, monkeypatch):
    seen = []
    rescore = checkpoint_state.rescore_best

    def watched(trainer):
        before = trainer.state.best_elbo, [t.clone() for t in trainer.tensors]
        rescore(trainer)
        seen.append((before[0], trainer.state.best_elbo, all(map(torch.equal, before[1], trainer.tensors))))

    monkeypatch.setattr(checkpoint_state, "rescore_best", watched)
    forked(tmp_path, ONES, ONES)
    ((before, after, left_alone),) = seen
    assert before == after and left_alone


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(train_run_module, "draw_figures", lambda *_, **__: None)
    monkeypatch.setattr(evaluate_run_module, "draw_khat", lambda *_, **__: None)
    monkeypatch.setattr(commands, "report", lambda *_, **__: None)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A whole run of two epochs, of positive numbers under a normal."""
    made = tmp_path_factory.mktemp("made")
    np.save(made / "x.npy", np.random.default_rng(0).lognormal(2, 0.4, (40, 2)).astype(np.float32))
    lines = [f"{a},{b}" for a, b in np.load(made / "x.npy")]
    (made / "x.csv").write_text("\n".join(["a,b", *lines]))
    config = Config(data=str(made / "x.csv"), columns="auto,a=normal,b=normal", hidden=(4,), latent_dim=1, epochs=2)
    train_run(config, made / "run", num_samples=5, device="cpu")
    return made / "run"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--latent-dim", "2", "--epochs", "4"], "latent_dim  1           2"),
        (["--hidden", "4", "4", "--epochs", "4"], r"hidden  \[4\] +\[4, 4\]"),
        (["--columns", "auto,b=ignore", "--epochs", "4"], "columns +auto,a=normal,b=normal +auto,b=ignore"),
        ([], "has made 2 epochs already.*--epochs 4"),
        (["--epochs", "1"], "--epochs 1: .* has made 2 epochs already"),
    ],
    ids=["latents", "widths", "columns", "nothing more", "fewer epochs"],
)
def test_a_fork_that_cannot_be_is_refused_before_its_folder_is_made(parent, changed, said, tmp_path):
    with pytest.raises((CheckpointError, UsageError), match=f"(?s){said}"):
        run_command(["train", "--resume", str(parent), "--fork", str(tmp_path / "new"), *changed])
    assert not (tmp_path / "new").exists()


def test_a_fork_under_another_likelihood_has_a_floor_in_its_own_units(parent, tmp_path):
    """The units of the weights are a normal's, with a mean; a log-normal has none, and is not shifted below 0."""
    before = Config.of_run(json.loads((parent / "config.json").read_text())["config"])
    config = replace(before, columns="auto,a=normal,b=log_normal", likelihood_options={}, epochs=3)
    floor = resume_run(parent, config, fork=tmp_path / "new", num_samples=5, device="cpu")["floor"]["log_px"]
    run = load_run(tmp_path / "new")
    data = open_data(run)
    (a, b), (train_a, train_b) = data.test.x.double().T, data.train.x.double().T
    exact = fitted_normal(train_a, a) + fitted_normal(train_b.log(), b.log()) - b.log()  # by maximum likelihood
    assert floor == pytest.approx(exact.mean().item(), abs=0.01)
    assert run.config.likelihood_options["blocks"] == "normal:1,log_normal:1"


def fitted_normal(train, x):
    return torch.distributions.Normal(train.mean(), train.std(correction=0)).log_prob(x)


@pytest.mark.parametrize("how", ["fork", "resume"])
def test_what_has_no_checkpoint_is_not_trained_from_the_beginning_under_its_name(parent, how, tmp_path, capsys):
    run = shutil.copytree(parent, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    words = ["--fork", str(tmp_path / "new"), "--epochs", "4"] if how == "fork" else []
    before = (run / "model.safetensors").read_bytes()
    assert main(["train", "--resume", str(run), *words]) == 4
    assert "no checkpoint" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert (run / "model.safetensors").read_bytes() == before


def test_a_fork_that_never_began_does_not_begin_elsewhere(parent, tmp_path, capsys):
    assert (
        main(["train", "--resume", str(parent), "--fork", str(tmp_path / "new"), "--epochs", "3", "--num-samples", "5"])
        == 0
    )
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    (tmp_path / "new" / "model.safetensors").unlink()
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "new")]) == 4
    said = capsys.readouterr().err
    assert "was to begin with the state of" in said and f"--resume {parent} --fork {tmp_path / 'new'}" in said


def test_a_folder_that_is_taken_is_said_before_the_data_is_read(parent, tmp_path, capsys):
    for words in (["--run", str(parent)], ["--resume", str(parent), "--fork", str(parent)]):
        assert main(["train", *words, "--data", str(tmp_path / "none.npy"), "--columns", "auto"]) == 4
        assert "holds a run already" in capsys.readouterr().err


def test_columns_that_are_said_anew_are_modelled_as_said(parent, tmp_path, capsys):
    """The blocks in a run's config.json were found in its table, and are no wish beside other --columns or another table."""
    words = [
        "--run",
        str(tmp_path / "run"),
        "--columns",
        "auto,a=log_normal,b=normal",
        "--epochs",
        "1",
        "--num-samples",
        "5",
    ]
    assert main(["train", "--config", str(parent / "config.json"), *words]) == 0
    assert load_run(tmp_path / "run").config.likelihood_options["blocks"] == "log_normal:1,normal:1"
    assert load_run(tmp_path / "run").columns[0].family == "log_normal"


def test_blocks_that_are_not_those_of_the_columns_are_refused(parent, tmp_path):
    before = Config.of_run(json.loads((parent / "config.json").read_text())["config"])
    with pytest.raises(
        UsageError, match=r"column 'b' is log_normal by --columns .* and normal by --likelihood\.blocks"
    ):
        train_run(replace(before, columns="auto,a=normal,b=log_normal"), tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match="are of 2 columns, and --columns auto,b=ignore takes 1"):
        train_run(replace(before, columns="auto,b=ignore"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
