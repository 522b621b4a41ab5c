"""Rows that are kept in tuples, lists and dicts of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(argument: Any) -> Iterator[Tensor]:
    """Yield the tensors of an argument, through dicts, lists and tuples.

    Example:
        >>> [len(t) for t in tensors_in({"image": torch.zeros(3), "text": (torch.zeros(2), "en")})]
        [3, 2]
    """
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, Mapping | list | tuple):
        for part in argument.values() if isinstance(argument, Mapping) else argument:
            yield from tensors_in(part)
