"""SHA-256 digests of bytes, of plain values and of tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import DataError

from .sharded import to_read

AT_ONCE = 2**22  # bytes of a file


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
        if t.numel() == 1:  # contiguous whatever its stride, which then stands in the way of a view as bytes
            t = t.clone(memory_format=torch.contiguous_format)
        total.update(f"{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def check_md5(path: Path, md5: str) -> None:
    """Refuse a file with another digest than the one that is published.

    Raises:
        DataError: names the file and both digests.
    """
    total = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(AT_ONCE):
            total.update(block)
    if (found := total.hexdigest()) != md5:
        raise DataError(
            f"{path} is not that file: its MD5 is {found}, and the published one is {md5}. Delete it and fetch it again."
        )
