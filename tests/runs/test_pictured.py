"""What pictures show of likelihoods with and without means."""

import json

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import load_run, sample
from pyro_vae.cli.main import main
from pyro_vae.distributions.tabular import Columns
from pyro_vae.errors import ProgramError
from pyro_vae.plots import images
from pyro_vae.runs.config import Config
from pyro_vae.runs.pictured import CLASSES, pictured_samples, typical
from pyro_vae.runs.training_job import prepare

LOGITS = torch.tensor([[[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]]])


def classes():
    return dist.Categorical(logits=LOGITS).to_event(1)


class Odd(dist.Normal):
    """Neither mean nor mode in closed form."""

    mean = property(lambda self: (_ for _ in ()).throw(NotImplementedError()))
    mode = property(lambda self: (_ for _ in ()).throw(NotImplementedError()))


@pytest.mark.parametrize(
    ("d", "shown", "word"),
    [
        (lambda: dist.Normal(torch.ones(1, 2), 1.0).to_event(1), [1.0, 1.0], ""),
        (classes, [1.0, 0.0], CLASSES),
        (lambda: Columns([dist.Normal(torch.ones(1, 1), 1.0).to_event(1), classes()]), [1.0, 1.0, 0.0], CLASSES),
        (lambda: Columns([classes(), dist.Poisson(torch.full((1, 1), 2.5)).to_event(1)]), [1.0, 0.0, 2.5], CLASSES),
    ],
    ids=["mean", "classes", "columns", "columns-first-classes"],
)
def test_elements_without_a_mean_show_their_mode(d, shown, word):
    values, said = typical(d())
    assert values.tolist() == [shown] and said == word


def test_neither_mean_nor_mode_is_refused():
    with pytest.raises(ProgramError, match=r"Odd.* no mean or mode"):
        typical(Odd(torch.zeros(1, 2), 1.0))


@pytest.mark.parametrize(
    "likelihood",
    [
        pytest.param(["categorical", "--likelihood.num-classes", "3"], id="all-classes"),
        pytest.param(["columns", "--likelihood.blocks", "categorical:2:num-classes=3,poisson:2"], id="columns"),
        pytest.param(
            ["columns", "--likelihood.blocks", "poisson:1,categorical:3:num-classes=3"],
            id="columns-last-classes",
            marks=pytest.mark.rendered,
        ),
    ],
)
def test_classes_are_drawn(tmp_path, likelihood, monkeypatch, capsys):
    """No picture of a training holds a value that is not finite, and each says what it shows."""
    x = np.random.default_rng(0).integers(0, 3, size=(60, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    seen, grid = [], images.image_grid
    monkeypatch.setattr(images, "image_grid", lambda *a: seen.append(a) or grid(*a))
    run = tmp_path / "run"
    options = ["--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--num-samples", "5", "--device", "cpu"]
    assert (
        main(["train", "--run", str(run), "--data", str(tmp_path / "x.npy"), *options, "--likelihood", *likelihood])
        == 0
    )
    assert "no picture" not in capsys.readouterr().err and len(seen) == 3
    assert all(np.isfinite(rows).all() for arrays, *_ in seen for rows in arrays)
    assert sum("most probable" in title for _, _, _, title, *_ in seen) == 2
    assert main(["sample", str(run), "--mean"]) == 0 and main(["reconstruct", str(run)]) == 0
    assert all(np.isfinite(rows).all() for arrays, *_ in seen for rows in arrays)
    assert json.loads((run / "config.json").read_text())["config"]["likelihood"] == likelihood[0]


def test_pictured_samples_are_at_the_z_of_sample(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32))
    options = ["--hidden", "4", "--latent-dim", "2", "--epochs", "1", "--num-samples", "5", "--device", "cpu"]
    assert main(["train", "--run", str(tmp_path / "r"), "--data", str(tmp_path / "x.npy"), *options]) == 0
    run = load_run(tmp_path / "r")
    shown, word = pictured_samples(run, 7, seed=3)
    assert torch.equal(shown, sample(run.vae, 7, seed=3, mean=True)) and not word


def test_pictures_of_a_training_that_has_just_ended_have_the_names_of_columns(tmp_path):
    """As those of the same run, opened from its folder, have."""
    table = tmp_path / "a.csv"
    table.write_text("high,wide\n" + "\n".join(f"{i / 7},{i % 3}" for i in range(30)))
    job = prepare(Config(data=str(table), hidden=(2,), latent_dim=1), tmp_path / "run", {}, None, False, "cpu")
    assert job.opened().column_names == ["high", "wide"]
