"""Plots of rows: images tiled in a grid, rows of tables one below the other; what has no value stands out in orange."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_VALUE = (0.98, 0.76, 0.54)  # of NaN and infinite values, which a grey or a colour would hide
COLOURS = 3
WIDE, LEAST, MARGIN, HEAD = 8.0, 1.0, 0.06, 0.24  # inches: a picture of images, its panel, around it, its title
LABEL, TITLE = 9, 10  # points
MOST_NAMED = 40  # columns whose names have room
LONGEST, ACROSS = 24, 90  # signs of a name, and of all side by side; more stand on end
MOST_NEAREST = 1000  # columns that are drawn one by one; more share pixels, and are averaged


def image_grid(
    rows: Sequence[np.ndarray], labels: Sequence[str], shape: tuple[int, ...], title: str, names: Sequence[str] = ()
) -> Figure:
    """Plot rows ``(n, D)``, each with its label: images on one scale, or a table's rows as strips.

    Args:
        rows: arrays of as many elements a row as `shape` has; NaN and infinite values are orange.
        labels: of each array.
        shape: of one row: an image's channels, height and width, or height, width and channels; else it is a table's row,
            and each column has a scale of its own.
        title: of the picture.
        names: of a table's columns.
    """
    title = plain(title) + ("" if all(np.isfinite(r).all() for r in rows) else "; orange: missing, or not finite")
    if len(shape) == 3:
        return tiled(rows, labels, shape, title)
    return strips(rows, labels, title, names)


def sample_grid(
    samples: np.ndarray,
    shape: tuple[int, ...],
    columns: int = 12,
    title: str = "x ~ p(x | z), z ~ p(z)",
    names: Sequence[str] = (),
) -> Figure:
    """Plot samples of the model, in rows."""
    rows = [samples[i : i + columns] for i in range(0, len(samples), columns)]
    return image_grid(rows, [""] * len(rows), shape, title, names)


def tiled(rows: Sequence[np.ndarray], labels: Sequence[str], shape: tuple[int, ...], title: str) -> Figure:
    """Plot images, each array in a line of its own.

    The panel is put where it belongs by the sizes of its words: a layout that fits itself cuts labels off beside a panel whose
    pixels are square.
    """
    picture = tile(rows, shape)
    height, width = picture.shape[:2]
    beside = MARGIN + max((inches(label, LABEL) for label in labels), default=0.0)
    across = max(min(WIDE - beside - MARGIN, 10.0 * width / height), LEAST)
    tall, wide = across * height / width, max(beside + across + MARGIN, inches(title, TITLE) + 2 * MARGIN)
    fig = figure(wide, tall + 2 * MARGIN + HEAD)
    fig.set_layout_engine("none")
    left = max(beside, (wide - across) / 2)
    ax = fig.add_axes((left / wide, MARGIN / fig.get_figheight(), across / wide, tall / fig.get_figheight()))
    ax.imshow(picture, interpolation="nearest")
    bare(ax)
    ax.set_yticks([(i + 0.5) * (height + 1) / len(rows) - 1 for i in range(len(rows))], labels, fontsize=LABEL)
    ax.set_title(title, fontsize=TITLE, x=(wide / 2 - left) / across)  # in the middle of the picture, not of the panel
    return fig


def inches(text: str, size: float) -> float:
    """Return how wide a text of one line is in print, with room for hinting.

    Example:
        >>> 0.3 < inches("y = 0", 9) < 0.6, inches("", 9)
        (True, 0.0)
    """
    from matplotlib.textpath import TextPath

    return float(1.03 * TextPath((0, 0), text, size=size).get_extents().x1 / 72 + 0.06) if text.strip() else 0.0


def strips(rows: Sequence[np.ndarray], labels: Sequence[str], title: str, names: Sequence[str] = ()) -> Figure:
    """Plot the rows of a table below each other, arrays with labels apart; each column from its least to its largest value."""
    apart = any(labels)
    fig = figure(8.0, min(1.2 + 0.14 * sum(map(len, rows)), 10.0))
    ax = fig.add_subplot()
    colours = in_colours(scaled_columns(np.concatenate([r.reshape(len(r), -1) for r in rows]))[..., None])
    parts, ends = [], np.cumsum([0, *map(len, rows)])
    for start, end in pairwise(ends):
        parts += [colours[start:end], np.ones_like(colours[:1])] if apart else [colours[start:end]]
    show_rows(ax, np.concatenate(parts[:-1] if apart else parts))
    middles = [(start + end - 1) / 2 + i for i, (start, end) in enumerate(pairwise(ends))]
    ax.set_yticks(middles if apart else [], labels if apart else [], fontsize=9)
    ax.set_ylabel("" if apart else f"{len(colours)} rows", fontsize=9)
    if 0 < len(names) <= MOST_NAMED:
        shown = [plain(name[:LONGEST]) for name in names]
        upright = max(map(len, shown)) * len(shown) <= ACROSS
        ax.set_xticks(range(len(names)), shown, fontsize=8 if upright else 7, rotation=0 if upright else 90)
    ax.set_title(title, fontsize=10)
    return fig


def show_rows(ax: Axes, colours: np.ndarray) -> None:
    """Show rows of a table, ``(n, D, 3)``, the full width of a panel."""
    how = "nearest" if colours.shape[1] <= MOST_NEAREST else "antialiased"
    ax.imshow(colours, interpolation=how, aspect="auto")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=2)
    ax.set_xlabel("element of x, each from its least value here (white) to its largest (black)", fontsize=9)
    ax.locator_params(axis="x", integer=True)


def bare(ax: Axes) -> None:
    """Take frame, marks and numbers off a panel of images."""
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([])


def as_images(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Arrange rows ``(n, D)`` as images ``(n, height, width, channels)``, of one channel or three.

    Channels come first or last: first where there are 1 or 3; last where these stand there, or at most 4 behind a height of
    more. Any other number of them stands side by side, in grey.

    Example:
        >>> as_images(np.zeros((2, 48)), (3, 4, 4)).shape, as_images(np.zeros((2, 48)), (4, 4, 3)).shape
        ((2, 4, 4, 3), (2, 4, 4, 3))
        >>> as_images(np.zeros((2, 320)), (5, 8, 8)).shape
        (2, 8, 40, 1)
    """
    images = rows.reshape(len(rows), *shape)
    last = shape[0] not in (1, COLOURS) and (shape[2] in (1, COLOURS) or shape[0] > 4 >= shape[2])
    images = images if last else images.transpose(0, 2, 3, 1)
    n, h, w, channels = images.shape
    return images if channels in (1, COLOURS) else images.transpose(0, 1, 3, 2).reshape(n, h, channels * w, 1)


