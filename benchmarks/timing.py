"""Interleaved blocks: everybody takes a turn, in random order, again and again, so that a busy moment hits all alike."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Run = Callable[[int], Any]  # makes so many steps, and may return how many it made


@dataclass
class Times:
    """Milliseconds a step, one number a block: on the wall, and of all the process's threads."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: float = 0.0  # seconds until the first step was done: tracing, compiling

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


class Budget:
    """Minutes for all cases: each gets its share of what is left, and where that is short has fewer blocks."""

    def __init__(self, minutes: float | None, cases: int) -> None:
        self.end = None if minutes is None else time.perf_counter() + 60 * minutes
        self.cases = cases

    def deadline(self) -> float:
        """When the next case has to stop, on the clock of ``time.perf_counter``."""
        self.cases -= 1
        now = time.perf_counter()
        return float("inf") if self.end is None else now + (self.end - now) / (self.cases + 1)


def timed(run: Run, steps: int, device: torch.device) -> tuple[float, float]:
    """Milliseconds a step on the wall and of the processor; a run may say that it made other than so many steps."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = run(steps) or steps
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - wall) / made, 1e3 * (time.process_time() - cpu) / made


def interleave(
    runs: Mapping[str, Run],
    device: torch.device,
    blocks: int,
    seconds: float,
    until: float = float("inf"),
    least: int = 3,
) -> tuple[dict[str, Times], dict[str, str]]:
    """Times of each, in blocks of about so many seconds; and who failed, with the reason.

    There is one block at least, and no further one where it would not be over by `until`. `least`: steps of a
    block, and all of them where `seconds` is 0.
    """
    times: dict[str, Times] = {}
    failed: dict[str, str] = {}
    steps: dict[str, int] = {}
    for name, run in runs.items():
        start = time.perf_counter()
        try:
            run(least)
            first = time.perf_counter() - start
            steps[name] = max(least, int(1e3 * seconds / timed(run, least, device)[0])) if seconds else least
        except Exception as error:  # a peer that does not run is reported, and the others go on
            failed[name] = f"{type(error).__name__}: {error}".split("\n")[0]
            print(f"  {name} failed: {failed[name]}", file=sys.stderr)
            continue
        times[name] = Times(first=first)
    order, shuffle, longest = list(times), random.Random(0).shuffle, 0.0
    for _ in range(blocks):
        begun = time.perf_counter()
        if longest and begun + longest > until:
            break
        shuffle(order)
        for name in order:
            wall, cpu = timed(runs[name], steps[name], device)
            times[name].wall.append(wall)
            times[name].cpu.append(cpu)
        longest = max(longest, time.perf_counter() - begun)
    return times, failed


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Their time over ours: the median over blocks of ratios within a block."""
    return statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
