"""Interleaved blocks: everybody takes a turn, in random order, again and again, so that a busy moment hits all alike."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .peers import Run


@dataclass
class Times:
    """Milliseconds a step, one number a block: on the wall, and of all the process's threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: float = 0.0  # seconds until the first step was done: tracing, compiling

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def timed(run: Run, steps: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds a step on the wall and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - wall) / steps, 1e3 * (time.process_time() - cpu) / steps


def interleave(
    runs: Mapping[str, Run], device: torch.device, blocks: int, seconds: float
) -> tuple[dict[str, Times], dict[str, str]]:
    """Times of each, in blocks of about so many seconds; and who failed, with the reason."""
    times: dict[str, Times] = {}
    failed: dict[str, str] = {}
    steps: dict[str, int] = {}
    for name, run in runs.items():
        start = time.perf_counter()
        try:
            run(3)
            first = time.perf_counter() - start
            steps[name] = max(3, int(1e3 * seconds / timed(run, 5, device)[0]))
        except Exception as error:  # a peer that does not run is reported, and the others go on
            failed[name] = f"{type(error).__name__}: {error}".split("\n")[0]
            print(f"  {name} failed: {failed[name]}", file=sys.stderr)
            continue
        times[name] = Times(first=first)
    order, shuffle = list(times), random.Random(0).shuffle
    for _ in range(blocks):
        shuffle(order)
        for name in order:
            wall, cpu = timed(runs[name], steps[name], device)
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
    return times, failed


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Their time over ours: the median over blocks of ratios within a block."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
