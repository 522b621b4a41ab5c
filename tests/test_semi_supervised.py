"""examples/semi_supervised.py: its term is what it says, what chooses trains nothing, its table is its runs."""

import json
import math
import runpy
from dataclasses import replace

import pytest
import torch

from pyro_vae import Bound, elbo
from tests.helpers.environment import ROOT

RESULTS = ROOT / "results" / "semi_supervised"


@pytest.fixture(scope="module")
def example():
    return runpy.run_path(str(ROOT / "examples" / "semi_supervised.py"), run_name="semi_supervised")


def test_the_term_is_added_to_each_row_of_the_bound(example):
    """Of a q(y | x) that knows nothing it is −α log 10, whichever digits are drawn and however they are moved."""
    settings = replace(example["QUICK"], weight=3.0)
    _, x, y, vae, term = example["prepare"](50, 0, settings)
    last = list(vae.classifier.parameters())[-2:]
    for parameter in last:
        torch.nn.init.zeros_(parameter)
    x, rows = x[:6].round(), []
    for terms in ([], [term]):
        torch.manual_seed(0)
        rows.append(Bound(elbo, terms=terms).per_row(vae.model, vae.guide, x, y[:6]))
    torch.testing.assert_close(rows[1] - rows[0], torch.full((6,), -3 * math.log(10)), atol=1e-4, rtol=0)


def test_the_term_trains_the_classifier_alone(example):
    _, _, _, vae, term = example["prepare"](50, 0, example["QUICK"])
    term.log_q().backward()
    trained = {name.split(".")[0] for name, p in vae.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {"classifier"}


def test_moved_digits_are_images_and_differ(example):
    torch.manual_seed(0)
    x = torch.zeros(50, 28, 28)
    x[:, 8:20, 12:16] = 1.0
    moved = example["move"](x.flatten(1), 28).reshape(50, 28, 28)
    assert moved.min() >= 0 and moved.max() <= 1
    assert (moved - x).abs().mean((1, 2)).min() > 0.005  # none is left as it was
    assert (moved.sum((1, 2)) / x.sum((1, 2))).sub(1).abs().max() < 0.6  # and none is lost


def test_as_many_labels_a_class_are_kept_and_validation_rows_are_not_trained_on(example):
    settings = example["QUICK"]
    images, x, y, _, term = example["prepare"](50, 1, settings)
    assert y[y >= 0].bincount().tolist() == [5] * 10 and len(term.x) == 50
    held, labels = example["validation_rows"](images, settings)
    assert len(x) == settings.train_rows and len(held) == len(labels) == 1437 + 180 - settings.train_rows


def test_the_table_is_that_of_the_runs(example):
    runs = json.loads((RESULTS / "semi_supervised.json").read_text())
    assert example["table"](runs) == (RESULTS / "table.md").read_text(encoding="utf-8")
