r"""Statistics T(x) of rows, in which data and replications are compared; NaN is a gap."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_vae.errors import DataError, ShapeError

Statistic = Callable[[Tensor], Tensor]


def elements(x: Tensor) -> Tensor:
    """Flatten rows to ``(rows, d)``."""
    return x.reshape(len(x), -1)


def mean(values: Tensor) -> Tensor:
    """Average ``(rows, d)`` over what is no gap (NaN): ``(rows,)``; 0 where all is."""
    return values.nanmean(1).nan_to_num(0.0) if values.isnan().any() else values.mean(1)


def standard_deviation(x: Tensor) -> Tensor:
    """Return the root mean square deviation from the mean, of what is no gap."""
    values = elements(x)
    return mean((values - mean(values).unsqueeze(1)).square()).sqrt()


def share_of_zeros(x: Tensor) -> Tensor:
    """Return the share of zeros among what is no gap."""
    values = elements(x)
    return mean((values == 0).to(x.dtype).masked_fill(values.isnan(), torch.nan))


def largest(x: Tensor) -> Tensor:
    """Return the largest entry; 0 where all is missing."""
    values = elements(x)
    return values.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(1).masked_fill(values.isnan().all(1), 0.0)


STATISTICS: dict[str, Statistic] = {
    "mean": lambda x: mean(elements(x)),
    "standard deviation": standard_deviation,
    "share of zeros": share_of_zeros,
    "max": largest,
}


def evaluated(name: str, statistic: Statistic, x: Tensor, dims: tuple[int, ...] = (0, 1)) -> Tensor:
    """T(x) in float64: ``(rows,)``, or one number of all rows, whichever `dims` allow."""
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())  # whole numbers have no mean
    value = torch.as_tensor(statistic(x)).detach().to("cpu", torch.float64)
    if value.shape not in ((len(x),), ()) or value.dim() not in dims:
        raise ShapeError(
            f"the statistic {name!r} returned shape {tuple(value.shape)} for {len(x)} rows of shape {tuple(x.shape[1:])}; "
            f"wanted ({len(x)},), one number a row, or always (), one for all rows. Reduce it: t.flatten(1).mean(1)."
        )
    if value.isnan().any():
        rows = value.isnan().reshape(-1).nonzero().flatten().tolist()
        raise DataError(
            f"the statistic {name!r} is NaN in rows {rows[:5]} (data or replications): it compares with nothing"
        )
    return value


def on_replications(name: str, statistic: Statistic, again: Tensor, of_all: bool) -> Tensor:
    """Return T of x_rep ``(S, n, *event)``: ``(S, n)``; or ``(S, 1)`` for one of all rows together."""
    if of_all:
        return torch.stack([evaluated(name, statistic, one, (0,)) for one in again]).reshape(-1, 1)
    return evaluated(name, statistic, again.flatten(0, 1), (1,)).reshape(again.shape[:2])
