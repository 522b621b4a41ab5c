"""Parameters of a module in Pyro's store, under a name that no other instance has."""

from __future__ import annotations

import itertools
import weakref

import pyro
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_vae.common.pyro_private import active_handlers
from pyro_vae.errors import ProgramError


class ParametersRegistered(Messenger):
    """A handler within which our modules do not declare their parameters again, as within a training step."""


_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_count = itertools.count()


def _forget(name: str) -> None:
    """Empty the store of a module that no longer exists."""
    store = pyro.get_param_store()
    parameters = list(store.named_parameters())
    for key, tensor in parameters:
        if key.startswith(f"{name}$$$"):
            del store[key]
            shared = {other: t for other, t in parameters if t is tensor and other in store}  # by another module
            store.set_state({"params": shared, "constraints": {}})  # `del` has forgotten whose it is


def register(module: nn.Module) -> None:
    """Declare every trainable parameter of `module` to Pyro, for :class:`pyro.infer.SVI` to find and train.

    Like ``pyro.module(name, module)``, with a name made afresh for each instance (deep copies included): under a fixed
    name, the second model of a process is silently never trained. Frozen parameters are left out without a warning.
    Under :class:`ParametersRegistered`, as within the steps of ``fit``, nothing is declared again.

    Raises:
        ProgramError: Pyro's store holds another tensor under the name (a store that was loaded or set by hand), which
            would be trained in the module's place.
    """
    if any(isinstance(handler, ParametersRegistered) for handler in active_handlers()):
        return
    name = _names.get(module)
    if name is None:
        name = _names[module] = f"{type(module).__name__}.{next(_count)}"
        weakref.finalize(module, _forget, name)
    for key, parameter in module.named_parameters():
        if parameter.requires_grad and pyro.param(f"{name}$$${key}", parameter) is not parameter:
            raise ProgramError(
                f"Pyro's parameter store holds another tensor than the module for {key!r} of {name}. Load weights into "
                "the module itself (load_state_dict), make its parameters contiguous, or clear the store."
            )
