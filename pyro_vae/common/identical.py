"""Whether two tensors hold the same: where NaN stands for a value, as in a buffer of what is missing, it is like itself."""

from __future__ import annotations

import torch
from torch import Tensor


def identical(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors hold the same, NaN for NaN.

    Example:
        >>> buffer = torch.tensor([1.0, torch.nan])
        >>> identical(buffer, buffer.clone()), torch.equal(buffer, buffer.clone())
        (True, False)
    """
    return a.shape == b.shape and (torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all()))


def spoiled(value: Tensor, own: Tensor) -> bool:
    """Return whether a value that was read has NaN or infinite entries where a module's own, as it was made, has none.

    A mask of −∞ is no sign of damage, and neither is NaN for what is missing.

    Example:
        >>> mask = torch.tensor([0.0, -torch.inf])
        >>> spoiled(mask, mask.clone()), spoiled(mask, torch.zeros(2))
        (False, True)
    """
    bad = ~value.isfinite()
    return bool(bad.any()) and bool((bad & own.to(value.device).isfinite()).any())
