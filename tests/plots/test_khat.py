"""The histogram of k̂: believed rows at the left of the threshold, whatever the values are."""

import numpy as np
import pytest

from pyro_vae.plots.figures import BLUE, ORANGE
from pyro_vae.plots.khat import khat_histogram

RANDOM = np.random.default_rng(0)
ROWS = {  # k̂, and which rows are flagged for another reason
    "threshold the least": (np.array([-np.inf, 0.8, 1.5, 2.0]), []),
    "just below": (np.append(0.699, np.linspace(0.7, 5, 40)), []),
    "one far below": (np.append(-3.0, np.linspace(0.7, 0.8, 40)), []),
    "all below": (np.linspace(-1, 0.69, 50), []),
    "all above": (np.linspace(0.71, 6, 50), []),
    "at it": (np.array([0.7, 0.7, np.nextafter(0.7, 0)]), []),
    "infinite": (np.array([np.inf, -np.inf, 0.3]), []),
    "one row": (np.array([0.2]), []),
    "many": (RANDOM.normal(0.6, 0.4, 2000), [3, 5]),
    "heavy": (RANDOM.standard_t(2, 300), []),
    "not known": (np.array([np.nan, 0.2, 0.9]), []),
}


def bars(fig):
    """(left, right, height, flagged) of each bar that holds rows."""
    ax = fig.axes[0]
    kinds = [(group, flagged) for group, flagged in zip(ax.containers, (False, True), strict=True)]
    return ax, [
        (bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height(), flagged)
        for group, flagged in kinds for bar in group if bar.get_height()
    ]  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_no_believed_row_is_at_the_right_of_the_threshold(name):
    khat, more = ROWS[name]
    flagged = sorted({*more, *(~(khat < 0.7)).nonzero()[0].tolist()})
    ax, drawn = bars(khat_histogram(khat, flagged, 0.7))
    line = ax.get_lines()[0].get_xdata()[0]
    assert line == 0.7
    assert all(right <= line + 1e-9 for _, right, _, bad in drawn if not bad)
    at_left = sum(height for left, _, height, bad in drawn if bad and left < line - 1e-9)
    assert at_left == sum(khat[i] < 0.7 for i in flagged)  # flagged for another reason than k̂
    known = ~np.isnan(khat)
    counts = {bad: sum(height for *_, height, kind in drawn if kind == bad) for bad in (False, True)}
    assert counts == {False: len(khat) - len(flagged), True: sum(known[i] for i in flagged)}


def test_weights_that_are_all_but_equal_are_believed_at_the_left():
    """Their k̂ is that of rounding errors, and may be anything."""
    _, drawn = bars(khat_histogram(np.array([0.9, 0.2, 0.8]), [2], 0.7))
    assert all(right <= 0.7 + 1e-9 for _, right, _, bad in drawn if not bad)
    assert [bad for left, *_, bad in drawn if left >= 0.7 - 1e-9] == [True]


def test_rows_of_their_own_thresholds_are_parted_too():
    """Under target_se rows have unlike K: k̂ of 0.5 is believed at K = 1,000 and not at K = 100."""
    khat, own = np.array([0.5, 0.5, 0.6]), np.array([0.5 - 1e-9, 2 / 3, 0.7])
    ax, drawn = bars(khat_histogram(khat, [0], own))
    assert ax.get_lines()[0].get_xdata()[0] == 0 and "less its threshold" in ax.get_xlabel()
    assert all(right <= 1e-9 for _, right, _, bad in drawn if not bad)
    assert [left >= -1e-9 for left, *_, bad in drawn if bad] == [True]


def test_colours_tell_believed_from_flagged():
    from matplotlib.colors import to_rgba

    ax, _ = bars(khat_histogram(np.array([0.1, 0.9]), [1], 0.7))
    assert [group[0].get_facecolor() for group in ax.containers] == [to_rgba(BLUE), to_rgba(ORANGE)]


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 2, 1), (4,), (2, 1, 2)])
def test_flagged_rows_of_any_shape_are_shown(shape, tmp_path):
    from pyro_vae.plots.figures import save

    x = RANDOM.normal(size=(6, 4))
    x[2, 1] = np.nan
    assert save(khat_histogram(np.full(6, 0.9), range(6), 0.7, x, shape), tmp_path / "a.png").stat().st_size > 3000


@pytest.mark.parametrize(("flagged", "said"), [([2], None), ([0, 1, 2], "(2 flagged for another reason)")])
def test_rows_flagged_below_the_threshold_are_explained(flagged, said):
    ax = khat_histogram(np.array([0.1, 0.3, 0.9, 0.2, np.nan]), flagged, 0.7).axes[0]
    labels = [label for label in ax.get_legend_handles_labels()[1] if "another reason" in label]
    assert labels == ([said] if said else [])


@pytest.mark.parametrize("shape", [(), (1, 4, 4)], ids=["bars alone", "beside rows"])
def test_the_legend_lies_inside_the_picture_whatever_it_says(shape):
    x = np.eye(60, 16) if shape else None
    fig = khat_histogram(np.append(np.linspace(0.1, 0.9, 59), np.nan), list(range(60)), 0.7, x, shape)
    fig.draw_without_rendering()
    (legend,) = [*fig.legends, *(legend for part in fig.subfigs for legend in part.legends)]
    box = legend.get_window_extent()
    assert fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and fig.bbox.y0 <= box.y0
