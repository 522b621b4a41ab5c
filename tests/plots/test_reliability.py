"""Reliability pictures show what they were given."""

import pytest

from pyro_vae.plots.reliability import reliability_diagram

FOUND = {
    "accuracy": 0.9, "accuracy_se": 0.01, "ece": 0.03, "ece_limit": 0.02, "bins": 10, "rows": 100,
    "reliability": {"count": [20, 80], "confidence": [0.55, 0.95], "accuracy": [0.5, 1.0]},
}  # fmt: skip


def test_a_panel_for_each_classifier_with_bars_points_and_numbers(tmp_path):
    fig = reliability_diagram({"q(y | x)": FOUND, "a_$b$": FOUND | {"ece": 0.01}})
    assert len(fig.axes) == 2
    first, second = fig.axes
    assert [bar.get_height() for bar in first.patches] == pytest.approx([0.2, 0.8])
    points = first.containers[1].lines[0]
    assert points.get_xdata().tolist() == [0.55, 0.95] and points.get_ydata().tolist() == [0.5, 1.0]
    assert "error 10.00% ± 1.00%, ECE 0.0300" in first.get_title()
    assert points.get_color() != second.containers[1].lines[0].get_color()  # more than chance, and no more
    fig.savefig(tmp_path / "reliability.png")
