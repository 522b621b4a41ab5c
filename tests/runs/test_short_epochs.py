"""Divergence with fewer steps an epoch than may diverge in a row: found, said, kept as a capsule, and replayed."""

import json

import numpy as np
import pytest

from pyro_vae.cli.main import main
from pyro_vae.runs import train_run as train_module
from pyro_vae.runs.config import Config
from pyro_vae.runs.folder import read_lines

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train_module, "draw_figures", lambda *_: None)


@pytest.fixture
def options(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32))
    made = ["--data", str(tmp_path / "x.npy"), "--hidden", "4", "--latent-dim", "2", "--device", "cpu"]
    return [*made, "--num-samples", "20", "--warmup", "0", "--learning-rate", "1000", "--schedule", "constant"]


@pytest.mark.parametrize(
    ("epochs", "batch", "said"),
    [
        (12, 128, "step 6: a gradient is not finite"),  # the fifth in a row, in as many epochs
        (12, 32, "is not finite on rows"),
        (3, 128, "no step of the last epoch, 3, had a finite loss"),
    ],
    ids=["a step an epoch", "two", "too few epochs for five"],
)
def test_steps_that_diverge_in_short_epochs_end_training_with_a_capsule(tmp_path, options, capsys, epochs, batch, said):
    run = str(tmp_path / "run")
    assert main(["train", "--run", run, *options, "--epochs", str(epochs), "--batch-size", str(batch)]) == 5
    heard = capsys.readouterr().err
    assert said in heard and f"replay it with: pyro-vae replay {run}" in heard
    assert "loss none (every step was skipped: not finite)" in heard or batch == 32 or epochs == 3
    assert main(["train", "--resume", run, "--device", "cpu", "--num-samples", "20"]) == 5  # no traceback, either
    assert said in capsys.readouterr().err
    assert main(["replay", run]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "reproduced"
    told = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [r["loss"] for r in told if r.get("rows_skipped") == 64] == [None] * sum(
        r.get("rows_skipped") == 64 for r in told
    )


BAD = [10**400, float("inf"), float("nan"), 0, -1.0]


@pytest.mark.parametrize("rate", BAD, ids=["10^400", "inf", "nan", "zero", "negative"])
def test_a_rate_that_is_no_finite_number_is_refused_before_the_folder_is_made(tmp_path, options, capsys, rate):
    config, given = tmp_path / "c.json", {"data": options[1]}
    flags = ["--learning-rate", str(rate)]
    if rate == BAD[0]:  # of more digits than a flag may have
        given, flags = given | {"learning_rate": rate}, []
    config.write_text(json.dumps(given))
    assert main(["train", "--config", str(config), "--run", str(tmp_path / "run"), *flags]) == 2
    assert "learning_rate must be a finite number" in capsys.readouterr().err or rate == BAD[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags",
    [["--kl", "beta", "--kl.beta", "inf"], ["--prior", "vamp", "--prior.components", "nan"]],
    ids=["kl", "prior"],
)
def test_an_option_of_a_part_that_is_no_finite_number_is_refused_before_the_folder_is_made(
    tmp_path, options, capsys, flags
):
    assert main(["train", "--run", str(tmp_path / "run"), *options, *flags]) == 2
    assert "error: " in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_rate_of_a_config_is_checked_in_python_too():
    for rate in BAD:
        with pytest.raises(ValueError, match="learning_rate must be a finite number greater than 0"):
            Config(learning_rate=rate)
