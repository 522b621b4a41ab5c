"""The results as a table, JSON and pictures."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae.plots.figures import GREY, INK, ORANGE, figure, grid, save

from . import history
from .peers import AUTOTUNED, LOGGED, OURS, TF32
from .timing import Times, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def machine(device: torch.device) -> dict[str, Any]:
    """The processor's kind, and versions: nothing else of the machine."""
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": cpu, "gpu": gpu, "threads": torch.get_num_threads(), "torch": torch.__version__, "float": "float32"}


def best_of_ours(times: dict[str, Times], like: str) -> str:
    """Our fastest at the precision of a peer, without what `fit` logs, and as it is by default."""
    ours = [name for name in times if name.startswith(OURS) and LOGGED not in name and AUTOTUNED not in name]
    return min([n for n in ours if (TF32 in n) == (TF32 in like)] or ours, key=lambda name: times[name].median)


def record(name: str, times: dict[str, Times], failed: dict[str, str], unit: str = "step") -> dict[str, Any]:
    """One case: for everybody the median step, the spread over blocks, and the time over that of our best engine."""
    rows = {}
    for who, t in times.items():
        best = times[best_of_ours(times, who)]
        rows[who] = {
            "ms": t.median,
            "least_ms": min(t.wall),
            "cpu_ms": sorted(t.cpu)[len(t.cpu) // 2],
            "first_s": t.first,
            "ratio": ratio(t.wall, best.wall),
            "cpu_ratio": ratio(t.cpu, best.cpu),
        }
    blocks = len(next(iter(times.values())).wall)
    return {
        "case": name,
        "unit": unit,
        "blocks": blocks,
        "ours": best_of_ours(times, ""),
        "peers": rows,
        "failed": failed,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    m = results["machine"]
    lines = [
        f"{m['cpu']}{', ' + m['gpu'] if m['gpu'] else ''}, {m['threads']} threads, torch {m['torch']}, float32; medians of "
        "interleaved blocks. Ratio: a peer's time over that of our fastest engine at its precision, block by block; CPU: of "
        "all the process's threads, which a busy machine disturbs less. Ours is the public fit, epoch after epoch; NumPyro "
        + (
            "multiplies in TF32 or float32, as it says."
            if m["gpu"]
            else "multiplies in float32 on a CPU, whatever is asked."
        ),
    ]
    for case in results["cases"]:
        of = f"| | ms a {case['unit']} | least | CPU ms | first, s | ratio | CPU ratio |"
        lines += ["", f"### {case['case']}", "", f"{case['blocks']} blocks", "", of, "|---|---|---|---|---|---|---|"]
        for who, r in sorted(case["peers"].items(), key=lambda item: item[1]["ms"]):
            mark = " **(ours)**" if who == case["ours"] else ""
            taken = f"{r['ms']:.3f} | {r['least_ms']:.3f} | {r['cpu_ms']:.3f} | {r['first_s']:.1f}"
            lines.append(f"| {who}{mark} | {taken} | {r['ratio']:.2f} | {r['cpu_ratio']:.2f} |")
        lines += [f"| {who} | failed: {why} | | | | | |" for who, why in case["failed"].items()]
    if growth := results.get("growth"):
        lines += ["", f"### How cost grows ({growth['engine']}, around {growth['base']})", ""]
        for axis, of_axis in growth["step_ms"].items():
            lines.append(f"- {axis}: " + ", ".join(f"{value}: {ms:.2f} ms" for value, ms in of_axis.items()))
        kept = ", ".join(f"{k}: {mib:.1f} MiB" for k, mib in growth["memory_mib"].items())
        lines += [f"- kept for the backward pass, by particles: {kept}"]
        lines += [f"- evaluation: {growth['evaluation']:.3g} particles a second"]
    return "\n".join(lines) + "\n"


def bars(cases: list[dict[str, Any]], path: Path) -> None:
    """Everybody's time over that of our fastest engine, case by case, in two columns on one scale where there are many."""
    half = -(-len(cases) // 2) if len(cases) > 4 else len(cases)
    columns = [column for column in (cases[:half], cases[half:]) if column]
    lines = max(sum(len(case["peers"]) + 1.5 for case in column) for column in columns)
    fig = figure(5.5 * len(columns) + 1.5 * (len(columns) == 1), 1.0 + 0.16 * lines)
    longest = max(r["ratio"] for case in cases for r in case["peers"].values())
    for ax, column in zip(fig.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        case_bars(ax, column, 1.45 * longest, lines)
    save(fig, path)


def case_bars(ax: Axes, cases: list[dict[str, Any]], right: float, lines: float) -> None:
    """Draw a column of cases, each under its name; the time in milliseconds stands behind each bar."""
    at = 0.0
    for case in cases:
        ax.text(0, at - 0.95, case["case"], fontsize=8, weight="bold", va="center")
        for who, r in sorted(case["peers"].items(), key=lambda item: item[1]["ratio"]):
            ax.barh(at, r["ratio"], color=ORANGE if who.startswith(OURS) else GREY)
            ax.text(max(r["ratio"], 1), at, f" {who}: {r['ms']:.3g} ms", fontsize=7, va="center")
            at += 1
        at += 1.5
    ax.axvline(1, color=INK, linewidth=0.5)
    ax.set(xlim=(0, right), ylim=(lines - 1, -2), yticks=[], xlabel="time over our fastest engine's (orange: ours)")
    ax.spines[["top", "right", "left"]].set_visible(False)


def curves(growth: dict[str, Any], path: Path) -> None:
    """A step's time along each axis, and its memory along particles; a grey line is proportional to the axis."""
    drawn = [(axis, "ms a step", of) for axis, of in growth["step_ms"].items()]
    drawn.append(("particles", "MiB for the backward pass", growth["memory_mib"]))
    fig, panels = grid(len(drawn), len(drawn))
    fig.suptitle(f"{growth['engine']}, around {growth['base']}")
    for ax, (axis, unit, of) in zip(panels, drawn, strict=True):
        sizes, values = [float(size) for size in of], list(of.values())
        ax.plot(sizes, [values[-1] * size / sizes[-1] for size in sizes], color=GREY, linewidth=0.8)
        ax.plot(sizes, values, marker="o", color=ORANGE)
        ax.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit, ylim=(min(values) / 2, max(values) * 1.5))
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes], rotation=90)
        ax.set_yticks(ends := [min(values), max(values)], [f"{value:.3g}" for value in ends])
        ax.minorticks_off()
    save(fig, path)


def write_tables(results: dict[str, Any], folder: Path) -> None:
    """Write what there is so far: a run that is stopped leaves the cases that it was done with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(table(results), encoding="utf-8")


def write(results: dict[str, Any], folder: Path) -> None:
    """Write tables, pictures and the history."""
    write_tables(results, folder)
    (folder / "history.md").write_text(history.table(history.append(results, folder)), encoding="utf-8")
    draw(results, folder)


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write the pictures of stored results."""
    bars(
        [case for case in results["cases"] if case.get("unit", "step") == "step"] or results["cases"],
        folder / "benchmarks.png",
    )
    if growth := results.get("growth"):
        curves(growth, folder / "growth.png")
