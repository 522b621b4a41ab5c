"""Plots of a training, and what all plots share; matplotlib is imported with the first of them, and pyplot never."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.common.atomic_write import storage, write_atomic
from pyro_vae.common.flagged import format_share, is_loose, share_flagged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREEN, GREY = "#222222", "#2b6cb0", "#dd6b20", "#2f855a", "#999999"
CAPTION = "#5f5f5f"  # of words in grey, dark enough to read
STRETCHED = 2.0  # times the height that nineteen twentieths of a curve take: what it may take for all of it


def figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """Make an empty figure, laid out to fit what is put in it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def png(fig: Figure) -> bytes:
    """Return the figure as PNG, without dates or versions: the same picture is the same bytes.

    No text is set by TeX, which runs programs, whatever a matplotlibrc in the current folder says.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    content = io.BytesIO()
    with rc_context({"text.usetex": False}):  # of texts that drawing makes, such as those of ticks
        for text in fig.findobj(Text):
            text.set_usetex(False)
        fig.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def save(fig: Figure, path: Path) -> Path:
    """Write the figure as :func:`png`, whole or not at all.

    Raises:
        StorageError: it cannot be written; a file of that name is as it was.
    """
    content = png(fig)
    with storage(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return path


def axes(fig: Figure, xlabel: str, ylabel: str, title: str) -> Axes:
    """Add one plain panel."""
    ax = fig.add_subplot()
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def grid(count: int, columns: int, share: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure of `count` plain panels in rows of at most `columns`; with one scale for all, if shared."""
    columns = min(columns, count)
    fig = figure(0.6 + 2.4 * max(columns, 2), 0.9 + 2.1 * math.ceil(count / columns))
    panels = list(fig.subplots(math.ceil(count / columns), columns, squeeze=False, sharex=share, sharey=share).flat)
    for ax in panels[count:]:
        ax.remove()
    for ax in panels[:count]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return fig, panels[:count]


def plain(name: str) -> str:
    """Escape a name, so that matplotlib does not read it as mathematics, nor meets bytes of a file name that are no text."""
    return name.replace("$", r"\$").encode(errors="backslashreplace").decode()


def training_curve(history: Sequence[dict[str, Any]], floor: float | None = None) -> Figure:
    """Plot the ELBO on training and validation rows after each epoch, and the floor of a model without latents."""
    fig = figure()
    ax = axes(fig, "epoch", "nats per row", "ELBO while training")
    epochs = [r["epoch"] for r in history]
    best = max(history, key=lambda r: r["elbo"] if math.isfinite(r["elbo"]) else -math.inf)
    ax.plot(epochs, [r["train_elbo"] for r in history], color=GREY, label="training rows")
    ax.plot(epochs, [r["elbo"] for r in history], color=BLUE, label="validation rows")
    ax.plot(best["epoch"], best["elbo"], "o", color=BLUE, markersize=5, label=f"their highest, epoch {best['epoch']}")
    ax.set_ylim(*robust_limits([v for r in history for v in (r["elbo"], r["train_elbo"])]))
    ax.locator_params(axis="x", integer=True)
    if floor is not None and floor > ax.get_ylim()[0]:
        ax.axhline(floor, color=ORANGE, linestyle="--", label="independent elements (test rows), exact")
    elif floor is not None:
        ax.plot([], [], " ", label=f"(independent elements, test rows: {floor:.1f}, below)".replace("-", "−"))
    fig.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return fig


def evidence_curve(points: Sequence[dict[str, Any]]) -> Figure:
    """Plot the bound on log p(x) by importance sampling, the ELBO below it, and the area between: at most KL(q ‖ posterior).

    E[log p̂] ≤ log p(x), so that log p̂ − ELBO falls short of the KL by as much as log p̂ does of log p(x). Points of which
    more than a tenth of the rows is flagged are hollow, point upwards, and have no error; the last one's share is said.
    """
    fig = figure()
    ax = axes(fig, "epoch", "nats per row", "log p(x) by importance sampling, and the ELBO below it")
    epochs = np.array([p["epoch"] for p in points])
    log_px, elbo = (np.array([p[key] for p in points]) for key in ("log_px", "elbo"))
    ax.fill_between(epochs, elbo, log_px, color=ORANGE, alpha=0.25, label="at most KL(q(z|x) ‖ p(z|x))")
    draw_points(ax, points)
    ax.plot(epochs, elbo, color=INK, marker="o", markersize=4, label="ELBO")
    more = " or more" if is_loose(points[-1]) else ""
    ax.annotate(
        f"{log_px[-1] - elbo[-1]:.2f} nats{more}", (epochs[-1], (log_px[-1] + elbo[-1]) / 2), xytext=(-30, -42),
        textcoords="offset points", ha="right", va="center", color=ORANGE, arrowprops={"arrowstyle": "-", "color": ORANGE},
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )  # fmt: skip
    if len(epochs) > 2 and epochs[-1] > 20 * max(epochs[0], 1):
        ax.set_xscale("log")
        ax.set_xticks(epochs[spread_apart(epochs)], labels=[f"{e}" for e in epochs[spread_apart(epochs)]])
        ax.minorticks_off()
    else:
        ax.locator_params(axis="x", integer=True)
    ax.set_ylim(*robust_limits([*log_px, *elbo]))
    samples, rows = points[-1]["num_samples"], points[-1]["rows"]
    flagged = format_share(share_flagged(points[-1]))
    about = f"K = {samples} importance samples on {rows} validation rows; at the end {flagged} of them flagged"
    legend = fig.legend(frameon=False, fontsize=8, ncols=3, loc="outside lower center", title=about, title_fontsize=8)
    legend.get_title().set_color(CAPTION)
    return fig


