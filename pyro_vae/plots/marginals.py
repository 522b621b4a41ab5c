"""Plot of a table's columns: their values beside draws of the model, the columns that differ most first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import BLUE, INK, ORANGE, grid, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 24
FEW = 25  # values, so few that each has a bar of its own
TAIL = 0.005  # of the data on either side, beyond which the axis need not reach


def marginal_panels(
    names: Sequence[str], data: Sequence[np.ndarray], drawn: Sequence[np.ndarray], words: Sequence[str]
) -> Figure:
    """Plot histograms of what is observed in each column, and of the model's draws over them, on one scale of density.

    The axis reaches over the data, and what draws lie beyond it are counted in the title.

    Args:
        names: of the columns.
        data, drawn: of each column, ``(N,)`` and ``(M,)``, finite.
        words: under each name, such as how far the two lie apart.
    """
    fig, panels = grid(len(names), 3)
    for ax, name, values, draws, word in zip(panels, names, data, drawn, words, strict=True):
        edges = edges_of(values)
        beyond = float(((draws < edges[0]) | (draws > edges[-1])).mean()) if len(draws) else 0.0
        for part, style in ((values, {"color": BLUE, "alpha": 0.45}), (draws, {"histtype": "step", "color": ORANGE})):
            weights = np.full(len(part), 1 / max(len(part), 1))
            ax.hist(part, edges.tolist(), weights=weights, linewidth=1.6, **style)
        more = f"; {beyond:.0%} of draws beyond" if beyond >= 0.005 else ""
        ax.set_title(f"{plain(name[:28])}\n{word}{more}", fontsize=8, color=INK)
        ax.set_yticks([])
        ax.locator_params(axis="x", nbins=4)
    panels[0].plot([], [], color=ORANGE, label="draws of the model")
    panels[0].fill_between([], [], color=BLUE, alpha=0.45, label="data")
    fig.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    return fig


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
