"""Rows that are kept in dicts, tuples and packed sequences of arrays: laid out as plain tensors, and put back together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pyro_vae.errors import ShapeError

from .arrays import convert, integer_dtype, is_items, real_array

PLAIN = (
    int,
    float,
    str,
    type(None),
    torch.dtype,
    torch.device,
)  # as most arguments are; of a Mapping it is slow to ask


def tensors_in(argument: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument, through dicts, lists and tuples.

    Example:
        >>> [len(t) for t in tensors_in({"image": torch.zeros(3), "text": (torch.zeros(2), "en")})]
        [3, 2]
    """
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from tensors_in(part)
    elif not isinstance(argument, PLAIN) and isinstance(argument, Mapping):
        for part in argument.values():
            yield from tensors_in(part)


def is_structure(x: Any) -> bool:
    """Return whether x holds rows in several arrays, side by side.

    That are dicts, named tuples, a ``PackedSequence``, and tuples of arrays of as many rows each whose rows differ in shape;
    a tuple of arrays of one shape is a tuple of rows, as a list is.
    """
    if isinstance(x, Mapping) or is_named_tuple(x):
        return True
    if not isinstance(x, tuple) or not all(isinstance(part, Tensor | np.ndarray) or is_structure(part) for part in x):
        return False
    shapes = [tuple(part.shape) if hasattr(part, "shape") else None for part in x]
    lengths = {shape[0] for shape in shapes if shape}
    return () not in shapes and len(lengths) <= 1 and (None in shapes or len(set(shapes)) > 1)


def is_named_tuple(x: Any) -> bool:
    """Return whether x is a tuple with names, of which a ``PackedSequence`` is one."""
    return isinstance(x, tuple) and hasattr(type(x), "__match_args__")


@dataclass(frozen=True)
class Layout:
    """How an argument is put together from tensors: the kind of its container, and the layouts of what that holds."""

    kind: Any = None  # None: one tensor; dict, tuple, a class of named tuples, or PackedSequence
    names: tuple[Any, ...] = ()
    parts: tuple[Layout, ...] = ()

    @property
    def size(self) -> int:
        """How many tensors it takes."""
        return {None: 1, PackedSequence: 2}.get(self.kind, sum(part.size for part in self.parts))

    def __str__(self) -> str:
        if self.kind is None:
            return "an array"
        if self.kind is PackedSequence:
            return "a PackedSequence"
        parts = [f"{n!r}: {p}" for n, p in zip(self.names, self.parts, strict=True)] if self.names else self.parts
        return f"{'a dict' if self.kind is dict else 'a ' + self.kind.__name__} of ({', '.join(map(str, parts))})"

    def restore(self, tensors: tuple[Any, ...]) -> Any:
        """Put the argument together."""
        if self.kind is None:
            return tensors[0]
        if self.kind is PackedSequence:
            padded, lengths = tensors
            return pack_padded_sequence(padded, lengths.long().cpu(), batch_first=True, enforce_sorted=False)
        built, start = [], 0
        for part in self.parts:
            built.append(part.restore(tensors[start : start + part.size]))
            start += part.size
        if self.kind is dict:
            return dict(zip(self.names, built, strict=True))
        return tuple(built) if self.kind is tuple else self.kind(*built)


def lay_out(x: Any, name: str) -> tuple[Layout, list[Any]]:
    """Return an argument's layout and its arrays, each with one entry a row; a plain array is its own.

    Raises:
        DataError: a part that is no array of real numbers, named as ``x['text']``.
        ShapeError: parts of another number of rows.

    Example:
        >>> layout, arrays = lay_out({"image": torch.zeros(3, 2), "label": torch.tensor([0, 1, 1])}, "x")
        >>> [tuple(a.shape) for a in arrays], sorted(layout.restore(tuple(arrays)))
        ([(3, 2), (3,)], ['image', 'label'])
    """
    if not is_structure(x):
        return Layout(), [x]
    found = list(leaves(x, name))
    rows = {path: len(array) for path, array in found}
    if len(set(rows.values())) != 1:
        raise ShapeError(
            f"{name} holds {', '.join(f'{path} of {n} rows' for path, n in rows.items()) or 'nothing'}: give each part one "
            "entry a row, in the same order."
        )
    return layout_of(x), [array for _, array in found]


def layout_of(x: Any) -> Layout:
    """Return the containers of an argument."""
    if not is_structure(x):
        return Layout()
    if isinstance(x, PackedSequence):
        return Layout(PackedSequence)
    kind = dict if isinstance(x, Mapping) else type(x) if is_named_tuple(x) else tuple
    names = tuple(x) if kind is dict else ()
    return Layout(kind, names, tuple(layout_of(part) for part in (x.values() if kind is dict else x)))


def leaves(x: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the arrays of a structure as tensors of their own dtype, by a name such as ``x['text']``."""
    if isinstance(x, PackedSequence):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        yield from ((f"{name} (padded)", padded.detach()), (f"{name} (lengths)", lengths.to(padded.device)))
    elif isinstance(x, Mapping):
        for key, part in x.items():
            yield from leaves(part, f"{name}[{key!r}]")
    elif is_named_tuple(x):
        for field, part in zip(type(x).__match_args__, x, strict=True):
            yield from leaves(part, f"{name}.{field}")
    elif is_structure(x):
        for i, part in enumerate(x):
            yield from leaves(part, f"{name}[{i}]")
    else:
        yield name, as_given(x, name)


def as_given(x: Any, name: str) -> Tensor:
    """Convert one array to a tensor that keeps its width: whole numbers stay whole, float64 stays float64."""
    array = real_array(x, name) if is_items(x) or not isinstance(x, Tensor) else x
    double = not isinstance(array, Tensor) and array.dtype == np.float64 and not isinstance(x, list | tuple)
    return convert(array, name, integer_dtype(array) or (torch.float64 if double else None), missing=True)[0]
