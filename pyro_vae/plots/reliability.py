"""Reliability pictures: how often classes are right, by how sure of them one was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .figures import BLUE, GREY, INK, ORANGE, grid, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability_diagram(classifications: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot accuracy over confidence, a panel for each classifier, with two binomial standard errors and the counts of rows.

    On the diagonal probabilities are what they say; below it they are too sure.

    Args:
        classifications: by name, what ``Classification.to_dict()`` gives.
    """
    fig, panels = grid(len(classifications), 3, share=True)
    for ax, (name, found) in zip(panels, classifications.items(), strict=True):
        bars = found["reliability"]
        confidence, accuracy, counts = bars["confidence"], bars["accuracy"], bars["count"]
        errors = [2 * (p * (1 - p) / n) ** 0.5 for p, n in zip(accuracy, counts, strict=True)]
        shares = [n / found["rows"] for n in counts]
        ax.bar(confidence, shares, width=0.8 / found["bins"], color=GREY, alpha=0.35, linewidth=0)
        ax.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        color = ORANGE if found["ece"] > found["ece_limit"] else BLUE
        ax.errorbar(confidence, accuracy, errors, color=color, marker="o", markersize=3, linewidth=1.2)
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        title = f"{plain(name)}\nerror {1 - found['accuracy']:.2%} ± {found['accuracy_se']:.2%}, ECE {found['ece']:.4f}"
        ax.set_title(title, fontsize=8, color=INK)
    fig.supxlabel("confidence (grey: share of rows)", fontsize=8)
    fig.supylabel("accuracy ± 2 standard errors", fontsize=8)
    return fig
