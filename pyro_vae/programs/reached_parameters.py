"""Parameters that terms of a pair depend on: those that autograd finds on the way back from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def reached(terms: Iterable[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Return the parameters that the terms depend on; their graph is kept.

    Example:
        >>> a, b = torch.ones(2), torch.ones(2)
        >>> for parameter in (a, b):
        ...     _ = parameter.requires_grad_()
        >>> [p is b for p in reached([b.exp(), torch.ones(3)], [a, b])]
        [True]
    """
    linked = [term.sum() for term in terms if term.requires_grad]
    if not linked:
        return []
    grads = torch.autograd.grad(linked, parameters, allow_unused=True, retain_graph=True)
    return [p for p, grad in zip(parameters, grads, strict=True) if grad is not None]
