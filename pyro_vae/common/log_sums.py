"""log Σ e^v with the gradient of a softmax, however large the values are."""

from __future__ import annotations

import math

from torch import Tensor


def log_sum_exp(values: Tensor, dim: int, log_weights: Tensor | None = None) -> Tensor:
    """log Σ π e^v along `dim`, whose gradient is a softmax of log π + v: shares that sum to 1. Weights are 1 unless given.

    torch's own has the gradient e^(v − log Σ e^v), and the logarithm is rounded as the values are: at −10⁴ in float32 the
    shares are wrong by 5e-4 of themselves, and two equal values of −10⁸ have a share of 1 each. Here the largest value is
    taken off first. The value is the same to the bit, without weights.

    Example:
        >>> import torch
        >>> v = torch.full((2,), -1e8, requires_grad=True)
        >>> torch.autograd.grad(v.logsumexp(0), v)[0], torch.autograd.grad(log_sum_exp(v, 0), v)[0]
        (tensor([1., 1.]), tensor([0.5000, 0.5000]))
    """
    largest = values.detach().amax(dim, keepdim=True)
    largest = largest.masked_fill(largest.abs() == math.inf, 0.0)  # ∞ − ∞ is NaN
    below = values - largest
    return (below if log_weights is None else below + log_weights).logsumexp(dim) + largest.squeeze(dim)