def spread_apart(values: np.ndarray, ratio: float = 1.25) -> list[int]:
    """Return places of rising values that have room for their numbers on a log scale, the last among them.

    Example:
        >>> spread_apart(np.array([1, 2, 9, 10]))
        [0, 1, 3]
    """
    kept = [len(values) - 1]
    for place in range(len(values) - 2, -1, -1):
        if values[place] * ratio <= values[kept[0]]:
            kept.insert(0, place)
    return kept


def draw_points(ax: Axes, points: Sequence[dict[str, Any]]) -> None:
    """Draw log p̂(x), with its errors where rows are believed, and as a bound where too many are flagged."""
    ax.plot([p["epoch"] for p in points], [p["log_px"] for p in points], color=BLUE, linewidth=1.5)
    loose = [p for p in points if is_loose(p)]
    if believed := [p for p in points if not is_loose(p)]:
        epochs, log_px = ([p[key] for p in believed] for key in ("epoch", "log_px"))
        error = [2 * (p["log_px_mc_se"] or 0.0) for p in believed]
        label = "log p(x) ± 2 Monte Carlo s.e."
        ax.errorbar(epochs, log_px, error, color=BLUE, marker="o", markersize=4, capsize=2, linestyle="", label=label)
    if loose:
        at = [p["epoch"] for p in loose], [p["log_px"] for p in loose]
        label = "log p(x) ≥ this: a loose bound"
        ax.plot(*at, "^", color=BLUE, markersize=6, markerfacecolor="white", label=label)


def robust_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return limits that a few steep first epochs do not stretch; all of them, where they take no more than twice the height.

    Example:
        >>> [round(v, 2) for v in robust_limits([-1.5, *[-1 + i / 100 for i in range(100)]])]
        [-1.62, 0.11]
        >>> robust_limits([-500.0, *[-1 + i / 100 for i in range(100)]])[0] > -2
        True
    """
    high, low = max(values), float(np.quantile(values, 0.05))
    if high - min(values) <= STRETCHED * (high - low):
        low = min(values)
    pad = 0.08 * (high - low) + 1e-6
    return float(low - pad), float(high + pad)


def thin(count: int, most: int = 10) -> list[int]:
    """Return at most `most` epochs out of 1..count, from the first to the last, spread evenly on a log scale."""
    spread = np.geomspace(1, count, min(most, count))
    return sorted({math.ceil(s - 1e-9) for s in spread})


def signal_to_noise(reports: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Plot the signal-to-noise ratio of gradients against K, on log scales: encoder and decoder, a line for each estimator.

    Reports are K to ``GradientReport.to_dict()``, their objectives named by their estimators.
    """
    fig = figure(9.0, 3.8)
    names = list(dict.fromkeys(name for r in reports.values() for name in r["objectives"]))
    floor = max(r["snr_floor"] for r in reports.values())
    panels = fig.subplots(1, 2, sharey=True)
    for ax, part in zip(panels, ("encoder", "decoder"), strict=True):
        sizes = (11, 8, 5, 3)  # estimators that coincide show as marks within marks
        styles = cycle(zip((GREY, BLUE, ORANGE, INK), ("o", "s", "^", "D"), sizes, strict=True))
        for name, (color, marker, size) in zip(names, styles, strict=False):
            of_name = {
                k: r["objectives"][name][part]["snr_mean"] for k, r in reports.items() if name in r["objectives"]
            }
            ks, snr = zip(*((k, value) for k, value in of_name.items() if value is not None), strict=True)
            ax.plot(ks, snr, color=color, marker=marker, markersize=size, label=name)
        ax.axhline(floor, color=GREY, linestyle=":", linewidth=1, label="no signal at all")
        ax.set(xlabel="K, particles a row", title=part, xscale="log", yscale="log")
        ax.set_xticks(list(reports), [str(k) for k in reports])
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("|mean| / sd of the gradient,\naverage over coordinates")
    panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    draws, rows = (next(iter(reports.values()))[key] for key in ("draws", "rows"))
    fig.supxlabel(f"{draws} draws of the gradient on {rows} rows", fontsize=8, color=CAPTION)
    return fig
