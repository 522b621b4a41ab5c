"""Trainings that a test starts and whose pictures and curve it does not look at."""

import base64

import pytest

from pyro_vae.plots import figures
from pyro_vae.runs import train_run

DOT = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)  # a picture of one pixel
CURVE_SAMPLES = 30  # enough for a Pareto k̂
PNG, ALL_SAMPLES = figures.png, train_run.CURVE_SAMPLES


def without_rendering(patch: pytest.MonkeyPatch) -> None:
    """Make every figure, and its file, but render a dot; follow log p(x) during training by fewer samples.

    A training of two epochs spends two thirds of its time on these two. A picture that cannot be rendered ends no command, so
    that a test that does not read it, or what is said of it, finds nothing by rendering it.
    """
    patch.setattr(figures, "png", lambda drawn: DOT)
    patch.setattr(train_run, "CURVE_SAMPLES", CURVE_SAMPLES)


def without_figures(patch: pytest.MonkeyPatch) -> None:
    """Leave out the figures and the report of a training, which take a quarter of a short one even where none is rendered."""
    patch.setattr(train_run, "draw_figures", lambda *_: None)


def with_rendering(patch: pytest.MonkeyPatch) -> None:
    """Take that back, for a test of a file whose others go without."""
    patch.setattr(figures, "png", PNG)
    patch.setattr(train_run, "CURVE_SAMPLES", ALL_SAMPLES)
