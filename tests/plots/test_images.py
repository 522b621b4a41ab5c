"""Rows as pictures: of any shape, with values missing, of many columns; what is shown is what was given."""

import numpy as np
import pytest

from pyro_vae.plots import images
from pyro_vae.plots.figures import png, save

WIDE = np.random.default_rng(0).normal(size=(48, 765))


@pytest.mark.parametrize(
    ("shape", "as_drawn"),
    [
        ((1, 8, 8), (8, 8, 1)), ((8, 8, 1), (8, 8, 1)), ((3, 8, 6), (8, 6, 3)), ((8, 6, 3), (8, 6, 3)),
        ((3, 8, 3), (8, 3, 3)), ((5, 8, 6), (8, 30, 1)), ((8, 6, 2), (8, 12, 1)), ((8, 6, 4), (8, 24, 1)),
        ((2, 8, 6), (8, 12, 1)), ((1, 1, 9), (1, 9, 1)), ((1, 3, 3), (3, 3, 1)),
    ],
)  # fmt: skip
def test_images_of_any_layout_are_drawn(shape, as_drawn, tmp_path):
    """Channels first or last; other numbers of channels stand side by side."""
    rows = np.arange(7.0 * np.prod(shape)).reshape(7, -1)
    assert images.as_images(rows, shape).shape == (7, *as_drawn)
    assert save(images.sample_grid(rows, shape, columns=3), tmp_path / "a.png").stat().st_size > 1000


def test_the_two_layouts_of_one_image_are_the_same_picture():
    first = np.random.default_rng(0).random((4, 3, 8, 6))
    last = first.transpose(0, 2, 3, 1)
    tiles = [images.tile([r.reshape(4, -1)], r.shape[1:]) for r in (first, last)]
    assert np.array_equal(*tiles)


@pytest.mark.parametrize("shape", [(4,), (), (2, 2, 2, 2), (16,)])
def test_rows_of_no_image_are_strips(shape, tmp_path):
    fig = images.image_grid([np.eye(3, 16), np.eye(2, 16)], ["x", "E[x | z]"], shape, "t")
    (ax,) = fig.axes
    assert ax.images[0].get_array().shape == (6, 16, 3)  # 3 rows, a gap, 2 rows
    assert ax.get_yticks().tolist() == [1.0, 4.5] and [t.get_text() for t in ax.get_yticklabels()] == ["x", "E[x | z]"]
    save(fig, tmp_path / "a.png")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(1, 4, 4), (16,)], ids=["image", "table"])
def test_one_value_that_is_not_finite_leaves_the_others_as_they_were(bad, shape):
    """It is orange, and the title says so."""
    rows = np.random.default_rng(0).random((5, 16))
    holed = rows.copy()
    holed[2, 7] = bad
    rows[2, 7] = rows[1, 7]  # no new least or largest value
    whole, holes = (images.image_grid([r], [""], shape, "t").axes[0] for r in (rows, holed))
    a, b = (np.asarray(ax.images[0].get_array()) for ax in (whole, holes))
    differs = (a != b).any(-1)
    assert differs.sum() == 1 and np.allclose(b[differs], images.NO_VALUE)
    assert "orange" in holes.get_title() and "orange" not in whole.get_title()
    assert a.std() > 0.1


def test_columns_without_any_value_are_drawn(tmp_path):
    rows = np.full((5, 3), np.nan)
    rows[:, 1] = [1, 2, 3, 4, 5]
    ax = images.sample_grid(rows, (3,)).axes[0]
    colours = np.asarray(ax.images[0].get_array())
    assert np.allclose(colours[:, [0, 2]], images.NO_VALUE)
    assert np.allclose(colours[:, 1, 0], [1, 0.75, 0.5, 0.25, 0])  # the largest is black
    save(images.sample_grid(np.full((5, 9), np.nan), (1, 3, 3)), tmp_path / "a.png")


