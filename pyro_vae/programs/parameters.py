"""Parameters of a module in Pyro's store: under a name that no other instance has, and just as the module has them."""

from __future__ import annotations

import gc
import itertools
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.common.function_parts import networks
from pyro_vae.common.identical import identical
from pyro_vae.common.pyro_private import active_handlers
from pyro_vae.common.sharded import reshard
from pyro_vae.errors import ProgramError


class ParametersRegistered(Messenger):
    """A handler within which our modules do not declare their parameters again, as within a training step."""


class ModulesOwnParameters(Messenger):
    """A handler within which a module's parameter enters Pyro's store as it is.

    Pyro itself makes every tensor that enters its store one that is trained, frozen parameters of a
    :class:`pyro.nn.PyroModule` too, and puts a copy there of one that is not contiguous, so that the copy is trained and the
    module is not. Where the store holds another value under the name, which no module of this process has, programs run on
    the module's and not on the store's.

    Raises:
        ProgramError: of that, for a loaded store is meant to be used.

    Example:
        >>> frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        >>> with pyro.get_param_store().scope(), ModulesOwnParameters():
        ...     pyro.param("frozen", frozen).requires_grad
        False
    """

    def _pyro_param(self, msg: Message) -> None:
        name, given = msg["name"], msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(given, nn.Parameter) and msg["kwargs"].get("constraint", constraints.real) is constraints.real:
            declare(str(name), given)
            refuse_ignored(str(name), given)


def declare(name: str, parameter: nn.Parameter) -> None:
    """Put a parameter into the store itself, if there is none of its name; as Pyro does, if its entries overlap in memory."""
    store = pyro.get_param_store()
    if name not in store and not overlaps(parameter):
        store.set_state({"params": {name: parameter}, "constraints": {name: constraints.real}})


def overlaps(tensor: Tensor) -> bool:
    """Return whether entries of a tensor share their memory, as after ``expand``: no optimizer can move those."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


_in_use: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()  # who has a tensor of the store
_of_no_module: set[str] = set()  # names of parameters that programs make anew at each run


def refuse_ignored(name: str, parameter: nn.Parameter) -> None:
    """Refuse a value in the store, of a file or of a model that is gone, that stands unused beside a module's own.

    Where a live module has the store's, two modules go by one name: each still runs on its own.
    """
    store = pyro.get_param_store()
    if name not in store or name in _of_no_module or (stored := unconstrained(store[name])) is parameter:
        return
    if stored.shape == parameter.shape and identical(stored.to(parameter), parameter):
        return
    user = _in_use.get(id(stored))
    if user is not None and any(p is stored for p in user.parameters(recurse=False)):
        return
    gc.collect()
    users = {id(t): user for t in (stored, parameter) if (user := user_of(t)) is not None}
    if id(parameter) not in users:
        _of_no_module.add(name)
    elif id(stored) in users:
        _in_use.update({id(p): users[id(stored)] for p in users[id(stored)].parameters(recurse=False)})
    else:
        module, _, key = name.rpartition("$$$")
        raise ProgramError(another(module, key, parameter))


def unconstrained(value: Any) -> Tensor:
    """Return the tensor of the store behind a value of it."""
    tensor: Tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
    return tensor


def user_of(parameter: Tensor) -> nn.Module | None:
    """Return a module that has the parameter."""
    modules = (thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module))
    return next((m for m in modules if any(p is parameter for p in m.__dict__.get("_parameters", {}).values())), None)


_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_count = itertools.count()
_registered: weakref.WeakValueDictionary[int, Tensor] = (
    weakref.WeakValueDictionary()
)  # by id: tensors compare by entries


def stored_parameters() -> list[tuple[str, Tensor]]:
    """List names and unconstrained values in Pyro's store."""
    while True:
        try:
            return list(pyro.get_param_store().named_parameters())
        except RuntimeError:  # a module that the garbage collector took meanwhile has emptied the store of its own
            continue


def _forget(name: str) -> None:
    """Empty the store of a module that no longer exists."""
    store, parameters = pyro.get_param_store(), stored_parameters()
    for key, tensor in parameters:
        if key.startswith(f"{name}$$$"):
            del store[key]
            shared = {other: t for other, t in parameters if t is tensor and other in store}  # by another module
            store.set_state({"params": shared, "constraints": {}})  # `del` has forgotten whose it is


@contextmanager
def store_restored() -> Iterator[None]:
    """Run programs on a copy of Pyro's parameter store, and put the store back after.

    A module that the garbage collector takes meanwhile empties the copy alone, so what comes back is looked through.
    """
    store = pyro.get_param_store()
    try:
        with store.scope(store.get_state()):
            yield
    finally:
        forget_dead()


def forget_dead() -> dict[str, dict[str, Tensor]]:
    """Empty the store of modules that died while another store stood in its place (a scope, of ours or the user's).

    Returns:
        What else stands there under names of :func:`register` that no live module has, by name.
    """
    others = foreign()
    for name, entries in list(others.items()):
        if all(_registered.get(id(tensor)) is tensor for tensor in entries.values()):
            _forget(name)
            del others[name]
    return others


