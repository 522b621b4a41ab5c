"""All cases, one after the other; within each, everybody interleaved."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from .cases import KINDS, QUICK, SIZES, Case, data
from .growth import evaluation, memory, step_times
from .peers import OURS, peers
from .report import machine, record
from .timing import interleave


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """What the table, the JSON and the picture are made of."""
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    x = data(device)
    cases = [c for c in (QUICK if options.quick else SIZES + KINDS) if options.only in c.name]
    blocks, seconds = (2, 0.02) if options.quick else (options.blocks, options.seconds)
    results: dict[str, Any] = {"machine": machine(device), "blocks": blocks, "cases": []}
    for case in cases:
        print(case.name, file=sys.stderr, flush=True)
        wanted = {name: peer for name, peer in peers(case, device).items() if chosen(name, options)}
        runs, failed = {}, {}
        for name, peer in wanted.items():
            torch.manual_seed(0)
            try:
                runs[name] = peer(case, x)
            except Exception as error:  # reported, and the others go on
                failed[name] = f"{type(error).__name__}: {error}".split("\n")[0]
        times, more = interleave(runs, device, blocks, seconds)
        results["cases"].append(record(case.name, times, failed | more))
    if not options.only:
        results["growth"] = growth(options, x)
    return results


def chosen(name: str, options: argparse.Namespace) -> bool:
    if options.quick and "compile" in name:
        return False
    return name.startswith(OURS) or any(part in name for part in options.peers.split(","))


def growth(options: argparse.Namespace, x: torch.Tensor) -> dict[str, Any]:
    base, few, engine = (Case(32, 4, 16), 2, "trace") if options.quick else (Case(), None, "trace")
    return {
        "base": base.name,
        "engine": engine,
        "step_ms": step_times(base, x, engine, 1 if options.quick else 5, 3 if options.quick else 20, few),
        "memory_mib": memory(base, x, [1, 2, 4, 8][:few]),
        "evaluation": evaluation(base, x, *((8, 8) if options.quick else (256, 256))),
    }
