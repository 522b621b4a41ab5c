"""Plots of evidence: brackets of log p(x), convergence in K, and rate against distortion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.common.flagged import MOST, format_nats, format_share, is_loose, share_flagged, why_loose

from .figures import BLUE, GREEN, GREY, INK, ORANGE, axes, figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Mapping[str, Any]
P_HAT = r"$\hat{p}$"


def bracket_ends(brackets: Mapping[str, Numbers], exact: Mapping[str, Numbers] | None = None) -> Figure:
    """Plot log p(x) between its ends, a panel for each set of rows: a mark a method ± 2 Monte Carlo standard errors.

    Lower ends point up the axis, upper ends down it. A lower end of which more than a tenth of the rows is flagged is hollow,
    says so, and has no error. An upper end that is strict is filled; an approximate one is hollow and
    says so. Errors of upper ends are too small, as chains of a row share their start; that of the difference, said in words,
    is not. The exact value, where there is one, is a line.

    Args:
        brackets: a name of the rows to what ``Bracket.summary()`` gives.
        exact: the same names to what ``Exact.summary()`` gives, for those that an oracle knows.
    """
    fig, exact = figure(7.5, 0.7 + 1.6 * len(brackets)), exact or {}
    panels = fig.subplots(len(brackets), 1, squeeze=False).flat
    for ax, (name, s) in zip(panels, brackets.items(), strict=True):
        draw_ends(ax, s, exact.get(name))
        believed = f"{s['gap']:.3f} ± {format_nats(s['gap_se'])} (s.e. over rows)"
        gap = f"{s['gap']:.2f} ({why_loose(s)})" if is_loose(s) else believed
        title = f"{s['rows']} {name}: upper − lower end = {gap}"
        ax.set_title(plain(title.replace(" -", " −")), fontsize=9, loc="left")
    ax.set_xlabel("log p(x), nats per row; bars ± 2 Monte Carlo s.e.", fontsize=9)
    methods = ", ".join(dict.fromkeys(e["method"] for e in exact.values()))
    handles = [ax.axvline(np.nan, color=INK, linewidth=1, label=f"exact: {methods}")] if exact else []
    fig.legend(handles=handles, frameon=False, loc="outside lower center", fontsize=8)
    return fig


def draw_ends(ax: Axes, s: Numbers, exact: Numbers | None) -> None:
    """Draw both lower ends, the upper one, and the span between the better lower end and it."""
    strict = s["upper_is"] != "approximate"
    upper, fill = ("upper end, strict", ORANGE) if strict else ("APPROXIMATE upper end", "white")
    ends = [
        ("importance sampling\nlower end", "importance", BLUE, ">", BLUE),
        ("annealing (AIS)\nlower end", "annealing", BLUE, ">", BLUE),
        (f"reverse annealing\n{upper}", "upper", ORANGE, "<", fill),
    ]
    ax.axvspan(*sorted((s["lower"], s["upper"])), color=GREY, alpha=0.25 if strict else 0.12, linewidth=0)
    for y, (name, key, color, marker, face) in enumerate(ends):
        share = s.get(f"{key}_flagged", 0) / s["rows"]
        if share > MOST:
            ends[y] = f"{name}, loose:\n{format_share(share)} of rows flagged", key, color, marker, face
            ax.plot(s[key], y, marker, color=color, markersize=8, markerfacecolor="white")
            continue
        bars = ax.errorbar(s[key], y, xerr=2 * (s[f"{key}_mc_se"] or 0.0), color=color, capsize=3)
        bars[2][0].set_linestyle("-" if face == color else ":")
        ax.plot(s[key], y, marker, color=color, markersize=8, markerfacecolor=face)
    if exact is not None:
        ax.axvline(exact["log_px"], color=INK, linewidth=1, zorder=0)
    ax.set_yticks(range(len(ends)), [name for name, *_ in ends], fontsize=8)
    ax.set_ylim(len(ends) - 0.5, -0.5)
    ax.tick_params(axis="x", labelsize=8)
    ax.locator_params(axis="x", nbins=6)
    ax.spines[["top", "right"]].set_visible(False)


def convergence_curve(points: Sequence[Numbers], exact: Numbers | None = None) -> Figure:
    """Plot log p̂(x) of the first K particles against K, with its Monte Carlo band, and the jackknife, which is no bound.

    There is no band where more than a tenth of the rows is flagged, and the title says of how many they are at the last K.

    Args:
        points: of rising K, what ``Evidence.summary()`` gives.
        exact: what ``Exact.summary()`` gives, if an oracle knows log p(x).
    """
    fig = figure(7.5, 4.2)
    last = points[-1]
    flagged = f", at the end {format_share(share_flagged(last))} flagged" if is_loose(last) else ""
    ax = axes(
        fig, "K, particles a row", "nats per row", f"How far the bound still rises ({last['rows']} rows{flagged})"
    )
    # None, of what is not known, becomes NaN, and is not drawn
    keys = ("num_samples", "log_px", "log_px_mc_se", "jackknife")
    ks, log_px, mc_se, jackknife = (np.array([p.get(key) for p in points], dtype=float) for key in keys)
    band = np.where([is_loose(p) for p in points], np.nan, 2 * mc_se)  # no error beside a loose bound
    ax.fill_between(ks, log_px - band, log_px + band, color=BLUE, alpha=0.2, linewidth=0)
    ax.plot(ks, log_px, color=BLUE, marker="o", markersize=4, label=f"log {P_HAT}, a lower bound; ± 2 Monte Carlo s.e.")
    ax.plot(ks, jackknife, color=ORANGE, marker="s", markersize=4, linestyle=":", label="jackknife: no bound")
    if exact is not None:
        ax.axhline(exact["log_px"], color=INK, linewidth=1, label=f"log p(x), {exact['method']}")
    if last["elbo"] is not None:  # no draws of the guide
        ax.axhline(
            last["elbo"], color=GREY, linestyle="--", linewidth=1.2, label=f"ELBO ({last['num_samples']} particles)"
        )
    ax.set(xscale="log")
    ax.set_xticks(ks, [f"{k:g}" for k in ks])
    ax.minorticks_off()
    fig.legend(frameon=False, fontsize=8, ncols=2, loc="outside lower center")
    return fig


def rate_distortion_curve(
    rates: Sequence[float], distortions: Sequence[float], encoders: Mapping[str, Numbers], log_px: float
) -> Figure:
    """Plot the least rate at each distortion with this prior and decoder, and encoders above it by their gap.

    Rate + distortion = −log p(x) touches the curve at β = 1, and passes below every encoder: an encoder's own line,
    −ELBO, is KL(q ‖ posterior) above it. The curve's own Monte Carlo noise is not drawn: it moves points mostly along the
    curve, and the fewer chains there are, the more.

    Args:
        rates: R(β) of ``Annealed.rate_distortion()``, β from 0 to 1, nats per row.
        distortions: D(β).
        encoders: a name to what ``ElboDecomposition.to_dict()`` gives, of the same rows.
        log_px: mean log p(x) of those rows.
    """
    fig = figure(7.0, 4.6)
    ax = axes(
        fig, "rate: KL to the prior, nats per row", "distortion: −E log p(x | z), nats per row", "Rate and distortion"
    )
    rate, distortion = np.asarray(rates), np.asarray(distortions)
    points = {name: (d["kl"]["value"], -d["reconstruction"]["value"]) for name, d in encoders.items()}
    errors = {name: [2 * d[k]["mc_se"] for k in ("kl", "reconstruction")] for name, d in encoders.items()}
    wide = 1.15 * max(rate.max(), *(r for r, _ in points.values()))
    line = np.array([0.0, wide])
    ax.plot(rate, distortion, color=BLUE, linewidth=1.8, label="the least, with this prior and decoder (AIS)")
    ax.plot(rate[-1], distortion[-1], "o", color=BLUE, markersize=6, label="its end, β = 1: the posteriors")
    ax.plot(line, -log_px - line, color=BLUE, linestyle=":", linewidth=1, label=f"R + D = −log p(x) = {-log_px:.2f}")
    for (name, (r, d)), color, marker in zip(points.items(), (ORANGE, GREEN, INK, GREY), "sD^v", strict=False):
        ax.errorbar(r, d, errors[name][1], errors[name][0], color=color, marker=marker, label=plain(name), linestyle="")
        ax.plot(line, r + d - line, color=color, linestyle="--", linewidth=1, label=f"R + D = −ELBO = {r + d:.2f}")
    least = min(distortion[-1], *(d for _, d in points.values()))
    most = max(-log_px, *(r + d for r, d in points.values()))
    ax.set(xlim=(0, wide), ylim=(least - 0.15 * (most - least), most + 1.5 * (most - least)))
    ax.legend(frameon=False, fontsize=8)
    return fig