def register(module: nn.Module) -> None:
    """Declare every trainable parameter of `module` to Pyro, for :class:`pyro.infer.SVI` to find and train.

    Like ``pyro.module(name, module)``, with a name made afresh for each instance (deep copies included): under a fixed
    name, the second model of a process is silently never trained. Frozen parameters are left out without a warning.
    Networks that functions on the module close over are declared with it, those of a module around it, too.
    Under :class:`ParametersRegistered`, as within the steps of ``fit``, nothing is declared again.

    Raises:
        ProgramError: Pyro's store holds another tensor under the name, which would be trained in the module's place, or
            parameters of such a module that is not of this process (a store that was loaded or set by hand).
    """
    if any(isinstance(handler, ParametersRegistered) for handler in active_handlers()):
        return
    declared: set[int] = set()
    for held in networks(module):
        name = name_of(held)
        reshard(held)
        for key, parameter in held.named_parameters():
            if parameter.requires_grad and id(parameter) not in declared:
                declared.add(id(parameter))
                _registered[id(parameter)] = parameter
                declare(f"{name}$$${key}", parameter)
                if pyro.param(f"{name}$$${key}", parameter) is not parameter:
                    raise ProgramError(another(name, key, parameter))


def another(name: str, key: str, parameter: Tensor) -> str:
    """Say that a parameter is not the store's."""
    what = f"Pyro's parameter store holds another tensor than the module for {key!r}{name and f' of {name}'}"
    if overlaps(parameter):
        return f"{what}. Its entries share their memory (expand): give each its own, nn.Parameter(p.detach().clone())."
    return (
        f"{what}: the module's would run, and the store's be trained (ghost training). Load weights into the module itself: by "
        f"load_state_dict, or, of a store that was saved and loaded, load_from_store(module, {name!r}) of "
        "pyro_vae.programs.parameters; or clear the store (pyro.clear_param_store())."
    )


def name_of(module: nn.Module) -> str:
    """Return the name of a module in the store, made when it is asked for first."""
    name = _names.get(module)
    if name is None:
        name = _names[module] = f"{type(module).__name__}.{next(_count)}"
        weakref.finalize(module, _forget, name)
    refuse_foreign(type(module).__name__)
    return name


def refuse_foreign(kind: str) -> None:
    """Refuse a store with parameters of a module of this class that is not of this process: they would be ignored.

    Those of modules that have died since (a scope of the store came back) are dropped.
    """
    for name, entries in forget_dead().items():
        if name.rpartition(".")[0] != kind:
            continue
        raise ProgramError(
            f"Pyro's parameter store holds parameters of {name} ({', '.join(list(entries)[:3])} …), but no module here has "
            f"that name: the names are made afresh in each process, so a store that was saved and loaded is ignored. Load "
            f"the weights into the module: load_from_store(module, {name!r}) of pyro_vae.programs.parameters, or better its "
            "load_state_dict; or clear the store (pyro.clear_param_store())."
        )


def foreign() -> dict[str, dict[str, Tensor]]:
    """Return the parameters in the store under names of :func:`register` that no live module has."""
    form, live = re.compile(r"([^$]+\.\d+)\$\$\$(.+)"), set(_names.values())
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored_parameters():
        if (match := form.fullmatch(key)) and match[1] not in live:
            found.setdefault(match[1], {})[match[2]] = tensor
    return found


def load_from_store(module: nn.Module, name: str = "") -> None:
    """Copy the parameters that Pyro's store holds under a name into a module, and drop them from the store.

    The store is one that ``pyro.get_param_store().load(path)`` has read; `name` is what it was saved under: "VAE.0", or the
    name that ``pyro.module`` was given; "" for a :class:`pyro.nn.PyroModule`, that is declared by its attributes. Buffers
    (statistics of batch norm) and frozen parameters are not in a store: ``module.state_dict()`` has them, too.

    Raises:
        ProgramError: the store has no parameter of that name, or others than the module's trainable ones.

    Example:
        >>> net, store = nn.Linear(1, 1), pyro.get_param_store()
        >>> saved = {"dec$$$weight": torch.ones(1, 1), "dec$$$bias": torch.zeros(1)}
        >>> with store.scope({"params": saved, "constraints": dict.fromkeys(saved, constraints.real)}):
        ...     load_from_store(net, "dec")
        >>> net(torch.ones(1)).item()
        1.0
    """
    store = pyro.get_param_store()
    wanted = {key: p for key, p in module.named_parameters() if p.requires_grad}
    entries = {key: t for key, t in stored_parameters() if not name or key.startswith(f"{name}$$$")}
    loaded = {(key.partition("$$$")[2] if name else attribute(key, module)): t for key, t in entries.items()}
    if {key: p.shape for key, p in wanted.items()} != {key: t.shape for key, t in loaded.items()}:
        raise ProgramError(
            f"Pyro's parameter store has not the trainable parameters of this {type(module).__name__} under {name!r}: wanted "
            f"{shapes(wanted)}; got {shapes(loaded) or 'none'}; in the store: {', '.join(store) or 'nothing'}. "
            "Build the module as the one that was saved, and give the name of then."
        )
    with torch.no_grad():
        for key, tensor in loaded.items():
            wanted[key].copy_(tensor)
    for key in entries:
        del store[key]


def attribute(key: str, module: nn.Module) -> str:
    """Return the parameter's name in a PyroModule of what it declares as `key`."""
    key = key.replace("$$$", ".")
    return f"{key}_unconstrained" if f"{key}_unconstrained" in dict(module.named_parameters()) else key


def shapes(tensors: Mapping[str, Tensor]) -> str:
    """List tensors with their shapes, for messages."""
    return ", ".join(f"{key} {tuple(t.shape)}" for key, t in tensors.items())
