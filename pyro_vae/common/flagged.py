"""log p(x) in print: with its errors where its rows are believed, and as a bare bound where too many of them are flagged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 0.1  # of the rows may be flagged beside a printed error: above it, the error is not that of the number


def share_flagged(summary: Mapping[str, Any]) -> float:
    """Return the share of rows not to be believed, of what ``summary()`` of an estimate gives (or evidence.json holds).

    Of importance sampling whose k̂ is not known (an older version wrote it) that is every row.

    Example:
        >>> share_flagged({"rows": 180, "rows_flagged": 45}), share_flagged({"rows": 180, "rows_of_low_ess": 0})
        (0.25, 1.0)
    """
    sampled = "rows_of_low_ess" in summary
    flagged = summary.get("rows_flagged", summary["rows"] if sampled else 0)
    return float(flagged / summary["rows"])


def is_loose(summary: Mapping[str, Any]) -> bool:
    """Return whether more than a tenth of the rows is flagged, so that no ± stands beside the mean."""
    return share_flagged(summary) > MOST


def format_nats(value: float | None, digits: int = 3) -> str:
    """Format a number of nats, such as an error: one that is not zero never prints as zero, and None is "unknown".

    Example:
        >>> format_nats(0.0123), format_nats(0.00004), format_nats(0.0), format_nats(None)
        ('0.012', '4e-05', '0.000', 'unknown')
    """
    if value is None:
        return "unknown"
    text = f"{value:.{digits}f}"
    return f"{value:.0e}" if value and float(text) == 0 else text


def format_log_px(summary: Mapping[str, Any], digits: int = 3) -> str:
    """Format the mean log p(x), without unit: "-90.812 ± 0.012", or "≥ -89.07 (loose: 98 % of rows flagged)".

    An oracle that flags rows says "≈" in place of "≥": it is no bound.

    Example:
        >>> format_log_px({"log_px": -89.0742, "log_px_mc_se": 0.037, "rows": 180, "rows_flagged": 176})
        '≥ -89.07 (loose: 98 % of rows flagged)'
        >>> format_log_px({"log_px": -89.0742, "log_px_mc_se": 0.037, "rows": 180, "rows_flagged": 9})
        '-89.074 ± 0.037'
    """
    if not is_loose(summary):
        return f"{summary['log_px']:.{digits}f} ± {format_nats(summary['log_px_mc_se'], digits)}"
    return f"{format_bound(summary)} ({why_loose(summary)})"


def format_bound(summary: Mapping[str, Any]) -> str:
    """Format a loose mean with its sign: "≥ -89.07", or, of an oracle, "≈ -89.07"."""
    return f"{'≈' if 'how' in summary else '≥'} {summary['log_px']:.2f}"


def why_loose(summary: Mapping[str, Any]) -> str:
    """Format why: "loose: 98 % of rows flagged", or "loose: k̂ not known"."""
    known = "rows_flagged" in summary
    why = f"{format_share(share_flagged(summary))} of rows flagged" if known else "k̂ not known"
    return f"{'not to be believed' if 'how' in summary else 'loose'}: {why}"


def format_both_errors(summary: Mapping[str, Any], digits: int = 3) -> str:
    """Format the mean, ± Monte Carlo ± data, for a column of a table; or the bound, and how many rows are flagged.

    Example:
        >>> about = {"log_px": -87.0, "log_px_mc_se": 0.01, "log_px_data_se": 0.75, "rows": 1000, "rows_flagged": 932}
        >>> format_both_errors(about), format_both_errors(about | {"rows_flagged": 100})
        ('≥ -87.00 (93 % flagged)', '-87.000 ± 0.010 ± 0.750')
    """
    if is_loose(summary):
        return f"{format_bound(summary)} ({why_loose(summary).split(': ')[1].replace('of rows ', '')})"
    return f"{format_log_px(summary, digits)} ± {format_nats(summary['log_px_data_se'], digits)}"


def format_difference(mean: float, error: float, *summaries: Mapping[str, Any], digits: int = 2) -> str:
    """Format a paired difference with its error, or that a bound that it is of is loose.

    Example:
        >>> format_difference(0.4, 0.09, {"rows": 10}, {"rows": 10, "rows_flagged": 2})
        '+0.40 (loose)'
    """
    loose = any(is_loose(summary) for summary in summaries)
    return f"{mean:+.{digits}f} (loose)" if loose else f"{mean:+.{digits}f} ± {format_nats(error, digits)}"


def format_gap(evidence: Mapping[str, Any]) -> str:
    """Format log p(x) − ELBO with its Monte Carlo error, where it is known; of a loose bound as one (of an oracle "≈").

    Example:
        >>> believed = {"gap": 0.1234, "gap_mc_se": 0.002, "rows": 10}
        >>> format_gap(believed), format_gap(believed | {"rows_flagged": 2}), format_gap({"gap": 0.1234, "rows": 10})
        ('0.123 ± 0.002', '≥ 0.123', '0.123')
    """
    gap, error = evidence.get("gap"), evidence.get("gap_mc_se")
    if gap is None or not is_loose(evidence):
        return format_nats(gap) + ("" if gap is None or error is None else f" ± {format_nats(error)}")
    return f"{'≈' if 'how' in evidence else '≥'} {format_nats(gap)}"


def format_share(share: float) -> str:
    """Format a share in per cent; only 1 is 100 %.

    Example:
        >>> [format_share(share) for share in (0.104, 0.9995, 1.0)]
        ['10 %', '99 %', '100 %']
    """
    return f"{100 if share == 1 else min(99, round(100 * share))} %"
