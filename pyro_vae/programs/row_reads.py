"""What a program computes from its rows: proof that a number, found on the rows of one, holds for others too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# of the first argument these take shape, type and device, and none of its values
LIKE = words(
    """new_zeros new_ones new_empty new_full new_tensor new zeros_like ones_like empty_like full_like rand_like randn_like
    bernoulli_like"""
)
AS = words("expand_as view_as reshape_as type_as to")  # and these of the second
SHAPES = words(  # what these return tells no value; unbound rows and iterators share their tensor's memory
    """size dim ndimension numel nelement __len__ stride element_size storage_offset get_device is_floating_point is_complex
    is_contiguous is_same_size is_signed is_inference is_pinned is_sparse is_tensor type result_type can_cast data_ptr
    __iter__ unbind __hash__ __get__ untyped_storage"""
)
IN_PLACE = words(
    """__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__"""
)


class RowReads(TorchFunctionMode):
    """Follow what torch computes from the values of some tensors, branches and lists of Python included.

    A tensor is known by its memory, so that views follow. Whatever leaves torch (``item``, ``if x > 0``, ``numpy``) makes
    all later ones suspect. What is not :meth:`derived` would be the same for other values of those tensors.

    Example:
        >>> x, z = torch.ones(1), torch.tensor([0.0, 1.0])
        >>> with RowReads([x]) as reads:
        ...     plain, gated = z + x.new_ones(2), torch.where(z > 3, x, z)   # x, where z > 3: nowhere here
        >>> reads.derived([plain]), reads.derived([gated])
        (False, True)
    """

    def __init__(self, tensors: Iterable[Any]) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # so that their memory goes to no other meanwhile
        self.memory: set[int] = set()
        self.left = False  # a value left torch
        self.mark(tensors)

    def mark(self, values: Any) -> None:
        """Count these tensors as computed from the rows."""
        for tensor in tensors_in(values):
            self.kept.append(tensor)
            self.memory.add(memory_of(tensor))

    def derived(self, values: Any) -> bool:
        """Return whether any of these tensors was, or may have been, computed from the rows' values."""
        return self.left or any(memory_of(t) in self.memory for t in tensors_in(values))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, name = func(*args, **kwargs), getattr(func, "__name__", "")
        taken = args[1:] if name in LIKE else args[:1] if name in AS else args
        if not self.reads(taken, kwargs):
            return out
        if name in IN_PLACE or (name.endswith("_") and not name.endswith("__")):
            self.mark(args[:1])
        own = {memory_of(t) for t in tensors_in((args, {k: v for k, v in kwargs.items() if k != "out"}))}
        own -= self.memory  # a view of what was not computed from rows, beside one that was (broadcast_tensors)
        self.mark([t for t in tensors_in(out) if memory_of(t) not in own])
        self.left |= name not in SHAPES and not any(True for _ in tensors_in(out)) and out is not None
        return out

    def reads(self, *values: Any) -> bool:
        return any(memory_of(t) in self.memory for t in tensors_in(values))


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        if values.numel():
            yield values
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
