"""Densities that Pyro lacks, or has in a form that does not stay finite or normalised in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

Shape = Sequence[int]
D = TypeVar("D", bound=dist.TorchDistribution)


def expanded(old: D, *parameters: Any) -> D:
    """Make what ``old.expand`` returns of its parameters, which were checked when `old` was made."""
    cls: Any = type(old)
    new = cls(*parameters, validate_args=False)
    new._validate_args = old._validate_args
    return new


class Beta(dist.Beta):
    """Beta on the open interval (0, 1): at 0 and 1 the density is 0 or infinite, so neither has a log-likelihood."""

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return OpenUnitInterval()

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        y = super().rsample(torch.Size(sample_shape))
        limits = torch.finfo(y.dtype)
        return y.clamp(limits.tiny, 1 - limits.eps)  # where float rounds a draw to 0 or 1


class Gamma(dist.Gamma):
    """Gamma on y > 0: torch admits y = 0 too, where the density is 0 or infinite unless the concentration is 1."""

    support = constraints.positive  # type: ignore[assignment]


class OpenUnitInterval(constraints.Constraint):
    """0 < y < 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "0 < y < 1"


class ContinuousBernoulli(dist.TorchDistribution):
    r"""p(y) = η e^{ηy} / (e^η − 1) for y in [0, 1]: an exponential cut off at 1, rising where η > 0.

    torch's own clamps η to ±16 (float32) in the normaliser alone, so that beyond it the density no longer integrates to 1.
    Here η is any float, and near 0 its Taylor series is used (absolute error below 2e-12).

    Args:
        logits: η.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham, 2019),
        https://arxiv.org/abs/1907.06845

    Example:
        >>> ContinuousBernoulli(torch.tensor(0.0)).log_prob(torch.tensor(0.3)).exp()   # uniform
        tensor(1.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> ContinuousBernoulli:
        return expanded(self, self.logits.expand(torch.Size(batch_shape)))

    def _near_0(self, width: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
        """Return where |η| is small, η there and 0 elsewhere, and |η| with 1 there.

        Each formula sees only numbers that it can take: where() after a division by 0 would leave NaN in the gradient.
        """
        eta, near = self.logits, self.logits.abs() < width
        return near, torch.where(near, eta, torch.zeros_like(eta)), torch.where(near, torch.ones_like(eta), eta).abs()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        near, eta, size = self._near_0()
        t = eta.square()
        taylor = t / 24 - t.square() / 2880 + t**3 / 181440  # of log sinh(η/2) / (η/2)
        from_peak = torch.where(self.logits > 0, value - 1, value)  # e^η cancels by hand
        far = self.logits * from_peak - (-torch.expm1(-size) / size).log()
        return torch.where(near, self.logits * (value - 0.5) - taylor, far)

    @property
    def mean(self) -> Tensor:
        near, eta, size = self._near_0()
        taylor = eta / 12 - eta**3 / 720 + eta**5 / 30240
        return 0.5 + torch.where(near, taylor, self.logits.sign() * (0.5 / torch.tanh(size / 2) - 1 / size))

    @property
    def variance(self) -> Tensor:
        near, eta, size = self._near_0()
        t = eta.square()
        far = size**-2 - torch.exp(-size) / torch.expm1(-size).square()
        return torch.where(near, 1 / 12 - t / 240 + t.square() / 6048, far)

    def icdf(self, value: Tensor) -> Tensor:
        near, _, size = self._near_0(1e-3)
        falling = -torch.log1p(value * torch.expm1(-size)) / size
        far = torch.where(self.logits > 0, 1 + torch.log1p((1 - value) * torch.expm1(-size)) / size, falling)
        return torch.where(near, value + self.logits * value * (1 - value) / 2, far).clamp(0, 1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))
