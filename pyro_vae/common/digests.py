"""SHA-256 digests of bytes, of plain values and of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .sharded import to_read


def sha256(content: bytes | memoryview) -> str:
    """Return the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a plain value's JSON; the order of names does not matter.

    Example:
        >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
        True
    """
    # a file name that is no UTF-8 has lone surrogates
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode(errors="surrogatepass"))


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values.

    Example:
        >>> tensor_digest({"w": torch.zeros(2)}) == tensor_digest({"w": torch.zeros(2, dtype=torch.float64)})
        False
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        t = to_read(tensors[name]).contiguous()
        total.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
