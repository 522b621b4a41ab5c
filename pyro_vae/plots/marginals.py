"""Plot of a table's columns: their values beside draws of the model, the columns that differ most first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import BLUE, INK, ORANGE, grid, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 24
LABELS = 4  # of categories, on an axis
FEW = 25  # values, so few that each has a bar of its own
TAIL = 0.005  # of the data on either side, beyond which the axis need not reach


def marginal_panels(
    names: Sequence[str],
    data: Sequence[np.ndarray],
    drawn: Sequence[np.ndarray],
    words: Sequence[str],
    codes: Sequence[Sequence[str]] = (),
) -> Figure:
    """Plot histograms of what is observed in each column, and of the model's draws over them, on one scale of density.

    The axis reaches over the data, and the share of draws beyond it is said, if it is a twentieth or more.

    Args:
        names: of the columns.
        data, drawn: of each column, ``(N,)`` and ``(M,)``, finite.
        words: under each name, such as how far the two lie apart.
        codes: labels of the codes 0, 1, … of each column; none of a number.
    """
    fig, panels = grid(len(names), 3)
    codes = codes or [()] * len(names)
    for ax, name, values, draws, word, labels in zip(panels, names, data, drawn, words, codes, strict=True):
        edges = edges_of(values)
        beyond = float(((draws < edges[0]) | (draws > edges[-1])).mean()) if len(draws) else 0.0
        for part, style in ((values, {"color": BLUE, "alpha": 0.45}), (draws, {"histtype": "step", "color": ORANGE})):
            weights = np.full(len(part), 1 / max(len(part), 1))
            ax.hist(part, edges.tolist(), weights=weights, linewidth=1.6, **style)
        if beyond >= 0.05:
            ax.plot([], [], " ", label=f"{beyond:.0%} of draws beyond")
            ax.set_ylim(top=1.15 * ax.get_ylim()[1])  # room for these words above the bars
            ax.legend(frameon=False, fontsize=7, loc="upper right", handlelength=0, borderaxespad=0.0, borderpad=0.1)
        ax.set_title(f"{plain(shortened(name))}\n{word}", fontsize=8, color=INK)
        ax.set_yticks([])
        if 0 < len(labels) <= LABELS:
            ax.set_xticks(range(len(labels)), [plain(shortened(label, 9)) for label in labels], fontsize=7)
        else:
            ax.locator_params(axis="x", nbins=4)
    (drawn_line,) = panels[0].plot([], [], color=ORANGE)
    bars = panels[0].fill_between([], [], color=BLUE, alpha=0.45)
    handles, words = [bars, drawn_line], ["data", "draws of the model"]
    fig.legend(handles, words, frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    return fig


def shortened(name: str, most: int = 26) -> str:
    """Return a name as it is, or its beginning."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def edges_of(values: np.ndarray) -> np.ndarray:
    """Return the edges of a histogram: a bar a value where there are few, whole numbers in the middle of theirs.

    Example:
        >>> edges_of(np.array([0.0, 1, 1, 3])).tolist()
        [-0.5, 0.5, 1.5, 2.5, 3.5]
    """
    low, high = np.quantile(values, [TAIL, 1 - TAIL]) if len(values) else (0.0, 1.0)
    whole = bool((values == np.round(values)).all())
    if whole and high - low <= FEW:
        return np.arange(np.floor(low) - 0.5, np.ceil(high) + 1.0)
    pad = 0.15 * (high - low) or max(abs(float(high)), 1.0) * 0.5
    return np.linspace(low - pad, high + pad, BINS + 1)
