"""Singular matrices of single chains: NaN for these, in place of an error for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class NaNWhereSingular(TorchFunctionMode):
    """Mode in which Cholesky factors, inverses and solutions are NaN where a matrix of the batch has none.

    A chain's proposal may lie where the model's covariance is singular in floating point. Torch then raises for the whole
    batch; with NaN for that chain alone its density is NaN there, and the proposal is rejected.

    Example:
        >>> matrices = torch.stack([4 * torch.eye(1), torch.zeros(1, 1)])
        >>> with NaNWhereSingular():
        ...     torch.linalg.cholesky(matrices).flatten()
        tensor([2., nan])
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        checked = CHECKED.get(func)
        if checked is None:
            return func(*args, **(kwargs or {}))
        result, info = checked(*args, **(kwargs or {}))
        extra = result.dim() - info.dim()
        return result.masked_fill((info != 0).reshape(*info.shape, *[1] * extra), torch.nan)


CHECKED: dict[Any, Callable[..., Any]] = {  # the forms that say of each matrix whether it went wrong
    torch.linalg.cholesky: torch.linalg.cholesky_ex,
    torch.linalg.inv: torch.linalg.inv_ex,
    torch.linalg.solve: torch.linalg.solve_ex,
    torch.cholesky: torch.linalg.cholesky_ex,
    torch.inverse: torch.linalg.inv_ex,
    torch.Tensor.cholesky: torch.linalg.cholesky_ex,
    torch.Tensor.inverse: torch.linalg.inv_ex,
}
