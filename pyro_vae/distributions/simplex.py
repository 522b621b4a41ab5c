"""Densities on the simplex: softmax of a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor

from .continuous import expanded


class SoftmaxNormal(TorchDistribution):
    r"""The distribution of softmax(loc + scale · ε), ε ~ N(0, I): a logistic normal, symmetric in the parts of the simplex.

    With w_i = 1/scale_i², r_i = log z_i − loc_i and r̄ its w-weighted mean, with respect to the first d − 1 coordinates,

        log q(z) = −½ Σ w_i (r_i − r̄)² − Σ log scale_i − ½ log Σ w_i − (d − 1)/2 log 2π − Σ log z_i.

    Parts below 1e-19 (in float64 1e-154) are drawn and scored as if they were that, so that log z and its gradient are finite.
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.positive}  # noqa: RUF012
    support = constraints.simplex
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SoftmaxNormal:
        shape = Size(batch_shape) + self.event_shape
        return expanded(self, self.loc.expand(shape), self.scale.expand(shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        h = self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return h.softmax(-1).clamp(min=torch.finfo(h.dtype).tiny ** 0.5)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        tiny = torch.finfo(value.dtype).tiny ** 0.5
        log_z, loc, scale = value.clamp(min=tiny).double().log(), self.loc.double(), self.scale.double()
        log_w = -2 * scale.log()
        r = log_z - loc
        # from the part that weighs most: r_i − r̄ of that one would otherwise be a difference of equals, over its small scale
        r = r - r.gather(-1, log_w.argmax(-1, keepdim=True).expand(*r.shape[:-1], 1))
        off = r - (log_w.softmax(-1) * r).sum(-1, keepdim=True)
        d = self.event_shape[0]
        log_prob = (
            -0.5 * (off / scale).square().sum(-1)
            - scale.log().sum(-1)
            - 0.5 * log_w.logsumexp(-1)
            - (d - 1) / 2 * math.log(2 * math.pi)
            - log_z.sum(-1)
        )
        return log_prob.to(value.dtype)
