"""Marginal baseline: independent elements fitted to the training rows, where an output bias starts and a floor for log p(x)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.common.flagged import is_loose, why_loose
from pyro_vae.distributions.features import MIN_SCALE
from pyro_vae.distributions.missing import Observed
from pyro_vae.evidence.estimate import data_se, finite, format_nats
from pyro_vae.programs.support import support_of_site

CLOSED_FORM = ("bernoulli", "binomial", "normal")
RATE, DOUBLINGS = 0.1, 14  # of Adam: the longest steps reach features of some 10⁵
RISING = 1e-2  # nats a row in fifty steps


def marginal_features(name: str, family: Any, features: int, x: Tensor) -> Tensor:
    """Return the features, one vector for every row, under which independent elements fit the rows: ``(features,)``.

    In closed form for bernoulli, binomial and normal; by gradient, from zero, for every other family, and where values
    are missing.
    """
    if name not in CLOSED_FORM or x.isnan().any():
        return fit_marginal(family, features, x)[0]
    x = x.double()
    if name == "normal":
        spread = (x.std(0, correction=0) - MIN_SCALE).clamp_min(1e-3)
        feature = spread + (-torch.expm1(-spread)).log()  # whose softplus is the spread; log(e^s − 1) overflows at 710
        return torch.cat([x.mean(0), feature]).float()
    trials = 1 if name == "bernoulli" else float(family(torch.zeros(1)).total_count)
    return (
        ((x.sum(0) + 0.5) / (len(x) * trials + 1)).logit().float()
    )  # half a success and half a failure (Jeffreys' prior)


def fit_marginal(family: Any, features: int, x: Tensor, steps: int = 300, rows: int = 500) -> tuple[Tensor, Any]:
    """Fit features, and a copy of the family (it may have parameters), to the mean log-density of some rows.

    Rows outside the support are left out: whoever asks refuses them with a better message than a density would.
    """
    family = copy.deepcopy(family) if isinstance(family, nn.Module) else family
    h = torch.zeros(features, requires_grad=True)
    x = x[support_of_site("x", of_rows(family(h), x)).check(x)]
    x = x[:: max(1, len(x) // rows)]
    parameters = [h, *(family.parameters() if isinstance(family, nn.Module) else ())]
    if len(x):
        climb(lambda: of_rows(family(h), x).log_prob(x).mean(), parameters, steps)
    return h.detach(), family


def climb(objective: Callable[[], Tensor], parameters: list[Tensor], steps: int) -> None:
    """Maximize by Adam; where the first steps do not reach the top, by longer ones, and by shorter ones again at the end."""
    rate, end = RATE, False
    while not end:
        end = ascend(objective, parameters, rate, steps) <= RISING or rate > RATE * 2**DOUBLINGS
        rate = rate if end else 2 * rate
    while rate > RATE:
        rate /= 2
        ascend(objective, parameters, rate, steps // 3)


def ascend(objective: Callable[[], Tensor], parameters: list[Tensor], rate: float, steps: int) -> float:
    """Take some steps of Adam; return what the last sixth of them gained. Steps that end in no number are taken back."""
    before = [p.detach().clone() for p in parameters]
    optimizer, values = torch.optim.Adam(parameters, lr=rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = objective()
        (-value).backward()
        optimizer.step()
        values.append(value.item())
    if not all(math.isfinite(value) for value in values):
        for p, was in zip(parameters, before, strict=True):
            p.data.copy_(was)
        return 0.0
    return values[-1] - values[-1 - steps // 6]


def of_rows(d: Any, x: Tensor) -> Any:
    """Turn a distribution over elements into one over rows, of what is observed in x."""
    d = d.to_event(1 - d.event_dim)
    return Observed(d) if x.isnan().any() else d


def summarize_floor(model: str, log_px: Tensor, floor_px: Tensor) -> dict[str, Any]:
    """Average a floor over rows, with its data error, and log p(x) of a model above it, paired row by row; None if unknown."""
    above = log_px - floor_px
    return {
        "model": model,
        "log_px": floor_px.mean().item(),
        "log_px_data_se": data_se(floor_px),
        "cleared_by": finite(above.mean()),
        "cleared_by_se": data_se(above) if above.isfinite().all() else None,
    }


def below_floor(told: Mapping[str, Any], evidence: Mapping[str, Any]) -> str | None:
    """Say that a model lies below its floor, with the standard error of the paired difference; else None.

    Where too many rows of the evidence are flagged, log p(x) is a loose bound, and so is the difference.

    Example:
        >>> told = summarize_floor("independent elements", torch.tensor([-9.0, -9.5]), torch.tensor([-2.0, -2.5]))
        >>> below_floor(told, {"rows": 2, "rows_flagged": 0})
        'log p(x) lies 7.000 ± 0.000 nats a row below the floor (independent elements): ...'
    """
    cleared, se = told.get("cleared_by"), told.get("cleared_by_se")
    if cleared is None or cleared >= 0:
        return None
    below = f"{-cleared:.3f} ± {format_nats(se)} nats a row"
    if is_loose(evidence):
        below = f"{'about' if 'how' in evidence else 'at most'} {-cleared:.2f} nats a row ({why_loose(evidence)})"
    return (
        f"log p(x) lies {below} below the floor ({told['model']}): a model that knows "
        "each element apart is better. Look at the scale of x (--standardize), the likelihood and its support, fewer epochs "
        "(--patience) or a smaller --learning-rate."
    )


def floor(name: str, family: Any, features: int, train: Tensor, x: Tensor) -> Tensor:
    """Return exact log p(x) of each row under independent elements fitted to the training rows: a VAE must clear it.

    Example:
        >>> from pyro_vae import bernoulli
        >>> floor("bernoulli", bernoulli, 1, torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0]]))   # log 1/2
        tensor([-0.6931], dtype=torch.float64)
    """
    if name in CLOSED_FORM and not train.isnan().any():
        d = family(marginal_features(name, family, features, train).double())
        return of_rows(d, x).log_prob(x.double())
    h, fitted = fit_marginal(family, features, train)
    with torch.no_grad():
        return of_rows(fitted(h), x).log_prob(x).double()
