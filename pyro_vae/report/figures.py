"""Pictures. matplotlib is imported when the first is drawn; figures are made without pyplot, so nothing global changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY = "#222222", "#2b6cb0", "#dd6b20", "#999999"


def figure(width: float = 7.0, height: float = 4.0) -> Figure:
    """An empty figure, laid out to fit what is put in it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save(fig: Figure, path: Path) -> Path:
    """The figure as PNG (without dates or versions: the same picture is the same file)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, metadata={"Software": None})
    return path


def axes(fig: Figure, xlabel: str, ylabel: str, title: str) -> Axes:
    """One plain panel."""
    ax = fig.add_subplot()
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def training_curve(history: Sequence[dict[str, Any]], floor: float | None = None) -> Figure:
    """The ELBO on training and validation rows after each epoch, and the floor of a model without latents."""
    fig = figure()
    ax = axes(fig, "epoch", "nats per row", "ELBO while training")
    epochs = [r["epoch"] for r in history]
    ax.plot(epochs, [r["train_elbo"] for r in history], color=GREY, label="training rows")
    ax.plot(epochs, [r["elbo"] for r in history], color=BLUE, label="validation rows")
    ax.set_ylim(*robust_limits([v for r in history for v in (r["elbo"], r["train_elbo"])]))
    if floor is not None and floor > ax.get_ylim()[0]:
        ax.axhline(floor, color=ORANGE, linestyle="--", label="independent elements, exact")
    elif floor is not None:
        ax.plot([], [], " ", label=f"(independent elements: {floor:.1f}, below)")
    ax.legend(frameon=False, loc="lower right")
    return fig


def robust_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits that a few steep first epochs do not stretch."""
    low, high = np.quantile(values, 0.05), max(values)
    pad = 0.08 * (high - low) + 1e-6
    return float(low - pad), float(high + pad)


def unit_bars(kl: Sequence[float], activity: Sequence[float] | None = None, threshold: float = 0.01) -> Figure:
    """KL(q(z_u | x) ‖ p(z_u)) of each unit u in nats a row, the largest first; active units apart from the others."""
    order = np.argsort(-np.asarray(kl, dtype=float), kind="stable")
    active = np.asarray(kl if activity is None else activity, dtype=float)[order] > threshold
    criterion = "KL" if activity is None else "Var E[z|x]"
    fig = figure(max(4.0, min(10.0, 2.0 + 0.14 * len(order))), 3.2)
    ax = axes(fig, "unit, by KL", "nats per row", f"KL of each unit: {active.sum()} of {len(order)} active")
    at, heights = np.arange(len(order)), np.asarray(kl, dtype=float)[order]
    for chosen, color, sign in ((active, BLUE, ">"), (~active, GREY, "≤")):
        ax.bar(at[chosen], heights[chosen], color=color, label=f"{criterion} {sign} {threshold:g}")
    ax.set_xticks(
        at if len(order) <= 30 else at[:: len(order) // 15], order if len(order) <= 30 else order[:: len(order) // 15]
    )
    ax.legend(frameon=False, loc="upper right")
    return fig


def evidence_curve(points: Sequence[dict[str, Any]]) -> Figure:
    """log p(x) by importance sampling, the ELBO below it, and the gap between them: KL(q(z | x) ‖ p(z | x))."""
    fig = figure()
    ax = axes(fig, "epoch", "nats per row", "log p(x) = ELBO + KL(q(z|x) ‖ p(z|x))")
    epochs = np.array([p["epoch"] for p in points])
    log_px, elbo = (np.array([p[key] for p in points]) for key in ("log_px", "elbo"))
    error = 2 * np.array([p["log_px_mc_se"] or 0.0 for p in points])
    ax.fill_between(epochs, elbo, log_px, color=ORANGE, alpha=0.25, label="gap: KL(q(z|x) ‖ p(z|x))")
    ax.errorbar(
        epochs, log_px, error, color=BLUE, marker="o", markersize=4, capsize=2, label="log p(x) ± 2 Monte Carlo s.e."
    )
    ax.plot(epochs, elbo, color=INK, marker="o", markersize=4, label="ELBO")
    ax.annotate(
        f"gap {log_px[-1] - elbo[-1]:.2f} nats", (epochs[-1], (log_px[-1] + elbo[-1]) / 2), xytext=(-30, -42),
        textcoords="offset points", ha="right", va="center", color=ORANGE, arrowprops={"arrowstyle": "-", "color": ORANGE},
    )  # fmt: skip
    if len(epochs) > 2 and epochs[-1] > 20 * max(epochs[0], 1):
        ax.set_xscale("log")
    ax.set_ylim(*robust_limits([*log_px, *elbo]))
    samples, rows = points[-1]["num_samples"], points[-1]["rows"]
    ax.set_title(
        f"K = {samples} importance samples on {rows} validation rows", fontsize=8, color=GREY, loc="right", y=0.02
    )
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.08))
    return fig


