"""Plot of the rows not to be believed, by Pareto k̂ of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import BLUE, INK, ORANGE, axes, figure
from .images import show_images, show_strips

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

K_HAT = r"$\hat{k}$"


def khat_histogram(
    khat: np.ndarray,
    flagged: Sequence[int],
    threshold: float | np.ndarray,
    x: np.ndarray | None = None,
    shape: tuple[int, ...] = (),
    most: int = 20,
) -> Figure:
    """Plot Pareto k̂ of the rows' weights, flagged rows apart; beside it these rows themselves, worst first.

    Left of the threshold are rows whose k̂ is below it; a row may be flagged there for another reason. Weights without a tail
    (k̂ of −∞, or all but equal, which are believed whatever their k̂) are at the left edge.

    Args:
        khat: of each row, ``(N,)``; NaN (not known) is only counted.
        flagged: numbers of the rows not to believe, for whichever reason.
        threshold: above which k̂ is not to be believed, of all rows or of each: where rows have thresholds of their own, as
            under `target_se`, what is drawn is k̂ less the row's.
        x: the rows, ``(N, D)``; None leaves them out.
        shape: of a row: channels, height and width of an image; a table's row is a strip.
        most: rows shown.
    """
    own = np.broadcast_to(np.asarray(threshold, dtype=float), khat.shape)
    varies = len(khat) > 0 and bool((own != own[0]).any())
    bad, known = np.isin(np.arange(len(khat)), flagged), ~np.isnan(khat)
    worst = [] if x is None else sorted(flagged, key=lambda i: -np.nan_to_num(khat[i], nan=np.inf))[:most]
    fig = figure(9.5 if worst else 6.0, 4.2)
    sides: Any = fig.subfigures(1, 2, width_ratios=(1.15, 1)) if worst else (fig,)
    less = " less its threshold" if varies else ""
    ax = axes(sides[0], f"Pareto {K_HAT} of a row's weights{less}", "rows", "")
    ax.set_title(f"{bad.sum()} of {len(khat)} rows flagged", fontsize=10)
    line = 0.0 if varies else float(own[0]) if len(own) else 0.0
    draw_bars(ax, np.where(known & ~bad & (khat >= own), -np.inf, khat - own + line), bad, line)
    said = "threshold (by K)" if varies else f"threshold {line:.2f}"
    ax.axvline(line, color=INK, linestyle="--", linewidth=1, label=said)
    if other := int((known & bad & (khat < own)).sum()):
        ax.plot([], [], " ", label=f"({other} flagged for another reason)")
    if unknown := int((~known).sum()):
        ax.plot([], [], " ", label=f"({unknown} not known)")
    columns = (
        3 if len(ax.get_legend_handles_labels()[0]) <= 3 else 2
    )  # four beside one another are wider than the panel
    sides[0].legend(frameon=False, fontsize=8, ncols=columns, loc="outside lower center")
    if x is not None and worst:
        labels = ["?" if np.isnan(khat[i]) else f"{khat[i]:.2f}".replace("-", "−") for i in worst]
        shown = "" if len(worst) == len(flagged) else f"{len(worst)} of "
        sides[1].suptitle(f"{shown}{len(flagged)} flagged rows and their {K_HAT}, worst first", fontsize=10)
        rows = x.reshape(len(x), -1)[worst]
        show_images(sides[1], rows, labels, shape, most) if len(shape) == 3 else show_strips(sides[1], rows, labels)
    return fig


def draw_bars(ax: Axes, khat: np.ndarray, bad: np.ndarray, threshold: float) -> None:
    """Draw the histogram, believed and flagged rows stacked, with an edge at the threshold and a bar at either side of it."""
    known, finite = ~np.isnan(khat), khat[np.isfinite(khat)]
    low, high = (float(f(np.append(finite, threshold))) for f in (np.min, np.max))
    width = max(high - low, 0.1) / min(30, max(8, len(finite) // 6))
    left, right = (max(1, int(np.ceil(span / width))) for span in (threshold - low, high - threshold))
    edges = threshold + width * np.arange(-left, right + 1)
    below = np.nextafter(threshold, -np.inf)  # a k̂ that is the threshold is above it
    inside = np.where(khat < threshold, np.clip(khat, edges[0], below), np.clip(khat, threshold, edges[-1]))
    believed, flagged = inside[known & ~bad], inside[known & bad]
    ax.hist([believed, flagged], edges.tolist(), stacked=True, color=[BLUE, ORANGE], label=["believed", "flagged"])
    ax.locator_params(axis="y", integer=True)