def test_columns_of_unlike_size_are_all_seen():
    """Income in thousands hides no share: each column has a scale of its own, and a constant one is grey."""
    rows = np.array([[1000.0, 0.1, 7.0], [3000.0, 0.3, 7.0], [2000.0, 0.2, 7.0]])
    colours = np.asarray(images.sample_grid(rows, (3,)).axes[0].images[0].get_array())[..., 0]
    assert np.allclose(colours, [[1, 1, 0.5], [0, 0, 0.5], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize("columns", [1, 30, 765, 5000])
def test_many_columns_fill_the_picture(columns, tmp_path):
    """No white strips: pixels of the written file vary over all of its width."""
    from matplotlib.image import imread

    rows = np.random.default_rng(0).normal(size=(48, columns)).cumsum(0)
    picture = imread(save(images.sample_grid(rows, (columns,)), tmp_path / "a.png"))[..., 0]
    inside = picture[60:-90, 40:-40]
    assert inside.std() > 0.1 and (inside.std(0) > 0.05).mean() > 0.9
    assert (inside > 0.99).mean() < 0.3


def test_gaps_are_white_and_values_on_one_scale():
    tiles = images.tile([np.array([[0.0, 1, 2, 4]]), np.array([[4.0, 2, 1, 0]])], (1, 2, 2))
    assert tiles.shape == (5, 2, 3) and (tiles[2] == 1).all()
    assert np.allclose(tiles[:2, :, 0], [[1, 0.75], [0.5, 0]]) and np.allclose(tiles[3:, :, 0], [[0, 0.5], [0.75, 1]])


def test_a_title_is_no_mathematics():
    assert images.image_grid([np.eye(4)], [""], (1, 2, 2), "a $b$").axes[0].get_title() == r"a \$b\$"


def test_columns_have_their_names_and_the_scale_is_said():
    names = ["Größe (cm)", "$x", "n"]
    ax = images.sample_grid(np.arange(6.0).reshape(2, 3), (3,), names=names).axes[0]
    assert [t.get_text().replace("\\$", "$") for t in ax.get_xticklabels()] == names
    assert "(white)" in ax.get_xlabel() and "(black)" in ax.get_xlabel() and ax.get_ylabel() == "2 rows"
    long = images.sample_grid(np.zeros((2, 9)), (9,), names=["a name of some length"] * 9).axes[0]
    assert {t.get_rotation() for t in long.get_xticklabels()} == {90.0}


@pytest.mark.parametrize(
    "labels", [["", ""], ["x", "E[x | z]"], ["p(x), two layers, bottom-up", "by z2 alone"]], ids=len
)
@pytest.mark.parametrize("columns", [3, 12], ids=["tall", "wide"])
def test_images_fill_the_picture_whatever_their_labels_take(labels, columns):
    lines = 2 if columns == 12 else 8
    rows = [np.eye(64)[:columns]] * lines
    fig = images.image_grid(rows, (labels * lines)[:lines], (1, 8, 8), "t")
    png(fig)
    drawn, (width, height) = fig.axes[0].get_tightbbox(), fig.canvas.get_width_height()
    assert height - drawn.height < 0.3 * fig.dpi and width - drawn.width < 0.6 * fig.dpi


@pytest.mark.parametrize(
    "title", ["t", "E[x | z] of each component: at its mean, and at nine draws z ~ p(z | y)"], ids=["short", "long"]
)
@pytest.mark.parametrize("columns", [1, 10], ids=["one", "ten"])
@pytest.mark.parametrize(
    "label", ["y = 0 (10%)", "WWWWWWWWWW", "a $b$ of a rather long name"], ids=["one", "wide", "long"]
)
def test_no_word_is_cut_off(label, columns, title):
    fig = images.image_grid([np.eye(64)[:columns]] * 10, [label] * 10, (1, 8, 8), title)
    png(fig)
    ax, (width, height) = fig.axes[0], fig.canvas.get_width_height()
    for text in (ax.title, *ax.get_yticklabels()):
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0 and box.x1 <= width and box.y1 <= height, text
    across, tall = ax.get_window_extent().size
    assert abs(across / tall - (9 * columns - 1) / 89) < 0.01  # its pixels are square
