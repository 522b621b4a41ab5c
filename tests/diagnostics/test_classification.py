"""Accuracy and calibration of class probabilities, and what is no label."""

import pytest
import torch

from pyro_vae import classification
from pyro_vae.errors import DataError, ShapeError

PROBS = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]])


def drawn(n, sharpen=1.0):
    """Probabilities, and labels drawn from them; probabilities then made too sure."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 4, generator=g)
    y = torch.multinomial(logits.softmax(-1), 1, generator=g)[:, 0]
    return (sharpen * logits).softmax(-1), y


def test_by_hand_and_without_missing_labels():
    found = classification(PROBS, torch.tensor([0, 1, 1, -1]))
    assert len(found) == 3 and found.accuracy == pytest.approx(2 / 3)
    assert found.ece == pytest.approx((0.1 + 0.2 + 0.6) / 3)
    assert found.log_score.tolist() == pytest.approx(torch.tensor([0.9, 0.8, 0.4]).log().tolist())


@pytest.mark.parametrize("labels", [[0, 1, 0], [1, 0, 1]], ids=["all right", "none right"])
def test_no_error_in_a_few_rows_is_not_an_error_of_zero(labels):
    """It was told as 0.00% ± 0.00%, though of rows of which one in ten is wrong three are all right 73 times in 100."""
    found = classification(PROBS[:3], torch.tensor(labels))
    assert found.accuracy == 1 - labels[0] and found.accuracy_se == pytest.approx((0.8 * 0.2 / 3) ** 0.5)
    assert "± 23.09%" in str(found)
    assert classification(PROBS[:2], torch.tensor([0, 0])).accuracy_se == pytest.approx((0.5 * 0.5 / 2) ** 0.5)


def test_calibrated_probabilities_pass_and_too_sure_ones_do_not():
    assert (fair := classification(*drawn(2000))).ece <= fair.ece_limit
    assert (sure := classification(*drawn(2000, sharpen=2.0))).ece > sure.ece_limit and "more than chance" in str(sure)


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        ([0, 1, 2, 0], DataError, r"rows \[2\] are no class: 2 came first.*0 to 1"),
        ([0, 1, -2, 0], DataError, r"rows \[2\]"),
        ([0.5, 1, 1, 0], DataError, r"rows \[0\]"),
        ([-1, -1, -1, -1], DataError, "all 4 labels are missing"),
        ([0, 1], ShapeError, r"wanted \(N, C\)"),
    ],
    ids=["too-large", "negative", "no-whole-number", "all-missing", "other-rows"],
)
def test_what_is_no_label(labels, error, match):
    with pytest.raises(error, match=match):
        classification(PROBS, torch.tensor(labels))


def test_what_are_no_probabilities():
    with pytest.raises(DataError, match="do not sum to 1"):
        classification(PROBS.log(), torch.tensor([0, 1, 1, 0]))
