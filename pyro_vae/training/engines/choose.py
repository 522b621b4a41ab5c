"""Which engine computes a run's steps, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pyro_vae.common import torch_private
from pyro_vae.errors import UsageError
from pyro_vae.training.step import EagerEngine, Engine, Step

from .inductor import compiler
from .scheduled_values import ScheduledValues
from .traced import ACCELERATORS, TracedEngine

ENGINES = ("auto", "eager", "trace", "compile", "graph")
CPU = torch.device("cpu")
WORTH_TRACE, WORTH_COMPILE = 500, 10_000  # steps, from which half a second and half a minute pay for themselves
PATIENCE = 1000  # steps of a run on "auto" before it waits for a compiler


def choose_engine(
    engine: str,
    step: Step,
    modules: Sequence[nn.Module],
    scheduled_values: ScheduledValues,
    planned: int,
    device: torch.device = CPU,
) -> tuple[Engine, str]:
    """Make the engine of that name, or what it comes to on this device; return it, and why it was taken.

    Args:
        engine: one of "auto", "eager", "trace", "compile", "graph".
        step: whose losses; its parameters need not be known yet.
        modules: of the programs.
        scheduled_values: numbers that change from step to step.
        planned: steps in all.
        device: where the data is.

    Raises:
        UsageError: no such engine, or one that this device cannot run.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")
    name, why = resolve(engine, planned, device)
    if name == "eager":
        return EagerEngine(step), why
    patience = PATIENCE if engine == "auto" and name == "compile" else 0
    return TracedEngine(step, modules, scheduled_values, ACCELERATORS.get(name), name, patience), why


def resolve(engine: str, planned: int, device: torch.device = CPU) -> tuple[str, str]:
    """Decide what "auto" comes to on a device, or what stands in for an engine that it cannot run; say why."""
    if engine == "graph" and device.type != "cuda":
        raise UsageError(
            f"engine='graph' needs a CUDA device, and the data is on {device}: take 'compile' or 'trace', or 'auto'"
        )
    if engine == "compile" and compiler() is None:
        return "trace", "compile was asked for, but no C++ compiler (g++ or clang++) was found"
    if engine == "compile" and (reason := torch_private.lacks(*torch_private.INDUCTOR)):
        return "trace", f"compile was asked for, but {reason}"
    if engine != "auto":
        return engine, "asked for"
    if planned < WORTH_TRACE:
        return "eager", f"auto: {planned} steps are over before a trace pays"
    if device.type == "cuda":
        return "graph", f"auto: {planned} steps on CUDA"
    if planned < WORTH_COMPILE or compiler() is None:
        return "trace", f"auto: {planned} steps" + ("" if compiler() else "; no C++ compiler for more")
    return "compile", f"auto: {planned} steps pay for compiling, after the first {PATIENCE}"
