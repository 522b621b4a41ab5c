"""Annealing whose step sizes a test does not look at."""

import importlib

import pytest

from pyro_vae.evidence.annealing import schedule

ais = importlib.import_module("pyro_vae.evidence.annealing.ais")
FIRST, TOTAL = 6, 20  # of 30 and 100 transitions


def short_pilots(patch: pytest.MonkeyPatch) -> None:
    """Tune the steps of annealing by fewer transitions: the weights stay unbiased, and a pilot takes most of a short run.

    What is planned stays as it was, so that a density is traced where it would be.
    """
    whole = schedule.pilot

    def short(*given):
        with pytest.MonkeyPatch.context() as fewer:
            fewer.setattr(schedule, "FIRST", FIRST)
            fewer.setattr(schedule, "TOTAL", TOTAL)
            return whole(*given)

    patch.setattr(ais, "pilot", short)
