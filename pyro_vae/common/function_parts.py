"""Modules with parts that may be functions: the networks that these hold are registered, as those of other parts are."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from pyro_vae.errors import ProgramError

from .closures import held_modules, joined, own_attributes
from .picklable import Picklable

ENCLOSED = "enclosed"
HELD = "held_before_copy"


class FunctionParts(Picklable):
    """A module whose parts may be functions: networks that they hold are submodules, under ``enclosed``.

    So they are trained, moved, saved and put into eval mode with the rest. Their names in the ``state_dict`` are made of
    the part's name and the variable's: ``enclosed.likelihood_net.0.weight`` for ``likelihood=lambda z: normal(net(z))``.
    A network that is elsewhere in the module, or in whose method this module is built, is not registered again.

    Raises:
        ProgramError: by ``copy.deepcopy``, which copies no function: the copy would use the original's networks; and as a
            pickle is loaded that has a function by its name alone, which uses other networks than those that were saved.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if callable(value) and "_modules" in vars(self):  # a part set before super().__init__() is found with the next
            self.enclose()

    def enclose(self) -> None:
        """Register the networks that the parts' functions hold now."""
        if ENCLOSED in dict(self.named_children()):
            del self.enclosed
        own = {id(part) for part in self.modules()}
        found = [(n, m) for n, m in held_by_functions(self) if id(m) not in own and not at_work(m)]
        inner = {id(part) for _, module in found for part in module.modules() if part is not module}
        named: dict[str, nn.Module] = {}
        for name, module in found:
            if id(module) not in inner:
                key = re.sub(r"\W+", "_", name).strip("_")
                named[key if key not in named else f"{key}_{len(named)}"] = module
        if named:
            self.add_module(ENCLOSED, nn.ModuleDict(named))

    def __getstate__(self) -> dict[str, Any]:
        state, held = super().__getstate__(), list(held_by_functions(self))
        if not held:
            return state
        own = {id(part) for part in self.modules()}
        ids, names = [id(module) for _, module in held], [name for name, module in held if id(module) in own]
        return {**state, HELD: (os.getpid(), frozenset(ids), frozenset(names))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        process, ids, names = state.get(HELD, (None, frozenset(), frozenset()))
        super().__setstate__({key: value for key, value in state.items() if key != HELD})
        own = {id(part) for part in self.modules()} if ids else set()
        for name, module in held_by_functions(self) if ids else ():
            shared = id(module) in ids and process == os.getpid()
            # what holds no weights may be shared
            if (shared or name in names) and id(module) not in own and next(module.parameters(), None) is not None:
                why = (
                    f"copy.deepcopy copies no function, so the copy of this {type(self).__name__} would share {name!r} "
                    f"({type(module).__name__}) with it"
                    if shared
                    else f"a pickle has a function by its name alone, so this {type(self).__name__} would run {name!r} "
                    f"({type(module).__name__}) as it is here, not as it was saved"
                )
                raise ProgramError(f"{why}: build it anew, or let the part be a module that holds the network.")


def held_by_functions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks that functions among a module's own attributes hold, by part and variable, each once."""
    seen = set()
    for name, part in list(own_attributes(module)):
        for path, held in held_modules(part) if callable(part) else ():
            if id(held) not in seen:
                seen.add(id(held))
                yield joined(name, path), held


def networks(module: nn.Module) -> list[nn.Module]:
    """Return the module, and what functions in it hold beside: networks of a module around it, or set since."""
    own = {id(part) for part in module.modules()}
    parts = [part for part in module.modules() if isinstance(part, FunctionParts)]
    beside = {id(held): held for part in parts for _, held in held_by_functions(part) if id(held) not in own}
    return [module, *beside.values()]


def at_work(module: nn.Module) -> bool:
    """Return whether a method of the module is running: it may be about to hold what is built there."""
    frame = inspect.currentframe()
    while frame is not None and (frame := frame.f_back) is not None:
        code = frame.f_code
        is_method = code.co_argcount > 0 and hasattr(type(module), code.co_name)
        if is_method and frame.f_locals.get(code.co_varnames[0]) is module:
            return True
    return False
