"""Likelihood families over real, positive and unit-interval values. Layout of features and floors: see :mod:`.registry`."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.common.picklable import Picklable
from pyro_vae.distributions.conditional import Family
from pyro_vae.distributions.continuous import Beta, ContinuousBernoulli, Gamma
from pyro_vae.distributions.features import MIN_SCALE, above_zero, at_least, made_by, parts, positive
from pyro_vae.distributions.wide import beyond_half, in_float64, wide_if_half
from pyro_vae.errors import ShapeError

MAX_LOG_LOC, MAX_LOG_SCALE = 30.0, 8.0  # log_normal: keeps e^y, and its mean, within float32


def _loc_and_scale(h: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(loc, log(1 + e^s) + 1e-4) of the halves (loc, s) of h."""
    loc, raw = parts(h, 2, name)
    return loc, positive(raw)


@beyond_half
def normal(h: Tensor) -> dist.Normal:
    r"""N(loc, scale²) with (loc, s) = halves of h, scale = log(1 + e^s) + 1e-4; 2 d features for d elements, real numbers.

    Example:
        >>> normal(torch.zeros(3, 8)).batch_shape
        torch.Size([3, 4])
    """
    return dist.Normal(*_loc_and_scale(h, "normal"))


def normal_fixed(scale: float = 1.0) -> Family:
    r"""N(h, scale²) with a given scale; d features for d elements, all real numbers.

    Args:
        scale: standard deviation of every element, in the data's units.

    Example:
        >>> normal_fixed(0.1)(torch.zeros(5, 4)).stddev[0, 0]
        tensor(0.1000)
    """
    above_zero(scale, "scale")
    return made_by(normal_fixed, (scale,), beyond_half(lambda h: dist.Normal(h, scale)))


class SharedNormal(Picklable):
    r"""N(h, scale²), the scale of each element learned and shared by all rows; d features for d elements, real numbers.

    scale = exp(log_scale) + 1e-4, with log_scale a parameter that starts at 0 and counts up to 40.

    Args:
        dim: d.

    References:
        Simple and Effective VAE Training with Calibrated Decoders (Rybkin, Daniilidis & Levine, 2021),
        https://arxiv.org/abs/2006.13202 (theirs: one scale for all elements)

    Example:
        >>> from pyro_vae import MLP, Conditional
        >>> likelihood = Conditional(MLP(2, 4), SharedNormal(4))
        >>> likelihood.family.log_scale.shape
        torch.Size([4])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(at_least(1, dim, "dim")))

    @property
    def scale(self) -> Tensor:
        return self.scale_of(self.log_scale)

    @staticmethod
    def scale_of(log_scale: Tensor) -> Tensor:
        return log_scale.clamp(max=40.0).exp() + MIN_SCALE  # e^40 squared still fits float32

    def forward(self, h: Tensor) -> dist.Normal:
        dim = len(self.log_scale)
        if h.shape[-1:] != (dim,):
            raise ShapeError(f"SharedNormal({dim}) takes {dim} features, one an element, got shape {tuple(h.shape)}")
        return wide_if_half(lambda h, log_scale: dist.Normal(h, self.scale_of(log_scale)), h, self.log_scale)

    def extra_repr(self) -> str:
        return f"dim={len(self.log_scale)}"


@beyond_half
def laplace(h: Tensor) -> dist.Laplace:
    r"""p(y) = e^{−|y − loc| / b} / 2b with (loc, s) = halves of h, b = log(1 + e^s) + 1e-4; 2 features an element, reals.

    Example:
        >>> laplace(torch.zeros(3, 8)).batch_shape
        torch.Size([3, 4])
    """
    return dist.Laplace(*_loc_and_scale(h, "laplace"))


def student_t(df: float = 3.0) -> Family:
    r"""p(y) ∝ (1 + ((y − loc) / scale)² / df)^{−(df + 1) / 2}; (loc, s) = halves of h, scale = log(1 + e^s) + 1e-4.

    2 features an element, all real numbers. Outliers pull at it less than at a normal.

    Args:
        df: degrees of freedom, given; the mean exists above 1, the variance above 2.

    Example:
        >>> student_t(5.0)(torch.zeros(3, 8)).batch_shape
        torch.Size([3, 4])
    """
    above_zero(df, "df")
    name = f"student_t({df})"
    return made_by(student_t, (df,), in_float64(lambda h: dist.StudentT(df, *_loc_and_scale(h, name))))


@in_float64
def log_normal(h: Tensor) -> dist.LogNormal:
    r"""log y ~ N(loc, scale²), y > 0; (loc, s) = halves of h, scale = log(1 + e^s) + 1e-4; 2 features an element.

    loc is held within ±30 and scale below 8, or samples and means would leave float32; the gradient is 0 beyond.

    Example:
        >>> log_normal(torch.tensor([-99.0, 0.0])).loc
        tensor([-30.])
    """
    loc, scale = _loc_and_scale(h, "log_normal")
    return dist.LogNormal(loc.clamp(-MAX_LOG_LOC, MAX_LOG_LOC), scale.clamp(max=MAX_LOG_SCALE))


@in_float64
def gamma(h: Tensor) -> Gamma:
    r"""p(y) = β^α y^{α − 1} e^{−βy} / Γ(α), y > 0; α and β are log(1 + e^·) + 1e-4 of h's halves; 2 features an element.

    Its mean is α / β. y = 0 is outside: the density there is 0 or infinite.

    Example:
        >>> gamma(torch.zeros(8)).mean[0]
        tensor(1.)
    """
    concentration, rate = map(positive, parts(h, 2, "gamma"))
    return Gamma(concentration, rate)


@in_float64
def beta(h: Tensor) -> Beta:
    r"""p(y) = y^{α − 1} (1 − y)^{β − 1} / B(α, β), 0 < y < 1; α, β = log(1 + e^·) + 1e-4 of h's halves; 2 features an element.

    Its mean is α / (α + β). 0 and 1 are outside: the density there is 0 or infinite; continuous_bernoulli takes them.

    Example:
        >>> beta(torch.zeros(8)).mean[0]
        tensor(0.5000)
    """
    concentration1, concentration0 = map(positive, parts(h, 2, "beta"))
    return Beta(concentration1, concentration0)


@beyond_half
def continuous_bernoulli(h: Tensor) -> ContinuousBernoulli:
    r"""p(y) = h e^{hy} / (e^h − 1), for grey values y in [0, 1], both ends included; d features for d elements.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem & Cunningham, 2019),
        https://arxiv.org/abs/1907.06845

    Example:
        >>> continuous_bernoulli(torch.tensor([0.0, 1e4])).mean
        tensor([0.5000, 0.9999])
    """
    return ContinuousBernoulli(h)
