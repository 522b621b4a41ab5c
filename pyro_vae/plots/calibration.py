"""Plots of calibration: ranks that should be uniform, and data beside replications of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import BLUE, GREY, INK, ORANGE, grid, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ecdf_differences(calibration: Mapping[str, Any], most: int = 16) -> Figure:
    """Plot the ECDF of the ranks − that of uniform ranks, a panel for each quantity, in the band that holds the whole curve.

    ∪-shaped ranks (draws too narrow) rise above the band and fall below it; draws too wide do it the other way round; draws
    too high stay above, draws too low below.

    Args:
        calibration: what ``Calibration.to_dict()`` gives.
        most: panels; where there are more quantities, those of the least p-values and log p(x, z) are drawn.
    """
    names, p = calibration["names"], calibration["adjusted"]
    shown = sorted(sorted(range(len(names)), key=lambda i: (i != len(names) - 1, p[i]))[:most])
    fig, panels = grid(len(shown), 4, share=True)
    at = np.linspace(0, 1, len(calibration["lower"]) + 2)
    for ax, i in zip(panels, shown, strict=True):
        lower, upper = band_of(calibration, i)
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


def band_of(calibration: Mapping[str, Any], i: int) -> list[list[float]]:
    """Return the band of quantity `i` with its ends: of the rows that it is ranked in, where masks leave it out of some."""
    own = "lower_by_quantity" in calibration
    return [
        [0.0, *(calibration[f"{end}_by_quantity"][i] if own else calibration[end]), 0.0] for end in ("lower", "upper")
    ]


def predictive_panels(check: Mapping[str, Any]) -> Figure:
    """Plot histograms of T(x_rep), a panel for each statistic of a ``PredictiveCheck.to_dict()``, and T(x) as a line.

    T is a mean over all rows. Where T(x, z) depends on the latents it has a histogram of its own; p compares draw by draw.
    """
    fig, panels = grid(len(check["statistics"]), 3)
    for ax, (name, statistic) in zip(panels, check["statistics"].items(), strict=True):
        replicated, observed = np.array(statistic["replicated"]), np.array(statistic["observed"])
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
        verdict = "always the same" if same else f"p {format_p(statistic['p'], len(replicated))}"
        ax.set_title(f"{plain(name)}\n{verdict}", fontsize=8, color=INK)
    panels[0].plot([], [], color=ORANGE, label="T(x), data")
    fig.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    rows, draws = check["rows"], check["num_draws"]
    fig.suptitle(
        f"{check['kind']} predictive check: {draws} replications of {rows} rows; p = P(T(x_rep) ≥ T(x))", fontsize=9
    )
    return fig


def format_p(p: float, draws: int) -> str:
    """Format a share of draws with as many digits as the number of draws supports."""
    return f"< {1 / draws:.2g}" if p == 0 else f"> {1 - 1 / draws:.3g}" if p == 1 else f"{p:.3f}"
