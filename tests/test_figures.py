"""Pictures: they draw, without pyplot, the same file each time, and what they show is what they were given."""

import subprocess
import sys

import numpy as np
import pytest

from pyro_vae.report import figures

POINTS = [
    {"epoch": e, "log_px": -90 - 50 / e, "log_px_mc_se": 0.1, "elbo": -95 - 60 / e, "num_samples": 200, "rows": 40}
    for e in (1, 3, 30)
]
HISTORY = [{"epoch": e, "elbo": -100 - 200 / e, "train_elbo": -95 - 200 / e} for e in range(1, 30)]
DRAWN = {
    "training": lambda: figures.training_curve(HISTORY, floor=-110.0),
    "evidence": lambda: figures.evidence_curve(POINTS),
    "images": lambda: figures.image_grid([np.eye(16)[:3], np.eye(16)[:2]], ["a", "b"], (1, 4, 4), "t"),
    "colour": lambda: figures.sample_grid(np.random.default_rng(0).random((5, 48)), (3, 4, 4), columns=3),
    "table": lambda: figures.sample_grid(np.arange(12.0).reshape(2, 6), (6,)),
    "units": lambda: figures.unit_bars([0.1, 2.0, 0.001], [0.5, 0.9, 0.0]),
    "units without activity": lambda: figures.unit_bars([0.5]),
    "40 units": lambda: figures.unit_bars(np.linspace(0, 2, 40), np.zeros(40)),
    "latent 1": lambda: figures.latent_map(np.arange(5.0)[:, None], None),
    "latent 2": lambda: figures.latent_map(np.eye(2), np.array([0, 1])),
    "latent 7": lambda: figures.latent_map(np.random.default_rng(0).normal(size=(30, 7)), np.arange(30) % 10),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_the_same_picture_twice(name, tmp_path):
    a, b = (figures.save(DRAWN[name](), tmp_path / f"{i}.png").read_bytes() for i in (1, 2))
    assert a == b and len(a) > 3000


def test_evidence_curve_shows_its_numbers():
    ax = figures.evidence_curve(POINTS).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert np.allclose(lines["ELBO"], [p["elbo"] for p in POINTS])
    assert any("gap 5.33" in text.get_text() for text in ax.texts)


def test_unit_bars_are_sorted_and_coloured_by_activity():
    """Not by their KL: a unit of little KL can be active, and one of much (a scale that is off) need not be."""
    ax = figures.unit_bars([0.1, 2.0, 0.7], [0.5, 0.9, 0.005]).axes[0]
    bars = sorted((bar.get_x(), bar.get_height(), bar.get_facecolor()) for group in ax.containers for bar in group)
    assert [height for _, height, _ in bars] == [2.0, 0.7, 0.1]
    assert bars[0][2] == bars[2][2] != bars[1][2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "0"]
    assert ax.get_title() == "KL of each unit: 2 of 3 active"


def test_pictures_leave_pyplot_alone():
    code = "import sys, numpy; from pyro_vae.report import figures; figures.latent_map(numpy.eye(2), None)"
    check = "; assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code + check], check=True)


@pytest.mark.parametrize(("count", "most"), [(1, 10), (2, 10), (7, 10), (150, 10), (400, 12)])
def test_thin_is_from_first_to_last(count, most):
    chosen = figures.thin(count, most)
    assert chosen[0] == 1 and chosen[-1] == count and len(chosen) <= most and chosen == sorted(set(chosen))
