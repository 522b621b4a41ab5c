"""Dequantization: counts as densities see them, y = (x + u) / levels, u uniform on [0, 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.common.doubts import is_doubtful
from pyro_vae.common.given import whole
from pyro_vae.errors import SupportError, UsageError

from .arrays import format_rows


def dequantize(levels: int) -> Callable[..., Tensor]:
    r"""Make a transform of counts x in 0 … levels − 1: y = (x + u) / levels in [0, 1), u uniform on [0, 1), element by element.

    A density p(y) then says something of the counts: log P(x) = log ∫ p((x + u) / levels) du − D log levels, and
    E_u[log p(y)] − D log levels lies below it. Without u, a density on a few values can be driven up without end. Pass it as
    ``fit(..., transform=dequantize(levels))``; score ``dequantize(levels)(x)``, and let
    :meth:`Evidence.of_counts <pyro_vae.Evidence.of_counts>` take the Jacobian away.

    Args:
        levels: how many values an element can have: 256 for pixels of 8 bits.

    Returns:
        ``transform(x, generator=None)``; it raises a SupportError for values that are no such count.

    References:
        A Note on the Evaluation of Generative Models (Theis, van den Oord & Bethge, 2016), https://arxiv.org/abs/1511.01844

    Example:
        >>> from pyro_vae.data import dequantize
        >>> y = dequantize(17)(torch.tensor([[0.0, 16.0]]))
        >>> (y * 17).floor()
        tensor([[ 0., 16.]])
    """
    if whole("levels", levels) < 2:
        raise UsageError(f"levels is how many values an element can have, at least 2; got {levels}")

    def transform(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        bad = ~((x >= 0) & (x < levels) & (x == x.round()))
        if is_doubtful(bad.any()):
            raise SupportError(f"x holds no counts 0 to {levels - 1} in {format_rows(torch.atleast_1d(bad))}")
        return (x + torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)) / levels

    return transform
