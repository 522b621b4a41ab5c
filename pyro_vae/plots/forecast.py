"""Plots of forecasts: what came before, and quantiles of what comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import BLUE, GREY, INK, ORANGE, grid, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Series = Sequence[float]


def forecast_fans(
    panels: Mapping[str, tuple[Series, Sequence[Series], Series]],
    levels: Series = (0.05, 0.25, 0.5, 0.75, 0.95),
    ylabel: str = "x",
    columns: int = 3,
) -> Figure:
    """Plot a panel a sequence: what was observed, fans of quantiles of the steps after it, and what came in the end.

    Args:
        panels: a name to what was observed ``(T,)``, the quantiles ``(levels, H)``, and what came, up to ``(H,)``.
        levels: probabilities of the quantiles, in order and symmetric about 0.5, with it in the middle.
        ylabel, columns: as they say.
    """
    fig, axes = grid(len(panels), columns, share=True)
    for ax, (name, (observed, quantiles, came)) in zip(axes, panels.items(), strict=True):
        at = np.arange(len(observed)) + 1
        after = len(observed) + np.arange(len(quantiles[0])) + 1
        ax.plot(at, observed, color=INK, linewidth=1, label="observed")
        for i in range(len(levels) // 2):
            share = f"{levels[-1 - i] - levels[i]:.0%} of forecasts"
            ax.fill_between(
                after, quantiles[i], quantiles[-1 - i], color=BLUE, alpha=0.2 + 0.2 * i, linewidth=0, label=share
            )
        ax.plot(after, quantiles[len(levels) // 2], color=BLUE, linewidth=1, label="median")
        ax.plot(after[: len(came)], came, "o", color=ORANGE, markersize=3, label="came")
        ax.axvline(len(observed) + 0.5, color=GREY, linewidth=0.8)
        ax.set_title(plain(name), fontsize=9)
    axes[0].set_ylabel(ylabel, fontsize=9)
    for ax in axes[-columns:]:
        ax.set_xlabel("step", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return fig
