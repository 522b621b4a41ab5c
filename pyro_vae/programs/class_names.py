"""Names of distributions in messages."""

from __future__ import annotations

from typing import Any

from torch.distributions import TransformedDistribution


def class_name(fn: Any) -> str:
    """Return the class of a distribution, beneath to_event and masks; of a transformed one, its own.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> class_name(dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
        'LogNormal'
    """
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return type(fn).__name__
