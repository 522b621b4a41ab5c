"""A pair of programs: the modules that own it, and how to run it without changing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import get_ident
from typing import Any

import torch
from pyro import settings
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.common.closures import modules_behind
from pyro_vae.common.device import resolve_device
from pyro_vae.common.random import seeded
from pyro_vae.errors import UsageError

from .parameters import ModulesOwnParameters
from .sites import Program


def programs(pair: Any) -> tuple[Program, Program]:
    """(model, guide) of a VAE, of any object with these two attributes, or of a tuple of two callables."""
    two = isinstance(pair, tuple) and len(pair) == 2
    model, guide = pair if two else (getattr(pair, role, None) for role in ("model", "guide"))
    if callable(model) and callable(guide):
        return model, guide
    raise UsageError(
        f"wanted a VAE, an object with .model and .guide, or a tuple (model, guide) of Pyro programs; got {type(pair).__name__}"
    )


def owners(*things: Any) -> list[nn.Module]:
    """Find the modules among `things` and behind them: of methods, effect handlers, partials, closures, and globals they name.

    Each once, and none that is a submodule of another; see :mod:`~pyro_vae.common.closures`.
    """
    return list(named_owners(*things).values())


def named_owners(*things: Any) -> dict[str, nn.Module]:
    """:func:`owners` by the names under which the programs hold them, as ``dec`` in ``lambda z: dec(z)``; "" for itself."""
    found = list(modules_behind(*things))
    inner = {id(part) for _, module in found for part in module.modules() if part is not module}
    named: dict[str, nn.Module] = {}
    for name, module in found:
        if id(module) not in inner:
            named[name if name not in named else f"{name}#{len(named)}"] = module
    return named


def unwrapped(thing: Any) -> Iterator[Any]:
    """Return the thing, and what its effect handlers (``poutine.scale(model, ...)``, ``Beta()(model)``) and partials wrap."""
    while thing is not None:
        yield thing
        inner = None
        if isinstance(thing, partial):  # a handler called on a program is Pyro's partial(wrap, handler, program)
            inner = thing.args[1] if len(thing.args) == 2 and isinstance(thing.args[0], Messenger) else thing.func
        thing = getattr(thing, "__wrapped__", None) or inner


def like_parameters(*things: Any) -> Tensor | None:
    """Return the first floating-point parameter of the programs' modules (dtype and device are theirs); None without one."""
    return next((p for m in owners(*things) for p in m.parameters() if p.is_floating_point()), None)


def device_of(x: Any, *things: Any) -> torch.device:
    """Return where rows x are run: on the device of the programs' parameters; without any, where they are."""
    like = like_parameters(*things)
    where = x if like is None else like
    return where.device if isinstance(where, Tensor) else torch.device("cpu")


@contextmanager
def evaluation_mode(*things: Any) -> Iterator[None]:
    """Turn gradients off, and the programs' modules to eval mode (dropout off, batch statistics fixed); restored after."""
    modules = owners(*things)
    with modes_restored(modules):
        for module in (m for owner in modules for m in owner.modules()):
            module.training = False
        with torch.no_grad(), EvaluateWhatRuns(), ModulesOwnParameters():
            yield


@contextmanager
def modes_restored(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Leave each module, and each within it, in the mode that it is in now: training or eval."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class EvaluateWhatRuns:
    """Put each module that runs meanwhile into eval mode, wherever it was found; restored after.

    For networks that no search of the programs finds (of a registry, made on the way), dropout would be on in an
    evaluation, and batch norm would learn from it. Other threads are left alone.
    """

    def __enter__(self) -> None:
        self.thread, self.changed = get_ident(), dict[nn.Module, None]()
        self.hook = register_module_forward_pre_hook(self.before_forward)

    def before_forward(self, module: nn.Module, inputs: Any) -> None:
        if module.training and get_ident() == self.thread:
            module.training = False
            self.changed[module] = None

    def __exit__(self, *error: object) -> None:
        self.hook.remove()
        for module in self.changed:
            module.training = True


def without_validation() -> AbstractContextManager[None]:
    """Turn Pyro's and torch's checks off; each switch is restored by itself (pyro.validation_enabled sets all alike)."""
    switches = ("distributions_pyro", "distributions_torch", "infer", "poutine")
    return settings.context(**{f"validate_{switch}": False for switch in switches})


@contextmanager
def quiet(
    *things: Any, seed: int | None = None, block: tuple[int, ...] = (), device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Evaluate programs or modules: no gradients, eval mode, no validation, a random stream; all is put back after.

    The stream is that of :func:`~pyro_vae.common.random.seeded` for (seed, *block); None draws from the stream around.
    """
    stream = nullcontext() if seed is None else seeded(seed, *block, device=device)
    with evaluation_mode(*things), without_validation(), stream:
        yield


def move(modules: list[torch.nn.Module], device: torch.device | str | None) -> torch.device | None:
    """Move modules to the device that was asked for, and return it; the one where they are, if none was."""
    if device is None:
        like = like_parameters(*modules)
        return None if like is None else like.device
    resolved = resolve_device(device)
    for module in modules:
        module.to(resolved)
    return resolved
