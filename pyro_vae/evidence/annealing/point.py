"""A point of the chains: where they are, with the log densities and gradients of the path that they walk."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Point:
    r"""Chains at u, with the log densities ``(chains, N)`` and gradients ``(chains, N, D)`` of a path between two densities."""

    u: Tensor  # (chains, N, D)
    start: Tensor
    ratio: Tensor  # log p(x, z) − log start density: the Jacobians cancel, and for start="prior" this is log p(x | z)
    d_start: Tensor
    d_ratio: Tensor

    def log_density(self, beta: float | Tensor) -> Tensor:
        """log start^(1−β) (start · ratio)^β = log start + β ratio, in float64."""
        if isinstance(beta, Tensor):  # on a device, where nothing can be asked of it
            start = self.start.double()
            return torch.where(beta == 0, start, start + beta * self.ratio.double())
        return self.start.double() if beta == 0 else self.start.double() + beta * self.ratio.double()  # 0 · −∞ is NaN

    def slope(self, beta: float | Tensor) -> Tensor:
        """Return the gradient of :meth:`log_density`."""
        return self.d_start + beta * self.d_ratio

    def replaced(self, other: Point, where: Tensor) -> Point:
        """Take the other's chains where the mask ``(chains, N)`` holds."""
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return Point(*(torch.where(where[..., None] if a.dim() == 3 else where, b, a) for a, b in pairs))
