"""The report of a run of several seeds: the mean over members with its three errors, and each member."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.common.flagged import format_both_errors, format_bound, format_nats, is_loose, share_flagged
from pyro_vae.common.held_folder import no_links_below
from pyro_vae.evidence.over_seeds import format_mean
from pyro_vae.runs.ensemble_folder import counted, name_of, read_list, read_summary
from pyro_vae.runs.marginal_baseline import within_chance

from . import words
from .facts import RunFacts, read_facts
from .page import NAME, config_of, render, save, usable
from .verdict import AT_THE_FLOOR, DO_NOT_USE, HARDLY_ANY, LOOSE, TRUSTED, Verdict


def write_seeds_report(path: Path | str, out: Path | None = None) -> Path:
    """Write the report of a run of several seeds, ``RUN/report.html`` unless `out` says otherwise; return where it is.

    Raises:
        RunFolderError: it is none, or is damaged.
        StorageError: the page cannot be written.
    """
    path = Path(path)
    with usable(path), no_links_below(path):
        page = render_seeds(path)
    return save(page, path / NAME if out is None else out)


def render_seeds(path: Path) -> str:
    """Return the page."""
    listed, s = read_list(path), read_summary(path)
    members = {seed: read_facts(path / name_of(seed)) for seed in counted(path)}
    first = next(iter(members.values()))
    again = [
        f"pyro-vae train --config {shlex.quote(str(first.path))}/config.json --seeds {spaced(listed['seeds'])} --run NEW"
    ]
    again += [f"pyro-vae evaluate {shlex.quote(str(path))}", f"pyro-vae report {shlex.quote(str(path))}"]
    return render(
        "run.html",
        title=f"{path.resolve().name}: {len(members)} seeds of a model of {first.record['data'].get('name')}",
        subtitle=f"{s['split']} ({s['rows']:,} rows), by {s['method']} · {path}" if s else str(path),
        verdict=judge(path, s, members),
        numbers=numbers(s) if s else [],
        sentences=sentences(s, members, first),
        pictures={},
        bracket=[],
        gaps=[],
        warnings=[
            (f"left out: {why}", f"pyro-vae show {shlex.quote(str(path / name_of(int(seed))))}")
            for seed, why in listed["diverged"].items()
        ],
        columns=None,
        worst=[],
        worst_picture=None,
        missing=f"Pictures are of one model: pyro-vae report {shlex.quote(str(first.path))}",
        members=table(members),
        evaluations=[],
        asked=asked(first, list(members)),
        notes=first.record["data"].get("notes") or [],
        again=again,
        versions=words.versions_of(first.config, first.record, s),
        config=config_of(first),
    )


def asked(first: RunFacts, seeds: Sequence[int]) -> list[tuple[str, str]]:
    """List what was asked of all members: that of one, with the seeds of all."""
    own, every = f", seed {first.config.seed}", f", seeds {', '.join(map(str, seeds))}"
    return [(name, value.replace(own, every) if name == "training" else value) for name, value in words.asked(first)]


def spaced(seeds: list[int]) -> str:
    """List seeds."""
    return " ".join(map(str, seeds))


def judge(path: Path, s: Mapping[str, Any], members: Mapping[int, RunFacts | None]) -> Verdict:
    """Judge the mean over seeds: loose where a member's is, and none without all members (None is not there) scored."""
    again = f"pyro-vae evaluate {shlex.quote(str(path))}"
    if not members:
        return Verdict(
            DO_NOT_USE,
            "Every member diverged: there is no mean over seeds.",
            f"pyro-vae show {shlex.quote(str(path))}/seed0",
        )
    behind = [seed for seed, facts in members.items() if facts is None or facts.main is None]
    if not s or behind:
        why = (
            f"seed {behind[0]} was never scored with the weights it has" if behind else "The members were never scored"
        )
        return Verdict(DO_NOT_USE, f"{why}: there is no mean over seeds.", again)
    if is_loose(s):
        word = DO_NOT_USE if share_flagged(s) > HARDLY_ANY else LOOSE
        return Verdict(word, f"{format_mean(s)}.", f"{again} --method annealing")
    known = [facts.summary for facts in members.values() if facts and facts.summary.get("rows") == s["rows"]]
    above = above_floor(s, known)
    level = within_chance(above)
    if above and above["cleared_by"] < 0 and not level:
        below = f"{format_nats(-above['cleared_by'])} ± {format_nats(above['cleared_by_se'])}"
        why = f"The mean log p(x) lies {below} nats a row below the floor of independent elements."
        return Verdict(DO_NOT_USE, why, f"pyro-vae show {shlex.quote(str(path / name_of(min(members))))}")
    most = s.get("rows_flagged", 0)
    flagged = (
        f"In no member more than {most} of {s['rows']} rows are flagged" if most else "No row of a member is flagged"
    )
    how = f"{flagged}; the mean is over {len(members)} seeds.{AT_THE_FLOOR if level else ''}"
    return Verdict(TRUSTED, how, f"pyro-vae compare {shlex.quote(str(path))} OTHER")


def above_floor(s: Mapping[str, Any], members: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return by how much the mean over seeds is above the members' floors, and its error; {} where no floor is known.

    The error is that of the seeds and of the rows, which are the same for all members: at most the largest of theirs.
    """
    floors = [told["floor"] for told in members if (told.get("floor") or {}).get("log_px") is not None]
    if not floors:
        return {}
    errors = [floor.get("cleared_by_se") for floor in floors]
    known = [error for error in errors if error is not None]
    se = math.hypot(max(known), s.get("log_px_seed_se") or 0.0) if len(known) == len(floors) else None
    mean = sum(floor["log_px"] for floor in floors) / len(floors)
    return {"cleared_by": s["log_px"] - mean, "cleared_by_se": se}


def numbers(s: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """List the mean over seeds with its errors; of a loose one the bound alone."""
    if is_loose(s):
        return [("mean log p(x)", format_bound(s), "nats a row; a loose bound, so without an error")]
    return [
        ("mean log p(x)", f"{s['log_px']:.3f}", "nats a row, higher is better"),
        ("± seed", format_nats(s["log_px_seed_se"]), "of the seeds: more members shrink it"),
        ("± Monte Carlo", format_nats(s["log_px_mc_se"]), "of the computation: more samples shrink it"),
        ("± data", format_nats(s["log_px_data_se"]), "of the rows: more rows shrink it"),
        ("from seed to seed", format_nats(s.get("log_px_seed_sd")), "standard deviation of a single run"),
    ]


def sentences(s: Mapping[str, Any], members: Mapping[int, RunFacts], first: RunFacts) -> list[str]:
    """Say what came of it."""
    name = first.record["data"].get("name")
    said = [f"The same model of {name} was fitted {len(members)} times, from different random starts."]
    if not s:
        return [*said, "Nobody has measured yet how well they do on rows that they have not seen."]
    said.append(f"On {s['rows']:,} rows their log p(x), in nats a row, is {format_mean(s)}.")
    if (sd := s.get("log_px_seed_sd")) is not None and not is_loose(s):
        said.append(f"A single run lies about {format_nats(sd, 2)} nats from that mean, by its random start alone.")
    return said


def table(members: Mapping[int, RunFacts]) -> list[list[str]]:
    """Tabulate the members."""
    lines = [["member", "log p(x) ± Monte Carlo ± data", "floor", "epochs"]]
    for seed, facts in members.items():
        s = facts.summary
        floor = format_nats((s.get("floor") or {}).get("log_px"))
        lines.append([f"seed {seed}", format_both_errors(s) if s else "not scored", floor, str(len(facts.history))])
    return lines
