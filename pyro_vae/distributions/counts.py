"""Discrete densities: counts, grey levels, zero inflation."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn.functional import logsigmoid

from .continuous import Shape, expanded
from .logistic_bins import log_prob_of_bin, standard_logistic


class DiscretizedLogistic(dist.TorchDistribution):
    r"""p(y) = s((y + ½ − loc) / scale) − s((y − ½ − loc) / scale), counts y in 0..levels − 1, s the logistic function.

    The bins of 0 and of levels − 1 reach to −∞ and +∞. With a the upper and b the lower edge of a bin,
    log(s(a) − s(b)) = log s(a) + log s(−b) + log(1 − e^{b − a}): no difference of numbers near each other.

    Args:
        loc: in counts.
        scale: in counts.
        levels: at least 2, the same for every element.

    References:
        PixelCNN++ (Salimans, Karpathy, Chen & Kingma, 2017), https://arxiv.org/abs/1701.05517

    Example:
        >>> d = DiscretizedLogistic(torch.tensor(3.0), torch.tensor(1.0), levels=8)
        >>> round(d.log_prob(torch.arange(8.0)).exp().sum().item(), 5)
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> DiscretizedLogistic:
        shape = torch.Size(batch_shape)
        return expanded(self, self.loc.expand(shape), self.scale.expand(shape), self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        upper, lower = ((value + side - self.loc) / self.scale for side in (0.5, -0.5))
        return log_prob_of_bin(upper, lower, 1 / self.scale, first=value <= 0, last=value >= self.levels - 1)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            return (self.loc + self.scale * standard_logistic(shape, self.loc)).round().clamp(0, self.levels - 1)

    def _at_least(self) -> tuple[Tensor, Tensor]:
        """Return k = 1..levels − 1 and P(y ≥ k), with k as the last dimension."""
        k = torch.arange(1, self.levels, dtype=self.loc.dtype, device=self.loc.device)
        return k, torch.sigmoid((self.loc.unsqueeze(-1) - k + 0.5) / self.scale.unsqueeze(-1))

    @property
    def mean(self) -> Tensor:
        """Σ_k P(y ≥ k): exact, in time and memory that grow with `levels`."""
        return self._at_least()[1].sum(-1)

    @property
    def variance(self) -> Tensor:
        k, tail = self._at_least()
        return (((2 * k - 1) * tail).sum(-1) - self.mean.square()).clamp_min(0)  # E[y²] − E[y]², rounded


class ZeroInflated(dist.TorchDistribution):
    r"""p(y) = g [y = 0] + (1 − g) base(y), for counts y ≥ 0 and g = s(gate_logits).

    Pyro's own scores through the probability g once anything has been sampled, which is −∞ for g that rounds to 1.

    Args:
        base: over counts, with no event dimension.
        gate_logits: log-odds of an extra zero.

    Example:
        >>> ZeroInflated(dist.Poisson(torch.tensor(4.0)), torch.tensor(0.0)).mean
        tensor(2.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate_logits": constraints.real}

    def __init__(self, base: TorchDistributionMixin, gate_logits: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(base.batch_shape, gate_logits.shape)
        self.base, self.gate_logits = base.expand(batch_shape), gate_logits.expand(batch_shape)
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self.base.support

    def expand(self, batch_shape: Shape, _instance: Any = None) -> ZeroInflated:
        return expanded(self, self.base, self.gate_logits.expand(torch.Size(batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        counted = logsigmoid(-self.gate_logits) + self.base.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(logsigmoid(self.gate_logits), counted), counted)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        with torch.no_grad():
            y = self.base.sample(torch.Size(sample_shape))
            return y * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand(y.shape))

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.base.mean

    @property
    def variance(self) -> Tensor:
        counted, extra = torch.sigmoid(-self.gate_logits), torch.sigmoid(self.gate_logits)
        return counted * (self.base.variance + extra * self.base.mean.square())


class Multinomial(dist.Multinomial):
    """Multinomial whose support is exactly the whole numbers ≥ 0 that sum to total_count; torch's admits smaller sums."""

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return Counts(self.total_count)


class Counts(constraints.Constraint):
    """Rows of whole numbers ≥ 0 that sum to `total`."""

    is_discrete = True
    event_dim = 1

    def __init__(self, total: int) -> None:
        self.total = total

    def check(self, value: Tensor) -> Tensor:
        return ((value >= 0) & (value == value.round())).all(-1) & (value.sum(-1) == self.total)

    def __repr__(self) -> str:
        return f"whole numbers that sum to {self.total}"
