"""Choose the engine that computes a run's steps."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from pyro_vae.common import torch_private
from pyro_vae.common.inductor import compiler
from pyro_vae.errors import UsageError
from pyro_vae.training.aggressive_inference import AggressiveInference
from pyro_vae.training.batch_source import Resident, TrainingData
from pyro_vae.training.step import EagerEngine, Engine, Step
from pyro_vae.training.training_state import TrainingOptions

from .adam_update import plain_adam
from .scheduled_values import ScheduledValues
from .traced import ACCELERATORS, TracedEngine
from .whole_steps import WholeSteps

ENGINES = ("auto", "eager", "trace", "compile", "graph")
CPU = torch.device("cpu")
WORTH_TRACE, WORTH_COMPILE = 500, 10_000  # steps, from which half a second and half a minute pay for themselves
PATIENCE = 1000  # steps of a run on "auto" before it waits for a compiler


def choose_engine(
    engine: str, step: Step, modules: list[nn.Module], scheduled: ScheduledValues, planned: int, device: torch.device
) -> tuple[Engine, str]:
    """Make the engine of that name for a run of `planned` steps, or what stands in for it; return it, and the reason.

    Raises UsageError for another name, or an engine that the data's device cannot run.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine={engine!r}: choose one of {', '.join(ENGINES)}")
    name, why = resolve(engine, planned, device)
    if name == "eager":
        return EagerEngine(step), why
    patience = PATIENCE if engine == "auto" and name == "compile" else 0
    return TracedEngine(step, modules, scheduled, ACCELERATORS.get(name), name, patience), why


def resolve(engine: str, planned: int, device: torch.device = CPU) -> tuple[str, str]:
    """Resolve "auto" on a device, or an engine that it cannot run; return the engine's name, and the reason."""
    if engine == "graph" and device.type != "cuda":
        need = f"engine='graph' needs a CUDA device, and the data is on {device}"
        raise UsageError(f"{need}: take 'compile' or 'trace', or 'auto'")
    absent = None if compiler() else "no C++ compiler (g++ or clang++) was found"
    if engine == "compile" and (reason := absent or torch_private.lacks(*torch_private.INDUCTOR)):
        return "trace", f"compile was asked for, but {reason}"
    if engine != "auto":
        return engine, "asked for"
    if planned < WORTH_TRACE:
        return "eager", f"auto: {planned} steps are over before a trace pays"
    if device.type == "cuda":
        return "graph", f"auto: {planned} steps on CUDA"
    if planned < WORTH_COMPILE or absent:
        return "trace", f"auto: {planned} steps" + ("; no C++ compiler for more" if absent else "")
    return "compile", f"auto: {planned} steps pay for compiling, after the first {PATIENCE}"


def choose_whole_steps(
    engine: Engine, data: TrainingData, options: TrainingOptions, planned: int, aggressive: AggressiveInference | None
) -> WholeSteps | None:
    """Make whole steps where steps are traced, of rows that lie on the device, unless somebody moves numbers unseen."""
    if not isinstance(engine, TracedEngine) or not isinstance(data.source, Resident):
        return None
    if aggressive is not None or options.on_step is not None or engine.step.shards is not None:
        return None
    engine.step.in_graph = lambda optimizer: engine.whole_refused is None and plain_adam(optimizer)
    compiled = engine.name == "compile" or (
        engine.name == "graph" and (options.autotune or planned >= WORTH_COMPILE) and bool(find_spec("triton"))
    )
    return WholeSteps(engine, data, options, planned, compiled)
