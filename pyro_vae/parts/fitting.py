"""Which families fit some data: what the message about data outside a support advises."""

from __future__ import annotations

import torch
from torch import Tensor

from .families import FAMILIES, FamilySpec


def fitting(x: Tensor) -> list[str]:
    """Names of the families in whose support every row of x lies, ``(N, *event)``; NaN is left out of account.

    Options that bound the support (total_count, num_classes, levels) are set by the largest value of x.

    Example:
        >>> fitting(torch.tensor([[0.0, 0.5], [0.25, 1.0]]))
        ['normal', 'normal_fixed', 'SharedNormal', 'laplace', 'student_t', 'continuous_bernoulli']
    """
    values, rows = x[~x.isnan()].float(), x.reshape(len(x), -1).float()
    if not values.numel():
        return []
    broken, total = values[values != values.round()][:1], rows.sum(1)
    probe = torch.cat([torch.stack(torch.aminmax(values)), broken]).unsqueeze(-1)  # these decide for any interval
    one_total = not len(broken) and bool((total == total[0]).all())
    tried = {"multinomial": (rows[:1], total[0]) if one_total else None, "columns": None}
    cases = {name: tried.get(name, (probe, probe.max())) for name in FAMILIES}
    return [name for name, case in cases.items() if case and _holds(FAMILIES[name], *case)]


def _holds(spec: FamilySpec, x: Tensor, largest: Tensor) -> bool:
    """Whether the support of a family, its bounds as wide as the data needs, holds every value."""
    top = max(1, int(largest))
    bounds = {"total_count": top, "num_classes": top + 1, "levels": top + 1, "dim": x.shape[1]}
    options = {name: bounds[name] for name in spec.options if name in bounds}
    features = spec.features(**options) * x.shape[1]
    if features > 100_000:  # classes by the million are no classes
        return False
    return bool(spec.make(**options)(torch.zeros(features)).support.check(x).all())
