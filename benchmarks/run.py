"""All cases, one after the other; within each, everybody interleaved."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from .cases import QUICK, Case, cases_for, data
from .growth import evaluation, memory, step_times
from .peers import LOGGED, OURS, Run, peers
from .report import machine, record, write_tables
from .sections import sections
from .timing import Budget, interleave

QUICK_ROWS = 512


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """What the table, the JSON, the pictures and the history are made of."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    x = data(device, QUICK_ROWS) if options.quick else data(device)
    parts = options.sections.split(",")
    cases = [c for c in cases_for(device, options.quick) if options.only in c.name] if "steps" in parts else []
    further = [s for s in sections(x, options.quick) if options.only in s.name] if "evidence" in parts else []
    budget = Budget(options.minutes, len(cases) + len(further))
    results: dict[str, Any] = {"machine": machine(device), "load": os.getloadavg()[0], "cases": []}
    blocks, seconds = (2, 0.02) if options.quick else (options.blocks, options.seconds)
    for case in cases:
        everybody = {n: partial(peer, case, x) for n, peer in peers(case, device).items() if chosen(n, options)}
        times = partial(interleave, device=device, blocks=blocks, seconds=seconds, until=budget.deadline())
        results["cases"].append(timed_case(case.name, "step", everybody, times))
        write_tables(results, options.out)
    for section in further:
        everybody = {n: make for n, make in section.runs.items() if chosen(n, options)}
        times = partial(interleave, device=device, blocks=min(blocks, 3), seconds=0.0, until=budget.deadline(), least=1)
        results["cases"].append(timed_case(section.name, section.unit, everybody, times))
        write_tables(results, options.out)
    if "growth" in parts and not options.only and options.minutes is None:
        results["growth"] = growth(options, x)
    return results


def timed_case(
    name: str, unit: str, everybody: Mapping[str, Callable[[], Run]], times_of: Callable[..., Any]
) -> dict[str, Any]:
    """Make everybody, time them, and report those that failed, or that did not run as their name says."""
    print(name, file=sys.stderr, flush=True)
    runs, failed = {}, {}
    for who, make in everybody.items():
        torch.manual_seed(0)
        try:
            runs[who] = make()
        except Exception as error:  # reported, and the others go on
            failed[who] = f"{type(error).__name__}: {error}".split("\n")[0]
    times, more = times_of(runs)
    for who, run in runs.items():
        if (why := close(run)) is not None and who in times:
            times.pop(who)
            more[who] = why
    return record(name, times, failed | more, unit)


def close(run: Any) -> str | None:
    """End what runs on in a thread; return why its time is not that of what it is called."""
    return run.close() if hasattr(run, "close") else None


def chosen(name: str, options: argparse.Namespace) -> bool:
    if options.quick and ("compile" in name or LOGGED in name):
        return False
    if any(part in name for part in options.leave_out.split(",") if part):
        return False
    return name.startswith(OURS) or any(part in name for part in options.peers.split(","))


def growth(options: argparse.Namespace, x: torch.Tensor) -> dict[str, Any]:
    base, few, engine = (QUICK[0], 2, "trace") if options.quick else (Case(), None, "trace")
    return {
        "base": base.name,
        "engine": engine,
        "step_ms": step_times(base, x, engine, 1 if options.quick else 5, 3 if options.quick else 20, few),
        "memory_mib": memory(base, x, [1, 2, 4, 8][:few]),
        "evaluation": evaluation(base, x, *((8, 8) if options.quick else (256, 256))),
    }
