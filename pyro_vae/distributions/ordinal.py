"""Ordered classes: a logistic variable, cut into bins whose edges are given."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .continuous import Shape, expanded
from .logistic_bins import log_prob_of_bin, standard_logistic


class OrderedLogistic(dist.TorchDistribution):
    r"""P(y ≤ k) = s(c_k − loc), for classes y in 0..C − 1 in their order, s the logistic function and c the C − 1 cutpoints.

    With u = c_y − loc and l = c_{y−1} − loc, log P(y) = log s(u) + log s(−l) + log(1 − e^{l − u}): no difference of numbers
    near each other, so that classes far from loc keep their log-probability. Pyro's own subtracts two values of s.

    Args:
        loc: of the logistic variable, ``(*batch)``.
        cutpoints: ``(*batch, C − 1)``, each greater than the one before it.

    References:
        Regression Models for Ordinal Data (McCullagh, 1980), https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    Example:
        >>> d = OrderedLogistic(torch.tensor(0.3), torch.tensor([-1.0, 0.0, 2.0]))
        >>> round(d.log_prob(torch.arange(4.0)).exp().sum().item(), 5)
        1.0
    """

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "cutpoints": constraints.ordered_vector}

    def __init__(self, loc: Tensor, cutpoints: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(loc.shape, cutpoints.shape[:-1])
        self.loc, self.cutpoints = loc.expand(shape), cutpoints.expand(*shape, cutpoints.shape[-1])
        super().__init__(shape, validate_args=validate_args)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.cutpoints.shape[-1] + 1

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_classes - 1)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> OrderedLogistic:
        shape = torch.Size(batch_shape)
        return expanded(self, self.loc.expand(shape), self.cutpoints.expand(*shape, self.num_classes - 1))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        last = self.num_classes - 1
        shape = torch.broadcast_shapes(value.shape, self.loc.shape)
        value = value.expand(shape)
        edges = (self.cutpoints - self.loc.unsqueeze(-1)).expand(*shape, last)
        code = value.long().unsqueeze(-1)
        upper = edges.gather(-1, code.clamp(0, last - 1)).squeeze(-1)
        lower = edges.gather(-1, (code - 1).clamp(0, last - 1)).squeeze(-1)
        first_or_last = (value <= 0) | (value >= last)  # whose bins reach to −∞ and +∞
        width = torch.where(first_or_last, 1.0, upper - lower)
        return log_prob_of_bin(upper, lower, width, first=value <= 0, last=value >= last)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return (
                ((self.loc + standard_logistic(shape, self.loc)).unsqueeze(-1) > self.cutpoints)
                .sum(-1)
                .to(self.loc.dtype)
            )

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """List the classes, ``(C, *batch)``, or ``(C, 1, …)`` where they are not expanded."""
        codes = torch.arange(self.num_classes, dtype=self.loc.dtype, device=self.loc.device)
        codes = codes.reshape(-1, *[1] * len(self.batch_shape))
        return codes.expand(-1, *self.batch_shape) if expand else codes

    def _at_least(self) -> Tensor:
        """Return P(y ≥ k) for k = 1..C − 1, as the last dimension."""
        return torch.sigmoid(self.loc.unsqueeze(-1) - self.cutpoints)

    @property
    def mean(self) -> Tensor:
        """Mean of the codes 0..C − 1: Σ_k P(y ≥ k)."""
        return self._at_least().sum(-1)

    @property
    def variance(self) -> Tensor:
        tail = self._at_least()
        k = torch.arange(1, self.num_classes, dtype=tail.dtype, device=tail.device)
        return (((2 * k - 1) * tail).sum(-1) - self.mean.square()).clamp_min(0)  # E[y²] − E[y]², rounded