def image_grid(rows: Sequence[np.ndarray], labels: Sequence[str], shape: tuple[int, ...], title: str) -> Figure:
    """Rows of images ``(n, channels * height * width)``, each with its label, on one scale. A table's row is a strip."""
    picture = tile(rows, shape if len(shape) == 3 else (1, 1, shape[0]))
    height, width = picture.shape[:2]
    fig = figure(8.0, min(8.0 * height / width, 10.0) + 0.45)
    ax = fig.add_subplot()
    grey = picture.shape[2] == 1
    ax.imshow(
        picture[..., 0] if grey else picture, cmap="gray_r", interpolation="nearest", aspect="auto" if height < 9 else 1
    )
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([])
    ax.set_yticks([(i + 0.5) * (height + 1) / len(rows) - 1 for i in range(len(rows))], labels, fontsize=9)
    ax.set_title(title, fontsize=10)
    return fig


def tile(rows: Sequence[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """Images side by side, one pixel apart, scaled to 0..1 by the least and the largest value of all; gaps are NaN."""
    channels, h, w = shape
    low, high = (float(f([f(r) for r in rows])) for f in (np.min, np.max))
    canvas = np.full((len(rows) * (h + 1) - 1, max(map(len, rows)) * (w + 1) - 1, channels), np.nan)
    for i, images in enumerate(rows):
        for j, image in enumerate(images):
            scaled = (image.reshape(channels, h, w).transpose(1, 2, 0) - low) / (high - low or 1.0)
            canvas[i * (h + 1) : i * (h + 1) + h, j * (w + 1) : j * (w + 1) + w] = scaled
    return canvas if channels == 1 else np.nan_to_num(canvas, nan=1.0)


def sample_grid(
    samples: np.ndarray, shape: tuple[int, ...], columns: int = 12, title: str = "x ~ p(x | z), z ~ p(z)"
) -> Figure:
    """Samples of the model, in rows."""
    rows = [samples[i : i + columns] for i in range(0, len(samples), columns)]
    return image_grid(rows, [""] * len(rows), shape, title)


def latent_map(z: np.ndarray, labels: np.ndarray | None, title: str = "posterior means") -> Figure:
    """Posterior means, in two dimensions (the first two principal components where there are more), coloured by label."""
    fig = figure(5.5, 5.0)
    names = ["z1", "z2"]
    if z.shape[1] > 2:
        centred = z - z.mean(0)
        _, spread, directions = np.linalg.svd(centred, full_matrices=False)
        share = spread**2 / (spread**2).sum()
        z, names = (
            centred @ directions[:2].T,
            [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)],
        )
    elif z.shape[1] == 1:
        z, names = np.column_stack([z, np.zeros(len(z))]), ["z1", ""]
    ax = axes(fig, names[0], names[1], title)
    if labels is None:
        ax.scatter(z[:, 0], z[:, 1], s=6, color=BLUE, alpha=0.6, linewidths=0)
        return fig
    for label in np.unique(labels):
        here = z[labels == label]
        ax.scatter(here[:, 0], here[:, 1], s=8, alpha=0.75, linewidths=0, color=f"C{int(label) % 10}", label=str(label))
    ax.legend(frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5), title="label")
    return fig


def thin(count: int, most: int = 10) -> list[int]:
    """At most `most` epochs out of 1..count, from the first to the last, spread evenly on a log scale."""
    spread = np.geomspace(1, count, min(most, count))
    return sorted({math.ceil(s - 1e-9) for s in spread})


