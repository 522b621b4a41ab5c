"""The logistic distribution, in bins: log-probabilities of bins, and draws of what is binned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def log_prob_of_bin(upper: Tensor, lower: Tensor, width: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """log(s(a) − s(b)) = log s(a) + log s(−b) + log(1 − e^{b − a}), of a bin's upper edge a and lower edge b; s the logistic.

    Args:
        width: a − b, above 0.
        first, last: where a bin reaches to −∞, and to +∞.
    """
    below_upper, above_lower = logsigmoid(upper), logsigmoid(-lower)
    inner = below_upper + above_lower + torch.log(-torch.expm1(-width))
    return torch.where(first, below_upper, torch.where(last, above_lower, inner))


def standard_logistic(shape: Sequence[int], like: Tensor) -> Tensor:
    """Draw from the logistic distribution of loc 0 and scale 1, finite numbers of the dtype and device of `like`."""
    limits = torch.finfo(like.dtype)
    # the logit of 0 and of 1 is infinite
    return torch.rand(shape, dtype=like.dtype, device=like.device).clamp(limits.tiny, 1 - limits.eps).logit()
