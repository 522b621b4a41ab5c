"""Families: functions from features (what a network put out) to a distribution over elements.

A family of one's own is a function of this kind:

    >>> def student_t(h):
    ...     loc, scale = h.chunk(2, -1)
    ...     return dist.StudentT(3.0, loc, softplus(scale) + 1e-4)
    >>> student_t(torch.zeros(5, 8)).batch_shape
    torch.Size([5, 4])
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.nn.functional import softplus

from .conditional import Family

MIN_SCALE = 1e-4  # keeps the density finite, in float32 too, where softplus underflows to 0


def bernoulli(h: Tensor) -> dist.Bernoulli:
    r"""p(y = 1) = 1 / (1 + e^{-h}), for y in {0, 1}; d features for d elements.

    Grey values between 0 and 1 are outside its support: binarize them, or choose another family.
    """
    return dist.Bernoulli(logits=h)


def binomial(total_count: int) -> Family:
    r"""p(y) = C(n, y) s(h)^y (1 - s(h))^{n - y}, for counts y in 0..n with s the logistic function.

    Args:
        total_count: n, the same for every element.

    Example:
        >>> from pyro_vae.parts.families import binomial
        >>> binomial(16)(torch.zeros(64)).mean[0]
        tensor(8.)
    """

    def family(h: Tensor) -> dist.Binomial:
        return dist.Binomial(total_count, logits=h)

    family.__name__ = f"binomial({total_count})"
    return family


def normal(h: Tensor) -> dist.Normal:
    r"""N(loc, scale²) with (loc, s) = the two halves of h and scale = log(1 + e^s) + 1e-4; 2 d features for d elements."""
    loc, scale = h.chunk(2, -1)
    return dist.Normal(loc, softplus(scale) + MIN_SCALE)
