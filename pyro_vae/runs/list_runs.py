"""Runs at a glance: one in a summary, or those of a folder in a table; read from their folders, and no model is built."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyro_vae.common.flagged import format_both_errors
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.errors import PyroVAEError, RunFolderError
from pyro_vae.evidence.over_seeds import format_mean

from .ensemble_folder import LIST, is_ensemble, name_of, read_list, read_summary
from .report import seeds, words
from .report.facts import RunFacts, read_facts
from .report.page import usable
from .report.verdict import judge

DEPTH = 3  # folders within folders, to look for runs in
MOST = 1000  # runs


def summary_of(path: Path | str) -> dict[str, Any]:
    """Summarize a run, or an ensemble, as plain names and numbers.

    `log_px` and its errors are those of the evaluation that a report is headed by; `log_px_text` is how it is to be quoted.

    Raises:
        RunFolderError: it is none, or is damaged.
    """
    path = Path(path)
    with usable(path), no_links_below(path):
        return ensemble_summary(path) if is_ensemble(path) else run_summary(read_facts(path))


def run_summary(facts: RunFacts) -> dict[str, Any]:
    """Summarize a run of one seed."""
    verdict, s = judge(facts), facts.summary
    of = None if facts.main is None else str(facts.main.name)
    numbers = ("log_px", "log_px_mc_se", "log_px_data_se", "rows", "rows_flagged", "elbo", "elbo_mc_se")
    asked = dict(words.asked(facts))
    return {
        "run": str(facts.path),
        "kind": "run",
        "verdict": verdict.word,
        "why": verdict.why,
        "next": verdict.next,
        "log_px_text": format_both_errors(s) if s else "not scored",
        **{name: s.get(name) for name in (*numbers, "bits_per_dim", "method")},
        "floor": (s.get("floor") or {}).get("log_px"),
        "evaluation": of,
        "evaluations": [
            {"name": str(e.name), "told": e.told, "log_px_text": format_both_errors(e.summary)} for e in facts.found
        ],
        "data": facts.record["data"].get("name"),
        "model": facts.config.model,
        "asked": asked,
        "epochs": len(facts.history),
        "seconds": facts.training.get("seconds"),
        "date": date_of(facts.path, s),
    }


def ensemble_summary(path: Path) -> dict[str, Any]:
    """Summarize a run of several seeds by the evaluation of all members on the test rows, where there is one."""
    listed, file = read_list(path), path / "seeds.json"
    s = read_summary(path)
    try:
        text = format_mean(s) if s else "not scored"
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file} cannot be used: {error!r}. Make it again: pyro-vae evaluate {shlex.quote(str(path))}"
        ) from error
    members = [str(path / name_of(seed)) for seed in listed["seeds"]]
    count = [seed for seed in listed["seeds"] if str(seed) not in listed["diverged"]]
    there = [seed for seed in listed["seeds"] if (path / name_of(seed) / "config.json").is_file()]
    facts = {seed: read_facts(path / name_of(seed)) for seed in there}
    first = next(iter(facts.values()), None)
    verdict = seeds.judge(path, s, {seed: facts.get(seed) for seed in count})
    return {
        "run": str(path),
        "kind": "ensemble",
        "verdict": verdict.word,
        "why": verdict.why,
        "next": verdict.next,
        "log_px_text": text,
        **{
            name: s.get(name)
            for name in ("log_px", "log_px_seed_se", "log_px_mc_se", "log_px_data_se", "rows", "rows_flagged")
        },
        "seeds": listed["seeds"],
        "diverged": listed["diverged"],
        "members": members,
        "data": None if first is None else first.record["data"].get("name"),
        "model": None if first is None else first.config.model,
        "asked": {} if first is None else dict(seeds.asked(first, listed["seeds"])),
        "date": date_of(path, s),
    }


def date_of(path: Path, summary: dict[str, Any]) -> str | None:
    """Return the day when a run was scored, else when its config was written: YYYY-MM-DD."""
    if isinstance(time := summary.get("time"), str):
        return time[:10]
    from datetime import UTC, datetime

    files = [path / name for name in ("config.json", LIST) if (path / name).is_file()]
    return datetime.fromtimestamp(files[0].stat().st_mtime, UTC).strftime("%Y-%m-%d") if files else None


def find_runs(path: Path) -> Iterator[Path]:
    """Yield the runs in a folder and in folders within it, by name; members of an ensemble are not listed beside it.

    Links are not followed.

    Raises:
        RunFolderError: there is no such folder.
    """
    if not path.is_dir():
        raise RunFolderError(f"there is no folder {path}")
    found = 0
    for here, inner, files in os.walk(path):
        inner.sort()
        if "config.json" in files or LIST in files:
            inner.clear()
            yield Path(here)
            if (found := found + 1) >= MOST:
                return
        elif len(Path(here).relative_to(path).parts) >= DEPTH:
            inner.clear()


def list_runs(path: Path | str) -> list[dict[str, Any]]:
    """Summarize each run in a folder; one that cannot be read has its `error` in place of numbers."""
    listed = []
    for run in find_runs(Path(path)):
        try:
            listed.append(summary_of(run))
        except PyroVAEError as error:
            listed.append({"run": str(run), "kind": "run", "error": str(error)})
    return listed
