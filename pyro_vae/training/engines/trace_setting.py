"""What a trace of a step holds for: the layout of its batch, and all else that a trace freezes; and what none could hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor, nn

from pyro_vae.common import torch_private
from pyro_vae.training.precision import matmul_switches
from pyro_vae.training.step import EagerEngine, Step

from .scheduled_values import ScheduledValues


def kind_of(batch: Sequence[Tensor]) -> str:
    """Describe the shapes and dtypes of a batch."""
    return "; ".join(f"{a.dtype} {tuple(a.shape)}" for a in batch)


def layout_of(batch: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return shape, strides, dtype and device of each tensor of a batch."""
    return tuple((a.shape, a.stride(), a.dtype, a.device) for a in batch)


def setting_of(step: Step, modules: Sequence[nn.Module], told: Callable[[Any], Any] = id) -> tuple[Any, ...]:
    """Return modes of the modules, which parameters are trained, the objective's options, and torch's global settings.

    `told` stands for an object that cannot be compared: its id in this process, its type in any.
    """
    modes = tuple(m.training for root in modules for m in root.modules())
    trained = tuple(p.requires_grad for p in step.parameters)
    return modes, trained, options(step.objective, told), ambient()


def options(objective: Any, told: Callable[[Any], Any] = id) -> tuple[Any, ...]:
    """List an objective's options, as far as they can be compared."""
    plain = (int, float, str, bool, type(None))
    ignored = ("known", "max_plate_nesting")
    return tuple((k, v if isinstance(v, plain) else told(v)) for k, v in vars(objective).items() if k not in ignored)


def ambient() -> tuple[Any, ...]:
    """List the global settings of torch that a step depends on."""
    return (
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        *matmul_switches(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


def why_untraceable(eager: EagerEngine, scheduled: ScheduledValues) -> str | None:
    """Give the reason why no trace could hold a run; None if one can."""
    if eager.loss is None:
        name = type(eager.step.objective).__name__
        return f"{name} reads numbers back at each step (Trace_ELBO, TraceMeanField_ELBO and Bound do not)"
    if scheduled.unseen:
        return (
            "on_step may change any number of the programs, which a trace would freeze (objects that name the numbers "
            "they move are followed: scheduled=[beta])"
        )
    if am_i_wrapped():
        return "training runs inside other Pyro handlers, which would see only the first steps"
    hooked = any(torch_private.has_hook(p) for p in eager.step.parameters)
    return "a parameter has a hook on its gradient" if hooked else None
