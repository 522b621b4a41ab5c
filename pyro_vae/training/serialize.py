"""Nested values as JSON and named tensors, and back: the state of an optimizer, a history."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pyro_vae.errors import UsageError

Tensors = dict[str, Tensor]


def pack(value: Any, name: str, tensors: Tensors) -> Any:
    """Express a value as plain JSON; move its tensors to `tensors`, under names that start with `name`.

    Raises:
        UsageError: a value that is neither plain nor a tensor; the message says where it stands.

    Example:
        >>> from pyro_vae.training.serialize import pack, unpack
        >>> tensors = {}
        >>> packed = pack({0: {"step": torch.ones(1), "betas": (0.9, float("inf"))}}, "adam", tensors)
        >>> packed
        {'dict': [[0, {'dict': [['step', {'tensor': 'adam/0/step'}], ['betas', {'tuple': [0.9, {'float': 'inf'}]}]]}]]}
        >>> unpack(packed, tensors)
        {0: {'step': tensor([1.]), 'betas': (0.9, inf)}}
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.generic):
        return pack(value.item(), name, tensors)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        items = [pack(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping) and all(isinstance(k, int | str) for k in value):
        return {"dict": [[k, pack(v, f"{name}/{k}", tensors)] for k, v in value.items()]}
    plain = "numbers, strings, tensors, and lists, tuples and dicts of them"
    raise UsageError(f"a checkpoint cannot hold {name}, a {type(value).__name__}: it holds {plain}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Invert :func:`pack`; raise a KeyError, TypeError or ValueError for a value that was not made by it."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "float":
        return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[value]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in value)
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in value}
    raise ValueError(f"{kind!r} was not made by pack")
