"""Priors without components: normal, Laplace, Student t, sphere, one-hot, Dirichlet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.common.picklable import Picklable
from pyro_vae.distributions.features import MIN_SCALE, UNIT, check_sizes, unsoftplus
from pyro_vae.distributions.one_hot import LinearOneHot
from pyro_vae.distributions.sphere import SphereUniform
from pyro_vae.distributions.wide import wide
from pyro_vae.errors import UsageError


def add_tensor(module: nn.Module, name: str, value: Tensor, learned: bool = False) -> None:
    """Add a parameter, or a constant, which moves with ``.to(device)`` and is not saved."""
    if learned:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value, persistent=False)


class StandardNormal(Picklable):
    r"""p(z) = N(0, I) in `dim` dimensions.

    Example:
        >>> from pyro_vae import StandardNormal
        >>> StandardNormal(16)().event_shape
        torch.Size([16])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_sizes(1, dim=dim)
        add_tensor(self, "loc", torch.zeros(dim))
        add_tensor(self, "scale", torch.ones(dim))

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return dist.Normal(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        return f"dim={self.loc.numel()}"


class LocationScale(Picklable):
    """A product of one-dimensional distributions, at 0 with scale 1 unless loc and scale are learned."""

    family: Callable[[Tensor, Tensor], TorchDistributionMixin]
    loc: Tensor
    raw_scale: Tensor

    def __init__(self, dim: int, learned: bool = False) -> None:
        super().__init__()
        check_sizes(1, dim=dim)
        add_tensor(self, "loc", torch.zeros(dim), learned)
        add_tensor(self, "raw_scale", torch.full((dim,), UNIT), learned)

    @property
    def scale(self) -> Tensor:
        return softplus(self.raw_scale) + MIN_SCALE

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return self.family(self.loc, self.scale).to_event(1)

    def extra_repr(self) -> str:
        return f"dim={self.loc.numel()}, learned={isinstance(self.loc, nn.Parameter)}"


class DiagonalNormal(LocationScale):
    r"""p(z) = N(loc, diag(scale²)), both learned; starts as N(0, I). Event shape ``(dim,)``, support R^dim.

    With a free decoder behind it, an affine layer could absorb loc and scale; it matters where the decoder is restricted.

    Example:
        >>> DiagonalNormal(4)().log_prob(torch.zeros(4)).item()   # as N(0, I)
        -3.67...
    """

    family = dist.Normal

    def __init__(self, dim: int, learned: bool = True) -> None:
        super().__init__(dim, learned)


class Laplace(LocationScale):
    r"""p(z) = Π_i exp(−|z_i − loc_i| / scale_i) / (2 scale_i), at 0 with scale 1 unless learned. Support R^dim.

    Example:
        >>> Laplace(4)(), Laplace(4)().log_prob(torch.zeros(4)).item()   # -4 log 2
        (Independent(Laplace(loc: torch.Size([4]), scale: torch.Size([4])), 1), -2.77...)
    """

    family = dist.Laplace


class StudentT(LocationScale):
    r"""p(z) = Π_i t_df((z_i − loc_i) / scale_i) / scale_i, at 0 with scale 1 unless learned. Support R^dim.

    Args:
        dim: number of latents.
        df: degrees of freedom, > 0; 1 is a Cauchy. The variance is finite above 2.
        learned: whether loc and scale are.

    Example:
        >>> StudentT(4, df=3.0)().event_shape
        torch.Size([4])
    """

    def __init__(self, dim: int, df: float = 5.0, learned: bool = False) -> None:
        super().__init__(dim, learned)
        if not df > 0:
            raise UsageError(f"df must be positive, got {df}")
        self.df = df

    def family(self, loc: Tensor, scale: Tensor) -> TorchDistributionMixin:
        return wide(partial(dist.StudentT, self.df), loc, scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, df={self.df}"


class UniformSphere(Picklable):
    r"""p(z) = Γ(d/2) / (2 π^{d/2}) on the unit sphere in R^d; d = `dim` ≥ 2 is what the decoder sees.

    Densities on the sphere are with respect to its area: pair it with a posterior on the sphere (``power_spherical``).

    References:
        Hyperspherical Variational Auto-Encoders (Davidson et al., 2018), https://arxiv.org/abs/1804.00891

    Example:
        >>> UniformSphere(3)().log_prob(torch.tensor([0.0, 0.0, 1.0])).item()   # -log(4 π)
        -2.531...
    """

    zero: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_sizes(2, dim=dim)
        add_tensor(self, "zero", torch.zeros(dim))

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return SphereUniform(self.zero)

    def extra_repr(self) -> str:
        return f"dim={self.zero.numel()}"


class OneHot(Picklable):
    r"""p(z = e_k) = π_k over one-hot vectors e_1..e_K: uniform, or with learned weights.

    Event shape ``(categories,)``. Discrete: enumerate it (``infer={"enumerate": "parallel"}`` and TraceEnum_ELBO), or pair
    it with ``one_hot_categorical`` (score-function gradient) or ``one_hot_categorical_st`` (straight-through).

    Example:
        >>> OneHot(4)().log_prob(torch.eye(4))   # -log 4 each
        tensor([-1.3863, -1.3863, -1.3863, -1.3863])
    """

    logits: Tensor

    def __init__(self, categories: int, learned: bool = False) -> None:
        super().__init__()
        check_sizes(1, categories=categories)
        add_tensor(self, "logits", torch.zeros(categories), learned)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return LinearOneHot(logits=self.logits.log_softmax(-1))

    def extra_repr(self) -> str:
        return f"categories={self.logits.numel()}, learned={isinstance(self.logits, nn.Parameter)}"


class Dirichlet(Picklable):
    r"""p(z) = Γ(Σ a_i) Π_i z_i^{a_i − 1} / Γ(a_i) on the simplex of `dim` parts; event shape ``(dim,)``.

    The density is with respect to the first dim − 1 coordinates, as that of ``logistic_normal``.

    Args:
        dim: number of parts, at least 2.
        concentration: a, the same for every part.
        learned: whether to learn one a for each part, from there.

    Example:
        >>> round(Dirichlet(3)().log_prob(torch.tensor([0.2, 0.3, 0.5])).exp().item(), 5)   # uniform on an area of 1/2
        2.0
    """

    raw: Tensor

    def __init__(self, dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        check_sizes(2, dim=dim)
        if not concentration > MIN_SCALE:
            raise UsageError(f"concentration must be above {MIN_SCALE}, got {concentration}")
        # softplus is the identity above 50, and its inverse would overflow above 700
        raw = torch.full((dim,), unsoftplus(concentration - MIN_SCALE) if concentration < 50 else concentration)
        add_tensor(self, "raw", raw, learned)

    def forward(self, *context: Tensor) -> TorchDistributionMixin:
        return wide(lambda raw: dist.Dirichlet(softplus(raw) + MIN_SCALE), self.raw)

    def extra_repr(self) -> str:
        return f"dim={self.raw.numel()}, learned={isinstance(self.raw, nn.Parameter)}"
