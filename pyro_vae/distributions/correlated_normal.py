r"""Normals of correlated coordinates, z = loc + scale · w: their density is taken at w, in float64.

torch scores with the factor of the whole covariance, where scale_i and the correlations are one number: the gradient in one
scale is then a difference of terms of the size of another coordinate's (1e10 where the truth is −1, in float32).
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td


def scaled_log_prob(unit: td.Distribution, loc: Tensor, scale: Tensor, value: Tensor) -> Tensor:
    """log p(w) − Σ log scale, w = (value − loc) / scale; `unit` is the density of w, in float64."""
    w = (value.double() - loc.double()) / scale.double()
    return (unit.log_prob(w) - scale.double().log().sum(-1)).to(value.dtype)


class ScaledMultivariateNormal(dist.MultivariateNormal):
    r"""N(loc, L L'), L = diag(scale) T with T lower triangular and of ones on its diagonal.

        log p(z) = −½ |T⁻¹ w|² − Σ log scale − d/2 log 2π,   w = (z − loc) / scale

    Args:
        loc, scale: ``(*batch, d)``.
        unit_tril: T, ``(*batch, d, d)``.

    Example:
        >>> d = ScaledMultivariateNormal(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.5, 1.0]]))
        >>> d.scale_tril
        tensor([[1., 0.],
                [1., 2.]])
    """

    def __init__(self, loc: Tensor, scale: Tensor, unit_tril: Tensor, validate_args: bool | None = None) -> None:
        self.scale, self.unit_tril = scale, unit_tril
        super().__init__(loc, scale_tril=scale.unsqueeze(-1) * unit_tril, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledMultivariateNormal:
        new: Any = super().expand(
            torch.Size(batch_shape), _instance=self._get_checked_instance(ScaledMultivariateNormal, _instance)
        )
        new.scale, new.unit_tril = self.scale, self.unit_tril
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        unit_tril = self.unit_tril.double()
        unit = td.MultivariateNormal(unit_tril.new_zeros(self.event_shape), scale_tril=unit_tril, validate_args=False)
        return scaled_log_prob(unit, self.loc, self.scale, value)


class ScaledLowRankNormal(dist.LowRankMultivariateNormal):
    r"""N(loc, S (I + U U') S), S = diag(scale).

        log p(z) = −½ w' (I + U U')⁻¹ w − ½ log det(I + U'U) − Σ log scale − d/2 log 2π,   w = (z − loc) / scale

    Args:
        loc, scale: ``(*batch, d)``.
        factor: U, ``(*batch, d, rank)``.

    Example:
        >>> d = ScaledLowRankNormal(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([[1.0], [0.0]]))
        >>> d.variance
        tensor([2., 4.])
    """

    def __init__(self, loc: Tensor, scale: Tensor, factor: Tensor, validate_args: bool | None = None) -> None:
        self.scale, self.factor = scale, factor
        super().__init__(loc, scale.unsqueeze(-1) * factor, scale.square(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledLowRankNormal:
        new: Any = super().expand(
            torch.Size(batch_shape), _instance=self._get_checked_instance(ScaledLowRankNormal, _instance)
        )
        new.scale, new.factor = self.scale, self.factor
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        factor = self.factor.double()
        ones = factor.new_ones(self.event_shape)
        unit = td.LowRankMultivariateNormal(torch.zeros_like(ones), factor, ones, validate_args=False)
        return scaled_log_prob(unit, self.loc, self.scale, value)
