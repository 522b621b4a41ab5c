"""Run a program once on its arguments, its latents drawn, replayed, conditioned on or substituted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from .sites import Program
from .unconstrained import SubstituteLatents
from .user_errors import explained

Latents = poutine.Trace | Mapping[str, Tensor] | SubstituteLatents
NO_PLATE = nullcontext()


def run_program(
    program: Program,
    role: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    at: Latents | None,
    plates: AbstractContextManager[Any] = NO_PLATE,
) -> poutine.Trace:
    """Trace a program once, latents at their values.

    Args:
        role: its name in messages.
        at: values in the place of draws: a trace's are replayed, those by site conditioned on, and substituted ones stay
            latent; None draws.
        plates: what it runs in.
    """
    if isinstance(at, Mapping):
        program = poutine.condition(program, data=dict(at))
    elif isinstance(at, poutine.Trace):
        program = poutine.replay(program, trace=at)
    # a training step without Pyro's checks is not the first, which has told of the user's errors
    stepping = torch.is_grad_enabled() and not is_validation_enabled()
    with (
        NO_PLATE if stepping else explained(role, *args),
        at if isinstance(at, SubstituteLatents) else NO_PLATE,
        plates,
    ):
        return poutine.trace(program).get_trace(*args, **kwargs)
