"""The rows of a site: the plate that they lie in, and which of them a mask is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor


def frames_of(site: Mapping[str, Any]) -> dict[str, CondIndepStackFrame]:
    """Return the plates that a site lies in, by name."""
    return {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def row_dim(site: Mapping[str, Any]) -> int | None:
    """Return the dim of the plate that a site's rows lie along, as far as the site alone tells: "data", or its first one."""
    frames = frames_of(site)
    frame = frames.get("data") or next(iter(frames.values()), None)
    return None if frame is None else frame.dim


def rows_where(mask: Tensor, dim: int) -> Tensor:
    """Return the numbers of the rows, along a dim, where a mask holds anywhere."""
    by_row = mask.movedim(dim, 0)
    return by_row.reshape(len(by_row), -1).any(1).nonzero().flatten()
