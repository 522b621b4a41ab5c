"""A row of columns of different families as one density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from .continuous import Shape, expanded


class Columns(dist.TorchDistribution):
    r"""p(y) = Π_b p_b(y_b): a row whose blocks of columns have different families, independent of each other.

    Args:
        blocks: distributions over ``(width,)`` each (event dim 1), whose batch shapes broadcast.

    Example:
        >>> age, visits = dist.Normal(torch.zeros(5, 1), 1.0), dist.Poisson(torch.full((5, 2), 3.0))
        >>> d = Columns([age.to_event(1), visits.to_event(1)])
        >>> d.batch_shape, d.event_shape
        (torch.Size([5]), torch.Size([3]))
        >>> d.mean[0]
        tensor([0., 3., 3.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, blocks: Sequence[TorchDistributionMixin], validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(*(b.batch_shape for b in blocks))
        self.blocks = [b.expand(batch_shape) for b in blocks]
        super().__init__(batch_shape, torch.Size([sum(self.widths)]), validate_args=validate_args)

    @property
    def widths(self) -> list[int]:
        return [b.event_shape[0] for b in self.blocks]

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return ColumnsConstraint([b.support for b in self.blocks], self.widths)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return all(b.has_rsample for b in self.blocks)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> Columns:
        return expanded(self, [b.expand(torch.Size(batch_shape)) for b in self.blocks])

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        values = value.split(self.widths, -1)
        return torch.stack([b.log_prob(v) for b, v in zip(self.blocks, values, strict=True)]).sum(0)

    def sample(self, sample_shape: Shape = ()) -> Tensor:
        return torch.cat([b.sample(torch.Size(sample_shape)) for b in self.blocks], -1)

    def rsample(self, sample_shape: Shape = ()) -> Tensor:
        return torch.cat([b.rsample(torch.Size(sample_shape)) for b in self.blocks], -1)

    @property
    def mean(self) -> Tensor:
        """Means of the columns; NaN in those that have none, such as classes."""
        return self._moments("mean")

    @property
    def variance(self) -> Tensor:
        return self._moments("variance")

    def _moments(self, name: str) -> Tensor:
        moments = []
        for block in self.blocks:
            try:
                moments.append(getattr(block, name))
            except NotImplementedError:
                moments.append(None)
        like = next((m for m in moments if m is not None), torch.empty(()))
        pairs = zip(moments, self.blocks, strict=True)
        return torch.cat([like.new_full(b.shape(), math.nan) if m is None else m for m, b in pairs], -1)


class ColumnsConstraint(constraints.Constraint):
    """Rows whose blocks of columns lie each in a support of its own."""

    event_dim = 1

    def __init__(self, supports: Sequence[Any], widths: Sequence[int]) -> None:
        self.supports, self.widths = list(supports), list(widths)
        self.is_discrete = all(s.is_discrete for s in supports)

    def check(self, value: Tensor) -> Tensor:
        return self.check_blocks(value).all(-1)

    def check_blocks(self, value: Tensor) -> Tensor:
        """Return which blocks are within their support, ``(*batch, blocks)``."""
        return torch.stack([s.check(v) for s, v in zip(self.supports, value.split(self.widths, -1), strict=True)], -1)

    def __repr__(self) -> str:
        blocks, start = [], 0
        for support, width in zip(self.supports, self.widths, strict=True):
            base = getattr(support, "base_constraint", support)
            blocks.append(f"{start}..{start + width - 1}: {base}" if width > 1 else f"{start}: {base}")
            start += width
        return f"columns {'; '.join(blocks)}"
