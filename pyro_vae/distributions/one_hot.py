"""One-hot densities: linear in their value, and straight-through draws."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor


class LinearOneHot(dist.OneHotCategorical):
    r"""log p(z) = Σ_k z_k log π_k for one-hot z: a one-hot categorical whose log density has a gradient in z.

    Pyro's own looks the entry up, and a straight-through posterior would learn nothing from log p(z) − log q(z).

    Example:
        >>> LinearOneHot(logits=torch.zeros(2)).log_prob(torch.tensor([0.0, 1.0]))   # -log 2
        tensor(-0.6931)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)  # torch normalises logits


class StraightThroughOneHot(dist.OneHotCategoricalStraightThrough):
    r"""One-hot draws whose gradient is that of the probabilities; log q(z) = Σ_k z_k log q_k passes it on."""

    log_prob = LinearOneHot.log_prob
