"""Plots of latents: a map of the posterior means, and the KL of each unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import BLUE, GREY, axes, figure

LONGEST = 24  # signs of a label in a legend
MOST_LABELS = 16  # that a legend has room for
GOLDEN = 0.618034  # steps of it, modulo 1, spread evenly, however many there are
MARKS = ("os^DvP<X>p", "D>sXo<^Pv*")  # of labels that share a colour, another for the second ten

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def latent_map(z: np.ndarray, labels: np.ndarray | None, title: str = "posterior means") -> Figure:
    """Plot posterior means in two dimensions (the first two principal components where there are more), coloured by label.

    Labels are whole numbers, or names of which there may be any number.
    """
    fig = figure(5.5, 5.0)
    names = ["z1", "z2"]
    z = z[:, ~np.isnan(z).any(0)]  # steps that some sequence has not are no coordinates of all rows
    if z.shape[1] > 2:
        centred = z - z.mean(0)
        _, spread, directions = np.linalg.svd(centred, full_matrices=False)
        share = spread**2 / (spread**2).sum()
        names = [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)]
        z = centred @ directions[:2].T
    elif z.shape[1] == 1:
        apart = np.arange(len(z)) * GOLDEN % 1
        z, names = np.column_stack([z, apart]), ["z1", "(no axis: rows are spread, so that all are seen)"]
    ax = axes(fig, names[0], names[1], title)
    if names[1].startswith("("):
        ax.set_yticks([])
    if labels is None:
        ax.scatter(z[:, 0], z[:, 1], s=6, color=BLUE, alpha=0.6, linewidths=0)
        return fig
    labels = np.asarray(labels)
    values, counts = np.unique(labels, return_counts=True)
    named = set(values[np.argsort(-counts, kind="stable")[:MOST_LABELS]].tolist())
    for i, label in enumerate(values):
        place = i if labels.dtype.kind in "UO" else int(label)
        here, mark = (
            z[labels == label],
            MARKS[place // 10 % 2][place % 10],
        )  # told apart in grey, and beyond ten colours
        name = (
            shown(str(label).replace("$", r"\$")) if label in named else None
        )  # matplotlib reads formulas between dollars
        ax.scatter(
            here[:, 0], here[:, 1], s=14, alpha=0.75, linewidths=0, color=f"C{place % 10}", marker=mark, label=name
        )
    title = "label" if len(values) <= MOST_LABELS else f"label, the {MOST_LABELS}\nmost of {len(values)}"
    ax.legend(frameon=False, markerscale=1.5, loc="center left", bbox_to_anchor=(1, 0.5), title=title)
    return fig


def shown(name: str) -> str:
    """Return a label as a legend may have it: short, and not hidden for an underscore at its beginning."""
    name = name if len(name) <= LONGEST else f"{name[:LONGEST]}…"
    return f"\u200b{name}" if name.startswith("_") else name


def unit_bars(kl: Sequence[float], activity: Sequence[float] | None = None, threshold: float = 0.01) -> Figure:
    """Plot KL(q(z_u | x) ‖ p(z_u)) of each unit u in nats a row, the largest first; active units apart from the others."""
    order = np.argsort(-np.asarray(kl, dtype=float), kind="stable")
    active = np.asarray(kl if activity is None else activity, dtype=float)[order] > threshold
    criterion = "KL" if activity is None else "Var E[z|x]"
    fig = figure(max(4.0, min(10.0, 2.0 + 0.14 * len(order))), 3.2)
    ax = axes(fig, "unit, by KL", "nats per row", f"KL of each unit: {active.sum()} of {len(order)} active")
    at, heights = np.arange(len(order)), np.asarray(kl, dtype=float)[order]
    for chosen, color, sign in ((active, BLUE, ">"), (~active, GREY, "≤")):
        ax.bar(at[chosen], heights[chosen], color=color, label=f"{criterion} {sign} {threshold:g}")
    step = 1 if len(order) <= 30 else len(order) // 15
    ax.set_xticks(at[::step], order[::step])
    ax.legend(frameon=False, loc="upper right")
    return fig
