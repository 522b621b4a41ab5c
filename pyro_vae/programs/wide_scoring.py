r"""Log-probabilities with their digits: what cancels in float32 is scored in float64, half precision in float32 or wider.

Which distributions cancel is told by their class, not by their numbers: the arithmetic of a row must not depend on the rows
and particles that it is scored beside.
"""

from __future__ import annotations

from functools import cache, reduce
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.common.widen import HALF, NotWidenedError, ScoredWide, at_least_float32, in_dtype, to_dtype
from pyro_vae.errors import ProgramError

from .vectorize import ParticleDistribution
from .wrapped import base_name, parts

LOG_GAMMAS = (
    "Beta BetaBinomial Binomial Dirichlet DirichletMultinomial ExtendedBetaBinomial ExtendedBinomial FisherSnedecor Gamma "
    "GammaPoisson InverseGamma Multinomial MultivariateStudentT NegativeBinomial Poisson StudentT ZeroInflatedDistribution "
    "ZeroInflatedNegativeBinomial ZeroInflatedPoisson"
)
POWERS = (
    "ContinuousBernoulli Kumaraswamy LogisticNormal LogNormal Pareto ProjectedNormal SineBivariateVonMises SkewLogistic "
    "VonMises Weibull"  # e^x, x^a, I₀
)
MATRICES = "LKJCholesky LowRankMultivariateNormal Wishart"  # differences of squares, or of traces and log-gammas
NAMES = " ".join((LOG_GAMMAS, POWERS, MATRICES)).split()
CANCELLING = tuple(getattr(of, name) for of in (dist, torch.distributions) for name in NAMES if hasattr(of, name))
NORMALISED = (torch.distributions.Categorical, torch.distributions.OneHotCategorical)  # h − log Σ e^h, rounded at max h


@cache
def cancels(kind: type) -> bool:
    """Return whether log_prob of a class takes differences of large terms; not of a class that defines its own.

    Example:
        >>> cancels(dist.Poisson), cancels(dist.Normal)
        (True, False)
    """
    log_prob: Any = getattr(kind, "log_prob", None)
    return any(issubclass(kind, c) and log_prob is c.log_prob for c in CANCELLING)


@cache
def always_wide(kind: type) -> bool:
    """Return whether all distributions of a class are to be scored in float64."""
    return cancels(kind) or issubclass(kind, ScoredWide)


def width_of(fn: Any, latent: bool = True) -> torch.dtype | None:
    """Return the dtype that a distribution is to be scored in; None for its own.

    Logits of observed classes are not normalised again: that takes as long as the rest, and :func:`~pyro_vae.check` tells.
    """
    width = None
    for part in parts(fn.parts[0] if isinstance(fn, ParticleDistribution) else fn):
        kind: Any = part.__class__
        if always_wide(kind):
            return torch.float64
        half = any(getattr(held, "dtype", None) in HALF for held in vars(part).values())
        if half or (latent and isinstance(part, NORMALISED)):
            width = torch.float32
    return width


def wide_enough(fn: Any, value: Tensor, latent: bool = True, name: str = "") -> tuple[Any, Tensor]:
    """Return a distribution and its value in the arithmetic that they are to be scored in; messages tell the site's `name`.

    Raises:
        ProgramError: half precision that cannot be widened.

    Example:
        >>> y = torch.tensor(1e5)
        >>> d, wide = wide_enough(dist.Poisson(y), y)
        >>> wide.dtype, d.log_prob(wide).float(), dist.Poisson(y).log_prob(y)
        (torch.float64, tensor(-6.6754), tensor(-6.7500))
    """
    width = width_of(fn, latent)
    if width is None:
        return fn, value
    try:
        # counts may be whole numbers, whose lgamma torch takes in float32
        return in_dtype(fn, width), value.double() if width == torch.float64 else to_dtype(value, width)
    except NotWidenedError as error:
        raise ProgramError(refused(fn, value.dtype, name)) from error


def wide_log_prob(fn: Any, value: Tensor, latent: bool = True, name: str = "") -> Tensor:
    """log p(value) in the arithmetic of :func:`wide_enough`, rounded to that of the value, or to float32."""
    wide, widened = wide_enough(fn, value, latent, name)
    log_prob: Tensor = wide.log_prob(widened)
    check_digits(fn, log_prob, name)
    return log_prob if wide is fn else log_prob.to(at_least_float32(own_dtype(fn, value)))


def own_dtype(fn: Any, *values: Tensor) -> torch.dtype:
    """Return the dtype that a distribution scores values in by itself."""
    first = fn.parts[0] if isinstance(fn, ParticleDistribution) else fn
    held = [*values, *(t for part in parts(first) for t in vars(part).values() if isinstance(t, Tensor))]
    return reduce(torch.promote_types, [t.dtype for t in held if t.is_floating_point()] or [torch.float32])


def wide_kl(q: Any, p: Any) -> Tensor:
    """KL(q ‖ p) as torch has it, in the wider arithmetic that one of the two is to be scored in."""
    widths = [width for width in map(width_of, (q, p)) if width]
    if not widths:
        return kl_divergence(q, p)
    width = max(widths, key=lambda dtype: torch.finfo(dtype).bits)
    kl = kl_divergence(in_dtype(q, width), in_dtype(p, width))
    return kl.to(at_least_float32(torch.promote_types(own_dtype(q), own_dtype(p))))


def check_digits(fn: Any, log_prob: Tensor, name: str) -> None:
    """Refuse log-probabilities that came out in half precision all the same."""
    if log_prob.dtype in HALF:
        raise ProgramError(refused(fn, log_prob.dtype, name))


def refused(fn: Any, dtype: torch.dtype, name: str) -> str:
    """Say why a distribution in half precision is not scored."""
    digits, short = {torch.bfloat16: 2, torch.float16: 3}.get(dtype, 2), str(dtype).removeprefix("torch.")
    return (
        f"{f'site {name!r}: ' if name else ''}{base_name(fn)} computes its log-probabilities in {short}, which has {digits} "
        "digits, and not from tensors of its own that could be widened. Score the pair in float32 (module.float())."
    )