def limits(rows: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the least and the largest finite value of all; 0 and 1 where there is none."""
    finite = np.concatenate([r[np.isfinite(r)].ravel() for r in rows])
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def scaled_columns(table: np.ndarray) -> np.ndarray:
    """Scale each column to 0..1 by its least and largest finite value; one of a single value is in the middle."""
    finite = np.where(np.isfinite(table), table.astype(float), np.nan)
    known = np.isfinite(finite).any(0)
    low, high = (f(np.where(known, finite, 0.0), axis=0) for f in (np.nanmin, np.nanmax))
    return np.where(high > low, (finite - low) / np.where(high > low, high - low, 1.0), finite * 0 + 0.5)


def in_colours(scaled: np.ndarray) -> np.ndarray:
    """Colour values 0..1 of one channel (``(..., 1)``, 1 is black) or three; those that are not finite as NO_VALUE."""
    known = np.isfinite(scaled).all(-1, keepdims=True)
    colours = np.broadcast_to(1 - scaled if scaled.shape[-1] == 1 else scaled, (*scaled.shape[:-1], COLOURS))
    return np.clip(np.where(known, colours, NO_VALUE), 0, 1)


def tile(rows: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Tile images one pixel apart in colours, scaled by the least and the largest value of all; gaps are white."""
    low, high = limits(rows)
    lines = [in_colours((as_images(r, shape) - low) / (high - low or 1.0)) for r in rows]
    _, h, w, _ = lines[0].shape
    canvas = np.ones((len(rows) * (h + 1) - 1, max(map(len, rows)) * (w + 1) - 1, COLOURS))
    for i, images in enumerate(lines):
        for j, image in enumerate(images):
            canvas[i * (h + 1) : i * (h + 1) + h, j * (w + 1) : j * (w + 1) + w] = image
    return canvas


def show_images(fig: Any, rows: np.ndarray, labels: Sequence[str], shape: tuple[int, ...], most: int) -> None:
    """Show images on one scale, five in a line, each under its label; with room for `most`."""
    low, high = limits([rows])
    images = in_colours((as_images(rows, shape) - low) / (high - low or 1.0))
    panels = list(fig.subplots(-(-most // 5), 5, squeeze=False).flat)
    for ax in panels:
        ax.set_axis_off()
    for ax, image, label in zip(panels, images, labels, strict=False):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(label, fontsize=8, pad=2)


def show_strips(fig: Any, rows: np.ndarray, labels: Sequence[str]) -> None:
    """Show a table's rows as strips, each beside its label."""
    ax = fig.add_subplot()
    show_rows(ax, in_colours(scaled_columns(rows)[..., None]))
    ax.set_yticks(range(len(rows)), labels, fontsize=8)
