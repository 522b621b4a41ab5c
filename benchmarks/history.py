"""The figures of earlier runs beside today's, so that a slip shows: a line a run in history.jsonl, a table in history.md."""

from __future__ import annotations

import datetime
import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

SLIP = 0.05  # a ratio that much below the best of earlier runs on the same machine is marked
PACKAGES = ("torch", "pyro-ppl", "numpyro", "jax", "pythae")


def commit() -> str:
    """The version of the code, with a + where files were changed."""
    try:
        said = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def entry(results: dict[str, Any]) -> dict[str, Any]:
    """What a run adds to the history: its ratios, and what they depend on."""
    machine = {key: results["machine"][key] for key in ("cpu", "gpu", "threads")}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    cases = {case["case"]: {who: round(r["ratio"], 3) for who, r in case["peers"].items()} for case in results["cases"]}
    blocks = {case["case"]: case["blocks"] for case in results["cases"]}
    about = {"date": now, "commit": commit(), "machine": machine, "versions": versions()}
    return about | {"load": results.get("load"), "blocks": blocks, "ratios": cases}


def append(results: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Add a run to the history; return all of it."""
    path = folder / "history.jsonl"
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry(results)) + "\n")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def key(run: dict[str, Any]) -> str:
    machine = run["machine"]
    return f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads"


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: for each machine and case a row a run, a column a peer; ↓ marks what slipped by more than 5 %."""
    lines = [
        "A peer's time over that of our fastest engine, run by run: larger is better for us. ↓: more than 5 % below the best "
        "of the earlier runs there. Few blocks, or a load above the threads, make a figure noisy.",
    ]
    for machine in dict.fromkeys(map(key, runs)):
        of_machine = [run for run in runs if key(run) == machine]
        lines += ["", f"## {machine}"]
        for case in dict.fromkeys(name for run in of_machine for name in run["ratios"]):
            lines += ["", f"### {case}", "", *rows([run for run in of_machine if case in run["ratios"]], case)]
    return "\n".join(lines) + "\n"


def rows(runs: list[dict[str, Any]], case: str) -> list[str]:
    """The table of one case."""
    peers = list(dict.fromkeys(who for run in runs for who in run["ratios"][case]))
    lines = ["| date | commit | torch | load | blocks | " + " | ".join(peers) + " |", "|" + "---|" * (5 + len(peers))]
    best: dict[str, float] = {}
    for run in runs:
        cells = []
        for who in peers:
            ratio = run["ratios"][case].get(who)
            slipped = ratio is not None and ratio < (1 - SLIP) * best.get(who, 0.0)
            cells.append("" if ratio is None else f"{ratio:.2f}{' ↓' if slipped else ''}")
            best[who] = max(best.get(who, 0.0), ratio or 0.0)
        load = "" if run["load"] is None else f"{run['load']:.1f}"
        about = f"{run['date']} | {run['commit']} | {run['versions'].get('torch', '')} | {load} | {run['blocks'].get(case, '')}"
        lines.append(f"| {about} | " + " | ".join(cells) + " |")
    return lines
