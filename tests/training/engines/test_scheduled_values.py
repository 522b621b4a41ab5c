"""A number that a schedule moves does arithmetic as a number does."""

import pytest
import torch

from pyro_vae.training.engines.scheduled_values import ReadAsNumber, ScheduledValue, answers_hold


def test_a_dial_does_arithmetic_as_its_number_does():
    answers = []
    number = [0.3]
    dial = ScheduledValue(lambda: number[0], torch.tensor(0.3), answers)
    x = torch.tensor([1.0, 2.0])
    for f in (
        lambda d: 2 * d * x,
        lambda d: x * d,
        lambda d: x - (1 - d),
        lambda d: x / (d + 1) + 3 / (d - 2) * x,
        lambda d: -d * x + torch.mul(x, d),
        lambda d: (d * d + d / d) * x,
        lambda d: torch.where(x > d, x, d * x),
    ):
        torch.testing.assert_close(f(dial), f(0.3))
    assert dial == 0.3 and dial < 1 and dial >= 0.3 and not dial > 1 and 2 * dial <= 0.6
    assert (x > dial).tolist() == [True, True] and answers_hold(answers)
    number[0] = 0.4
    assert not answers_hold(answers)
    for use in (float, int, bool):
        with pytest.raises(ReadAsNumber):
            use(dial)
