"""The results as a table, JSON and pictures."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from pyro_vae.plots.figures import GREY, ORANGE, axes, figure, grid, save

from .peers import OURS
from .timing import Times, ratio


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


def best_of_ours(times: dict[str, Times]) -> str:
    return min((name for name in times if name.startswith(OURS)), key=lambda name: times[name].median)


def record(name: str, times: dict[str, Times], failed: dict[str, str]) -> dict[str, Any]:
    """One case: for everybody the median step, the spread over blocks, and the time over that of our best engine."""
    best = best_of_ours(times)
    rows = {
        who: {
            "ms": t.median,
            "least_ms": min(t.wall),
            "cpu_ms": sorted(t.cpu)[len(t.cpu) // 2],
            "first_s": t.first,
            "ratio": ratio(t.wall, times[best].wall),
            "cpu_ratio": ratio(t.cpu, times[best].cpu),
        }
        for who, t in times.items()
    }
    return {"case": name, "ours": best, "peers": rows, "failed": failed}


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    m = results["machine"]
    lines = [
        f"{m['cpu']}{', ' + m['gpu'] if m['gpu'] else ''}, {m['threads']} threads, torch {m['torch']}, float32; medians of "
        f"{results['blocks']} interleaved blocks. Ratio: a peer's time over that of our fastest engine, block by block; "
        "CPU: of all the process's threads, which a busy machine disturbs less.",
    ]
    for case in results["cases"]:
        lines += [
            "",
            f"### {case['case']}",
            "",
            "| | ms a step | least | CPU ms | first 3 steps, s | ratio | CPU ratio |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for who, r in sorted(case["peers"].items(), key=lambda item: item[1]["ms"]):
            mark = " **(ours)**" if who == case["ours"] else ""
            taken = f"{r['ms']:.2f} | {r['least_ms']:.2f} | {r['cpu_ms']:.2f} | {r['first_s']:.1f}"
            lines.append(f"| {who}{mark} | {taken} | {r['ratio']:.2f} | {r['cpu_ratio']:.2f} |")
        lines += [f"| {who} | failed: {why} | | | | | |" for who, why in case["failed"].items()]
    if growth := results.get("growth"):
        lines += ["", f"### How cost grows ({growth['engine']}, around {growth['base']})", ""]
        for axis, of in growth["step_ms"].items():
            lines.append(f"- {axis}: " + ", ".join(f"{value}: {ms:.2f} ms" for value, ms in of.items()))
        kept = ", ".join(f"{k}: {mib:.1f} MiB" for k, mib in growth["memory_mib"].items())
        lines += [f"- kept for the backward pass, by particles: {kept}"]
        lines += [f"- evaluation: {growth['evaluation']:.3g} particles a second"]
    return "\n".join(lines) + "\n"


def bars(cases: list[dict[str, Any]], path: Path) -> None:
    """Everybody's time over that of our fastest engine, case by case."""
    fig = figure(7, 1.5 + 1.6 * len(cases))
    ax, at = axes(fig, "time over our fastest engine's", "", ""), 0.0
    for case in cases:
        ax.text(0, at - 0.9, case["case"], fontsize=8, weight="bold", va="center")
        for who, r in sorted(case["peers"].items(), key=lambda item: item[1]["ratio"]):
            ax.barh(at, r["ratio"], color=ORANGE if who.startswith(OURS) else GREY)
            ax.text(max(r["ratio"], 1), at, f" {who}: {r['ms']:.2f} ms", fontsize=7, va="center")
            at += 1
        at += 1.5
    longest = max(r["ratio"] for case in cases for r in case["peers"].values())
    ax.set(xlim=(0, 1.3 * longest), ylim=(at - 1, -2), yticks=[])
    ax.axvline(1, color="black", linewidth=0.5)
    save(fig, path)


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


def write(results: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "benchmarks.md").write_text(table(results), encoding="utf-8")
    bars(results["cases"], folder / "benchmarks.png")
    if growth := results.get("growth"):
        curves(growth, folder / "growth.png")
