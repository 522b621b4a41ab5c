"""Compare two runs of a program at the same latents: its log-probabilities are functions of these, or there is no density."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def same_terms(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two runs at the same latents gave the same log-probabilities, but for rounding."""
    return next(differing(one, other), None) is None


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the sites whose log-probabilities differ between two runs, also those of one run alone."""
    for name in dict.fromkeys([*one, *other]):
        if name not in one or name not in other or not same(one[name], other[name]):
            yield name


def same(a: Tensor, b: Tensor) -> bool:
    """Compare two tensors of log-probabilities, but for rounding: half of the digits of their dtype."""
    near = math.sqrt(torch.finfo(a.dtype).eps) if a.is_floating_point() else 0.0
    return a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=near, atol=near, equal_nan=True)
