"""Find the networks that functions hold: what they close over, their defaults, partials, methods, and globals they name."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import islice
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import nn

LIBRARIES = sys.stdlib_module_names | {
    "torch",
    "torchvision",
    "pyro",
    "pyroapi",
    "pyro_vae",
    "numpy",
    "zuko",
    "_pytest",
}
ATOMS = (torch.Tensor, type, str, bytes, int, float, complex, type(None))  # hold no network, and are met often
CONTAINERS = (list, tuple, set, frozenset, dict)  # no Mapping: one of a library may open files as it is read
FIRST = 1000  # entries of a container that are looked at: a longer one is data
MOST = 20_000  # objects that are looked at
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # hooks, parameters, submodules: torch's own keeping

Named = Iterator[tuple[str, Any]]


def held_modules(thing: Any, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that `thing` is or holds, each once, in a stable order, by the names on the way to it.

    Followed are closures, defaults, partials, the objects of bound methods, functions that these name or wrap, lists,
    dicts and plain objects, and globals that a function names. Code of libraries is not searched for globals. A module
    that was found is not searched for more: :func:`modules_behind` does that.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> [name for name, module in held_modules(lambda z, net=net: net(z).exp())]
        ['net']
    """
    yield from search(thing, name, {})


def modules_behind(*things: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield what :func:`held_modules` does of all the things, and what the found modules hold beside their submodules."""
    seen: dict[Any, Any] = {}
    queue = [found for thing in things for found in search(thing, "", seen)]
    for name, module in queue:  # grows: a module may hold a function over another module, or a list of them
        yield name, module
        for part in module.modules():
            seen[id(part)] = part
            for key, value in own_attributes(part):
                queue += search(value, joined(name, key), seen)


def own_attributes(module: nn.Module) -> Named:
    """Yield what a module's writer has stored on it that is neither parameter, buffer nor submodule."""
    yield from ((key, value) for key, value in vars(module).items() if key not in OF_EVERY_MODULE)


def search(thing: Any, name: str, seen: dict[Any, Any]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that a thing leads to, by name, each thing once."""
    stack = [(name, thing)]
    while stack and len(seen) < MOST:
        name, thing = stack.pop()
        key = (id(thing.__self__), id(thing.__func__)) if isinstance(thing, MethodType) else id(thing)
        if isinstance(thing, ATOMS) or key in seen:
            continue
        seen[key] = thing  # kept alive, for ids are not to be used again
        if isinstance(thing, nn.Module):
            yield name, thing
        else:
            around = "" if isinstance(thing, FunctionType) else name  # what a function names, it names by itself
            stack += reversed([(joined(around, part), value) for part, value in parts(thing)])


def joined(name: str, part: str) -> str:
    """Join the names of a thing and a part of it, as an expression would."""
    return f"{name}{part}" if part.startswith("[") or not (name and part) else f"{name}.{part}"


def parts(thing: Any) -> Named:
    """Yield what a thing holds, by name."""
    if isinstance(thing, partial):
        yield "", thing.func
        yield from zip(argument_names(thing), thing.args, strict=True)
        yield from thing.keywords.items()
    elif isinstance(thing, MethodType):
        yield "self", thing.__self__
        yield "", thing.__func__
        yield from methods_named(thing)
    elif isinstance(thing, FunctionType):
        yield from vars(thing).items()  # functools.wraps leaves there what is wrapped
        yield from closed_over(thing)
        yield from defaults(thing)
        yield from globals_named(thing)
    elif isinstance(thing, CONTAINERS):
        yield from islice(entries(thing), FIRST)
    else:
        yield from of_object(thing)


def argument_names(bound: partial[Any]) -> list[str]:
    """Name the positional arguments of a partial as its function does; none for what a handler of Pyro wraps."""
    if any(isinstance(value, Messenger) for value in bound.args):
        return [""] * len(bound.args)
    code = getattr(bound.func, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code is not None else ()
    return [names[i] if i < len(names) else str(i) for i in range(len(bound.args))]


def entries(container: Any) -> Named:
    """Yield the entries of a container, named by key or place."""
    if isinstance(container, dict):
        return ((f"[{key!r}]", value) for key, value in container.items())
    return ((f"[{i}]", value) for i, value in enumerate(container))


def of_object(thing: Any) -> Named:
    """Yield the attributes of a plain object, what it wraps, and the method that makes it callable."""
    if wrapped := inspect.getattr_static(thing, "__wrapped__", None):
        yield "", wrapped
    kind = type(thing)
    if not from_library(kind) or kind is SimpleNamespace or kind.__module__.startswith("pyro_vae."):
        yield from getattr(thing, "__dict__", {}).items()
        slots = (name for base in kind.__mro__ for name in names_of(vars(base).get("__slots__", ())))
        yield from ((name, getattr(thing, name)) for name in slots if hasattr(thing, name) and name != "__dict__")
    if isinstance(call := inspect.getattr_static(kind, "__call__", None), FunctionType) and not from_library(call):
        yield "", MethodType(call, thing)


def names_of(slots: str | Iterable[str]) -> Iterable[str]:
    """Return the names of __slots__, which may be one text."""
    return (slots,) if isinstance(slots, str) else slots


def from_library(thing: Any) -> bool:
    """Return whether a function or class is a library's, and so names no network of the user's."""
    return str(getattr(thing, "__module__", None) or "").partition(".")[0] in LIBRARIES


def closed_over(function: FunctionType) -> Named:
    """Yield the variables of a function's closure that are set."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue


def defaults(function: FunctionType) -> Named:
    """Yield the defaults of a function's arguments."""
    values, code = function.__defaults__ or (), function.__code__
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    yield from zip(names, values, strict=True)
    yield from (function.__kwdefaults__ or {}).items()


@lru_cache(maxsize=1000)
def global_names(code: CodeType) -> tuple[str, ...]:
    """Return the globals that a function's code reads, functions within it included (co_names has attributes, too)."""
    here = [i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in global_names(constant)]
    return tuple(dict.fromkeys([*here, *inner]))


@lru_cache(maxsize=1000)
def attribute_names(code: CodeType) -> frozenset[str]:
    """Return the attributes that a function's code reads, functions within it included."""
    inner = [attribute_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return frozenset(code.co_names).union(*inner)


def globals_named(function: FunctionType) -> Named:
    """Yield the globals that a user's function names; of a user's Python module, what the function may read of it."""
    if from_library(function):
        return
    for name in global_names(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, ModuleType):
            yield name, value
        elif value.__name__.partition(".")[0] not in LIBRARIES:
            for attribute in sorted(attribute_names(function.__code__) & vars(value).keys()):
                yield f"{name}.{attribute}", vars(value)[attribute]


def methods_named(method: MethodType) -> Named:
    """Yield the other methods of the object that a user's method may call."""
    function, owner = method.__func__, method.__self__
    if not isinstance(function, FunctionType) or from_library(function):
        return
    for name in sorted(attribute_names(function.__code__)):
        other = inspect.getattr_static(type(owner), name, None)
        if isinstance(other, FunctionType) and not from_library(other):
            yield "", MethodType(other, owner)
