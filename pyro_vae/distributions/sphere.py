"""Distributions on the unit sphere {z in R^d : |z| = 1}; every density is with respect to its surface area."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.nn.functional import normalize

from .continuous import expanded


def log_area(dim: int) -> float:
    r"""log of 2 π^{d/2} / Γ(d/2), the surface area of the unit sphere in R^d.

    Example:
        >>> round(math.exp(log_area(3)) / math.pi, 6)   # 4 π
        4.0
    """
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class SphereUniform(TorchDistribution):
    r"""The uniform distribution on the unit sphere in R^d: log p(z) = −log(2 π^{d/2} / Γ(d/2)), d ≥ 2.

    Args:
        like: any tensor ``(*batch, d)``; its shape, type and device are taken, not its values.

    Example:
        >>> d = SphereUniform(torch.zeros(5, 3))
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> bool(((d.sample().norm(dim=-1) - 1).abs() < 1e-6).all())
        True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own convention)
    support = constraints.sphere
    has_rsample = True

    def __init__(self, like: Tensor, validate_args: bool | None = None) -> None:
        self.like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SphereUniform:
        return type(self)(self.like.expand(Size(batch_shape) + self.event_shape), self._validate_args)

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.like)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        return normalize(torch.randn(shape, dtype=self.like.dtype, device=self.like.device), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        return value.new_full(shape, -log_area(self.event_shape[0]))


class PowerSpherical(TorchDistribution):
    r"""q(z) = C(κ) (1 + μ·z)^κ on the unit sphere in R^d, with 1/C(κ) = 2^{α+β} π^β Γ(α) / Γ(α+β), β = (d−1)/2, α = β+κ.

    Shaped as a von Mises-Fisher distribution, with an exact reparameterised sample in any dimension d ≥ 2.

    Args:
        loc: μ, unit vectors ``(*batch, d)``.
        concentration: κ > 0, ``(*batch,)``; the uniform distribution as κ goes to 0.

    References:
        The Power Spherical distribution (De Cao & Aziz, 2020), https://arxiv.org/abs/2006.04437
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), https://arxiv.org/abs/1804.00891

    Example:
        >>> d = PowerSpherical(torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([20.0]))
        >>> d.rsample((7,)).shape, d.log_prob(torch.tensor([0.0, 0.0, 1.0])).shape
        (torch.Size([7, 1, 3]), torch.Size([1]))
    """

    arg_constraints = {"loc": constraints.sphere, "concentration": constraints.positive}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc, self.concentration = loc.expand(*batch, loc.shape[-1]), concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PowerSpherical:
        batch = Size(batch_shape)
        return expanded(self, self.loc.expand(batch + self.event_shape), self.concentration.expand(batch))

    @property
    def half(self) -> float:
        """β = (d − 1) / 2."""
        return (self.event_shape[0] - 1) / 2

    @property
    def mean(self) -> Tensor:
        r"""μ κ / (2β + κ): a point inside the sphere; `mode` is the direction."""
        return self.loc * (self.concentration / (2 * self.half + self.concentration)).unsqueeze(-1)

    @property
    def mode(self) -> Tensor:
        return self.loc

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        alpha = (self.half + self.concentration).expand(shape[:-1])
        # Beta(α, β) as a Dirichlet, which keeps 1 − b exact where b rounds to 1
        b = torch.distributions.Dirichlet(
            torch.stack([alpha, torch.full_like(alpha, self.half)], -1), validate_args=False
        ).rsample()
        near, far = b.clamp(min=torch.finfo(b.dtype).tiny ** 0.5).split(1, -1)  # √ has an infinite gradient at 0
        v = normalize(torch.randn(*shape[:-1], shape[-1] - 1, dtype=b.dtype, device=b.device), dim=-1)
        y = torch.cat([near - far, 2 * (near * far).sqrt() * v], -1)  # around the first axis
        loc = self.loc.expand(shape)
        sign = torch.where(loc[..., :1] < 0, -1.0, 1.0).to(b.dtype)  # the reflection whose axis cannot vanish
        first = torch.zeros_like(loc)
        first[..., :1] = sign
        u = normalize(loc + first, dim=-1)
        return normalize(sign * (2 * u * (u * y).sum(-1, keepdim=True) - y), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        alpha, beta = self.half + self.concentration.double(), self.half  # lgamma in float32 is 1e-2 off at κ = 1e4
        log_c = torch.lgamma(alpha + beta) - torch.lgamma(alpha) - beta * math.log(math.pi) - 2 * beta * math.log(2)
        kernel = self.concentration.double() * log_half_cosine(self.loc.double(), value.double())
        return (kernel + log_c).to(torch.promote_types(self.loc.dtype, value.dtype))


def log_half_cosine(a: Tensor, b: Tensor) -> Tensor:
    r"""log((1 + a·b) / 2) of unit vectors, from |a + b|² near −a and from |a − b|² near a, where each is exact.

    Both forgive vectors whose length rounding has changed: times κ = 1e4 that would be 1e-3 nats.
    """
    apart, opposite = (a - b).square().sum(-1) / 4, (a + b).square().sum(-1) / 4
    near = apart < 0.5
    least = torch.finfo(torch.float32).tiny
    # each formula sees only numbers that it can take: where() after an infinity would leave NaN in the gradient
    return torch.where(near, torch.log1p(-apart.clamp(max=0.5)), opposite.clamp(min=least).log())