def forest(
    names: Sequence[str], differences: Sequence[float], errors: Sequence[float | None], caption: str = ""
) -> Figure:
    """Models one below the other, the best on top: differences to it ± 2 paired standard errors, in nats per row."""
    fig = figure(7.0, 1.5 + 0.32 * len(names))
    ax = axes(
        fig, "log p(x) − best, nats per row", "", "Paired difference to the best: bars ± 2 s.e., numbers ± 1 s.e."
    )
    at = np.arange(len(names))
    bars = 2 * np.array([e or 0.0 for e in errors])
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    ax.errorbar(differences, at, xerr=bars, color=BLUE, marker="o", markersize=5, capsize=3, linestyle="")
    for y, (difference, error) in enumerate(zip(differences, errors, strict=True)):
        said = "best" if y == 0 else f"{difference:.2f} ± {'unknown' if error is None else f'{error:.2f}'}"
        ax.annotate(
            said.replace("-", "−"), (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=8, color=INK
        )
    ax.set_yticks(at, [name.replace("$", r"\$") for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    fig.supxlabel(caption, fontsize=8, color=GREY)
    return fig


def signal_to_noise(reports: Mapping[int, Mapping[str, Any]]) -> Figure:
    """Signal-to-noise ratio of gradients against K, on log scales: encoder and decoder, a line for each estimator.

    Args:
        reports: K to what ``GradientReport.to_dict()`` gives; objectives are named by their estimators.
    """
    fig = figure(9.0, 3.8)
    names = list(dict.fromkeys(name for r in reports.values() for name in r["objectives"]))
    floor = max(r["snr_floor"] for r in reports.values())
    panels = fig.subplots(1, 2, sharey=True)
    for ax, part in zip(panels, ("encoder", "decoder"), strict=True):
        for name, style in zip(names, cycle(zip((GREY, BLUE, ORANGE, INK), ("o", "s", "^", "D"), strict=True))):
            found = [
                (k, r["objectives"][name][part]["snr_mean"]) for k, r in reports.items() if name in r["objectives"]
            ]
            ks, snr = zip(*((k, value) for k, value in found if value is not None), strict=True)
            ax.plot(ks, snr, color=style[0], marker=style[1], markersize=5, label=name)
        ax.axhline(floor, color=GREY, linestyle=":", linewidth=1, label="no signal at all")
        ax.set(xlabel="K, particles a row", title=part, xscale="log", yscale="log")
        ax.set_xticks(list(reports), [str(k) for k in reports])
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("|mean| / sd of the gradient,\naverage over coordinates")
    panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    draws, rows = (next(iter(reports.values()))[key] for key in ("draws", "rows"))
    fig.supxlabel(f"{draws} draws of the gradient on {rows} rows", fontsize=8, color=GREY)
    return fig


def grid(count: int, columns: int, share: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `count` plain panels in rows of at most `columns`; with one scale for all, if shared."""
    columns = min(columns, count)
    fig = figure(0.6 + 2.4 * max(columns, 2), 0.9 + 2.1 * math.ceil(count / columns))
    panels = list(fig.subplots(math.ceil(count / columns), columns, squeeze=False, sharex=share, sharey=share).flat)
    for ax in panels[count:]:
        ax.remove()
    for ax in panels[:count]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return fig, panels[:count]


def ecdf_differences(calibration: Mapping[str, Any], most: int = 16) -> Figure:
    """ECDF of the ranks − that of uniform ranks, a panel for each quantity, with the band that holds the whole curve.

    ∪-shaped ranks (draws too narrow) rise above the band and fall below it; draws too wide do it the other way round; draws
    too high stay above, draws too low below.

    Args:
        calibration: what ``Calibration.to_dict()`` gives.
        most: panels; where there are more quantities, those of the least p-values and log p(x, z) are drawn.
    """
    names, p = calibration["names"], calibration["adjusted"]
    shown = sorted(sorted(range(len(names)), key=lambda i: (i != len(names) - 1, p[i]))[:most])
    fig, panels = grid(len(shown), 4, share=True)
    lower, upper = (np.array([0.0, *calibration[key], 0.0]) for key in ("lower", "upper"))
    at = np.linspace(0, 1, len(lower))
    for ax, i in zip(panels, shown, strict=True):
        color = ORANGE if p[i] <= calibration["level"] else BLUE
        ax.fill_between(at, lower, upper, color=GREY, alpha=0.25, linewidth=0)
        ax.plot(at, [0.0, *calibration["differences"][i], 0.0], color=color, linewidth=1.2)
        ax.set_title(f"{plain(names[i])}\n{calibration['words'][i]}, p {p[i]:.2g}", fontsize=8, color=INK)
    fig.supxlabel(
        f"rank / (L + 1), of {calibration['num_draws']} draws on {calibration['rows']} simulated rows", fontsize=8
    )
    fig.supylabel("ECDF − uniform", fontsize=8)
    left_out = f"; {len(shown)} of {len(names)} quantities" if len(shown) < len(names) else ""
    title = f"Band: {calibration['coverage']:.1%} for a whole curve; p corrected for their number{left_out}"
    fig.suptitle(title, fontsize=9)
    return fig


def predictive_panels(check: Mapping[str, Any]) -> Figure:
    """Histograms of T(x_rep), a panel for each statistic (its mean over all rows), and T(x): a line.

    Where T(x, z) depends on the latents it has a histogram of its own; p compares the two draw by draw.

    Args:
        check: what ``PredictiveCheck.to_dict()`` gives.
    """
    fig, panels = grid(len(check["statistics"]), 3)
    for ax, (name, found) in zip(panels, check["statistics"].items(), strict=True):
        replicated, observed = np.array(found["replicated"]), np.array(found["observed"])
        every = np.concatenate([replicated, observed]) if len(observed) > 1 else replicated
        edges = np.histogram_bin_edges(every, 24).tolist()
        ax.hist(replicated, edges, color=BLUE, alpha=0.6, label="T(x_rep), model")
        if len(observed) > 1:
            ax.hist(observed, edges, histtype="step", color=ORANGE, linewidth=1.4)
        else:
            ax.axvline(observed[0], color=ORANGE, linewidth=1.8)
        ax.set_yticks([])
        ax.locator_params(axis="x", nbins=4)
        same = np.ptp(np.concatenate([replicated, observed])) == 0
        said = "always the same" if same else f"p {said_p(found['p'], len(replicated))}"
        ax.set_title(f"{plain(name)}\n{said}", fontsize=8, color=INK)
    panels[0].plot([], [], color=ORANGE, label="T(x), data")
    fig.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    rows, draws = check["rows"], check["num_draws"]
    fig.suptitle(
        f"{check['kind']} predictive check: {draws} replications of {rows} rows; p = P(T(x_rep) ≥ T(x))", fontsize=9
    )
    return fig


def said_p(p: float, draws: int) -> str:
    """A share of draws, as far as the number of draws can tell."""
    return f"< {1 / draws:.2g}" if p == 0 else f"> {1 - 1 / draws:.3g}" if p == 1 else f"{p:.3f}"


def plain(name: str) -> str:
    """A name that matplotlib does not read as mathematics."""
    return name.replace("$", r"\$")


def stacked(names: Sequence[str], parts: Sequence[Mapping[str, Mapping[str, Any]]], label: str, title: str) -> Figure:
    """A bar a name, its parts end to end, each part's end ± 2 of its own Monte Carlo standard errors; the sum beside it."""
    labels = list(dict.fromkeys(part for found in parts for part in found))
    colors = dict(zip(labels, cycle((BLUE, ORANGE, GREY, "#2f855a")), strict=False))
    fig = figure(7.0, 1.6 + 0.42 * len(names))
    ax = axes(fig, label, "", title)
    for y, found in enumerate(parts):
        ends = {1: 0.0, -1: 0.0}  # what is below 0, by chance or by a bad encoder, goes to the left
        for i, (name, part) in enumerate(found.items()):
            value, side = part["value"], -1 if part["value"] < 0 else 1
            ax.barh(y, value, 0.62, left=ends[side], color=colors[name], alpha=0.85)
            ends[side] += value
            if part["mc_se"] is not None:
                lift = y + 0.12 * (i - (len(found) - 1) / 2)
                ax.errorbar(ends[side], lift, xerr=2 * part["mc_se"], color=INK, capsize=2, elinewidth=1, linewidth=0)
        values = [part["value"] for part in found.values()]
        said = f"{sum(values):.2f} = {' + '.join(f'{value:.2f}' for value in values)}"
        said = said.replace("+ -", "- ").replace("-", "−")
        ax.annotate(said, (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    for name in labels:
        ax.barh(0, 0, color=colors[name], alpha=0.85, label=name)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    fig.legend(frameon=False, loc="outside lower center", ncols=len(labels), fontsize=8)
    return fig


def gap_bars(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """log p(x) − ELBO as approximation + amortisation gap, a bar for each model or split.

    Args:
        found: a name to what ``Gaps.summary()`` gives.
    """
    parts = [
        {"approximation: the family": s["approximation"], "amortisation: the encoder": s["amortisation"]}
        for s in found.values()
    ]
    return stacked(list(found), parts, "nats per row, ± 2 Monte Carlo s.e.", "log p(x) − ELBO, and where it comes from")


def decomposition_bars(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """KL(q(z | x) ‖ p(z)) as mutual information + total correlation + dimension-wise KL, a bar for each model or split.

    Args:
        found: a name to what ``ElboDecomposition.to_dict()`` gives.
    """
    rows = sorted({d["rows"] for d in found.values()})
    most = ", ".join(f"log {n} = {math.log(n):.2f}" for n in rows)
    label = f"nats per row, ± 2 Monte Carlo s.e.\n(mutual information is at most {most})"
    parts = [d["parts"] for d in found.values()]
    return stacked(list(found), parts, label, "KL(q(z|x) ‖ p(z)), and what it is spent on")
