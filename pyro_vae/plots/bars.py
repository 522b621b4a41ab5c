"""Plots with a line for each model: bars of parts end to end, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.common.flagged import format_nats, format_share, is_loose, share_flagged

from .figures import BLUE, CAPTION, GREEN, GREY, INK, ORANGE, axes, figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOUBTED = "not to be believed"  # the verdict of a comparison on a difference whose bounds are loose


def stacked(names: Sequence[str], parts: Sequence[Mapping[str, Mapping[str, Any]]], label: str, title: str) -> Figure:
    """Plot a bar a name, its parts end to end, each part's end ± 2 of its own Monte Carlo standard errors, and their sum."""
    labels = list(dict.fromkeys(part for bar in parts for part in bar))
    colors = dict(zip(labels, cycle((BLUE, ORANGE, GREY, GREEN)), strict=False))
    digits = max((digits_of(sum(part["value"] for part in bar.values())) for bar in parts), default=2)  # alike in all
    fig = figure(7.0, 1.6 + 0.42 * len(names))
    ax = axes(fig, label, "", title)
    for y, bar in enumerate(parts):
        ends = {1: 0.0, -1: 0.0}  # what is below 0, by chance or by a bad encoder, goes to the left
        for i, (name, part) in enumerate(bar.items()):
            value, side = part["value"], -1 if part["value"] < 0 else 1
            ax.barh(y, value, 0.62, left=ends[side], color=colors[name], alpha=0.85)
            ends[side] += value
            if part["mc_se"] is not None:
                lift = y + 0.12 * (i - (len(bar) - 1) / 2)
                ax.errorbar(ends[side], lift, xerr=2 * part["mc_se"], color=INK, capsize=2, elinewidth=1, linewidth=0)
        values = [part["value"] for part in bar.values()]
        sign = next((part["sign"] for part in bar.values() if "sign" in part), "")
        total = sum(values)
        equation = f"{sign}{format_nats(total, digits)} = {' + '.join(format_nats(value, digits) for value in values)}"
        equation = equation.replace("+ -", "- ").replace("-", "−")
        ax.annotate(equation, (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    for name in labels:
        ax.barh(0, 0, color=colors[name], alpha=0.85, label=name)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    fig.legend(frameon=False, loc="outside lower center", ncols=len(labels), fontsize=8)
    return fig


def gap_bars(gaps: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot log p(x) − ELBO as approximation + amortisation gap, a bar for each name to a ``Gaps.summary()``.

    The approximation gap of a log p(x) that is loose (more than a tenth of its rows flagged) has no error, its name says so,
    and the sum is given with a "≥", or a "≈" where an oracle flagged them.
    """
    parts, names = [], []
    for name, s in gaps.items():
        loose = is_loose(s)
        bound = {"mc_se": None, "sign": "≈ " if "how" in s else "≥ "} if loose else {}
        parts.append(
            {
                "approximation: the family": s["approximation"] | bound,
                "amortisation: how q was found": s["amortisation"],
            }
        )
        names.append(f"{name}, loose:\n{format_share(share_flagged(s))} of rows flagged" if loose else name)
    return stacked(names, parts, "nats per row, ± 2 Monte Carlo s.e.", "log p(x) − ELBO, and where it comes from")


def decomposition_bars(summaries: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot KL(q(z | x) ‖ p(z)) as mutual information + total correlation + dimension-wise KL.

    A bar for each name to an ``ElboDecomposition.to_dict()``.
    """
    rows = sorted({d["rows"] for d in summaries.values()})
    most = ", ".join(f"log {n} = {math.log(n):.2f}" for n in rows)
    label = f"nats per row, ± 2 Monte Carlo s.e.\n(mutual information is at most {most})"
    parts = [d["parts"] for d in summaries.values()]
    return stacked(list(summaries), parts, label, "KL(q(z|x) ‖ p(z)), and what it is spent on")


def forest(
    names: Sequence[str],
    differences: Sequence[float],
    errors: Sequence[float | None],
    caption: str = "",
    verdicts: Sequence[str] | None = None,
) -> Figure:
    """Plot models one below the other, the best on top: differences to it ± 2 paired standard errors, in nats per row.

    A difference whose verdict is "not to be believed" is a hollow mark without errors.
    """
    verdicts = verdicts or [""] * len(names)
    fig = figure(7.6, 1.5 + 0.32 * len(names))
    printed = ": bars ± 2 s.e., numbers ± 1 s.e." if DOUBTED not in verdicts else "; hollow: not to be believed"
    ax = axes(fig, "log p(x) − best, nats per row", "", f"Paired difference to the best{printed}")
    ax.axvline(0, color=GREY, linestyle="--", linewidth=1)
    for y, (difference, error, verdict) in enumerate(zip(differences, errors, verdicts, strict=True)):
        believed = verdict != DOUBTED
        face = BLUE if believed else "white"
        bar = 2 * (error or 0.0) if believed else None
        ax.errorbar(difference, y, xerr=bar, color=BLUE, marker="o", markersize=5, capsize=3, markerfacecolor=face)
        text = "best" if y == 0 else format_difference(difference, error, verdict)
        ax.annotate(text, (1.02, y), xycoords=ax.get_yaxis_transform(), va="center", fontsize=8, color=INK)
    ax.set_yticks(np.arange(len(names)), [plain(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    fig.supxlabel(caption, fontsize=8, color=CAPTION)
    return fig


def digits_of(nats: float) -> int:
    """Return how many decimals a number is printed with: more where it is less than 1."""
    return 2 if abs(nats) >= 1 else 3


def format_difference(difference: float, error: float | None, verdict: str) -> str:
    """Format a difference with its error and its verdict; without an error where it is not to be believed."""
    digits = digits_of(difference)
    printed = "" if verdict == DOUBTED else f" ± {format_nats(error, digits)}"
    return f"{format_nats(difference, digits)}{printed}{verdict and ', '}{verdict}".replace("-", "−")
