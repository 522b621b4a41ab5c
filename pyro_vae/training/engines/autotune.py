"""The request for kernels that are chosen by timing (``autotune=True``): where it can be met, and where it is refused.

A layer that is trained leaves nothing to choose on a CPU: Inductor's own C++ kernels take weights that never change, which they
pack beforehand. (Batches of matrices, which no layer multiplies, are an exception.)
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from pyro_vae.common import torch_private
from pyro_vae.errors import UsageError
from pyro_vae.training.step import Engine, Step
from pyro_vae.training.training_state import TrainingOptions

from .kernel_choice import BACKENDS, KernelChoice
from .traced import TracedEngine

WITHOUT = ("eager", "trace")  # engines that compile nothing


def check_autotune(autotune: bool, engine: str, shards: int, device: torch.device) -> None:
    """Refuse to choose kernels where nothing is compiled, there is one kernel alone, or the choice would cost a promise.

    Raises:
        UsageError: an engine without a compiler, batches in shards, no CUDA device, no triton.

    Example:
        >>> check_autotune(True, "trace", 1, torch.device("cuda"))
        Traceback (most recent call last):
        ...
        pyro_vae.errors.UsageError: autotune=True chooses kernels as a step is compiled, and engine='trace' compiles none: ...
    """
    if not autotune:
        return
    if engine in WITHOUT:
        raise UsageError(
            f"autotune=True chooses kernels as a step is compiled, and engine={engine!r} compiles none: take 'compile', "
            "'graph' or 'auto', or leave autotune out"
        )
    if shards != 1:
        raise UsageError(
            f"autotune=True with shards={shards}: each process would choose kernels by its own clock, and the bits would "
            "depend on how many there are. Leave out either"
        )
    if device.type != "cuda":
        raise UsageError(
            f"autotune=True needs a CUDA device, and the data is on {device}: for layers that are trained torch's compiler has "
            "the library's kernels there, and no others to choose from. Leave autotune out"
        )
    if why := absent():
        raise UsageError(f"autotune=True needs torch's compiler for CUDA, and {why}: leave autotune out")


def absent() -> str | None:
    """Name what the choice of kernels needs and is not there; None if all is."""
    if not find_spec("triton"):
        return "triton is not installed"
    if reason := torch_private.lacks(*torch_private.INDUCTOR):
        return reason
    switched = torch_private.choosing_kernels(BACKENDS) is not None
    return None if switched else f"torch {torch.__version__} cannot be told to choose kernels for matrix products"


def choose_by_timing(engine: Engine, options: TrainingOptions) -> None:
    """Have an engine choose kernels as it compiles, if the options say so."""
    if not options.autotune or not isinstance(engine, TracedEngine):
        return
    engine.kernels = KernelChoice(engine.log)
    if engine.name == "compile":
        engine.make_faster = engine.compile


def never_compiled(step: Step, options: TrainingOptions, no_whole_steps: bool) -> list[str]:
    """List a note where kernels are to be chosen and it is known that no step will be compiled."""
    name, why = step.engine.name, ""
    if name in WITHOUT:
        why = step.engine_reason
    elif options.on_step is not None:
        why = "with on_step= no step is traced"
    elif name == "graph" and no_whole_steps:
        why = "rows off the device, or aggressive=, leave steps to be recorded as they are; engine='compile' compiles them"
    return [f"autotune=True changes nothing: {why}"] if options.autotune and why else []
