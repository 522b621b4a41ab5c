"""What a pair of programs is made of: the modules that own it, and how to run it without changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from pyro import settings
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError

Program = Callable[..., Any]


def programs(pair: Any) -> tuple[Program, Program]:
    """(model, guide) of a VAE, of any object with these two attributes, or of a tuple of two callables."""
    pair_of = (
        pair if isinstance(pair, tuple) and len(pair) == 2 else (getattr(pair, r, None) for r in ("model", "guide"))
    )
    model, guide = pair_of
    if callable(model) and callable(guide):
        return model, guide
    raise UsageError(
        f"wanted a VAE, an object with .model and .guide, or a tuple (model, guide) of Pyro programs; got {type(pair).__name__}"
    )


def owners(*things: Any) -> list[nn.Module]:
    """The modules among `things` and behind their methods, effect handlers and partials looked through, each once."""
    layers = [layer for t in things for layer in unwrapped(t)]
    found = [m for t in layers for m in (t, getattr(t, "__self__", None)) if isinstance(m, nn.Module)]
    return list(dict.fromkeys(found))


def unwrapped(thing: Any) -> Iterator[Any]:
    """The thing, and what its effect handlers (``poutine.scale(model, ...)``, ``Beta()(model)``) and partials wrap."""
    while thing is not None:
        yield thing
        inner = (thing.args[1] if handles(thing) else thing.func) if isinstance(thing, partial) else None
        thing = getattr(thing, "__wrapped__", None) or inner


def handles(thing: partial[Any]) -> bool:
    """Whether this is a handler called on a program, which Pyro makes partial(wrap, handler, program)."""
    return len(thing.args) == 2 and isinstance(thing.args[0], Messenger)


def like_parameters(*things: Any) -> Tensor | None:
    """The first floating-point parameter of the programs' modules (its dtype and device are theirs); None without one."""
    floats = (p for m in owners(*things) for p in m.parameters() if p.is_floating_point())
    return next(floats, None)


@contextmanager
def evaluation_mode(*things: Any) -> Iterator[None]:
    """No gradients, and the programs' modules in eval mode (dropout off, batch statistics fixed); restored after."""
    flags = [(m, m.training) for owner in owners(*things) for m in owner.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


def without_validation() -> AbstractContextManager[None]:
    """Pyro's and torch's checks off; each switch is restored by itself (pyro.validation_enabled sets all alike)."""
    switches = ("distributions_pyro", "distributions_torch", "infer", "poutine")
    return settings.context(**{f"validate_{switch}": False for switch in switches})


@contextmanager
def quiet(
    *things: Any, seed: int | None = None, block: tuple[int, ...] = (), device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Evaluate: no gradients, eval mode, no validation, and a random stream of its own; all is put back after.

    Args:
        *things: programs, or modules.
        seed: of the stream, with `block` as for :func:`~pyro_vae.common.random.seeded`; None draws from the stream around.
        block: the part of the work.
        device: where it runs.
    """
    with (
        evaluation_mode(*things),
        without_validation(),
        nullcontext() if seed is None else seeded(seed, *block, device=device),
    ):
        yield
