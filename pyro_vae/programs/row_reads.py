"""What a program computes from its rows: proof that a number, found on the rows of one, holds for others too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Self

from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_vae.common.torch_private import dispatching, schema
from pyro_vae.data.structures import tensors_in


def words(text: str) -> frozenset[str]:
    """Return the words of a text, as names of operations."""
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

    Seen are calls of torch's functions, and below them its operators: what TorchScript and ``vmap`` compute is seen only there.

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
        self.operators = set[str]()  # that were applied to what was computed from the rows
        self.below = dispatching(self.operate)
        self.left = self.below is None  # a value left torch, or may have left it unseen
        self.mark(tensors)

    def __enter__(self) -> Self:
        if self.below is not None:
            self.below.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.below is not None:
            self.below.__exit__(*error)

    def mark(self, values: Any) -> None:
        """Count these tensors as computed from the rows."""
        for tensor in with_values(values):
            self.kept.append(tensor)
            self.memory.add(memory_of(tensor))

    def derived(self, values: Any) -> bool:
        """Return whether any of these tensors was, or may have been, computed from the rows' values."""
        return self.left or any(memory_of(t) in self.memory for t in with_values(values))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out, name = func(*args, **kwargs), getattr(func, "__name__", "")
        written = args[:1] if name in IN_PLACE or (name.endswith("_") and not name.endswith("__")) else ()
        self.follow(name, args, kwargs, out, written)
        return out

    def operate(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run one of torch's operators, and follow what it returns and writes to."""
        out, name = func(*args, **kwargs), func.overloadpacket.__name__
        names, changed = arguments_of(func)
        values = dict(zip(names, args, strict=False)) | kwargs if changed else {}
        if self.follow(name, args, kwargs, out, [values[name] for name in changed if name in values]):
            self.operators.add(name)
        return out

    def follow(self, name: str, args: Any, kwargs: Any, out: Any, written: Any) -> bool:
        """Mark what a call returned, and wrote to, if it was given values that were computed from the rows."""
        taken = args[1:] if name in LIKE else args[:1] if name in AS else args
        if not self.reads(taken, kwargs):
            return False
        self.mark(written)
        own = {memory_of(t) for t in with_values((args, {k: v for k, v in kwargs.items() if k != "out"}))}
        own -= self.memory  # a view of what was not computed from rows, beside one that was (broadcast_tensors)
        self.mark([t for t in with_values(out) if memory_of(t) not in own])
        self.left |= name not in SHAPES and not any(True for _ in with_values(out)) and out is not None
        return True

    def reads(self, *values: Any) -> bool:
        return any(memory_of(t) in self.memory for t in with_values(values))


@cache
def arguments_of(operator: Any) -> tuple[list[str], list[str]]:
    """Return the names of what an operator takes, and of what it writes to."""
    taken = schema(operator).arguments
    return [a.name for a in taken], [a.name for a in taken if a.alias_info is not None and a.alias_info.is_write]


def with_values(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dictionaries that hold a value: empty ones all lie at one address."""
    return (tensor for tensor in tensors_in(values) if tensor.numel())


def memory_of(tensor: Tensor) -> int:
    """Return where a tensor's values lie; 0 for one that stands for others (in ``vmap``), which are followed themselves."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0
